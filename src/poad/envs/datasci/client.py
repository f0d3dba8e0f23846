"""The host's end of one worker: start it, send it programs, and trust none of its answers.

A worker belongs to the thread that started it. The kernel kills it when that thread ends.
"""

import io
import json
import math
import os
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from poad.envs.datasci import confinement
from poad.envs.datasci.worker import (
    ANSWERED,
    CONFINED,
    FAILED,
    FRAME,
    JOB,
    LONGEST_TEXT,
    MISSHAPEN,
    REPORT,
    REQUEST,
)

PATIENCE = 5.0
"""Seconds a worker may take to fork, or to report that a child has ended."""
STARTING = 120.0
"""Seconds a worker may take to import scikit-learn on a busy machine."""
SPARE_TASKS = 64
"""Threads a program may start in addition to those its user already runs."""
MEMORY = 2 << 30
"""Bytes of address space of a program."""


class WorkerLost(Exception):
    """A worker ended or does not answer, before a program had begun."""


class LostAtWork(WorkerLost):
    """A worker ended or does not answer while it ran a program, which may be to blame."""


@dataclass(frozen=True)
class Job:
    """One split of a table as a program sees it, and the seed it runs with.

    Arrays are C-contiguous.

    Raises:
        ValueError: an array of another dtype, layout or number of dimensions, or a seed outside
            [0, 2³²).
    """

    x_train: np.ndarray
    """[n_train, d] float64."""
    y_train: np.ndarray
    """[n_train] int64, labels from 0 to `classes` - 1."""
    x_test: np.ndarray
    """[n_test, d] float64."""
    classes: int
    seed: int

    def __post_init__(self) -> None:
        for array, dtype in ((self.x_train, "<f8"), (self.y_train, "<i8"), (self.x_test, "<f8")):
            if array.dtype != np.dtype(dtype) or not array.flags.c_contiguous:
                raise ValueError(f"an array of {array.dtype} is not C-contiguous {dtype}")
        if not (self.x_train.ndim == self.x_test.ndim == 2 and self.y_train.ndim == 1):
            raise ValueError("x_train and x_test must have two dimensions, y_train one")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} is not between 0 and 2**32 - 1")

    def decoy(self) -> "Job":
        """Return the same rows with as many labels of each class, dealt out in turn."""
        labels = np.sort(self.y_train)
        rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
        return replace(self, y_train=labels[np.lexsort((labels, rank))])

    def packed(self) -> bytes:
        """Return the three arrays as bytes in the format of numpy, without pickles."""
        stream = io.BytesIO()
        for array in (self.x_train, self.y_train, self.x_test):
            np.save(stream, array, allow_pickle=False)
        return stream.getvalue()


@dataclass(frozen=True)
class Outcome:
    """The result of one program on one split."""

    status: str
    message: str = ""
    table: np.ndarray | None = None
    """[n_test, classes] float64; None unless the status is "ok"."""
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Setup:
    """How to start workers: the command line and the settings that are sent first."""

    isolation: str
    command: Sequence[str]
    settings: str
    """JSON, read by `worker.main`."""
    user: int
    """The user whose tasks count towards a program's limit."""


def setup(isolation: str) -> Setup:
    """Prepare to start workers with isolation "bubblewrap", "process" or "none".

    Raises:
        Missing: a tool for it is not installed.
    """
    packages = confinement.package_paths()
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
    command = confinement.python_command(script)
    inside, confined = isolation == "bubblewrap", isolation != "none"
    if inside:
        python = confinement.python_command(confinement.script_inside())
        command = confinement.bubblewrap_command(script, packages, python)
    root = confined and os.getuid() == 0
    settings = {
        "confine": confined,
        "apart": confined,
        "paths": packages,
        "filter": confinement.seccomp_filter().hex() if confined else "",
        "user": confinement.NOBODY if root and not inside else None,
        "landlock": confined and confinement.landlock_version() > 0,
        "memory": MEMORY,
    }
    user = confinement.NOBODY if root else os.getuid()
    return Setup(isolation, command, json.dumps(settings), user)


class Link:
    """One running worker: call `begin` once, then `split` for each program and split, then `close`.

    Raises:
        WorkerLost: the command cannot be started.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.apart = False
        """Whether each split runs in namespaces of its own, once the worker has begun."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._control, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                confinement.killed_first(setup.command),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                env=confinement.environment(),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._control.close()
            self._log.close()
            raise WorkerLost(str(error)) from None
        finally:
            theirs.close()

    def begin(self) -> None:
        """Wait until the worker has imported scikit-learn and dropped its privileges.

        Raises:
            WorkerLost: it ended or did not get ready in time.
        """
        settings = self._setup.settings.encode()
        self._control.settimeout(STARTING)
        try:
            self._control.sendall(len(settings).to_bytes(8, "little") + settings)
            self.apart = bool(self._report(b"!")[0])
        except (OSError, WorkerLost):
            raise WorkerLost(self._last_words() or "the worker ended without a message") from None
        self._control.settimeout(PATIENCE)

    def close(self) -> None:
        """Kill the worker and what it runs. Any thread may call this, and repeatedly."""
        self._process.kill()
        self._process.wait()
        self._control.close()
        self._log.close()

    def hang_up(self) -> None:
        """Kill the worker. Its own thread then finds it lost and closes it."""
        self._process.kill()

    def split(self, code: bytes, job: Job, deadline: float) -> Outcome:
        """Run one program on one split.

        Failures of the program are outcomes, not errors.

        Args:
            code: the source of the program.
            job: the split.
            deadline: when to give up, on the clock of `time.monotonic`.

        Raises:
            WorkerLost: the worker is of no further use; another one may run the program.
            LostAtWork: as before, but the program may be to blame.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            return Outcome("timeout")
        most = math.ceil(left) + 1
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                tasks = SPARE_TASKS
                if not self.apart:
                    tasks += confinement.tasks_of(self._setup.user, int(time.monotonic()))
                self._request(b"R", tasks, most, theirs)
            ours.settimeout(PATIENCE)
            self._hear_confined(ours)
            try:
                outcome = _exchange(ours, code, job, deadline)
            except TimeoutError:
                outcome = Outcome("timeout")
            except OSError:
                outcome = Outcome("killed")
        try:
            # A child that has ended keeps its status. One that only closed its socket is killed.
            self._request(b"K", 0, 0)
            ended, cpu = self._report(b"D")
        except WorkerLost as error:
            raise LostAtWork(str(error)) from None
        if outcome.status == "killed" and cpu >= most:
            outcome = Outcome("timeout")
        elif outcome.status == "killed" or (outcome.status == "ok" and ended):
            outcome = Outcome("killed", _ending(ended))
        return Outcome(outcome.status, outcome.message, outcome.table, cpu)

    def _request(
        self, kind: bytes, tasks: int, seconds: int, stream: socket.socket | None = None
    ) -> None:
        message = REQUEST.pack(kind, tasks, seconds)
        try:
            if stream is None:
                self._control.sendall(message)
            else:
                socket.send_fds(self._control, [message], [stream.fileno()])
        except OSError as error:
            raise WorkerLost(str(error)) from None

    def _report(self, kind: bytes) -> tuple[int, float]:
        try:
            said, number, seconds = REPORT.unpack(_exactly(self._control, REPORT.size))
        except (OSError, struct.error) as error:
            raise WorkerLost(f"the worker does not answer: {error}") from None
        if said != kind:
            raise WorkerLost(f"the worker said {said!r} instead of {kind!r}")
        return number, seconds

    def _hear_confined(self, stream: socket.socket) -> None:
        try:
            said = stream.recv(LONGEST_TEXT)
        except OSError as error:
            raise WorkerLost(f"a child did not start: {error}") from None
        if said != CONFINED:
            words = said.decode(errors="replace") or self._last_words()
            raise WorkerLost(f"a child could not be confined: {words}")

    def _last_words(self) -> str:
        self._process.poll()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " ".join(lines[-1:])


def _exchange(stream: socket.socket, code: bytes, job: Job, deadline: float) -> Outcome:
    """Send the job, then read one frame and the end of the stream, and never a byte more."""

    def read(size: int) -> bytes:
        return _exactly(stream, size, deadline)

    arrays = job.packed()
    header = JOB.pack(len(code), len(arrays), job.classes, job.seed)
    stream.settimeout(max(deadline - time.monotonic(), 1e-3))
    stream.sendall(header + code + arrays)
    frame = read(FRAME.size)
    if len(frame) < FRAME.size:
        return Outcome("killed")
    kind, rows, columns = FRAME.unpack(frame)
    if kind in (FAILED, MISSHAPEN):
        text = read(min(rows, LONGEST_TEXT)).decode("utf-8", "replace")
        return Outcome("error" if kind == FAILED else "output", text)
    if kind != ANSWERED:
        return Outcome("output", "the answer is neither a table nor an error")
    wanted = (len(job.x_test), job.classes)
    if (rows, columns) != wanted:
        return Outcome("output", f"the answer has the shape {(rows, columns)} instead of {wanted}")
    data = read(8 * rows * columns)
    if len(data) < 8 * rows * columns or read(1):
        return Outcome("output", "the answer is not one complete table")
    table = np.frombuffer(data, "<f8").astype(np.float64).reshape(wanted)
    if not np.isfinite(table).all():
        return Outcome("output", "predict_proba gave numbers that are not finite")
    return Outcome("ok", table=table)


def _exactly(stream: socket.socket, size: int, deadline: float | None = None) -> bytes:
    """Receive `size` bytes, or fewer at the end of the stream.

    Raises:
        TimeoutError: the deadline has passed.
    """
    pieces = bytearray()
    while len(pieces) < size:
        if deadline is not None:
            stream.settimeout(max(deadline - time.monotonic(), 1e-3))
        piece = stream.recv(size - len(pieces))
        if not piece:
            break
        pieces += piece
    return bytes(pieces)


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"the program's process ended without an answer (exit code {code})"
    names = {one.value: one.name for one in signal.Signals}
    return f"the program's process was ended by {names.get(-code, f'signal {-code}')}"
