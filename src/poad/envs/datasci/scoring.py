"""The score of a program: its mean ROC-AUC over fixed random splits of one table.

The test labels and the scorer stay outside of the sandbox. A program sees one half of the rows with
their classes and the other half without, and returns probabilities.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from poad.envs.datasci.datasets import Table, require_extra
from poad.envs.datasci.sandbox import Answer, Job
from poad.errors import DataError

REFUSED: Final = ("GridSearchCV(", "SVC(")
"""Programs with these strings take long, and the paper's code refuses them. "LinearSVC(" is one."""
TOLERANCE: Final = 1e-9
"""A probability may be below 0 by this much, through rounding."""
MAX_REMEMBERED: Final = 65_536
"""The number of results that are remembered before all of them are dropped."""


class ProgramRunner(Protocol):
    """An object that runs programs, such as a `Sandbox`."""

    def submit(self, source: str, jobs: Sequence[Job], /) -> "Future[Answer]":
        """Start running a program on each job in turn."""
        ...


@dataclass(frozen=True)
class ProgramResult:
    """The score of a program, or the reason why it has none."""

    score: float | None
    """The mean ROC-AUC over the splits; None if the program failed on a split."""
    deviation: float
    """The standard deviation over the splits; 0 if the program failed."""
    scores: tuple[float, ...]
    """The ROC-AUC of each split; empty if the program failed."""
    status: str
    """The status from the sandbox, or "refused" if the program was not run."""
    message: str
    """The error message for a prompt; empty if the program succeeded."""
    seconds: float
    """The wall time of the program on all splits, from the time it ran."""
    cpu_seconds: float
    """The CPU time spent on this result; 0 if it was remembered."""


class _Split(NamedTuple):
    job: Job
    truth: np.ndarray


class Scorer:
    """Scores programs on one table. Each program runs once, and its result is remembered.

    Any thread may ask.

    Args:
        table: the data to classify.
        sandbox: runs the programs.
        seeds: one split per seed. Half of the rows are for training and the other half for scoring,
            by `train_test_split(test_size=0.5, random_state=seed, shuffle=True)`.
        refuse: programs that contain one of these strings are not run.

    Raises:
        DataError: in some split, one of the halves lacks a class, or an extra is not installed.
    """

    def __init__(
        self,
        table: Table,
        sandbox: ProgramRunner,
        seeds: Sequence[int] = range(5),
        refuse: Sequence[str] = REFUSED,
    ) -> None:
        require_extra()
        self._splits = tuple(_split(table, seed) for seed in seeds)
        self._sandbox, self._refuse = sandbox, tuple(refuse)
        self._running: dict[str, Future[Answer]] = {}
        self._results: dict[str, ProgramResult] = {}
        self._lock = threading.Lock()

    def prepare(self, source: str) -> None:
        """Start running a program without waiting for it."""
        jobs = [split.job for split in self._splits]
        with self._lock:
            if _key(source) in self._results or source in self._running or self._refused(source):
                return
            self._running[source] = self._sandbox.submit(source, jobs)

    def score(self, source: str) -> ProgramResult:
        """Score a program, waiting for it if it is still running. Timeouts are remembered too."""
        self.prepare(source)
        with self._lock:
            running, known = self._running.get(source), self._results.get(_key(source))
        if running is None:
            return known or _failed("refused", self._refused(source))
        try:
            result = self._score(running.result())
        except BaseException:
            with self._lock:
                self._running.pop(source, None)
            raise
        with self._lock:
            if self._running.pop(source, None) is None:  # another thread has told what it cost
                return replace(result, cpu_seconds=0.0)
            if len(self._results) >= MAX_REMEMBERED:
                self._results.clear()
            self._results[_key(source)] = replace(result, cpu_seconds=0.0)
        return result

    def memory(self) -> dict[str, dict[str, Any]]:
        """Return all results that are remembered, as JSON values."""
        with self._lock:
            return {key: asdict(result) for key, result in self._results.items()}

    def load_memory(self, memory: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember these results too. They come from `memory`."""
        found = {
            key: ProgramResult(**{**result, "scores": tuple(result["scores"])})
            for key, result in memory.items()
        }
        with self._lock:
            self._results |= found

    def _refused(self, source: str) -> str:
        found = next((text for text in self._refuse if text in source), None)
        return f"RefusedError: {found} is not allowed here" if found else ""

    def _score(self, answer: Answer) -> ProgramResult:
        spent = answer.seconds, answer.cpu_seconds
        if answer.probabilities is None:
            return _failed(answer.status, answer.message, *spent)
        if not all(table.min() >= -TOLERANCE for table in answer.probabilities):
            return _failed("output", "ValueError: a probability is negative", *spent)
        with np.errstate(over="ignore"):  # the numbers may be as large as floats can be
            sums = [table.sum(axis=1) for table in answer.probabilities]
        if not all(np.allclose(1, each) for each in sums):
            message = "ValueError: the probabilities of a row do not sum to 1"
            return _failed("output", message, *spent)
        pairs = zip(self._splits, answer.probabilities, strict=True)
        scores = tuple(roc_auc(split.truth, table) for split, table in pairs)
        mean, deviation = float(np.mean(scores)), float(np.std(scores))
        return ProgramResult(mean, deviation, scores, answer.status, "", *spent)


def _key(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def roc_auc(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Compute the area under the ROC curve. With more than two classes, average over all pairs.

    Args:
        truth: [rows] int, classes from 0.
        probabilities: [rows, classes].
    """
    from sklearn.metrics import roc_auc_score

    if probabilities.shape[1] == 2:
        return float(roc_auc_score(truth, probabilities[:, 1]))
    return float(roc_auc_score(truth, probabilities, multi_class="ovo"))


def _failed(
    status: str, message: str, seconds: float = 0.0, cpu_seconds: float = 0.0
) -> ProgramResult:
    return ProgramResult(None, 0.0, (), status, message or f"Error: {status}", seconds, cpu_seconds)


def _split(table: Table, seed: int) -> _Split:
    from sklearn.model_selection import train_test_split

    x_train, x_test, y_train, y_test = train_test_split(
        table.x, table.y, test_size=0.5, random_state=seed, shuffle=True
    )
    for half, purpose in ((y_train, "for training"), (y_test, "for scoring")):
        counts = np.bincount(half, minlength=len(table.classes))
        if counts.min() == 0:
            rare = int(counts.argmin())
            raise DataError(
                f"{table.name}: split {seed} leaves no row of class {table.classes[rare]!r} "
                f"{purpose}, as it has only {int((table.y == rare).sum())} of {len(table.y)} rows. "
                f"Add more of them, or leave out the rarest of the {len(table.classes)} classes. "
                "If the target is a number to predict, this world cannot use it."
            )
    # A program can find out the seed of the split and thus the position of each test row in the
    # table, and many tables are sorted by class. So the test rows are shuffled in an order that
    # depends on labels the program does not know.
    secret = hashlib.sha256(table.x.tobytes() + table.y.tobytes() + str(seed).encode()).digest()
    order = np.random.default_rng(list(secret)).permutation(len(y_test))
    x_test, y_test = x_test[order], y_test[order]
    job = Job(
        x_train=np.ascontiguousarray(x_train, dtype=np.float64),
        y_train=np.ascontiguousarray(y_train, dtype=np.int64),
        x_test=np.ascontiguousarray(x_test, dtype=np.float64),
        classes=len(table.classes),
        seed=int(seed),
    )
    return _Split(job, np.asarray(y_test))
