"""The host of the hostile programs: sets traps, runs programs in a sandbox, collects the traces.

A script, because half of the trials are an ordinary user's: `python trial.py DESIGN FOLDER` writes
what happened to `result.json`, leaves programs running that never end, and waits to be killed.
Titles of attacks after that choose among them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import secrets
import signal
import socket
import sys
import sysconfig
import termios
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from fcntl import ioctl
from pathlib import Path
from typing import Any, cast

import numpy as np
from hostile import ATTACKS, PRELUDE, STATUSES, SYSTEM_CALLS, Attack
from sklearn.metrics import roc_auc_score

from poad.envs.datasci import client, confinement, selftest
from poad.envs.datasci import sandbox as sandbox_module
from poad.envs.datasci.sandbox import Answer, Isolation, Job, Sandbox

SECRET = "POAD_TEST_SECRET"
WIDE = "POAD_TEST_WIDE"
WIDER = ("set_tid_address", "set_robust_list", "sysinfo", "getrusage")
BUDGET = 1.0
"""Seconds that an attack gets, all of them if it never ends."""
PATIENCE = 120.0
"""Seconds for a program that ends by itself, however busy the machine is."""
LUCK = 0.7
"""A mean AUC on noise, over five splits of 200 rows, that no honest program reaches."""
HONEST = {
    "linear": "from sklearn.linear_model import LogisticRegression as Model",
    "tree": "from sklearn.tree import DecisionTreeClassifier as Model",
    "neighbours": "from sklearn.neighbors import KNeighborsClassifier as Model",
}
ENDLESS = [attack for attack in ATTACKS if attack.slug in ("loops-in-C", "loops-asleep")]
WORKERS = len(ENDLESS) + 1
SYSTEM_V_KEY = 0x70000000 + os.getpid()
QUEUE = f"/poad-test-{os.getpid()}"


@dataclass(frozen=True)
class Outcome:
    """What one attack did."""

    status: str
    message: str
    seconds: float
    evidence: list[str] = field(default_factory=list)
    """Signs that it won."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with the answer itself."""


def descendants() -> dict[int, str]:
    """Live processes below this one, orphans included, with their state and name."""
    parents: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                head, _, rest = (folder / "stat").read_text().rpartition(")")
            except OSError:
                continue  # gone meanwhile
            state, parent = rest.split()[:2]
            parents[int(folder.name)] = (int(parent), f"{state} {head.partition('(')[2]}")
    found: dict[int, str] = {}
    row = {os.getpid()}
    while row:
        row = {process for process, (parent, _) in parents.items() if parent in row}
        found |= {process: parents[process][1] for process in row}
    return {process: name for process, name in found.items() if not name.startswith("Z")}


class Traps:
    """Secrets to be found, files to be spoilt, listeners to be reached; each leaves a trace."""

    def __init__(self, folder: Path) -> None:
        self.secret = os.environ[SECRET]
        self.folder = folder
        self.drop = folder / "drop"
        self.drop.mkdir()
        self.drop.chmod(0o777)
        for name, text in {
            "secret.txt": self.secret,
            "labels.csv": f"x,y\n1,2\n3,4\n{self.secret},1\n",
            "canary.py": f"SECRET = {self.secret!r}\n",
            "id_ed25519": self.secret,
        }.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o644)
        self._inherit()
        self._listen()
        self._terminal()
        self._keep_in_kernel()
        signalling = [attack.slug for attack in ATTACKS if "SIGNAL" in attack.source]
        self.signals = dict(zip(signalling, range(signal.SIGRTMIN, signal.SIGRTMAX), strict=False))
        self.received: set[int] = set()
        for number in self.signals.values():
            signal.signal(number, lambda number, _: self.received.add(number))
        own = {attack.slug: self.drop / f"{attack.slug}.victim" for attack in ATTACKS}
        for path in own.values():
            path.write_text("whole")
            path.chmod(0o666)
        self.victims = {name: (path, self._look(path)) for name, path in own.items()}
        self.site = [sysconfig.get_path("purelib"), os.path.dirname(os.path.dirname(np.__file__))]
        self.site_file = f"poad_test_{secrets.token_hex(4)}.pth"

    def source(self, attack: Attack) -> str:
        """The whole program, which knows more than any real one could."""
        if not attack.source.startswith(PRELUDE):
            return attack.source
        return self._constants(attack) + attack.source

    def _constants(self, attack: Attack) -> str:
        name = attack.slug
        known: dict[str, Any] = {
            **SYSTEM_CALLS,
            "NAME": name,
            "BUDGET": BUDGET,
            "TRAINER": os.getpid(),
            "SIGNAL": self.signals.get(name),
            "SECRET_FILE": str(self.folder / "secret.txt"),
            "LABELS_CSV": str(self.folder / "labels.csv"),
            "MODULE_FILE": str(self.folder / "canary.py"),
            "KEY_FILE": str(self.folder / "id_ed25519"),
            "PLANT": str(self.drop / f"{name}.planted"),
            "VICTIM": str(self.drop / f"{name}.victim"),
            "SEARCH": sys.path,
            "SITE": self.site,
            "SITE_FILE": self.site_file,
            "TCP_PORT": self.tcp.getsockname()[1],
            "UDP_PORT": self.udp.getsockname()[1],
            "SOCKET_PATH": self.path.getsockname(),
            "ABSTRACT": "\0" + self.abstract.getsockname()[1:].decode(),
            "ABSTRACT_DATAGRAM": "\0" + self.datagram.getsockname()[1:].decode(),
            "SHARED_MEMORY": f"/{self.shared.name}",
            "TERMINAL": os.ttyname(self.slave),
            "KEY_NAME": "poad-test",
            "SYSTEM_V_KEY": SYSTEM_V_KEY,
            "QUEUE": QUEUE,
        }
        return "; ".join(f"{name} = {value!r}" for name, value in known.items()) + "\n"

    def traces(self, attack: Attack) -> list[str]:
        """What this attack left behind."""
        name = attack.slug
        path, before = self.victims[name]
        found = [] if self._look(path) == before else ["changed a file"]
        if os.path.lexists(self.drop / f"{name}.planted"):
            found.append("planted a file")
        if name in self.heard:
            found.append("reached a listener")
        if self.signals.get(name) in self.received:
            found.append("signalled the trainer")
        return found

    def common_traces(self) -> list[str]:
        """What some attack left behind."""
        self.hear()
        found = [f"sent {name!r}" for name in self.heard]
        found += ["signalled the trainer"] if self.received else []
        found += ["wrote to an inherited file"] if self.inherited.stat().st_size else []
        for place in self.site:
            if os.path.lexists(f"{place}/{self.site_file}"):
                os.unlink(f"{place}/{self.site_file}")
                found.append(f"planted in {place}")
        with contextlib.suppress(BlockingIOError):
            found.append(f"wrote to the terminal: {os.read(self.master, 999)!r}")
        for stray in ("/dev/shm", "/tmp", "/var/tmp", "/", "."):
            for path in Path(stray).glob("*.planted"):
                path.unlink()
                found.append(f"planted in {stray}")
        return found

    def clear(self) -> None:
        """Take away what lies outside the folder."""
        self.shared.unlink(missing_ok=True)
        libc = ctypes.CDLL(None)
        for get, control in (("shmget", "shmctl"), ("msgget", "msgctl")):
            size = (0,) if get == "shmget" else ()
            if (number := getattr(libc, get)(SYSTEM_V_KEY, *size, 0)) >= 0:
                getattr(libc, control)(number, 0, None)
        libc.mq_unlink(QUEUE.encode())

    def _look(self, path: Path) -> object:
        try:
            about = path.stat()
        except FileNotFoundError:
            return None
        times = about.st_mtime_ns, about.st_ctime_ns
        return about.st_mode, about.st_nlink, times, path.read_bytes()

    def _inherit(self) -> None:
        """Descriptors that a careless start would hand on."""
        self.inherited = self.folder / "inherited.txt"
        for number, flags in ((40, os.O_RDONLY), (901, os.O_RDONLY), (41, os.O_WRONLY)):
            path = self.folder / "secret.txt" if flags == os.O_RDONLY else self.inherited
            opened = os.open(path, flags | os.O_CREAT, 0o644)
            os.dup2(opened, number, inheritable=True)
            os.close(opened)

    def _listen(self) -> None:
        self.heard: set[str] = set()
        unique = secrets.token_hex(4)
        self.tcp = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.path = socket.socket(socket.AF_UNIX)
        self.path.bind(str(self.folder / "listener"))
        (self.folder / "listener").chmod(0o777)
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0poad-test-{unique}")
        self.datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagram.bind(f"\0poad-test-datagram-{unique}")
        for listener in (self.path, self.abstract):
            listener.listen(64)
        for one in (self.tcp, self.udp, self.path, self.abstract, self.datagram):
            one.setblocking(False)

    def hear(self) -> None:
        """Note who has called at the listeners."""
        for listener in (self.tcp, self.path, self.abstract):
            while True:
                try:
                    stream = listener.accept()[0]
                except BlockingIOError:
                    break
                with stream:
                    stream.settimeout(0.5)
                    try:
                        text = stream.recv(999).decode(errors="replace")
                    except OSError:
                        text = "nothing"
                self.heard.add(text.removeprefix("GET /").split(" ")[0])
        for receiver in (self.udp, self.datagram):
            while True:
                try:
                    self.heard.add(receiver.recv(999).decode(errors="replace"))
                except BlockingIOError:
                    break

    def _terminal(self) -> None:
        """A terminal of its own, as a trainer in a shell has one."""
        self.master, self.slave = pty.openpty()
        ioctl(self.slave, termios.TIOCSCTTY, 0)
        os.fchmod(self.slave, 0o666)
        os.set_blocking(self.master, False)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _keep_in_kernel(self) -> None:
        """A secret in shared memory and one in a keyring."""
        self.shared = Path(f"/dev/shm/poad-test-{os.getpid()}")
        self.shared.write_text(self.secret)
        self.shared.chmod(0o666)
        join, session = 1, ctypes.c_long(-3)
        libc = ctypes.CDLL(None)
        libc.syscall(SYSTEM_CALLS["SYS_keyctl"], join, None)
        text = self.secret.encode()
        libc.syscall(SYSTEM_CALLS["SYS_add_key"], b"user", b"poad-test", text, len(text), session)


def noise() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """A table whose labels are noise, and its splits: train first, then test."""
    x, y = np.random.RandomState(1).rand(200, 3), np.random.RandomState(2).randint(0, 2, 200)
    return x, y, [np.random.RandomState(split).permutation(200) for split in range(5)]


def part(role: int, word: int) -> Job:
    """A split that tells a program to send a number (0), or to receive one (1)."""
    x = np.array([[role, word]] * 4, np.float64)
    return Job(x, np.arange(4) % 2, x[:1].copy(), classes=2, seed=0)


def told(sandbox: Sandbox, attack: Attack, source: str) -> tuple[Answer, bool]:
    """What the receiver answers, and whether it was what the sender sent."""
    answer, crossed = Answer(None, "error", "", 0.0, 0.0), False
    for word in (3, 5, 6) if attack.pair == "after" else (5,):
        if attack.pair == "after":  # other processes may start at any time: one success is enough
            answer = patiently(sandbox, source, [part(0, word), part(1, 0)])
        else:
            sandbox.budget = PATIENCE
            sender = sandbox.submit(source, [part(0, word)])
            answer = sandbox.submit(source, [part(1, 0)]).result()
            sender.result()
            sandbox.budget = BUDGET
        tables = answer.probabilities
        crossed = crossed or (tables is not None and bool(tables[-1][0, 0] == word))
    return answer, crossed


def jobs(noisy: bool) -> list[Job]:
    """One split that can be learned, or five of a table whose labels are noise."""
    if not noisy:
        x = np.random.RandomState(0).rand(70, 3)
        return [Job(x[:40], (x[:40, 0] > 0.5).astype(np.int64), x[40:], classes=2, seed=0)]
    x, y, orders = noise()
    return [
        Job(x[order[:100]], y[order[:100]], x[order[100:]], classes=2, seed=split)
        for split, order in enumerate(orders)
    ]


def score(answer: Answer) -> float:
    """Mean AUC on the noise, 0 without an answer."""
    _, y, orders = noise()
    if answer.probabilities is None:
        return 0.0
    pairs = zip(orders, answer.probabilities, strict=True)
    return float(np.mean([roc_auc_score(y[order[100:]], table[:, 1]) for order, table in pairs]))


def faults(attack: Attack, answer: Answer) -> list[str]:
    """What an answer must not be, whatever the program did."""
    found = []
    if answer.status not in STATUSES:
        found.append("unknown status")
    if (answer.status == "ok") != (answer.probabilities is not None):
        found.append(f"{answer.status} with probabilities {answer.probabilities is not None}")
    if (answer.status == "ok") != (answer.message == ""):
        found.append(f"{answer.status} with the message {answer.message!r}")
    if len(answer.message.encode()) > 2000:
        found.append("a message of more than 2,000 bytes")
    if not all(line.isprintable() for line in answer.message.split("\n")):
        found.append("a message that cannot be printed")
    if answer.message.count("\n") > 5:
        found.append("a message of many lines")
    for table, job in zip(answer.probabilities or (), jobs(attack.noise), strict=False):
        fits = table.shape == (len(job.x_test), 2) and table.dtype == np.float64
        if not (fits and np.isfinite(table).all()):
            found.append(f"a table {table.shape} of {table.dtype}")
    if attack.ends and answer.status not in attack.ends:
        found.append(f"ended as {answer.status}, not as {' or '.join(attack.ends)}")
    return found


def run_all(sandbox: Sandbox, traps: Traps, attacks: Sequence[Attack]) -> dict[str, Outcome]:
    """Every attack, several at a time; outcomes by family and name."""
    waiting: list[tuple[Attack, Future[Answer]]] = [
        (attack, sandbox.submit(traps.source(attack), jobs(attack.noise)))
        for attack in attacks
        if not attack.pair
    ]
    answers = [(attack, future.result()) for attack, future in waiting]
    outcomes = {}
    for attack, answer in answers:
        if answer.status == "timeout" and must_end(attack, sandbox.isolation):
            answer = patiently(sandbox, traps.source(attack), jobs(attack.noise))
        outcome = Outcome(answer.status, answer.message, answer.seconds)
        outcome.faults.extend(faults(attack, answer))
        if "GOT: " in answer.message:
            outcome.evidence.append(answer.message)
        if traps.secret in answer.message:
            outcome.evidence.append("told a secret")
        if attack.noise and score(answer) > LUCK:
            outcome.evidence.append(f"an AUC of {score(answer):.2f} on noise")
        outcomes[attack.title] = outcome
    for attack in (one for one in attacks if one.pair):
        answer, crossed = told(sandbox, attack, traps.source(attack))
        evidence = ["a number got across"] * crossed
        outcomes[attack.title] = Outcome(answer.status, answer.message, answer.seconds, evidence)
    traps.hear()
    for attack, _ in answers:
        outcomes[attack.title].evidence.extend(traps.traces(attack))
    return outcomes


def must_end(attack: Attack, isolation: str) -> bool:
    """Whether an attack that ran out of time only did so because the machine is busy."""
    return "timeout" not in attack.ends and (bool(attack.ends) or isolation == "none")


def patiently(sandbox: Sandbox, source: str, tasks: list[Job]) -> Answer:
    """Run a program with time enough on any machine."""
    sandbox.budget = PATIENCE
    try:
        return sandbox.run(source, tasks)
    finally:
        sandbox.budget = BUDGET


def honest(sandbox: Sandbox) -> dict[str, list[list[list[float]]]]:
    """What honest programs answer."""
    found = {}
    for name, line in HONEST.items():
        text = f"{line}\ndef build_model(x, y):\n    return Model().fit(x, y)\n"
        answer = patiently(sandbox, text, jobs(noisy=True))
        tables = answer.probabilities or ()
        found[name] = [table.tolist() for table in tables] or [[[answer.message]]]
    return found


def settled(wanted: set[int], seconds: float) -> dict[int, str]:
    """Processes below this one, once they are those wanted or time is up."""
    end = time.monotonic() + seconds
    while (found := descendants()).keys() != wanted and time.monotonic() < end:
        time.sleep(0.05)
    return found


def chosen(isolation: str, names: list[str]) -> list[Attack]:
    """The attacks for a design, or those named; without a sandbox only those that do no harm."""
    return [
        one
        for one in ATTACKS
        if (one.wins if isolation == "none" else isolation in one.designs)
        and (not names or one.title in names)
    ]


def attack(sandbox: Sandbox, traps: Traps, names: list[str]) -> dict[str, Any]:
    """Run the attacks; what each did, and what became of the sandbox."""
    before, idle = honest(sandbox), descendants()
    outcomes = run_all(sandbox, traps, chosen(sandbox.isolation, names))
    left = settled(set(idle), 30)
    after = honest(sandbox)
    return {
        "isolation": sandbox.isolation,
        "notes": sandbox.notes,
        "outcomes": {name: asdict(outcome) for name, outcome in outcomes.items()},
        "common": traps.common_traces(),
        "lost": [idle[process] for process in idle.keys() - left.keys()],
        "left": [left[process] for process in left.keys() - idle.keys()],
        "changed": [name for name in before if before[name] != after[name]],
        "honest": before,
    }


def occupy(sandbox: Sandbox, traps: Traps) -> list[int]:
    """Start what never ends; all processes below, with an idle worker and busy ones."""
    idle = len(descendants())
    for one in ENDLESS:
        sandbox.submit(traps.source(one), jobs(noisy=False))
    end = time.monotonic() + 60
    while len(descendants()) < idle + len(ENDLESS):
        if time.monotonic() > end:
            raise TimeoutError("the endless programs do not start")
        time.sleep(0.05)
    time.sleep(0.5)  # until they have blocked what they block
    return list(descendants())


def widen(rules: Sequence[str]) -> None:
    """Lift some rules of what programs may do, or all of them; the other layers stay.

    This shows that attacks fail for the reason that they should.

    Args:
        rules: system calls that are then allowed with all arguments, "apart" for the namespaces of
            each split, or "all".
    """
    calls = (*confinement.NARROWED, *WIDER)
    lifted = (*calls, "apart") if "all" in rules else rules
    assert set(lifted) <= {*calls, "apart"}
    confinement.NARROWED |= {call: [[]] for call in calls if call in lifted}
    if "futex" in lifted:
        confinement.BUSY = ()
    selftest.losses = lambda _: []
    if "apart" not in lifted:
        return
    whole = client.setup

    def shared(isolation: str) -> client.Setup:
        found = whole(isolation)
        return replace(found, settings=found.settings.replace('"apart": true', '"apart": false'))

    sandbox_module.setup = shared  # pyright: ignore[reportPrivateImportUsage]


def main() -> None:
    isolation, folder, *names = sys.argv[1:]
    if WIDE in os.environ:
        widen(os.environ[WIDE].split(","))
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans below become children: none is overlooked
    traps = Traps(Path(folder))
    try:
        sandbox = Sandbox(cast(Isolation, isolation), workers=WORKERS, budget=BUDGET)
        result = attack(sandbox, traps, names)
    finally:
        traps.clear()
    if isolation != "none":
        sandbox.budget = 600.0
        result["below"] = occupy(sandbox, traps)
    (Path(folder) / "result.json").write_text(json.dumps(result))
    print("ready to be killed", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
