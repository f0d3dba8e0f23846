"""Programs that the tests themselves wrote, run without a sandbox."""

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from poad.envs.datasci.sandbox import Answer, Job


class InProcess:
    """Does what a sandbox does, and counts what it was asked to run."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def submit(self, source: str, jobs: Sequence[Job]) -> "Future[Answer]":
        self.asked[source] += 1
        future: Future[Answer] = Future()
        try:
            tables = tuple(probabilities(source, job) for job in jobs)
            future.set_result(Answer(tables, "ok", "", 0.5, 0.25))
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            future.set_result(Answer(None, "error", message, 0.5, 0.25))
        return future


class Scripted:
    """Gives the same answer, or raises the same exception, to whatever it is asked to run."""

    def __init__(self, answer: Answer | Exception) -> None:
        self.answer, self.asked = answer, 0

    def submit(self, source: str, jobs: Sequence[Job]) -> "Future[Answer]":
        self.asked += 1
        future: Future[Answer] = Future()
        if isinstance(self.answer, Exception):
            future.set_exception(self.answer)
        else:
            future.set_result(self.answer)
        return future


def probabilities(source: str, job: Job) -> np.ndarray:
    scope: dict[str, Any] = {}
    random.seed(job.seed)
    np.random.seed(job.seed)
    with warnings.catch_warnings():  # an estimator may complain that it has not converged
        warnings.simplefilter("ignore")
        exec(compile(source, "<program>", "exec"), scope)
        return scope["build_model"](job.x_train, job.y_train).predict_proba(job.x_test)
