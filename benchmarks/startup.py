"""Measure the time of `import poad` and `poad --help`, and check that they do not load torch.

Each runs in fresh interpreters, alternating with an interpreter that does nothing.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from statistics import median

_HELP = """
import contextlib, io, runpy, sys
sys.argv = ["poad", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    runpy.run_module("poad", run_name="__main__")
"""
COMMANDS = {"python -c pass": "pass", "import poad": "import poad", "poad --help": _HELP}
_ASK = "\nimport sys\nprint('torch' in sys.modules)"


def run(code: str) -> tuple[float, float, bool]:
    """Measure wall and CPU seconds, and find out if torch was loaded."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + _ASK], capture_output=True, text=True, check=True
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout.split()[-1] == "True"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the start-up time.")
    parser.add_argument("--times", type=int, default=11, help="number of interpreters for each")
    times = parser.parse_args().times
    found: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in COMMANDS}
    for _ in range(times):
        for name, code in COMMANDS.items():
            found[name].append(run(code))
    print("| command | wall seconds (minimum) | CPU seconds | loads torch |\n|---|---|---|---|")
    for name, runs in found.items():
        wall, cpu, loaded = zip(*runs, strict=True)
        loads = "yes" if any(loaded) else "no"
        print(f"| {name} | {median(wall):.3f} ({min(wall):.3f}) | {median(cpu):.3f} | {loads} |")


if __name__ == "__main__":
    main()
