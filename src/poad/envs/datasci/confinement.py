"""The layers that confine a program: bubblewrap, seccomp, Landlock and another user.

Everything is prepared here on the host, because looking up a shared library or a program would fail
inside the sandbox. The lists name what is allowed, and everything else is denied.
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

from poad.envs.datasci.worker import NEW_USER_AND_PROCESS_NUMBERS, counts_tasks_by_namespace

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

INSTALL_EXTRA = "pip install scikit-learn scipy pandas pyseccomp"
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
    "brk munmap mprotect mremap "
    "rseq sched_yield "
    "sched_get_priority_max sched_get_priority_min "
    "getcpu gettid getpid getppid getuid geteuid getgid getegid getpgrp "
    "gettimeofday time times "
    "nanosleep "
    "getrlimit "
    "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall "
    "poll ppoll select pselect6 "
    "exit exit_group "
)
"""The system calls a program may make with any arguments. None of them takes a path, socket,
process or signal, and none reads a counter that other processes move.

getrandom is absent because a score must be a function of the program; see `worker.fix_entropy`.
"""

INT, WORD = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
PRIVATE, REALTIME = 128, 256
WAIT, WAIT_BITSET = 0, 9

NARROWED: dict[str, list[list[tuple[int, int, int]]]] = {
    # A shared futex on a page of a file has the same name in every process that maps this file, so
    # its waiters can be counted across namespaces. Futexes with priority inheritance name threads.
    # 1, 3, 4, 5 and 10 wake, requeue, compare and requeue, wake two, and wake some.
    "futex": [[(1, INT ^ REALTIME, PRIVATE | op)] for op in (WAIT, 1, 3, 4, 5, WAIT_BITSET, 10)],
    # Threads as the C library starts them, and no process. 0x400000 has no meaning any more.
    "clone": [[(0, INT ^ 0x400000, 0x003D0F00)]],
    # Free memory, ask for large pages, and guard stacks. Others move pages of shared files.
    "madvise": [[(2, INT, advice)] for advice in (4, 8, 14, 15, 102, 103)],
    # Large pages are a pool of the whole machine.
    "mmap": [[(3, 0x40000, 0)]],
    # The clocks of this process, thread and machine. Negative numbers name other processes.
    **{
        call: [[(0, INT, clock)] for clock in range(8)]
        for call in ("clock_gettime", "clock_getres", "clock_nanosleep")
    },
    **{
        call: [[(0, INT, 0)]]
        for call in ("sched_getaffinity", "sched_getparam", "sched_getscheduler")
    },
    # A process may read its own limits (the third argument is then 0), but not set them.
    "prlimit64": [[(0, INT, 0), (2, WORD, 0)]],
}
"""System calls that are allowed with some arguments, as alternatives of (argument, mask, value).

An int argument is compared in the 32 bits that the kernel reads.
"""

BUSY = [(1, INT ^ REALTIME, WAIT)], [(1, INT ^ REALTIME, WAIT_BITSET)]
"""Waiting on a shared futex returns at once, as if its value had changed. Joining a thread and
some parts of the C++ library wait like this, and look again."""


class Missing(Exception):
    """A layer that is missing or does not work.

    Args:
        what: the layer.
        detail: what the machine reports.
        cure: how to get it.
    """

    def __init__(self, what: str, detail: str, cure: str) -> None:
        super().__init__(f"{what}: {detail}. Cure: {cure}.")
        self.what, self.detail, self.cure = what, detail, cure


@dataclass(frozen=True)
class Layer:
    """One layer of the sandbox, as `poad sandbox check` shows it."""

    name: str
    there: bool
    what: str
    """A phrase on what it does."""
    detail: str = ""
    """What the machine reports about it."""
    cure: str = ""
    """How to get it; empty if it is there."""


def seccomp_filter() -> bytes:
    """Build the filter as BPF instructions for the architecture of this machine.

    Denied calls fail with EPERM, which Python turns into a PermissionError, so a program that tries
    one gets an ordinary error. Threads are allowed; processes and namespaces are not.

    Raises:
        Missing: pyseccomp or libseccomp is not installed.
    """
    try:
        import pyseccomp
    except ImportError as error:
        raise Missing("seccomp", str(error), INSTALL_EXTRA) from None
    except RuntimeError as error:
        raise Missing("seccomp", str(error), INSTALL_SECCOMP) from None
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ERRNO(errno.EPERM))
    # Calls by the convention of another architecture, where the same numbers mean other calls.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for name in ALLOWED.split():
        if _known(name):
            rules.add_rule(pyseccomp.ALLOW, name)
    answers = [(pyseccomp.ALLOW, name, each) for name in NARROWED for each in NARROWED[name]]
    answers += [(pyseccomp.ERRNO(errno.EAGAIN), "futex", each) for each in BUSY]
    for answer, name, compared in answers:
        if _known(name):
            masked = [pyseccomp.Arg(n, pyseccomp.MASKED_EQ, m, v) for n, m, v in compared]
            rules.add_rule(answer, name, *masked)
    # The C library falls back to clone, whose flags a filter can see.
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
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
    """Return the Landlock version of the kernel, 0 if it has none."""
    if not sys.platform.startswith("linux"):
        return 0
    call = ctypes.CDLL(None, use_errno=True).syscall
    return max(0, call(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def interpreter() -> str:
    """Return the Python that runs workers: this one, with symbolic links resolved."""
    return os.path.realpath(sys.executable)


def package_paths() -> list[str]:
    """List the folders from which scikit-learn and its dependencies are imported.

    Raises:
        Missing: scikit-learn, scipy or pandas is not installed.
    """
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
"""Variables that choose kernels of linear algebra, and with them the last digits of results.

Workers inherit them."""


def environment() -> dict[str, str]:
    """Build a worker's environment: one thread per library, and no randomness.

    Only the variables in `KERNELS` are inherited.
    """
    found = {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC0",
        "PYTHONHASHSEED": "0",
        # With this joblib runs in the program's own thread, since no process can be started.
        "JOBLIB_MULTIPROCESSING": "0",
    }
    found |= {name: os.environ[name] for name in KERNELS if name in os.environ}
    for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        found[f"{library}_NUM_THREADS"] = "1"
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        # The linker may have found libpython only through this variable, so set it again.
        found["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    return found


def killed_first(command: Sequence[str]) -> list[str]:
    """Wrap a command so that the kernel kills it, and not the trainer, when memory runs out."""
    raised = '{ echo 1000 > /proc/self/oom_score_adj; } 2> /dev/null; exec "$@"'
    return ["/bin/sh", "-c", raised, "sh", *command]


def python_command(script: str) -> list[str]:
    """Return the Python command of a worker: no site packages, no current folder, no bytecode."""
    return [interpreter(), "-s", "-S", "-P", "-B", script]


def _outermost(paths: Iterable[str]) -> list[str]:
    """Keep existing paths that lie neither in another one nor in /usr, and hold no home folder."""
    kept: list[str] = []
    for path in sorted({os.path.abspath(p) for p in paths if p and os.path.exists(p)}):
        private = path == "/" or _inside(os.path.expanduser("~"), path)
        if not private and not any(_inside(path, other) for other in ["/usr", *kept]):
            kept.append(path)
    return kept


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def bubblewrap_command(script: str, packages: Sequence[str], command: Sequence[str]) -> list[str]:
    """Wrap a command in bubblewrap, where it sees /usr, Python and the script, all read-only.

    The command may still fail to start, for example where namespaces are forbidden.

    Raises:
        Missing: bwrap or, for root, setpriv is not installed.
    """
    tool = shutil.which("bwrap")
    if tool is None:
        raise Missing("bubblewrap", "bwrap is not installed", INSTALL_BUBBLEWRAP)
    root = os.getuid() == 0
    line = [tool, "--die-with-parent", "--new-session", "--clearenv", "--unshare-pid"]
    line += ["--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    line += ["--hostname", "sandbox", "--cap-drop", "ALL"]
    if root:
        # Needed to become nobody. The change of user by setpriv clears them again.
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
                # The user nobody could not enter parents that bubblewrap creates by itself.
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
    """Return the path of the worker's script inside bubblewrap."""
    return "/worker.py"


def setpriv() -> list[str]:
    """Return the command by which root becomes nobody.

    Raises:
        Missing: setpriv is not installed.
    """
    tool = shutil.which("setpriv")
    if tool is None:
        raise Missing("setpriv", "setpriv is not installed", "apt install util-linux")
    nobody = str(NOBODY)
    line = [tool, "--reuid", nobody, "--regid", nobody, "--clear-groups", "--inh-caps=-all"]
    return [*line, "--no-new-privs", "--"]


@lru_cache(maxsize=4)
def tasks_of(user: int, second: int) -> int:
    """Count the tasks of a user, which are the threads of all processes; 0 without a /proc.

    Args:
        user: the user id.
        second: a clock reading. The count is cached for this second, for all workers.
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
            continue  # the process has ended
    return total


def does_not_work(isolation: str, words: str) -> Missing:
    """Make the error for a worker that does not start, from what bubblewrap or Python printed."""
    if words.startswith("bwrap: "):
        return Missing(isolation, words, ALLOW_NAMESPACES)
    cure = USE_PROCESS if isolation == "bubblewrap" else "fix what this message reports"
    return Missing(isolation, words, cure)


def layers() -> list[Layer]:
    """List the layers, outermost first, and whether this machine has them."""
    linux = sys.platform.startswith("linux")
    return [
        _bubblewrap_layer() if linux else _not_here("bubblewrap", "separate namespaces"),
        _landlock_layer() if linux else _not_here("Landlock", "denies files"),
        _namespaces_layer() if linux else _not_here("namespaces", "parts splits from each other"),
        _seccomp_layer() if linux else _not_here("seccomp", "allows few system calls only"),
        Layer("limits", linux, "2 GiB of memory, CPU seconds, no files, few threads"),
    ]


def _not_here(name: str, what: str) -> Layer:
    return Layer(name, False, what, f"there is none on {sys.platform}", "use Linux")


def _bubblewrap_layer() -> Layer:
    what = "separate namespaces; shows Python and /usr alone, read-only"
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
    what = "denies files, TCP and signals to others, as a second layer"
    if version:
        return Layer("Landlock", True, what, f"version {version}")
    return Layer(
        "Landlock", False, what, "not in this kernel", "use a kernel from 5.13 on with Landlock"
    )


def _namespaces_layer() -> Layer:
    what = "process numbers and a count of threads for each split alone"
    code = (
        f"import ctypes, os; os.getuid() or os.setresuid(*3 * [{NOBODY}]); "
        f"os._exit(ctypes.CDLL(None).unshare({NEW_USER_AND_PROCESS_NUMBERS}) != 0)"
    )
    command = [interpreter(), "-S", "-c", code]
    refused = subprocess.run(command, env={}, capture_output=True, check=False).returncode
    if refused:
        detail = "user namespaces are refused"
        return Layer("namespaces", False, what, detail, ALLOW_NAMESPACES)
    if not counts_tasks_by_namespace():
        return Layer("namespaces", False, what, "this kernel is too old", "use Linux 5.14 or later")
    return Layer("namespaces", True, what)


def _seccomp_layer() -> Layer:
    what = "denies system calls that open, connect, start or signal anything"
    try:
        size = len(seccomp_filter()) // 8
    except Missing as error:
        return Layer("seccomp", False, what, error.detail, error.cure)
    if ctypes.CDLL(None).prctl(21, 0, 0, 0, 0) < 0:  # PR_GET_SECCOMP
        return Layer(
            "seccomp", False, what, "not in this kernel", "use a kernel with seccomp filters"
        )
    return Layer("seccomp", True, what, f"{size} instructions")
