"""The self-test of a worker: an honest program must succeed, and every attack must be refused.

A worker that lets an attack through, or on which the honest program fails, is never used.
"""

import time

import numpy as np

from poad.envs.datasci.client import Job, Link, LostAtWork, WorkerLost

SECONDS = 20.0
"""Wall-clock seconds for each program."""
HONEST = """
from sklearn.linear_model import LogisticRegression
def build_model(x_train, y_train):
    return LogisticRegression().fit(x_train, y_train)
"""


def _calling(call: str) -> str:
    """Write a call of the C library past Python; `page` is a page of this library."""
    return (
        "libc = ctypes.CDLL(None, use_errno=True); "
        "page = ctypes.c_void_p(ctypes.cast(libc.abs, ctypes.c_void_p).value & ~4095); "
        "futex = 98 if os.uname().machine == 'aarch64' else 202\n"
        f"    if libc.{call} < 0: raise OSError(ctypes.get_errno(), 'refused')"
    )


_STEPS = {
    "read a file": "open(os.__file__).read()",
    "write a file": (
        "path = f'/tmp/poad-self-test-{os.getpid()}'; open(path, 'w').close(); os.unlink(path)"
    ),
    "open a socket": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "start a process": "os.fork() or os._exit(0)",
    "replace itself": "os.execv('/bin/true', ['true'])",
    "call the kernel past Python": (
        "if ctypes.CDLL(None, use_errno=True).open(b'/', 0) < 0: raise PermissionError"
    ),
    "kill its server": "os.kill(os.getppid(), 9)",
    "read the clock of another process": "time.clock_gettime((~(os.getppid() or 1) << 3) | 2)",
    "wake another process": _calling("syscall(futex, page, 1, 1)"),
    "change what is cached": _calling("madvise(page, 4096, 21)"),
}

ATTACKS = {
    name: f"import ctypes, os, socket, time\ndef build_model(x_train, y_train):\n    {step}\n"
    for name, step in _STEPS.items()
}
"""Programs by what they attempt. Each raises PermissionError if the sandbox holds."""


def losses(link: Link) -> list[str]:
    """Describe each failure of a worker in a phrase; the list is empty if it may be used.

    A worker that is lost during an attack has failed it.

    Raises:
        WorkerLost: the worker is lost before the first attack.
    """
    x = np.linspace(0.0, 1.0, 24).reshape(12, 2)
    job = Job(x, np.arange(12) % 2, x, classes=2, seed=0)
    try:
        outcome = link.split(HONEST.encode(), job, time.monotonic() + SECONDS)
    except LostAtWork as error:
        raise WorkerLost(str(error)) from None
    found = []
    if outcome.status != "ok":
        found.append(f"an honest program fails: {outcome.status} {outcome.message}")
    for name, source in ATTACKS.items():
        try:
            outcome = link.split(source.encode(), job, time.monotonic() + SECONDS)
        except WorkerLost as error:
            return [*found, f"a program can {name} ({error})"]
        # Only the refusal counts as a success: after a crash the attack may have gone through.
        if outcome.status != "error" or not outcome.message.startswith("PermissionError"):
            found.append(f"a program can {name} ({outcome.status} {outcome.message})")
    return found
