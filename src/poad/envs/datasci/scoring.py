"""What a program is worth: its mean ROC-AUC over fixed random splits of one table.

The judge keeps the labels and the scorer on this side of the sandbox: a program sees one half of
the rows with their classes and the other half without, and answers with probabilities.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

import numpy as np

from poad.envs.datasci.datasets import Table, require_extra
from poad.envs.datasci.sandbox import Answer, Job
from poad.errors import DataError

PARITY: Final = ("GridSearchCV(", "SVC(")
"""What the paper's own judge refused, as it takes too long; "LinearSVC(" contains the second."""
MEMORY: Final = 65_536
"""How many verdicts are remembered before starting afresh."""


class Runs(Protocol):
    """Anything that runs programs; a `Sandbox` does."""

    def submit(self, source: str, jobs: Sequence[Job], /) -> "Future[Answer]":
        """Start running a program on each job in turn."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What came of a program."""

    score: float | None
    """Mean ROC-AUC over the splits; None when the program failed on any of them."""
    deviation: float
    """Standard deviation over the splits; 0 when the program failed."""
    scores: tuple[float, ...]
    """One per split; none when the program failed."""
    status: str
    """The sandbox's word, or "refused" when the program was not run at all."""
    message: str
    """What went wrong, for a prompt; empty when nothing did."""
    seconds: float
    """Wall time of the program on all splits, when it ran."""
    cpu_seconds: float
    """Processor time that this verdict cost; 0 when it was remembered."""


class _Split(NamedTuple):
    job: Job
    truth: np.ndarray


class Judge:
    """Scores programs on one table, each once: a verdict is a function of the source.

    Args:
        table: what is classified.
        sandbox: what runs the programs.
        seeds: one split per seed: half of the rows to learn from, the other half to be scored on,
            `train_test_split(test_size=0.5, random_state=seed, shuffle=True)`.
        refuse: programs that contain one of these strings are not run.

    Raises:
        DataError: in some split a class is missing from one of the halves, so that it could not be
            learned, or not be scored.
    """

    def __init__(
        self,
        table: Table,
        sandbox: Runs,
        seeds: Sequence[int] = range(5),
        refuse: Sequence[str] = PARITY,
    ) -> None:
        require_extra()
        self._splits = tuple(_split(table, seed) for seed in seeds)
        self._sandbox, self._refuse = sandbox, tuple(refuse)
        self._running: dict[str, Future[Answer]] = {}
        self._verdicts: dict[str, Verdict] = {}

    def prepare(self, source: str) -> None:
        """Start scoring a program, without waiting for it."""
        if source in self._verdicts or source in self._running or self._refused(source):
            return
        jobs = [split.job for split in self._splits]
        self._running[source] = self._sandbox.submit(source, jobs)

    def verdict(self, source: str) -> Verdict:
        """Score a program, waiting for what is under way; also a time-out is remembered."""
        self.prepare(source)
        if source not in self._running:
            return self._verdicts.get(source) or _failed("refused", self._refused(source))
        verdict = self._weigh(self._running.pop(source).result())
        if len(self._verdicts) >= MEMORY:
            self._verdicts.clear()
        self._verdicts[source] = replace(verdict, cpu_seconds=0.0)
        return verdict

    def _refused(self, source: str) -> str:
        found = next((text for text in self._refuse if text in source), None)
        return f"RefusedError: {found} is not allowed here" if found else ""

    def _weigh(self, answer: Answer) -> Verdict:
        spent = answer.seconds, answer.cpu_seconds
        if answer.probabilities is None:
            return _failed(answer.status, answer.message, *spent)
        with np.errstate(over="ignore"):  # a program may answer with any finite numbers
            sums = [table.sum(axis=1) for table in answer.probabilities]
        if not all(np.allclose(1, each) for each in sums):
            message = "ValueError: the probabilities of a row do not sum to 1"
            return _failed("output", message, *spent)
        pairs = zip(self._splits, answer.probabilities, strict=True)
        scores = tuple(roc_auc(split.truth, table) for split, table in pairs)
        mean, deviation = float(np.mean(scores)), float(np.std(scores))
        return Verdict(mean, deviation, scores, answer.status, "", *spent)


def roc_auc(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve; of more than two classes, the mean over pairs (one-vs-one).

    `truth` holds classes from 0, int [rows]; `probabilities` is [rows, classes].
    """
    from sklearn.metrics import roc_auc_score

    if probabilities.shape[1] == 2:
        return float(roc_auc_score(truth, probabilities[:, 1]))
    return float(roc_auc_score(truth, probabilities, multi_class="ovo"))


def _failed(status: str, message: str, seconds: float = 0.0, cpu_seconds: float = 0.0) -> Verdict:
    return Verdict(None, 0.0, (), status, message or f"Error: {status}", seconds, cpu_seconds)


def _split(table: Table, seed: int) -> _Split:
    from sklearn.model_selection import train_test_split

    x_train, x_test, y_train, y_test = train_test_split(
        table.x, table.y, test_size=0.5, random_state=seed, shuffle=True
    )
    for half, purpose in ((y_train, "to learn from"), (y_test, "to be scored on")):
        counts = np.bincount(half, minlength=len(table.classes))
        if counts.min() == 0:
            rare = int(counts.argmin())
            raise DataError(
                f"{table.name}: split {seed} leaves no row of class {table.classes[rare]!r} "
                f"{purpose}, as it has only {int((table.y == rare).sum())} of {len(table.y)} rows. "
                f"Bring more of them, or leave out the rarest of the {len(table.classes)} classes; "
                "a number to be predicted is no class at all."
            )
    # A program can find out the split's seed and so each test row's number in the table, and many
    # tables are sorted by class. The order it sees depends on labels that it does not know.
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
