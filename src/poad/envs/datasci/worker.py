"""The fork server that runs programs, and the forked child in which one of them runs.

A stand-alone script: the host starts it by path, in bubblewrap or not, so it imports nothing of
poad. It loads scikit-learn, gives up its rights, and then forks once per (program, split). It
never holds data: code and arrays go from the host straight to the child, and only after the
child has said that it is confined.

Descriptors: 0 is the control socket, 1 is /dev/null, 2 the log that the host reads when the
server fails. Control messages have a fixed size (`REQUEST`, `REPORT`); a request brings the
child's own socket along. On that socket the child says `CONFINED` (or why it is not, and ends),
reads the job, and answers with one frame: the header `FRAME`, then rows x columns little-endian
float64, or at most 2,000 bytes of text.
"""

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import random
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
"""b"R" (run: most tasks of this user, most CPU seconds) or b"K" (kill the running child)."""
REPORT = struct.Struct("<cqd")
"""b"!" (ready) or b"D" (child done: its wait status, its CPU seconds)."""
JOB = struct.Struct("<QQQQ")
"""Bytes of code, bytes of arrays, classes, seed; then code and three arrays in numpy's format."""
FRAME = struct.Struct("<III")
"""Status, rows, columns; for text: status, bytes, 0."""
CONFINED = b"C"
ANSWERED, FAILED, MISSHAPEN = range(3)
LONGEST_TEXT = 2_000
PROGRAM = "<program>"

WHOLE_PACKAGES = ("scipy", "pandas", "joblib", "narwhals", "sklearn")
SKIPPED = "__main__ tests conftest this _precompute array_api_compat array_api_extra"
UNNEEDED = ("matplotlib", "sympy", "mpmath", "PIL", "pytest", "IPython", "torch")
"""What scikit-learn and scipy would import too if it is installed; no program needs it."""
MODULES = (
    "numpy.fft numpy.ma numpy.polynomial numpy.lib.recfunctions numpy.testing threadpoolctl "
    "concurrent.futures.process concurrent.futures.thread email.message "
    "encodings.ascii encodings.cp1252 encodings.idna encodings.latin_1 encodings.utf_8_sig "
    "encodings.utf_16 encodings.utf_32 importlib.metadata logging.config multiprocessing.pool "
    "multiprocessing.queues multiprocessing.synchronize urllib.request xml.etree.ElementTree "
    "_strptime "
)
"""What programs may import beside those and the whole standard library."""
UNUSABLE = (
    "antigravity curses ensurepip idlelib lib2to3 readline rlcompleter test this tkinter turtle "
    "turtledemo venv "
)
"""Parts of the standard library that act when imported, or need a screen."""

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38


def libc() -> Any:
    """The C library that Python itself is linked with: no search, which would fail inside."""
    return ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int, pointer: Any = None) -> None:
    """One prctl call; OSError when the kernel refuses."""
    rest = [ctypes.c_ulong(value), ctypes.c_void_p(pointer), ctypes.c_ulong(0), ctypes.c_ulong(0)]
    if libc().prctl(option, *rest):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def deny_files_and_signals() -> None:
    """Landlock with no exception: no file, no TCP, no abstract socket, no signal to others.

    A second lock behind seccomp, for this process and what it forks; OSError where the kernel
    has none.
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
    """What the server gives up for good, and every child with it."""
    if user is not None:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError as error:
            words = f"root cannot become user {user} here ({error}): start as an ordinary user"
            raise PermissionError(words) from None
    if 0 in os.getresuid() or any(capabilities()):
        raise PermissionError("the server would still have root's rights")
    # The kernel forgets the parent-death signal at setresuid, so it comes after.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if landlock:
        deny_files_and_signals()


def capabilities() -> tuple[int, ...]:
    """Effective, permitted and inheritable capabilities of this process, in two words each."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc().capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    return tuple(sets)


def limit(memory: int, tasks: int, seconds: int) -> None:
    """Resource limits of a child, hard ones."""
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
    """An importer that knows no module and will not have anyone else look for some."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        """Refuse the modules of `UNNEEDED`."""
        if name.partition(".")[0] in UNNEEDED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def preload(paths: list[str]) -> None:
    """Import everything a program may use, and touch what opens files at its first use.

    Nothing can be opened later. Arrays here are made up: the server must not hold data.
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
    with contextlib.suppress(Exception):  # some need what is not here
        importlib.import_module(name)
    parts = getattr(sys.modules.get(name), "__path__", ())
    for found in pkgutil.iter_modules(parts, f"{name}."):
        if found.name.rpartition(".")[2] not in SKIPPED.split():
            _import_all(found.name)


def warm_up() -> None:
    """Run once what reads /proc or the disk lazily: thread pools, time zones, table printing."""
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
    """Let threadpoolctl find the loaded libraries without a file.

    `threadpool_limits` lists them each time, from /proc/self/maps where there is a /proc. A program
    can neither open that nor load another library, so the list of the server stays complete.
    """
    import threadpoolctl

    found = threadpoolctl.ThreadpoolController().lib_controllers
    threadpoolctl.ThreadpoolController._load_libraries = lambda self: self.lib_controllers.extend(  # type: ignore[method-assign]
        found
    )


def text_of(error: BaseException) -> str:
    """Type, message and line of the program where an error arose; no traceback."""
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


def solve(code: bytes, arrays: io.BytesIO, classes: int, seed: int) -> tuple[int, Any]:
    """Run one program on one split: `ANSWERED` and the table, or another status and a text."""
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
    """That many bytes, or EOFError."""
    pieces = bytearray()
    while len(pieces) < size:
        piece = os.read(descriptor, min(size - len(pieces), 1 << 20))
        if not piece:
            raise EOFError("the host hung up")
        pieces += piece
    return bytes(pieces)


def confine(settings: dict[str, Any], tasks: int, seconds: int) -> None:
    """Everything a child gives up before it sees a program; OSError when a step fails."""
    limit(settings["memory"], tasks, seconds)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if os.getppid() != settings["server"]:
        raise ProcessLookupError("the server is gone")
    allow_only(settings["filter"])


def child(settings: dict[str, Any], stream: socket.socket, tasks: int, seconds: int) -> None:
    """The whole life of a forked child, in which descriptor 3 is its socket; never returns."""
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


def serve(control: socket.socket, settings: dict[str, Any]) -> None:
    """Fork at the host's word, one child at a time, until the host hangs up."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running = 0
    control.sendall(REPORT.pack(b"!", os.getpid(), 0.0))
    while True:
        ready = select.select([control, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 64)
        if running:
            process, status, usage = os.wait4(running, os.WNOHANG)
            if process:
                running = 0
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
            running = os.fork()
            if not running:
                try:
                    child(settings, stream, tasks, seconds)
                finally:
                    os._exit(1)
            stream.close()
    if running:
        os.kill(running, signal.SIGKILL)


def main() -> None:
    """Read the settings, load, give up rights, serve."""
    control = socket.socket(fileno=0)
    size = int.from_bytes(read_exactly(0, 8), "little")
    settings = json.loads(read_exactly(0, size))
    settings["filter"] = bytes.fromhex(settings["filter"])
    settings["server"] = os.getpid()
    warnings.simplefilter("ignore")
    preload(settings["paths"])
    if settings["confine"]:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        drop_rights(settings["user"], settings["landlock"])
    gc.collect()
    gc.freeze()
    serve(control, settings)


if __name__ == "__main__":
    main()
