"""Data-science coding as a Gymnasium environment."""

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, Final, NamedTuple, get_args

import gymnasium
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.spaces import Text

from poad.envs.datasci import datasets, text
from poad.envs.datasci.sandbox import Answer, Isolation, Job, Sandbox
from poad.envs.datasci.scoring import PARITY, Judge
from poad.envs.datasci.text import Marking
from poad.envs.registry import FreeText

FAILURE: Final = -1.0
"""The reward of a program that could not be scored."""


class DataScienceEnv(gymnasium.Env[str, str]):
    """A programmer writes a classifier for a table, runs it, and mends it when it fails.

    ## Description
    One table, one job: write the body of a Python function `build_model(x_train, y_train)` that
    assigns a fitted scikit-learn classifier to `model`. The program is run in a sandbox on five
    random halves of the table and scored on the other halves, by ROC-AUC. Nothing is offered to
    choose from: an action is any text. This is the data-science coding of POAD (arXiv 2405.15821),
    in our own wording. What a program is worth depends on the table and the text alone, and a seed
    changes nothing.

    `poad/DataScience-v0` needs `pip install 'poad[datasci]'`. docs/data-science.md tells more about
    tables and programs, and `poad sandbox check` what shields this machine from them.

    ## Actions
    The function's body, up to `return model`, which is appended. `x_train` is a float64 array
    [rows, features], `y_train` an int64 array [rows] of classes from 0. The program may import
    numpy, pandas, scipy and scikit-learn. A first line without indentation is given four spaces.
    There is no `info["admissible_actions"]`: the agent writes freely.

    `env.unwrapped.prepare(action)` starts scoring an action without waiting for it; `step` waits.

    ## Observation
    The beginning of a module: two lines of comment that tell the table's name, rows, features and
    classes, and what is wanted; then the line that opens the function. After a failure the last
    program and its error come first. Printable ASCII; anything else reads "?".

    ## Rewards
    The mean over five splits of the area under the ROC curve, from `model.predict_proba`; of more
    than two classes the mean over all pairs of them (one-vs-one). Split i is `train_test_split(x,
    y, test_size=0.5, random_state=i, shuffle=True)`, and Python's and numpy's random generators are
    seeded with i. If anything fails, the reward is -1: a syntax error, an exception, running out of
    time, memory or permissions, or probabilities that are none.

    ## Episode end
    `terminated` when a program could be scored, however well. `truncated` when the last try fails.
    Acting after the end, or before the first reset, raises `gymnasium.error.ResetNeeded`.

    After a step, `info` holds `"duration"`, which is 1; `"status"`: "ok", "error", "timeout",
    "killed", "output" or "refused"; `"error"`, the message or ""; `"score"`, `"deviation"` and
    `"scores"`: mean, standard deviation and the five scores, or None, 0 and (); `"seconds"` the
    program took, and `"cpu_seconds"` it cost now: 0 when the verdict was remembered. For the
    trainer there are `"measures"`, to be averaged, and `"work"`, to be kept when it is the best. At
    the end of an episode `"episode"`: `r`, the undiscounted return, `l`, the tries, and `success`.
    After a reset, `"notes"` tells what the sandbox here lacks, if anything.

    ## Arguments
    * `dataset`: a name, the path of a csv file, or "openml:<id>". Names: "balance-scale-125" (the
      default), "balance-scale" (625 rows), "breast-cancer", "wine", "iris" and "digits"; from
      OpenML "breast-w" and "airlines".
    * `target`: the column of a csv file or OpenML table that is to be predicted.
    * `tries`: programs per episode, 5 by default.
    * `budget`: seconds a program may take on all splits together, 30 by default.
    * `isolation`: "auto" (bubblewrap where it works, otherwise confined processes), "bubblewrap",
      "process", or "none", which runs programs of a language model with all your rights.
    * `workers`: how many programs run at a time; by default one per processor core. Copies of the
      world with equal arguments share their workers and all verdicts.
    * `fill_in_the_middle`: "code-llama", "starcoder" or "qwen" puts that model's tokens around the
      gap to be filled; "none" by default.
    * `parity`: refuse programs that contain `GridSearchCV(` or `SVC(`, as the paper did to save
      time; on by default.

    ## Version history
    * v0: first version.
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
            raise ValueError(f"tries must be at least 1, got {tries}")
        if not budget > 0:
            raise ValueError(f"budget must be above 0 seconds, got {budget}")
        if workers < 0:
            raise ValueError(f"workers must not be negative, got {workers}")
        for value, known in ((isolation, Isolation), (fill_in_the_middle, Marking)):
            if value not in get_args(known):
                raise ValueError(f"{value!r} is none of: {', '.join(get_args(known))}")
        self.tries = tries
        self._marking: Marking = fill_in_the_middle
        self._workshop, self._leave = _enter(
            self, _Order(dataset, target, float(budget), isolation, workers, parity)
        )
        self.observation_space = Text(max_length=2048, charset=text.CHARACTERS)
        self.action_space = Text(max_length=4096, charset=text.CHARACTERS)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode with an empty function; a seed changes nothing."""
        super().reset(seed=seed)
        if not self._leave.alive:
            raise ClosedEnvironmentError("this copy of the world was closed; make another")
        self._running = True
        self._tried, self._return = 0, 0.0
        return self._prompt(None), {"notes": self._workshop.sandbox.notes}

    def prepare(self, action: str) -> None:
        """Start scoring an action that will be taken, without waiting for it."""
        self._workshop.judge.prepare(text.program(action))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run a program; a failure is a reward and an error to read, never an exception."""
        if not self._running:
            raise ResetNeeded("no episode is under way: call reset() before step()")
        source = text.program(action)
        verdict = self._workshop.judge.verdict(source)
        success = verdict.score is not None
        reward = FAILURE if verdict.score is None else verdict.score
        self._tried += 1
        self._return += reward
        truncated = not success and self._tried >= self.tries
        self._running = not (success or truncated)

        info: dict[str, Any] = {"duration": 1, "error": verdict.message}
        info |= {key: value for key, value in vars(verdict).items() if key != "message"}
        info["measures"] = {"executable": float(success)}
        if success:
            info["measures"] |= {"score": verdict.score}
            info["work"] = {
                "file": "best_program.py",
                "text": source,
                "score": verdict.score,
                "deviation": verdict.deviation,
            }
        if not self._running:
            info["episode"] = {"r": self._return, "l": self._tried, "success": success}
        prompt = self._prompt(None if success else (action, verdict.message))
        return prompt, reward, success, truncated, info

    def close(self) -> None:
        """Leave; the last copy to do so stops the workers."""
        self._running = False
        self._leave()

    def _prompt(self, previous: tuple[str, str] | None) -> str:
        table = self._workshop.table
        rows, features = table.x.shape
        return text.prompt(
            table.title,
            rows,
            features,
            len(table.classes),
            previous,
            fill_in_the_middle=self._marking,
        )


class _Order(NamedTuple):
    """What copies of the world must agree on to share a workshop."""

    dataset: str
    target: str | None
    budget: float
    isolation: Isolation
    workers: int
    parity: bool


class _Workshop:
    """A table, and what runs and scores programs on it; workers start when they are needed."""

    def __init__(self, order: _Order) -> None:
        self.table = datasets.load(order.dataset, order.target)
        self.judge = Judge(self.table, self, refuse=PARITY if order.parity else ())
        self.copies = 0
        self._order = order

    @cached_property
    def sandbox(self) -> Sandbox:
        order = self._order
        return Sandbox(isolation=order.isolation, workers=order.workers, budget=order.budget)

    def submit(self, source: str, jobs: Sequence[Job]) -> Future[Answer]:
        return self.sandbox.submit(source, jobs)

    def close(self) -> None:
        if "sandbox" in vars(self):
            self.sandbox.close()


_WORKSHOPS: Final[dict[_Order, _Workshop]] = {}
_DOOR: Final = threading.RLock()
"""Copies may be made in one thread while another drops theirs."""


def _enter(copy: DataScienceEnv, order: _Order) -> tuple[_Workshop, "weakref.finalize[..., Any]"]:
    """Give the copies with equal arguments one workshop, and what to call when this one leaves."""
    with _DOOR:
        if order not in _WORKSHOPS:
            _WORKSHOPS[order] = _Workshop(order)
        workshop = _WORKSHOPS[order]
        workshop.copies += 1
    return workshop, weakref.finalize(copy, _depart, order, workshop)


def _depart(order: _Order, workshop: _Workshop) -> None:
    with _DOOR:
        workshop.copies -= 1
        if workshop.copies == 0:
            if _WORKSHOPS.get(order) is workshop:
                del _WORKSHOPS[order]
            workshop.close()
