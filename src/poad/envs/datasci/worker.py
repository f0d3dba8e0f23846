"""The fork server that runs programs, and the forked child in which one of them runs.

This is a stand-alone script. The host starts it by path, with or without bubblewrap, so it imports
nothing from poad. It loads scikit-learn, drops its privileges, and then forks once per program and
split. The server never holds data: code and arrays go from the host straight to the child, after
the child has reported that it is confined.

Descriptor 0 is the control socket, 1 is /dev/null, and 2 is the log that the host reads when the
server fails. Control messages have a fixed size (`REQUEST`, `REPORT`), and a request carries the
socket of the child. On that socket the child sends `CONFINED`, or the reason why it is not confined
before it ends. It then reads the job and answers with one frame: the header `FRAME`, followed by
rows x columns numbers in little-endian float64 or by at most 2,000 bytes of text.
"""

import contextlib
import ctypes
import gc
import hashlib
import importlib
import io
import json
import os
import pkgutil
import random
import re
import select
import signal
import socket
import struct
import sys
import types
import warnings
from importlib.machinery import BuiltinImporter, FrozenImporter
from typing import Any

REQUEST = struct.Struct("<cqq")
"""b"R" (run, with the limits of tasks and of CPU seconds) or b"K" (kill the running child)."""
REPORT = struct.Struct("<cqd")
"""b"!" (ready: 1 if children are apart, else 0) or b"D" (the child has ended: its wait status and
CPU seconds)."""
JOB = struct.Struct("<QQQQ")
"""Bytes of code, bytes of arrays, classes and seed. Code and three arrays in npy format follow."""
FRAME = struct.Struct("<III")
"""Status, rows and columns; for text: status, bytes and 0."""
CONFINED = b"C"
ANSWERED, FAILED, MISSHAPEN = range(3)
LONGEST_TEXT = 2_000
PROGRAM = "<program>"

WHOLE_PACKAGES = ("scipy", "pandas", "joblib", "narwhals", "sklearn")
SKIPPED = "__main__ tests conftest this _precompute array_api_compat array_api_extra"
UNNEEDED = ("matplotlib", "sympy", "mpmath", "PIL", "pytest", "IPython", "torch")
"""Packages that scikit-learn and scipy import if they are installed. No program needs them."""
MODULES = (
    "numpy.fft numpy.ma numpy.polynomial numpy.lib.recfunctions numpy.testing threadpoolctl "
    "concurrent.futures.process concurrent.futures.thread email.message "
    "encodings.ascii encodings.cp1252 encodings.idna encodings.latin_1 encodings.utf_8_sig "
    "encodings.utf_16 encodings.utf_32 importlib.metadata logging.config multiprocessing.pool "
    "multiprocessing.queues multiprocessing.synchronize urllib.request xml.etree.ElementTree "
    "_strptime "
)
"""Further modules that programs may import, besides the standard library."""
UNUSABLE = (
    "antigravity curses ensurepip idlelib lib2to3 readline rlcompleter test this tkinter turtle "
    "turtledemo venv "
)
"""Modules of the standard library that act when they are imported, or need a screen."""

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
PR_SET_CHILD_SUBREAPER = 36
NEW_USER_AND_PROCESS_NUMBERS = 0x30000000


def libc() -> Any:
    """Return the C library that Python is linked with; a search would fail in the sandbox."""
    return ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int, pointer: Any = None) -> None:
    """Call prctl.

    Raises:
        OSError: the kernel refuses.
    """
    rest = [ctypes.c_ulong(value), ctypes.c_void_p(pointer), ctypes.c_ulong(0), ctypes.c_ulong(0)]
    if libc().prctl(option, *rest):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def deny_files_and_signals() -> None:
    """Deny files, TCP, abstract sockets and signals to others by Landlock, without exception.

    This is a second layer behind seccomp, for this process and all that it forks.

    Raises:
        OSError: the kernel has no Landlock.
    """
    call = libc().syscall
    create, restrict = 444, 446
    version = call(create, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        raise OSError(ctypes.get_errno(), "this kernel has no Landlock")
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attributes = [files] + [3] * (version >= 4) + [3] * (version >= 6)
    packed = struct.pack(f"<{len(attributes)}Q", *attributes)
    ruleset = call(create, packed, ctypes.c_size_t(len(packed)), ctypes.c_uint32(0))
    if ruleset < 0 or call(restrict, ctypes.c_int(ruleset), ctypes.c_uint32(0)):
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    os.close(ruleset)


def drop_rights(user: int | None, landlock: bool) -> None:
    """Drop the privileges of the server for good, and so of every child.

    Args:
        user: the user to become; None keeps the present one.
        landlock: also deny files and signals by Landlock.

    Raises:
        PermissionError: a privilege would remain.
    """
    if user is not None:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError as error:
            words = f"root cannot become user {user} here ({error}); start as an ordinary user"
            raise PermissionError(words) from None
    if 0 in os.getresuid() or any(capabilities()):
        raise PermissionError("the server would still have privileges of root")
    # setresuid clears the parent-death signal, so set the signal afterwards.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if landlock:
        deny_files_and_signals()


def capabilities() -> tuple[int, ...]:
    """Return the effective, permitted and inheritable capabilities, two words each."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc().capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    return tuple(sets)


def drop_capabilities() -> None:
    """Drop those that a new user namespace brings.

    Raises:
        OSError: the kernel refuses.
    """
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if libc().capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def limit(memory: int, tasks: int, seconds: int) -> None:
    """Set the hard resource limits of a child.

    Args:
        memory: bytes of address space.
        tasks: threads of its user, those of other processes included.
        seconds: CPU seconds.
    """
    import resource

    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_NPROC: tasks,
        resource.RLIMIT_STACK: 8 << 20,
        **dict.fromkeys((resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK), 0),
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def allow_only(filter_program: bytes) -> None:
    """Load a seccomp filter, as BPF instructions of eight bytes each."""
    instructions = ctypes.create_string_buffer(filter_program, len(filter_program))
    address = ctypes.addressof(instructions)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(filter_program) // 8, address))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header))


class Unneeded:
    """An importer that blocks the modules in `UNNEEDED` and leaves all others to the next one."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        """Raise ModuleNotFoundError for a blocked module."""
        if name.partition(".")[0] in UNNEEDED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def preload(paths: list[str]) -> None:
    """Import everything a program may use, and call what opens files at its first use.

    Nothing can be opened later. The arrays here are invented, since the server must not hold data.
    """
    sys.path.extend(path for path in paths if path not in sys.path)
    sys.meta_path.insert(0, Unneeded)
    for package in WHOLE_PACKAGES:
        _import_all(package)
    for name in MODULES.split():
        importlib.import_module(name)
    for name in sorted(sys.stdlib_module_names - set(UNUSABLE.split())):
        if not name.startswith("_"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    warm_up()
    keep_list_of_libraries()


def _import_all(name: str) -> None:
    with contextlib.suppress(Exception):  # some need packages that are not installed
        importlib.import_module(name)
    parts = getattr(sys.modules.get(name), "__path__", ())
    for found in pkgutil.iter_modules(parts, f"{name}."):
        if found.name.rpartition(".")[2] not in SKIPPED.split():
            _import_all(found.name)


def warm_up() -> None:
    """Call what reads /proc or the disk at its first use: thread pools, time zones, tables."""
    import platform
    import time

    import numpy
    import pandas
    import scipy.stats
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.neighbors import KNeighborsClassifier

    generator = numpy.random.RandomState(0)
    x, y = generator.rand(40, 3), numpy.arange(40) % 2
    KNeighborsClassifier(algorithm="brute").fit(x, y).predict_proba(x)
    HistGradientBoostingClassifier(max_iter=2).fit(x, y).predict_proba(x)
    scipy.stats.qmc.Sobol(2, scramble=False).random(2)
    str(pandas.DataFrame(x).describe())
    time.strptime("2000-01-01", "%Y-%m-%d")
    platform.uname()
    generator.seed(0)


def keep_list_of_libraries() -> None:
    """Let threadpoolctl find the loaded libraries without opening a file.

    `threadpool_limits` lists them at every call, from /proc/self/maps where that exists. A program
    can neither open this file nor load another library, so the list of the server stays complete.
    """
    import threadpoolctl

    found = threadpoolctl.ThreadpoolController().lib_controllers
    threadpoolctl.ThreadpoolController._load_libraries = lambda self: self.lib_controllers.extend(  # type: ignore[method-assign]
        found
    )


def text_of(error: BaseException) -> str:
    """Describe an error by its type, its message and the line of the program; no traceback."""
    line = None
    if isinstance(error, SyntaxError) and error.filename == PROGRAM:
        line, message = error.lineno, error.msg
    else:
        try:
            message = str(error)
        except BaseException:
            message = ""
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == PROGRAM:
            line = step.tb_lineno
        step = step.tb_next
    where = "" if line is None else f" (line {line})"
    body = f"{type(error).__name__}: {message}" if message else type(error).__name__
    room = LONGEST_TEXT - len(where)
    return body.encode("utf-8", "replace")[:room].decode("utf-8", "ignore") + where


def fix_entropy(seed: bytes) -> None:
    """Make generators without a seed, such as `default_rng()`, draw from a stream with this seed.

    numpy, scipy and the standard library ask `os.urandom` when they are not given a seed, and
    `random.Random` asks the kernel directly.
    """
    source = random.Random(hashlib.sha256(seed).digest())
    given = random.Random.seed

    def urandom(size: int, *_: object) -> bytes:
        return source.randbytes(size)

    def seeded(self: random.Random, a: Any = None, version: int = 2) -> None:
        given(self, urandom(32) if a is None else a, version)

    for module in (os, sys.modules["posix"]):
        module.urandom = module.getrandom = urandom  # type: ignore[attr-defined]
    random._urandom = urandom  # type: ignore[attr-defined]
    random.Random.seed = seeded  # type: ignore[method-assign]
    random.seed = random._inst.seed  # type: ignore[attr-defined]


def solve(code: bytes, arrays: io.BytesIO, classes: int, seed: int) -> tuple[int, Any]:
    """Run one program on one split: `ANSWERED` and its table, or another status and a text."""
    import numpy

    x_train, y_train, x_test = (numpy.load(arrays, allow_pickle=False) for _ in range(3))
    wanted = (len(x_test), classes)
    random.seed(seed)
    numpy.random.seed(seed)
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(code.decode(), PROGRAM, "exec"), module.__dict__)
        if "build_model" not in module.__dict__:
            raise NameError("the program does not define build_model(x_train, y_train)")
        model = module.build_model(x_train, y_train)
        table = numpy.array(model.predict_proba(x_test), dtype=numpy.float64, order="C")
        labels = [int(label) for label in getattr(model, "classes_", range(classes))]
    except BaseException as error:
        return FAILED, text_of(error)
    if sorted(labels) != list(range(classes)):
        return MISSHAPEN, f"the model knows the classes {labels}, the data has 0 to {classes - 1}"
    if table.shape != wanted:
        return MISSHAPEN, f"predict_proba gave the shape {table.shape} instead of {wanted}"
    return ANSWERED, table[:, numpy.argsort(labels)]


def read_exactly(descriptor: int, size: int) -> bytes:
    """Read a number of bytes.

    Raises:
        EOFError: the stream ends before.
    """
    pieces = bytearray()
    while len(pieces) < size:
        piece = os.read(descriptor, min(size - len(pieces), 1 << 20))
        if not piece:
            raise EOFError("the host hung up")
        pieces += piece
    return bytes(pieces)


def confine(settings: dict[str, Any], tasks: int, seconds: int) -> None:
    """Drop everything that a child must not have when it reads a program.

    Raises:
        OSError: a step fails.
    """
    limit(settings["memory"], tasks, seconds)
    drop_capabilities()
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    allow_only(settings["filter"])


def child(
    settings: dict[str, Any], stream: socket.socket, leash: socket.socket, tasks: int, seconds: int
) -> None:
    """Confine a forked child, run its program, answer and exit. Its socket becomes descriptor 3."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([leash], [], [], 0)[0]:
        os._exit(1)  # the server has died before
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(stream.fileno(), 3)
    os.dup2(1, 0)
    os.dup2(1, 2)
    os.closerange(4, 64)
    sys.path.clear()
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter]
    if settings["confine"]:
        try:
            confine(settings, tasks, seconds)
        except Exception as error:
            os.write(3, text_of(error).encode())
            os._exit(1)
    os.write(3, CONFINED)
    length, size, classes, seed = JOB.unpack(read_exactly(3, JOB.size))
    code, arrays = read_exactly(3, length), io.BytesIO(read_exactly(3, size))
    fix_entropy(code + str(seed).encode())
    status, result = solve(code, arrays, classes, seed)
    if status == ANSWERED:
        header, body = FRAME.pack(status, *result.shape), result.astype("<f8").tobytes()
    else:
        body = result.encode("utf-8", "replace")[:LONGEST_TEXT]
        header = FRAME.pack(status, len(body), 0)
    rest = memoryview(header + body)
    while rest:
        rest = rest[os.write(3, rest) :]
    os._exit(0)


def fork(apart: bool) -> tuple[int, socket.socket]:
    """Fork a child that ends with the server.

    Args:
        apart: put it into a user and a process namespace of its own. There it is process 1 whatever
            ran before, it cannot name other processes, and only its own threads count as tasks.

    Returns:
        The number of the child, 0 in the child itself, and an end of its leash. The server keeps
        its end open while it lives and the child runs.

    Raises:
        OSError: there are no namespaces.
    """
    ours, theirs = socket.socketpair()
    forked = os.fork()
    if forked and apart:
        os.waitpid(forked, 0)  # the child is ours from now on, as its nearest living ancestor
        theirs.close()
        with contextlib.suppress(EOFError):
            forked = int.from_bytes(read_exactly(ours.fileno(), 8), "little")
            ours.sendall(b"g")
            return forked, ours
        raise OSError("a child cannot be put into namespaces of its own")
    if forked:
        theirs.close()
        ours.sendall(b"g")
        return forked, ours
    ours.close()
    if apart:
        if libc().unshare(NEW_USER_AND_PROCESS_NUMBERS):
            os._exit(1)
        if inner := os.fork():
            theirs.sendall(inner.to_bytes(8, "little"))
            os._exit(0)
    if theirs.recv(1) != b"g":
        os._exit(1)
    return 0, theirs


def counts_tasks_by_namespace() -> bool:
    """Tell whether the kernel counts the tasks of a user in each user namespace for itself."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= (5, 14)


def can_be_apart() -> bool:
    """Try to put a child into namespaces of its own, with its own count of tasks."""
    if not counts_tasks_by_namespace():
        return False
    try:
        forked, leash = fork(apart=True)
    except OSError:
        return False
    if not forked:
        os._exit(0)
    leash.close()
    return os.waitpid(forked, 0)[1] == 0


def serve(control: socket.socket, settings: dict[str, Any]) -> None:
    """Fork on request, one child at a time, until the host hangs up."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    apart = settings["apart"] and can_be_apart()
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running, leash = 0, control
    control.sendall(REPORT.pack(b"!", apart, 0.0))
    while True:
        ready = select.select([control, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 64)
        if running:
            process, status, usage = os.wait4(running, os.WNOHANG)
            if process:
                running = 0
                leash.close()
                control.sendall(REPORT.pack(b"D", status, usage.ru_utime + usage.ru_stime))
        if control not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1)
        if len(message) < REQUEST.size:
            break
        kind, tasks, seconds = REQUEST.unpack(message)
        if kind == b"K" and running:
            os.kill(running, signal.SIGKILL)
        elif kind == b"R":
            stream = socket.socket(fileno=descriptors[0])
            running, leash = fork(apart)
            if not running:
                try:
                    child(settings, stream, leash, tasks, seconds)
                finally:
                    os._exit(1)
            stream.close()
    if running:
        os.kill(running, signal.SIGKILL)


def main() -> None:
    """Read the settings, import everything, drop privileges, and serve."""
    control = socket.socket(fileno=0)
    size = int.from_bytes(read_exactly(0, 8), "little")
    settings = json.loads(read_exactly(0, size))
    settings["filter"] = bytes.fromhex(settings["filter"])
    warnings.simplefilter("ignore")
    gc.disable()  # looking for garbage among what is imported takes a tenth of the time
    preload(settings["paths"])
    if settings["confine"]:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        drop_rights(settings["user"], settings["landlock"])
    gc.collect()
    gc.freeze()
    gc.enable()
    serve(control, settings)


if __name__ == "__main__":
    main()
