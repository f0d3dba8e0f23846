"""Train for an hour while processes are killed and worlds fail; nothing may be lost or pile up.

Rounds: a training is killed (SIGKILL) at random instants and resumed until it ends. Its metrics and
its last checkpoint must be those of an undisturbed one, to the last bit. Every other round has two
processes whose weights are sharded, of which one is killed. Beside them one long training goes on
whose worlds live in processes, which are killed again and again; its memory must stay flat.
All worlds fail by themselves at one of 300 steps, which the seed of the episode decides.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium

from poad.envs import make

WORLD = "soak:soak/Shaky-v0"
KILLS = 5
"""Kills of each round."""
PATIENCE = 1800
"""Seconds after which a process that does not end hangs. Busy machines are slow."""
STARTED: list[subprocess.Popen[bytes]] = []
"""All that were started, to end them with this process."""
WORDS = (
    *("train", "--quiet", "--trust-code", "--env", WORLD, "--on-world-error", "restart"),
    *("--world-error-limit", "1", "--model.name", "tiny-kitchen", "--preset", "plain"),
    *("--checkpoint-every", "1"),
)


class Shaky(gymnasium.Wrapper[str, str, str, str]):
    """Fails at some steps, always at the same ones of an episode."""

    def __init__(self) -> None:
        super().__init__(make("poad/TomatoSalad-v0"))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Begin an episode."""
        self._seed, self._turn = seed, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: str) -> Any:
        """Act, or fail."""
        self._turn += 1
        if hashlib.sha256(f"{self._seed} {self._turn}".encode()).digest()[0:2] < b"\x00\xda":
            raise RuntimeError("the stove broke")
        return self.env.step(action)


with suppress(gymnasium.error.Error):
    gymnasium.register("soak/Shaky-v0", entry_point="soak:Shaky")


def start(words: tuple[str, ...], ranks: int, log: Path) -> list[subprocess.Popen[bytes]]:
    """Start a command of poad in so many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    here = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    common = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    many = place | {"WORLD_SIZE": str(ranks)} if ranks > 1 else {}
    with log.open("ab") as file:
        processes = [
            subprocess.Popen(
                (sys.executable, "-m", "poad", *words),
                env=common | many | ({"RANK": str(r), "LOCAL_RANK": str(r)} if many else {}),
                stdout=file,
                stderr=file,
            )
            for r in range(ranks)
        ]
    STARTED.extend(processes)
    return processes


def outcome(run: Path) -> Any:
    """What must be the same to the last bit: all but what a clock said."""
    timed = ("seconds", "per_second")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not k.endswith(timed)} for line in lines]
    last = max((run / "checkpoints").iterdir())
    faults = (run / "world_errors.jsonl").read_text() if lines[-1].get("world_errors") else ""
    return metrics, json.loads((last / "state.json").read_text())["sha256"], faults.count("\n")


def train_whole(words: tuple[str, ...], ranks: int, run: Path, log: Path) -> None:
    """Train undisturbed."""
    for process in start((*words, "--run", str(run)), ranks, log):
        assert process.wait(PATIENCE) == 0, log.read_text()[-2000:]


def train_killed(
    words: tuple[str, ...], ranks: int, run: Path, log: Path, chance: random.Random, longest: float
) -> int:
    """Train the same, killed at random instants; return the kills."""
    kills = 0
    while not (run / "summary.json").exists():
        again = ("train", "--quiet", "--trust-code", "--resume", str(run))
        begun = (run / "config.yaml").exists()
        processes = start(again if begun else (*words, "--run", str(run)), ranks, log)
        victim = chance.choice(processes)
        if kills < KILLS:
            if ranks > 1:  # before they have met, only a launcher would notice that one is gone
                wait_for_more(run / "metrics.jsonl", victim)
            with suppress(subprocess.TimeoutExpired):
                victim.wait(chance.uniform(0, longest))
            if victim.poll() is None:
                victim.kill()
                kills += 1
        for process in processes:  # the others of a training notice, and end
            process.wait(PATIENCE)
    return kills


def wait_for_more(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file has grown, or a process has ended."""
    known = file.stat().st_size if file.exists() else 0
    while process.poll() is None and (not file.exists() or file.stat().st_size <= known):
        time.sleep(0.1)


def children(pid: int) -> Iterator[int]:
    """Find the processes that a process has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(stat.parent.name)


def memory(pid: int) -> float:
    """MB in the memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class LongTraining:
    """A training whose worlds are killed.

    Args:
        folder: where it writes.
        chance: decides which worlds are killed, and when.
    """

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.run, self.log, self._chance = folder / "long", folder / "long.log", chance
        words = (*WORDS, "--steps", str(10**9), "--workers", "processes:4", "--streams", "8")
        words = (*words, "--seed", "77", "--eval.episodes", "0", "--keep-checkpoints", "1")
        self.process = start((*words, "--run", str(self.run)), 1, self.log)[0]
        self.deaths = 0
        self.sizes: list[float] = []
        """MB after each visit, once it trains."""

    def visit(self) -> None:
        """Note its memory, and perhaps kill a world: a child of the server that forks them."""
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        if not (self.run / "metrics.jsonl").exists():
            return
        self.sizes.append(memory(self.process.pid))
        worlds = [w for server in children(self.process.pid) for w in children(server)]
        if worlds and self._chance.random() < 0.3:
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(worlds), signal.SIGKILL)
                self.deaths += 1

    def end(self) -> dict[str, Any]:
        """Stop it, and tell what became of it."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 130, self.log.read_text()[-2000:]
        metrics, _, faults = outcome(self.run)
        assert [line["iteration"] for line in metrics] == [*range(1, len(metrics) + 1)]
        quarter = self.sizes[len(self.sizes) // 4]
        return {
            "iterations": len(metrics),
            "worlds killed": self.deaths,
            "world errors": faults,
            "MB after a quarter": round(quarter, 1),
            "MB at the end": round(self.sizes[-1], 1),
            "growth": round(self.sizes[-1] / quarter - 1, 4),
        }


def main() -> int:
    """Soak; the exit status is 1 if memory grew by more than a tenth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16_384, help="turns of a round's training")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chance, begin = random.Random(options.seed), time.monotonic()
    rounds = kills = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long = LongTraining(folder, random.Random(options.seed))
        try:
            while time.monotonic() < begin + 60 * options.minutes or not rounds:
                ranks = 1 + rounds % 2
                words = (*WORDS, "--steps", str(options.steps), "--seed", str(rounds))
                words = (*words, "--eval.episodes", "4", "--eval.every", "16")
                words = (*words, "--model.shard", "full") if ranks > 1 else words
                whole, killed = folder / f"whole{rounds}", folder / f"killed{rounds}"
                since = time.monotonic()
                played = _beside(long, train_whole, words, ranks, whole, folder / "log")
                took = time.monotonic() - since
                more = (killed, folder / "log", chance, took)
                killed_here = _beside(long, train_killed, words, ranks, *more)
                assert played is None
                assert outcome(killed) == outcome(whole), f"round {rounds} lost something"
                rounds, kills = rounds + 1, kills + killed_here
                told = f"round {rounds}: {ranks} processes, {killed_here} kills, the same"
                print(told, flush=True)
            ended = long.end()
        finally:
            for process in STARTED:
                if process.poll() is None:
                    process.kill()
    minutes = (time.monotonic() - begin) / 60
    print(json.dumps({"minutes": round(minutes, 1), "rounds": rounds, "kills": kills} | ended))
    return int(ended["growth"] > 0.1)


def _beside(long: LongTraining, work: Any, *args: Any) -> Any:
    """Do something, while the long training is visited every other second."""
    from threading import Thread

    found: list[Any] = []
    failed: list[BaseException] = []

    def do() -> None:
        try:
            found.append(work(*args))
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=do)
    thread.start()
    while thread.is_alive():
        long.visit()
        thread.join(2)
    if failed:
        raise failed[0]
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
