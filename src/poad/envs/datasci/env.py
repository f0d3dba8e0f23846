"""Data-science coding as a Gymnasium environment."""

import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, Final, NamedTuple, get_args

import gymnasium
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.spaces import Text

from poad.envs.datasci import datasets, text
from poad.envs.datasci.sandbox import Answer, Isolation, Job, Sandbox
from poad.envs.datasci.scoring import REFUSED, Scorer
from poad.envs.datasci.text import Marking
from poad.envs.registry import FreeText
from poad.errors import ConfigError

FAILURE: Final = -1.0
"""The reward of a program that fails."""


class DataScienceEnv(gymnasium.Env[str, str]):
    """An agent writes a classifier for a table, and corrects it if it fails.

    ## Description
    The task is to write the body of a Python function `build_model(x_train, y_train)` that assigns
    a fitted scikit-learn classifier to `model`. A sandbox runs the program on five random halves of
    a table and scores it by ROC-AUC on the other halves. The agent writes freely: an action is any
    text. This is the data-science coding of POAD (arXiv 2405.15821), in our own wording. The score
    depends only on the table and the program, and the seed has no effect.

    `poad/DataScience-v0` needs `pip install -e '.[datasci]'`. docs/data-science.md has more about
    tables and programs. `poad sandbox check` prints how this machine is protected from programs.

    ## Actions
    An action is the body of the function, without `return model`, which is appended. `x_train` is a
    float64 array [rows, features], and `y_train` is an int64 array [rows] of classes from 0. The
    program may import numpy, pandas, scipy and scikit-learn. If the first line has no indentation,
    four spaces are added. There is no `info["admissible_actions"]`.

    `env.unwrapped.prepare(action)` starts running an action without waiting for it. `step` waits.

    ## Observation
    The observation is the beginning of a module. Two lines of comments state the name, rows,
    features and classes of the table, and the task. Then comes the first line of the function.
    After a failure, the last program and its error come first. All characters are printable ASCII;
    others are replaced by "?".

    ## Rewards
    The reward is the mean area under the ROC curve over five splits, from `model.predict_proba`.
    For more than two classes, it is the mean over all pairs of classes (one-vs-one). Split i is
    `train_test_split(x, y, test_size=0.5, random_state=i, shuffle=True)`, and the random generators
    of Python and numpy are seeded with i. A generator that is made without a seed draws numbers
    that depend on the program and i. A program that fails has the reward -1. Failures are syntax
    errors, exceptions, invalid probabilities, and exceeding the limits of time, memory and
    permissions.

    ## Episode end
    The episode is `terminated` when a program has a score, however low, and `truncated` when the
    last try fails. A step after the end or before the first reset raises
    `gymnasium.error.ResetNeeded`.

    After a step, `info` holds:

    * `"duration"`: 1.
    * `"status"`: "ok", "error", "timeout", "killed", "output" or "refused".
    * `"error"`: the message, or "".
    * `"score"`, `"deviation"` and `"scores"`: the mean, the standard deviation and the five scores,
      or None, 0 and () after a failure.
    * `"seconds"`: the wall time of the program.
    * `"cpu_seconds"`: the CPU time that this step used. It is 0 if the result was remembered.
    * `"measures"`: numbers that the trainer averages.
    * `"work"`: the program, if it has a score. The trainer keeps the best one.
    * `"episode"`, at the end of an episode: the undiscounted return `r`, the number of tries `l`,
      and `success`.

    After a reset, `"notes"` holds a line for each protection that the sandbox lacks here.

    ## Arguments
    * `dataset`: a name, the path of a csv file, or "openml:<id>". Names are "balance-scale-125"
      (the default), "balance-scale" (625 rows), "breast-cancer", "wine", "iris" and "digits", and
      from OpenML "breast-w" and "airlines".
    * `target`: the column to predict, for a csv file or an OpenML table.
    * `tries`: the number of programs per episode, 5 by default.
    * `budget`: the time limit of a program in seconds, for all splits together, 30 by default.
    * `isolation`: "auto" (bubblewrap if it works, otherwise confined processes), "bubblewrap",
      "process", or "none", which runs the programs of a language model with all your permissions.
    * `workers`: the number of programs that run at a time, by default one per processor core.
      Copies of the world with equal arguments share their workers and all results.
    * `fill_in_the_middle`: "code-llama", "starcoder" or "qwen" puts that model's tokens around the
      gap; "none" by default.
    * `parity`: refuse programs that contain `GridSearchCV(` or `SVC(`, as the paper's code does to
      save time; on by default.
    """

    free_text: Final = FreeText(stop=text.STOPS, max_tokens=128)

    def __init__(
        self,
        dataset: str = "balance-scale-125",
        target: str | None = None,
        tries: int = 5,
        budget: float = 30.0,
        isolation: Isolation = "auto",
        workers: int = 0,
        fill_in_the_middle: Marking = "none",
        parity: bool = True,
    ) -> None:
        if tries < 1:
            raise ConfigError(f"tries must be at least 1, got {tries}.")
        if not budget > 0:
            raise ConfigError(f"budget must be above 0 seconds, got {budget}.")
        if workers < 0:
            raise ConfigError(f"workers must not be negative, got {workers}.")
        choices = {
            "isolation": (isolation, get_args(Isolation)),
            "fill_in_the_middle": (fill_in_the_middle, get_args(Marking)),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        self.tries = tries
        self._marking: Marking = fill_in_the_middle
        self._shared, self._release = _acquire(
            self, _SharedKey(dataset, target, float(budget), isolation, workers, parity)
        )
        self.observation_space = Text(max_length=2048, charset=text.CHARACTERS)
        self.action_space = Text(max_length=4096, charset=text.CHARACTERS)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode with an empty function, the same one for every seed."""
        super().reset(seed=seed)
        if not self._release.alive:
            raise ClosedEnvironmentError("This copy of the world is closed; make another one.")
        self._running = True
        self._tried, self._return = 0, 0.0
        return self._prompt(None), {"notes": self._shared.opened().notes}

    def prepare(self, action: str) -> None:
        """Start running the program of an action without waiting for it."""
        self._shared.scorer.prepare(text.program(action))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run a program. A failure is a reward and an error message, never an exception."""
        if not self._running:
            raise ResetNeeded("No episode is running; call reset() before step().")
        source = text.program(action)
        result = self._shared.scorer.score(source)
        success = result.score is not None
        reward = FAILURE if result.score is None else result.score
        self._tried += 1
        self._return += reward
        truncated = not success and self._tried >= self.tries
        self._running = not (success or truncated)

        info: dict[str, Any] = {"duration": 1, "error": result.message}
        info |= {key: value for key, value in vars(result).items() if key != "message"}
        info["measures"] = {"executable": float(success)}
        if success:
            info["measures"] |= {"score": result.score}
            info["work"] = {
                "file": "best_program.py",
                "text": source,
                "score": result.score,
                "deviation": result.deviation,
            }
        if not self._running:
            info["episode"] = {"r": self._return, "l": self._tried, "success": success}
        prompt = self._prompt(None if success else (action, result.message))
        return prompt, reward, success, truncated, info

    def memory(self) -> dict[str, dict[str, Any]]:
        """Return the verdicts on all programs so far, which the copies of this world share."""
        return self._shared.scorer.memory()

    def load_memory(self, memory: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `memory` returned, so that a resumed run sees the same verdicts."""
        self._shared.scorer.load_memory(memory)

    def close(self) -> None:
        """Release the workers. The last of the copies that share them stops them."""
        self._running = False
        self._release()

    def _prompt(self, previous: tuple[str, str] | None) -> str:
        table = self._shared.table
        rows, features = table.x.shape
        return text.prompt(
            table.title,
            rows,
            features,
            len(table.classes),
            previous,
            fill_in_the_middle=self._marking,
        )


class _SharedKey(NamedTuple):
    """The arguments in which copies of the world must agree to share a table and its workers."""

    dataset: str
    target: str | None
    budget: float
    isolation: Isolation
    workers: int
    parity: bool


class _Shared:
    """A table with its scorer and sandbox. The sandbox starts when it is first used."""

    def __init__(self, key: _SharedKey) -> None:
        self.table = datasets.load(key.dataset, key.target)
        self.scorer = Scorer(self.table, self, refuse=REFUSED if key.parity else ())
        self.copies = 0
        self._key = key

    @cached_property
    def sandbox(self) -> Sandbox:
        key = self._key
        return Sandbox(isolation=key.isolation, workers=key.workers, budget=key.budget)

    def submit(self, source: str, jobs: Sequence[Job]) -> Future[Answer]:
        return self.opened().submit(source, jobs)

    def opened(self) -> Sandbox:
        """Return the sandbox; of several threads that want it first, one starts it."""
        with _LOCK:
            return self.sandbox

    def close(self) -> None:
        if "sandbox" in vars(self):
            self.sandbox.close()


_SHARED: Final[dict[_SharedKey, _Shared]] = {}
_LOCK: Final = threading.RLock()
"""Guards `_SHARED`: one thread may make a copy while another drops one."""


def _acquire(copy: DataScienceEnv, key: _SharedKey) -> tuple[_Shared, "weakref.finalize[..., Any]"]:
    """Return what the copies with equal arguments share, and a function that releases it."""
    with _LOCK:
        if key not in _SHARED:
            _SHARED[key] = _Shared(key)
        shared = _SHARED[key]
        shared.copies += 1
    return shared, weakref.finalize(copy, _drop, key, shared)


def _drop(key: _SharedKey, shared: _Shared) -> None:
    with _LOCK:
        shared.copies -= 1
        if shared.copies == 0:
            if _SHARED.get(key) is shared:
                del _SHARED[key]
            shared.close()
