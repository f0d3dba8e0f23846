"""Prints the repairs that the code model reads, in JSON, without a process for each program.

The programs are our own grammar's, so none needs a sandbox. A script, because scikit-learn lists
choices in the order of a set in its errors, and workers run with PYTHONHASHSEED=0.
"""

from __future__ import annotations

import io
import json
import random
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import redirect_stdout

from code_model import CodeRecipe, first_turns, repair_turns

from poad.envs.datasci import worker
from poad.envs.datasci.sandbox import Answer, Job, _printable, _private_folders
from poad.models.names import model_card


class InThisProcess:
    """Answers as a sandbox does, with what its worker computes."""

    def submit(self, source: str, jobs: Sequence[Job]) -> Future[Answer]:
        tables, status, result = [], worker.ANSWERED, ""
        for job in jobs:
            arrays = io.BytesIO(job.packed())
            status, result = worker.solve(source.encode(), arrays, job.classes, job.seed)
            if status != worker.ANSWERED:
                break
            tables.append(result)
        future: Future[Answer] = Future()
        if status == worker.ANSWERED:
            future.set_result(Answer(tuple(tables), "ok", "", 0.0, 0.0))
        else:
            name = "error" if status == worker.FAILED else "output"
            message = _printable(str(result), _private_folders())
            future.set_result(Answer(None, name, message, 0.0, 0.0))
        return future


def main() -> None:
    warnings.simplefilter("ignore")
    recipe = CodeRecipe(**model_card(sys.argv[1])["recipe"])
    rng = random.Random(recipe.seed)
    first_turns(recipe, rng)
    with redirect_stdout(io.StringIO()):
        turns = repair_turns(recipe, rng, InThisProcess())  # pyright: ignore[reportArgumentType]
    json.dump(turns, sys.stdout)


if __name__ == "__main__":
    main()
