"""What this machine offers to lock a program in: bubblewrap, seccomp, Landlock, another user.

All of it is prepared here on the host, because the look-ups (a shared library's name, a program's
path) would fail inside. The lists say what is allowed; everything else is not.
"""

import ctypes
import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

NOBODY = 65534
PACKAGES = (
    "sklearn",
    "scipy",
    "pandas",
    "numpy",
    "joblib",
    "threadpoolctl",
    "dateutil",
    "six",
    "narwhals",
)

INSTALL_EXTRA = "pip install 'poad[datasci]'"
INSTALL_SECCOMP = "apt install libseccomp2 (dnf install libseccomp)"
INSTALL_BUBBLEWRAP = "apt install bubblewrap (dnf install bubblewrap)"
ALLOW_NAMESPACES = (
    "let ordinary users make user namespaces: on Ubuntu an AppArmor profile for bwrap, or sysctl "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container, security options that allow "
    "namespaces and mounts"
)
USE_PROCESS = "isolation='process' does without bubblewrap"

ALLOWED = (
    "read write readv writev lseek close "
    "brk mmap munmap mprotect mremap madvise "
    "futex futex_wait futex_wake futex_waitv set_robust_list get_robust_list rseq sched_yield "
    "sched_getaffinity sched_getparam sched_getscheduler "
    "sched_get_priority_max sched_get_priority_min "
    "getcpu gettid getpid getppid getuid geteuid getgid getegid getpgrp "
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time "
    "times getrusage sysinfo "
    "getrandom getrlimit "
    "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall "
    "poll ppoll select pselect6 "
    "exit exit_group "
)
"""The system calls a program may make: none takes a path, a socket, a process or a signal."""

THREAD_FLAGS = 0x00010F00
"""CLONE_THREAD, _SIGHAND, _FILES, _FS and _VM: what makes a thread, all of it."""
PROCESS_FLAGS = 0x7E02A0FF
"""CLONE_NEW* (namespaces), _PARENT, _PTRACE and the exit signal: nothing a thread has."""


class Missing(Exception):
    """A layer that is not there: what, the machine's own words, the cure."""

    def __init__(self, what: str, detail: str, cure: str) -> None:
        super().__init__(f"{what}: {detail}. Cure: {cure}.")
        self.what, self.detail, self.cure = what, detail, cure


@dataclass(frozen=True)
class Layer:
    """One lock, for `poad sandbox check`."""

    name: str
    there: bool
    what: str
    """What it does."""
    detail: str = ""
    """The machine's own words."""
    cure: str = ""
    """How to get it; empty when it is there."""


def seccomp_filter() -> bytes:
    """The filter as BPF instructions for this machine's architecture; `Missing` without its tools.

    Refused calls fail with EPERM, which Python turns into a PermissionError: a program that
    merely tried gets an ordinary error. Threads are allowed, processes and namespaces are not.
    """
    try:
        import pyseccomp
    except ImportError as error:
        raise Missing("seccomp", str(error), INSTALL_EXTRA) from None
    except RuntimeError as error:
        raise Missing("seccomp", str(error), INSTALL_SECCOMP) from None
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ERRNO(errno.EPERM))
    # Another architecture's way into the kernel, where the numbers mean other calls.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for name in ALLOWED.split():
        if _known(name):
            rules.add_rule(pyseccomp.ALLOW, name)
    threads = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, THREAD_FLAGS | PROCESS_FLAGS, THREAD_FLAGS)
    rules.add_rule(pyseccomp.ALLOW, "clone", threads)
    # The C library falls back to clone, whose flags a filter can see.
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    # Reading one's own limits; setting them has a third argument.
    own, reading = pyseccomp.Arg(0, pyseccomp.EQ, 0), pyseccomp.Arg(2, pyseccomp.EQ, 0)
    rules.add_rule(pyseccomp.ALLOW, "prlimit64", own, reading)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _known(name: str) -> bool:
    import pyseccomp

    try:
        return pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0
    except (OSError, ValueError):
        return False


def landlock_version() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    call = ctypes.CDLL(None, use_errno=True).syscall
    return max(0, call(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def interpreter() -> str:
    """The Python that runs workers: this one, without the links of a virtual environment."""
    return os.path.realpath(sys.executable)


def package_paths() -> list[str]:
    """The folders that scikit-learn and what it needs are imported from; `Missing` without it."""
    found: list[str] = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None and name in ("sklearn", "scipy", "pandas"):
            raise Missing("scikit-learn, scipy and pandas", f"no module {name}", INSTALL_EXTRA)
        if spec is not None and spec.origin:
            origin = Path(spec.origin)
            folder = str(origin.parent.parent if spec.submodule_search_locations else origin.parent)
            found += [folder] * (folder not in found)
    return found


KERNELS = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
)
"""What decides the last digits of linear algebra: where it is set, workers must have it as well."""


def environment() -> dict[str, str]:
    """All that a worker's environment holds: one thread each, nothing random, and of ours only
    which kernels to compute with.
    """
    found = {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC0",
        "PYTHONHASHSEED": "0",
        # joblib then runs in the program's own thread; processes could not be started anyway.
        "JOBLIB_MULTIPROCESSING": "0",
    }
    found |= {name: os.environ[name] for name in KERNELS if name in os.environ}
    for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        found[f"{library}_NUM_THREADS"] = "1"
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        # libpython may lie where only the variable told the linker, which is gone now.
        found["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    return found


def python_command(script: str) -> list[str]:
    """Python for a worker: no site, no current folder, nothing written."""
    return [interpreter(), "-s", "-S", "-P", "-B", script]


def _outermost(paths: Iterable[str]) -> list[str]:
    """Absolute existing paths, without those inside another or inside /usr, nor any home."""
    kept: list[str] = []
    for path in sorted({os.path.abspath(p) for p in paths if p and os.path.exists(p)}):
        private = path == "/" or _inside(os.path.expanduser("~"), path)
        if not private and not any(_inside(path, other) for other in ["/usr", *kept]):
            kept.append(path)
    return kept


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def bubblewrap_command(script: str, packages: Sequence[str], command: Sequence[str]) -> list[str]:
    """`command` inside bubblewrap: sees /usr, the Python folders and `script`, all read-only.

    `Missing` when a tool for it is not installed; that it works is not yet said.
    """
    tool = shutil.which("bwrap")
    if tool is None:
        raise Missing("bubblewrap", "bwrap is not installed", INSTALL_BUBBLEWRAP)
    root = os.getuid() == 0
    line = [tool, "--die-with-parent", "--new-session", "--clearenv", "--unshare-pid"]
    line += ["--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    line += ["--hostname", "sandbox", "--cap-drop", "ALL"]
    if root:
        # Only to become nobody: setpriv's change of user clears them again.
        line += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        line += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    line += ["--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib32", "lib64", "bin", "sbin"):
        if os.path.islink(f"/{name}"):
            line += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            line += ["--ro-bind", f"/{name}", f"/{name}"]
    lexical = [sys.prefix, sys.base_prefix, sys.base_exec_prefix, interpreter(), *packages]
    made = {"/"}
    for path in _outermost([*lexical, *map(os.path.realpath, lexical)]):
        for parent in reversed(Path(path).parents):
            if str(parent) not in made:
                # Parents that bubblewrap makes by itself would be closed to nobody.
                line += ["--perms", "0755", "--dir", str(parent)]
                made.add(str(parent))
        line += ["--ro-bind", path, path]
    for folder in packages:
        if os.path.isdir(f"{folder}/sklearn/datasets/data"):
            line += ["--perms", "0755", "--tmpfs", f"{folder}/sklearn/datasets/data"]
            line += ["--remount-ro", f"{folder}/sklearn/datasets/data"]
    line += ["--ro-bind", script, script_inside(), "--remount-ro", "/", "--chdir", "/"]
    for name, value in environment().items():
        line += ["--setenv", name, value]
    return [*line, "--", *(setpriv() if root else []), *command]


def script_inside() -> str:
    """Where bubblewrap shows the worker's script."""
    return "/worker.py"


def setpriv() -> list[str]:
    """The command that makes root nobody; `Missing` without util-linux."""
    tool = shutil.which("setpriv")
    if tool is None:
        raise Missing("setpriv", "setpriv is not installed", "apt install util-linux")
    nobody = str(NOBODY)
    line = [tool, "--reuid", nobody, "--regid", nobody, "--clear-groups", "--inh-caps=-all"]
    return [*line, "--no-new-privs", "--"]


@lru_cache(maxsize=4)
def tasks_of(user: int, second: int) -> int:
    """How many tasks (threads of all processes) a user has; 0 where /proc does not tell.

    Counted once per `second` of a clock, for all workers.
    """
    total = 0
    try:
        processes = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return 0
    for process in processes:
        try:
            fields = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{process}/status").read_text().splitlines()
                if line.startswith(("Uid:", "Threads:"))
            )
            if int(fields["Uid"].split()[0]) == user:
                total += int(fields["Threads"])
        except (OSError, KeyError, ValueError):
            continue  # gone meanwhile
    return total


def does_not_work(isolation: str, words: str) -> Missing:
    """The error for a worker that does not start, in bubblewrap's own words or Python's."""
    if words.startswith("bwrap: "):
        return Missing(isolation, words, ALLOW_NAMESPACES)
    cure = USE_PROCESS if isolation == "bubblewrap" else "what these words say"
    return Missing(isolation, words, cure)


def layers() -> list[Layer]:
    """Every lock, outermost first, and whether this machine has it."""
    linux = sys.platform.startswith("linux")
    return [
        _bubblewrap_layer() if linux else _not_here("bubblewrap", "own namespaces"),
        _landlock_layer() if linux else _not_here("Landlock", "denies files"),
        _seccomp_layer() if linux else _not_here("seccomp", "allows few system calls"),
        Layer("limits", linux, "2 GiB of memory, CPU seconds, no file, few threads"),
    ]


def _not_here(name: str, what: str) -> Layer:
    return Layer(name, False, what, f"there is none on {sys.platform}", "use Linux")


def _bubblewrap_layer() -> Layer:
    what = "own namespaces; sees Python and /usr, read-only, and nothing else"
    try:
        command = [interpreter(), "-S", "-c", ""]
        line = bubblewrap_command(__file__, package_paths(), command)
        done = subprocess.run(
            line, env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        )
    except Missing as error:
        return Layer("bubblewrap", False, what, error.detail, error.cure)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Layer("bubblewrap", False, what, str(error), USE_PROCESS)
    if done.returncode == 0:
        return Layer("bubblewrap", True, what)
    words = done.stderr.decode(errors="replace").strip() or f"ended with {done.returncode}"
    error = does_not_work("bubblewrap", words)
    return Layer("bubblewrap", False, what, error.detail, error.cure)


def _landlock_layer() -> Layer:
    version = landlock_version()
    what = "no file, no TCP, no signal to others, a second time"
    if version:
        return Layer("Landlock", True, what, f"version {version}")
    return Layer("Landlock", False, what, "not in this kernel", "a kernel from 5.13 with Landlock")


def _seccomp_layer() -> Layer:
    what = "no system call that opens, connects, starts or signals anything"
    try:
        size = len(seccomp_filter()) // 8
    except Missing as error:
        return Layer("seccomp", False, what, error.detail, error.cure)
    if ctypes.CDLL(None).prctl(21, 0, 0, 0, 0) < 0:  # PR_GET_SECCOMP
        return Layer("seccomp", False, what, "not in this kernel", "a kernel with seccomp filters")
    return Layer("seccomp", True, what, f"{size} instructions")
