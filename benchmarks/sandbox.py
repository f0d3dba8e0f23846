"""Measure how many untrusted programs run per second, and the cost of isolation.

Every program runs on five splits of the balance scale with 125 rows. Throughput is measured with
two workers and one queue. For the cost of isolation, one worker of each kind and an unconfined one
alternate on the same program. The table has the ratios of wall seconds and of CPU seconds, which
depend less on other work on the machine. A cold start is a fresh, unconfined interpreter for each
program, which imports what the program needs and runs all five splits.

python benchmarks/sandbox.py
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import time
from statistics import median

import numpy as np

from poad.envs.datasci import Isolation, Job, Sandbox, load
from poad.errors import SandboxError

PROGRAMS = {
    "cheap (logistic regression)": """
from sklearn.linear_model import LogisticRegression
def build_model(x_train, y_train):
    return LogisticRegression().fit(x_train, y_train)
""",
    "typical (random forest)": """
from sklearn.ensemble import RandomForestClassifier
def build_model(x_train, y_train):
    return RandomForestClassifier().fit(x_train, y_train)
""",
    "heavy (stacking)": """
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression
def build_model(x_train, y_train):
    parts = [("forest", RandomForestClassifier()), ("boosting", GradientBoostingClassifier())]
    return StackingClassifier(parts, LogisticRegression()).fit(x_train, y_train)
""",
}
BUDGET = 600.0
"""In seconds. No program reaches it, even on a busy machine."""
CONFINED: tuple[Isolation, ...] = ("bubblewrap", "process")
COLD = """
import io, sys
import numpy
arrays = io.BytesIO(sys.stdin.buffer.read())
for _ in range(int(sys.argv[2])):
    x_train, y_train, x_test = (numpy.load(arrays) for _ in range(3))
    scope = {}
    exec(sys.argv[1], scope)
    scope["build_model"](x_train, y_train).predict_proba(x_test)
"""


def splits() -> list[Job]:
    from sklearn.model_selection import train_test_split

    table = load("balance-scale-125")
    jobs = []
    for seed in range(5):
        halves = train_test_split(table.x, table.y, test_size=0.5, random_state=seed, shuffle=True)
        x_train, x_test, y_train, _ = map(np.ascontiguousarray, halves)
        jobs.append(Job(x_train, y_train, x_test, len(table.classes), seed))
    return jobs


def cold(source: str, jobs: list[Job]) -> tuple[float, float]:
    """Measure wall and CPU seconds of a program in a fresh interpreter."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    data = b"".join(job.packed() for job in jobs)
    command = [sys.executable, "-W", "ignore", "-c", COLD, source, str(len(jobs))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(command, input=data, env=environment, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def once(box: Sandbox, source: str, jobs: list[Job]) -> tuple[float, float]:
    """Measure wall and CPU seconds of a program in a running worker."""
    answer = box.run(source, jobs)
    if answer.status != "ok":
        raise RuntimeError(f"{box.isolation}: {answer.message}")
    return answer.seconds, answer.cpu_seconds


def throughput(times: int, jobs: list[Job]) -> None:
    with Sandbox(workers=2, budget=BUDGET) as box:
        print(
            f"\n{box.isolation}, 2 workers\n\n| program | programs/s | CPU s each |\n|---|---|---|"
        )
        for (name, source), share in zip(PROGRAMS.items(), (20, 4, 1), strict=True):
            count = max(2, int(times * share / 2))
            start = time.perf_counter()
            futures = [box.submit(f"{source}# {n}\n", jobs) for n in range(count)]
            answers = [future.result() for future in futures]
            rate = count / (time.perf_counter() - start)
            assert all(answer.status == "ok" for answer in answers)
            cpu = median(answer.cpu_seconds for answer in answers)
            print(f"| {name} | {rate:.2f} | {cpu:.2f} |", flush=True)


def isolation(times: int, jobs: list[Job]) -> None:
    with contextlib.ExitStack() as stack:
        boxes = {"none": stack.enter_context(Sandbox("none", workers=1, budget=BUDGET))}
        for design in CONFINED:
            try:
                boxes[design] = stack.enter_context(Sandbox(design, workers=1, budget=BUDGET))
            except SandboxError as error:
                print(f"\n{design} is not available here: {error}")
        print("\nMedians per program: wall ms (CPU ms): ratio to none of wall (of CPU)\n")
        print(f"| program | {' | '.join(boxes)} | cold start |\n|---|{'---|' * (len(boxes) + 1)}")
        for (name, source), share in zip(PROGRAMS.items(), (20, 5, 1), strict=True):
            took: dict[str, list[tuple[float, float]]] = {design: [] for design in [*boxes, "cold"]}
            for turn in range(max(1, int(times * share / 5))):
                for design, box in boxes.items():
                    took[design].append(once(box, source, jobs))
                if turn % 4 == 0:
                    took["cold"].append(cold(source, jobs))
            cells = []
            base = [median(column) for column in zip(*took["none"], strict=True)]
            for values in took.values():
                wall, cpu = (median(column) for column in zip(*values, strict=True))
                ratios = f"{wall / base[0]:.2f} ({cpu / base[1]:.2f})"
                cells.append(f"{wall * 1e3:.0f} ({cpu * 1e3:.0f}): {ratios}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--times", type=int, default=10, help="scales the number of runs; more is more accurate"
    )
    times = options.parse_args().times
    jobs = splits()
    throughput(times, jobs)
    isolation(times, jobs)


if __name__ == "__main__":
    main()
