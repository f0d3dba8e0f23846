"""No hostile program does harm: in both designs, started by root and by an ordinary user.

The programs are in `hostile`, their traps in `trial`. Each trial is a process of its own, because
an ordinary user's half cannot run in a root's test, and because some trials kill the trainer.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="needs pip install 'poad[datasci]'")
try:
    pytest.importorskip("pyseccomp", reason="needs pip install 'poad[datasci]'")
except RuntimeError:  # what it raises without libseccomp
    pytest.skip("needs libseccomp", allow_module_level=True)
if not sys.platform.startswith("linux"):
    pytest.skip("the sandbox is Linux's", allow_module_level=True)

from hostile import ATTACKS
from trial import SECRET, WIDE

import poad
from poad.envs.datasci.confinement import layers

HERE = Path(__file__).parent
SOURCE = Path(poad.__file__).parents[1]
ROOT = os.getuid() == 0
PEOPLE = ["root", "user"] if ROOT else ["user"]
KEPT = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
KEPT |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(SOURCE)}
CLUMSY = ("NameError", "SyntaxError", "AttributeError", "UnboundLocalError", "TypeError")
CLUMSY += ("ArgumentError", "IndexError", "KeyError", "ValueError: not enough", "error: ")
"""How a program fails that did not even try."""


def closed_folder(path: Path) -> Path | None:
    """The outermost folder on the way to a path that others may not pass."""
    for folder in reversed([path, *path.parents]):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def opened(paths: list[Path]) -> str:
    """Shell commands for a private mount namespace in which others can reach these paths.

    A closed folder on the way is covered by an empty one, into which what is needed is moved.
    """
    needed = {p: closed_folder(p) for p in paths if closed_folder(p)}
    outermost = [p for p in needed if not any(o in p.parents for o in needed)]
    lines = ["set -e", "umask 022", "spare=$(mktemp -d)"]
    for number, path in enumerate(outermost):
        lines += [f"mkdir $spare/{number}", f"mount --bind '{path}' $spare/{number}"]
    for folder in sorted({str(needed[path]) for path in outermost}):
        lines.append(f"mount -t tmpfs -o mode=0755 tmpfs '{folder}'")
    for number, path in enumerate(outermost):
        lines += [f"mkdir -p '{path}'", f"mount --bind $spare/{number} '{path}'"]
        lines.append(f"umount $spare/{number}")
    return "\n".join([*lines, "rm -r $spare", 'exec "$@"'])


@contextlib.contextmanager
def account() -> Iterator[int]:
    """The number of an ordinary user: one made for these tests, or one that nobody has."""
    name = f"poad-test-{os.getpid()}"
    made = shutil.which("useradd") is not None and run("useradd", "--system", name) == 0
    try:
        yield pwd.getpwnam(name).pw_uid if made else 54_321
    finally:
        if made:
            run("userdel", name)


def run(*command: str) -> int:
    return subprocess.run(command, capture_output=True).returncode


@pytest.fixture(scope="session")
def ordinary() -> Iterator[tuple[str, ...]]:
    """What runs the rest of its command line as an ordinary user."""
    if not ROOT:
        yield ()
        return
    for tool in ("unshare", "setpriv", "mount"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (util-linux) to become an ordinary user")
    paths = [Path(sys.prefix), Path(sys.base_prefix), Path(os.path.realpath(sys.executable)).parent]
    paths += [HERE, SOURCE]
    with account() as number:
        line = ("unshare", "--mount", "--propagation", "private", "sh", "-c", opened(paths), "sh")
        line += ("setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups", "--")
        tried = subprocess.run(
            [*line, sys.executable, "-c", "import poad.envs.datasci.sandbox"],
            capture_output=True,
            cwd="/",
            env=KEPT,
        )
        if tried.returncode:
            pytest.skip(f"root cannot become an ordinary user here: {tried.stderr.decode()}")
        yield line


@dataclass(frozen=True)
class Stage:
    """A user and a folder of theirs, in which trials run."""

    line: tuple[str, ...]
    folder: Path
    secret: str = field(default_factory=lambda: f"canary-{secrets.token_hex(8)}")

    def attack(
        self, isolation: str, *titles: str, script: str = "trial.py", **environment: str
    ) -> dict[str, Any]:
        """What `trial` reports of all attacks, and what was left once it was killed."""
        if isolation == "bubblewrap" and shutil.which("bwrap") is None:
            pytest.skip("bwrap is not installed")
        words = [str(HERE / script), isolation, str(self.folder), *titles]
        with self._start(words, environment) as trainer:
            assert trainer.stdin
            assert trainer.stdout
            trainer.stdin.write("canary-in-standard-input")
            trainer.stdin.close()
            said = trainer.stdout.readline()
            trainer.kill()
            trainer.wait()
            killed = time.monotonic()
        complained = (self.folder / "complaints").read_text()
        if not said and isolation == "bubblewrap" and "bubblewrap" in complained:
            pytest.skip(f"no bubblewrap here: {complained.splitlines()[-1]}")
        assert said, complained
        assert (said, complained) == ("ready to be killed\n", ""), "a program wrote to a terminal"
        result = json.loads((self.folder / "result.json").read_text())
        return result | {"survivors": survivors(result.get("below", []), killed + 10)}

    def _start(self, words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        if self.line:
            number = int(self.line[-3].partition("=")[2])
            os.chown(self.folder, number, number)
        with (self.folder / "complaints").open("w") as complaints:
            return subprocess.Popen(
                [*self.line, sys.executable, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                cwd=self.folder,
                env={**KEPT, "HOME": str(self.folder), SECRET: self.secret, **environment},
                start_new_session=True,
            )


def survivors(processes: list[int], end: float) -> list[int]:
    """Those of the processes that live when time is up; killed then."""
    while (left := [one for one in processes if alive(one)]) and time.monotonic() < end:
        time.sleep(0.02)
    for one in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return left


def alive(process: int) -> bool:
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others can reach, with a short name, as unix sockets need."""
    path = Path(tempfile.mkdtemp(prefix="poad-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def stage(request: pytest.FixtureRequest, folder: Path) -> Stage:
    """The stage of "root" or "user"."""
    who = getattr(request, "param", "user")
    return Stage(() if who == "root" else request.getfixturevalue("ordinary"), folder)


def evidence(outcomes: Mapping[str, Any]) -> dict[str, list[str]]:
    return {name: outcome["evidence"] for name, outcome in outcomes.items() if outcome["evidence"]}


def test_the_corpus_is_whole() -> None:
    assert len({attack.slug for attack in ATTACKS}) == len(ATTACKS) >= 55
    assert min(Counter(attack.family for attack in ATTACKS).values()) >= 10
    assert sum(attack.wins for attack in ATTACKS) >= 55
    for attack in ATTACKS:
        assert attack.family == "crashes" or compile(attack.source, attack.name, "exec")


def test_attacks_win_where_nothing_confines_them(stage: Stage) -> None:
    """Else the corpus could not tell a sandbox from none."""
    result = stage.attack("none")
    assert result["isolation"] == "none"
    assert set(result["outcomes"]) == {a.title for a in ATTACKS if a.wins}
    lost = {name: o["message"] for name, o in result["outcomes"].items() if not o["evidence"]}
    assert lost == {}


@pytest.mark.parametrize("stage", PEOPLE, indirect=True)
def test_no_attack_wins_inside_bubblewrap(stage: Stage) -> None:
    harmless(stage.attack("bubblewrap"), "bubblewrap")


@pytest.mark.parametrize("stage", PEOPLE, indirect=True)
def test_no_attack_wins_where_bubblewrap_is_refused(stage: Stage) -> None:
    """The other locks hold, and bubblewrap's own words are told."""
    tools = stage.folder / "tools"
    tools.mkdir()
    (tools / "bwrap").write_text("#!/bin/sh\necho 'bwrap: no namespaces here' >&2\nexit 1\n")
    (tools / "bwrap").chmod(0o755)
    result = stage.attack("auto", PATH=f"{tools}:{os.environ['PATH']}")
    assert "bwrap: no namespaces here" in " ".join(result["notes"])
    harmless(result, "process")


@pytest.mark.parametrize("stage", PEOPLE, indirect=True)
@pytest.mark.parametrize("design", ["bubblewrap", "process"])
def test_programs_reach_each_other_where_the_filter_is_wide(stage: Stage, design: str) -> None:
    """Else something other than the rules would stop them, or the attacks would be clumsy."""
    titles = [attack.title for attack in ATTACKS if attack.family == "between"]
    outcomes = stage.attack(design, *titles, **{WIDE: "all"})["outcomes"]
    assert set(outcomes) == set(titles)
    lost = {name: o["message"] for name, o in outcomes.items() if not o["evidence"]}
    assert lost == {}


RULES: dict[str, tuple[set[str], ...]] = {
    "waking sleepers on a shared page": ({"futex"},),
    "waking sleepers as a thread ends": ({"futex"}, {"set_tid_address"}),
    "waking sleepers by a robust list": ({"futex"}, {"set_robust_list"}),
    "counting processes": ({"apart"},),
    "clocks of other processes": ({"clock_gettime"}, {"apart"}),
    "resolution of another's clock": ({"clock_getres"}, {"apart"}),
    "sleeping by another's clock": ({"clock_nanosleep"}, {"apart"}),
    "limits of other processes": ({"prlimit64"}, {"apart"}),
    "a process of its own": ({"clone"},),
    "cores of other processes": ({"sched_getaffinity"}, {"apart"}),
    "scheduling of other processes": ({"sched_getscheduler", "sched_getparam"}, {"apart"}),
    "waiting for another process to end": ({"futex"}, {"apart"}),
    "threads of the machine": ({"sysinfo"},),
    "pages written to disk": ({"madvise"},),
    "pages read from disk": ({"getrusage"},),
    "large pages of the machine": ({"mmap"},),
}
"""The rules that stop an attack. Where there are two, either of them is enough."""


def apart_here() -> bool:
    """Whether this kernel gives each split namespaces of its own."""
    return all(layer.there for layer in layers() if layer.name == "namespaces")


def test_the_table_of_rules_is_whole() -> None:
    assert {f"between: {name}" for name in RULES} == {
        attack.title for attack in ATTACKS if attack.family == "between"
    }


@pytest.mark.slow
def test_an_attack_wins_where_just_the_rules_against_it_are_lifted(stage: Stage) -> None:
    """And not while one of them stands."""
    plan: dict[tuple[str, ...], dict[str, bool]] = {}
    for name, against in RULES.items():
        rules = [rule for rule in against if rule != {"apart"} or apart_here()]
        for standing in ([], *rules) if len(rules) > 1 else [[]] * len(rules):
            lifted = {each for rule in rules if rule is not standing for each in rule}
            plan.setdefault(tuple(sorted(lifted)), {})[f"between: {name}"] = standing == []
    told = json.dumps([*plan.items()])
    outcomes = stage.attack("process", told, script="lifting.py")["outcomes"]
    for (lifted, wins), found in zip(plan.items(), outcomes, strict=True):
        assert {title: o["evidence"] != [] for title, o in found.items()} == wins, (lifted, found)


def harmless(result: Mapping[str, Any], design: str) -> None:
    """Asserts all that must hold after the attacks."""
    outcomes = result["outcomes"]
    assert result["isolation"] == design
    assert set(outcomes) == {a.title for a in ATTACKS if design in a.designs}
    assert evidence(outcomes) == {}
    assert result["common"] == []
    assert {name: o["faults"] for name, o in outcomes.items() if o["faults"]} == {}
    clumsy = {n: o["message"] for n, o in outcomes.items() if o["message"].startswith(CLUMSY)}
    assert [n for n in clumsy if not n.startswith(("answers", "crashes", "floods"))] == []
    assert result["lost"] == [], "a worker died"
    assert result["left"] == [], "a program outlived its time"
    assert len(result["below"]) >= 5, "three workers and two busy children"
    assert result["survivors"] == [], "something lived on after the trainer was killed"
    assert result["changed"] == [], "honest programs answer otherwise after the attacks"
    assert all(len(tables) == 5 for tables in result["honest"].values())
