"""Attacks where single rules are lifted: `python lifting.py process FOLDER PLAN`, like `trial`.

The plan is a JSON list of pairs: the rules to lift, and the titles of the attacks that are tried
without them. Each pair gets a host, a sandbox and workers of its own. The workers are forked from
this process, which has loaded what every worker loads. All that confines a program comes later.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trial import BUDGET, Traps, chosen, run_all, widen

from poad.envs.datasci import client, confinement, worker
from poad.envs.datasci.sandbox import Sandbox


class Forked:
    """A worker's process, in place of `subprocess.Popen`."""

    def __init__(self, _: object, *, stdin: int, stderr: Any, **__: object) -> None:
        self.pid = os.fork()
        if not self.pid:
            try:
                self._work(stdin, stderr.fileno())
            finally:
                os._exit(1)

    def _work(self, control: int, log: int) -> None:
        os.setsid()
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_WRONLY)
        for number, descriptor in enumerate((control, nothing, log)):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        os.environ.clear()
        os.environ.update(confinement.environment())
        worker.main()

    def poll(self) -> int:
        return os.waitpid(self.pid, os.WNOHANG)[1]

    def kill(self) -> None:
        os.kill(self.pid, 9)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def attack(traps: Traps, rules: list[str], titles: list[str]) -> None:
    """Write down what the attacks do where these rules are lifted, and exit."""
    os.setsid()
    widen(rules)
    with Sandbox("process", workers=2, budget=BUDGET) as sandbox:
        found = run_all(sandbox, traps, chosen("process", titles))
    text = json.dumps({title: asdict(outcome) for title, outcome in found.items()})
    (traps.folder / "found.json").write_text(text)


def main() -> None:
    _, folder, plan = sys.argv[1:]
    warnings.simplefilter("ignore")  # a fork beside threads
    nowhere = io.StringIO()  # what modules say when they are imported
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        worker.preload(confinement.package_paths())
    worker.preload = lambda _: None
    started: Any = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL)
    client.subprocess = started  # pyright: ignore[reportPrivateImportUsage]
    traps = Traps(Path(folder))
    results = []
    try:
        for rules, titles in json.loads(plan):
            if not (child := os.fork()):
                try:
                    attack(traps, rules, titles)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0, rules
            results.append(json.loads((traps.folder / "found.json").read_text()))
    finally:
        traps.clear()
    (traps.folder / "result.json").write_text(json.dumps({"outcomes": results}))
    print("ready to be killed", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
