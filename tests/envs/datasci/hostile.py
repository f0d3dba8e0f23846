"""Programs that try to harm the machine, to read what is not theirs, or to cheat.

They lie in the folder `attacks`, a file per family. A line that starts with `## ` gives a program's
name and, after a colon, what is said of it:

- wins: it does no harm and must win where nothing confines it, which proves that the corpus can
  tell a sandbox from none;
- noise: it gets five splits of a table whose labels are noise, so that its score is evidence;
- bubblewrap: only that design stops it, as is documented;
- pair, after: what follows is send(word) and receive(). They run as two programs at a time, or as
  one split after the other, and a number from 1 to 7 must not get across;
- module, memory, answer, text: what follows is not the body of build_model, after which an honest
  model is returned, but a whole module; or recall() and keep(), a memory that would outlive a
  split; or what predict_proba returns; or a Python expression for the source, without `PRELUDE`;
- error, output, killed, timeout: how it must end, one of those between slashes. Otherwise it may
  end in any way that is harmless.

An attack that believes it won raises an exception whose text starts with `GOT: `, or leaves a
trace that `trial` looks for. The constants that it uses (SECRET_FILE, PLANT ...) come from there.
"""

from __future__ import annotations

import platform
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

PRELUDE = '''\
import ctypes, errno, importlib.machinery, os, signal, socket, stat, struct, sys, threading, time
import numpy as np
from sklearn.dummy import DummyClassifier

sys.path[:] = SEARCH  # in case the way to more modules was merely hidden
sys.meta_path.append(importlib.machinery.PathFinder)

libc = ctypes.CDLL(None, use_errno=True)
NOWHERE, NONE = -100, None

def call(name, *arguments):
    """A function of the C library or, by number, a system call; -1 is raised as OSError."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if isinstance(name, int):
        words = [ctypes.c_long(name), *words]
    function = libc.syscall if isinstance(name, int) else getattr(libc, name)
    function.restype = ctypes.c_long if isinstance(name, int) else ctypes.c_int
    result = function(*words)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

def got(evidence):
    raise RuntimeError(f"GOT: {str(evidence)[:200]}")

def descriptors(kind, least=0):
    """Open descriptors of a kind: "socket" (a pipe too), "file" or "device"."""
    found = []
    for fd in range(least, 1024):
        try:
            mode = os.fstat(fd).st_mode
            is_socket, is_file = stat.S_ISSOCK(mode), stat.S_ISREG(mode)
        except PermissionError:  # what cannot be examined may still tell by what it can do
            is_socket, is_file = tells(os.lseek, fd, 0, 1) == errno.ESPIPE, True
            if tells(os.lseek, fd, 0, 1) == errno.EBADF:
                continue
        except OSError:
            continue
        if kind == ("socket" if is_socket else "file" if is_file else "device"):
            found.append(fd)
    return found

def tells(action, *arguments):
    """The error that it brings, 0 if none."""
    try:
        action(*arguments)
    except OSError as error:
        return error.errno
    return 0

def succeeds(action, *arguments):
    """Whether the system let it be done."""
    return tells(action, *arguments) == 0

SLOTS = [ctypes.addressof(ctypes.c_char.in_dll(libc, "in6addr_any")) + 4 * i for i in range(3)]
MARK = SLOTS[2] + 4  # four zeros in a page of the C library, which all programs share
FUTEX_WAIT, FUTEX_WAKE = 0, 1

def chosen(word):
    """The slots that stand for the bits of a number."""
    return [slot for i, slot in enumerate(SLOTS) if word >> i & 1]

def together(steps, last=None):
    """Run steps in threads of their own, the last one when the others have begun."""
    threads = [threading.Thread(target=step, args=rest) for step, *rest in steps]
    for thread in threads:
        thread.start()
    if last:
        time.sleep(.2)
        last[0](*last[1:])
    for thread in threads:
        thread.join()

def asleep(slot):
    """Whether someone woke this thread within three seconds."""
    return succeeds(call, SYS_futex, slot, FUTEX_WAIT, 0, struct.pack("qq", 3, 0), NONE, 0)

def woken():
    """The number whose slots someone woke within three seconds."""
    found = []
    def wait(i, slot):
        found.append(asleep(slot) << i)
    together([(wait, i, slot) for i, slot in enumerate(SLOTS)])
    return sum(found)

def channel():
    """The descriptor on which the answer leaves."""
    return descriptors("socket")[0]

class Remembers:
    """Answers from remembered rows: .5 for those it never saw."""
    classes_ = np.array([0, 1])
    def __init__(self, labels):
        self.labels = labels
    def predict_proba(self, x):
        one = np.array([float(self.labels.get(row[0].tobytes(), .5)) for row in x])
        return np.stack([1 - one, one], axis=1)

def remembered(x_train, y_train, recall, keep):
    """A model that knows the rows of earlier splits too, where a memory outlives the split."""
    kept = recall()
    labels = {kept[i:i + 8]: kept[i + 8] for i in range(0, len(kept) - 8, 9)}
    labels.update({row[0].tobytes(): int(y) for row, y in zip(x_train, y_train)})
    keep(b"".join(row + bytes([label]) for row, label in labels.items()))
    return Remembers(labels)

class Answers:
    """A model that answers whatever `what` says."""
    def __init__(self, what, classes=(0, 1)):
        self.what, self.classes_ = what, np.array(classes)
    def predict_proba(self, x):
        return self.what(x)
'''

_NUMBERS = {  # x86-64, arm64
    "futex": (202, 98),
    "set_tid_address": (218, 96),
    "set_robust_list": (273, 99),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execveat": (322, 281),
    "openat": (257, 56),
    "openat2": (437, 437),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "kcmp": (312, 272),
    "ioprio_set": (251, 30),
    "memfd_secret": (447, 447),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
}
SYSTEM_CALLS = {
    f"SYS_{name}": pair[platform.machine() == "aarch64"] for name, pair in _NUMBERS.items()
}

STATUSES = ("ok", "error", "timeout", "killed", "output")
DESIGNS = ("bubblewrap", "process")


@dataclass(frozen=True)
class Attack:
    family: str
    name: str
    source: str
    """Without the constants of `trial`."""
    ends: tuple[str, ...] = ()
    """The right statuses; empty: any."""
    wins: bool = False
    pair: str = ""
    """"pair" or "after" for two programs, one of which tells the other a number."""
    noise: bool = False
    designs: tuple[str, ...] = DESIGNS

    @property
    def title(self) -> str:
        return f"{self.family}: {self.name}"

    @property
    def slug(self) -> str:
        """A name for files."""
        return re.sub(r"\W+", "-", self.title)


HEAD = "def build_model(x_train, y_train):"
TELLS = f"""\
{HEAD}
    role, word = x_train[0]
    told = receive() if role else send(int(word))
    return Answers(lambda x: np.full((len(x), 2), [told or 0, 1]))
"""
FORMS = {
    **dict.fromkeys(("pair", "after"), f"{PRELUDE}\n%s\n{TELLS}"),
    "body": f"{PRELUDE}\n{HEAD}\n%s\n    return DummyClassifier().fit(x_train, y_train)\n",
    "module": f"{PRELUDE}\n%s\n",
    "answer": f"{PRELUDE}\n{HEAD}\n    return Answers(lambda x: %s)\n",
    "memory": f"{PRELUDE}\n%s\n{HEAD}\n    return remembered(x_train, y_train, recall, keep)\n",
}


def _attack(family: str, section: str) -> Attack:
    title, _, text = section.partition("\n")
    name, _, said = title.partition(": ")
    words = said.split(", ") if said else []
    form = next((word for word in words if word in (*FORMS, "text")), "body")
    ends = [word for word in words if set(word.split("/")) <= set(STATUSES)]
    unknown = set(words) - {form, *ends, "wins", "noise", "bubblewrap"}
    if unknown:
        raise ValueError(f"attacks/{family}.txt: {name} is said to be {unknown}")
    text = text.strip("\n")
    if form == "text":
        source = eval(compile(text, name, "eval"), {})
    else:
        source = FORMS[form] % (textwrap.indent(text, "    ") if form == "body" else text)
    return Attack(
        family,
        name,
        source,
        ends=tuple(ends[0].split("/")) if ends else (),
        wins="wins" in words,
        pair=form if form in ("pair", "after") else "",
        noise="noise" in words,
        designs=("bubblewrap",) if "bubblewrap" in words else DESIGNS,
    )


ATTACKS = tuple(
    _attack(path.stem, section)
    for path in sorted((Path(__file__).parent / "attacks").glob("*.txt"))
    for section in path.read_text().removeprefix("## ").split("\n## ")
)
