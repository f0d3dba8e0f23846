"""The sandbox as a service: what comes back, when a worker is lost, what is refused, what is told.

What hostile programs try is in test_hostile.py, what honest ones use in test_compatibility.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="needs pip install 'poad[datasci]'")

from poad.envs.datasci import client, confinement, sandbox, selftest
from poad.envs.datasci.confinement import environment
from poad.envs.datasci.sandbox import Answer, Job, Layer, Sandbox, layers
from poad.errors import SandboxError

DESIGNS = ("bubblewrap", "process", "none")
LAYERS = {layer.name: layer for layer in layers()}
if not LAYERS["seccomp"].there:
    pytest.skip(f"no sandbox: {LAYERS['seccomp'].cure}", allow_module_level=True)


def job(seed: int = 0, classes: int = 2) -> Job:
    generator = np.random.RandomState(seed)
    x = generator.rand(2 * 20, 3)
    y = np.arange(20, dtype=np.int64) % classes
    return Job(x[:20].copy(), y, x[20:].copy(), classes, seed)


def building(*lines: str) -> str:
    """A program whose `build_model` does this."""
    return "def build_model(x_train, y_train):\n" + "".join(f"    {line}\n" for line in lines)


def telling(expression: str, *before: str) -> str:
    """A program that answers with the value of an expression, in place of a probability."""
    return (
        "import numpy as np\n"
        "class Model:\n"
        "    def predict_proba(self, x): return np.array(self.table)\n"
    ) + building(*before, "m = Model()", f"m.table = {expression}", "return m")


CONSTANT = telling("[[0.25, 0.75]] * 20")
"""Answers .25 and .75 for each row."""


@pytest.fixture(scope="module", params=DESIGNS)
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param == "bubblewrap" and not LAYERS["bubblewrap"].there:
        pytest.skip(f"no bubblewrap: {LAYERS['bubblewrap'].cure}")
    with Sandbox(request.param, workers=1, budget=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def process() -> Iterator[Sandbox]:
    with Sandbox("process", workers=1, budget=0.6) as opened:
        yield opened


def children(parent: int) -> list[int]:
    """The living processes of a parent, and of their children."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if folder.name.isdigit() and int(fields[1]) == parent and fields[0] != "Z":
            found += [int(folder.name), *children(int(folder.name))]
    return found


def started_by(opened: Sandbox) -> list[int]:
    """The processes of a sandbox: those of this test that have not been there before it."""
    return [one for link in opened._links for one in _with_children(link._process.pid)]


def _with_children(process: int) -> list[int]:
    return [process, *children(process)]


def gone(processes: list[int]) -> bool:
    """Whether none of them lives, as soon as that is so; a busy machine gets ten seconds."""
    deadline = time.monotonic() + 10
    alive = list(processes)
    while alive and time.monotonic() < deadline:
        alive = [one for one in alive if Path(f"/proc/{one}").exists() and not _zombie(one)]
        time.sleep(0.02)
    return not alive


def _zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# --- what comes back -----------------------------------------------------------------------------


def test_a_worker_has_our_kernels_and_nothing_else_of_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    told = environment()
    assert told["OPENBLAS_CORETYPE"] == "Haswell"
    assert told["OMP_NUM_THREADS"] == "1"
    assert "abc" not in told.values()
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert "OPENBLAS_CORETYPE" not in environment()


def test_an_answer_has_one_table_per_job_in_their_order(box: Sandbox):
    source = building(
        "from sklearn.linear_model import LogisticRegression",
        "return LogisticRegression().fit(x_train, y_train)",
    )
    jobs = [job(seed, classes) for seed, classes in ((0, 2), (1, 3), (2, 2))]
    answer = box.run(source, jobs)
    assert (answer.status, answer.message) == ("ok", "")
    assert answer.probabilities is not None
    scope: dict[str, Any] = {}
    exec(source, scope)
    for one, table in zip(jobs, answer.probabilities, strict=True):
        assert table.dtype == np.float64
        np.testing.assert_array_equal(
            table, scope["build_model"](one.x_train, one.y_train).predict_proba(one.x_test)
        )
    assert answer.cpu_seconds > 0
    assert answer.seconds > 0


def test_random_numbers_follow_the_seed_of_the_job_and_nothing_else(box: Sandbox):
    source = telling("np.random.rand(20, 1) * [1, 0] + [0, random.random()]", "import random")
    import random

    expected = []
    for seed in (3, 4):
        random.seed(seed)
        np.random.seed(seed)
        expected.append(np.random.rand(20, 1) * [1, 0] + [0, random.random()])
    answer = box.run(source, [job(3), job(4)])
    np.testing.assert_array_equal(answer.probabilities, expected)
    hashed = telling("[[hash('a word') % 10**9, 0]] * 20")
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", "print(hash('a word') % 10**9)"]
    outside = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    tables = box.run(hashed, [job()]).probabilities
    assert tables is not None
    assert tables[0][0, 0] == int(outside)


UNSEEDED = {
    "numpy's new generators": "np.random.default_rng().random()",
    "numpy's old generators": "np.random.RandomState().rand()",
    "numpy, seeded again": "[np.random.seed(), np.random.rand()][1]",
    "a bit generator": "np.random.PCG64().random_raw() / 2**64",
    "a seed sequence": "np.random.SeedSequence().entropy / 2**128",
    "random": "random.Random().random()",
    "random, seeded again": "[random.seed(), random.random()][1]",
    "the system's random": "random.SystemRandom().random()",
    "the system's bytes": "os.urandom(1)[0] + os.getrandom(1)[0] / 256",
    "secrets": "secrets.randbelow(2**30) / 2**30",
    "uuid": "uuid.uuid4().int / 2**128",
    "scipy": "scipy.stats.qmc.Sobol(1).random(1)[0, 0]",
    "scikit-learn": "[RandomForestClassifier(3).fit(x_train, y_train), np.random.rand()][1]",
    "hashes": "hash('a word') / 2**64 + len(set('abc')) / 8",
    "the order of a set": "next(iter({'one', 'two', 'three', 'four', 'five'}))[0] == 'f'",
}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Sandbox, ...]]:
    """Two of them, with other addresses, process numbers and clocks."""
    with Sandbox("process", 1, 60) as first, Sandbox("process", 1, 60) as second:
        yield first, second


@pytest.mark.parametrize("source", UNSEEDED)
def test_a_score_is_a_function_of_the_text_and_the_split(servers: tuple[Sandbox, ...], source: str):
    """What has no seed of its own draws from a stream that the program and the split decide."""
    text = telling(
        f"[[{UNSEEDED[source]}, {UNSEEDED[source]}]] * 20",
        "import os, random, secrets, uuid, scipy.stats",
        "from sklearn.ensemble import RandomForestClassifier",
    )
    found = []
    for opened in servers:
        for program in (text, text, text + "\n"):
            answer = opened.run(program, [job(3), job(4)])
            assert answer.status == "ok", answer.message
            assert answer.probabilities is not None
            found.append([table[0].tolist() for table in answer.probabilities])
    assert found[0] == found[1] == found[3] == found[4]
    assert found[2] == found[5]
    if source not in ("hashes", "the order of a set", "scikit-learn"):
        first, second = found[0]
        assert first != second, "another split draws other numbers"
        assert first[0] != first[1] or source.startswith("numpy, seeded")


def test_columns_come_in_the_order_of_the_labels(box: Sandbox):
    source = telling("[[.1, .2, .7]] * 20").replace(
        "class Model:", "class Model:\n    classes_ = 2, 0, 1"
    )
    answer = box.run(source, [job(classes=3)])
    assert answer.probabilities is not None
    assert answer.probabilities[0][0].tolist() == [0.2, 0.7, 0.1]


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("x = (", "error", "SyntaxError: '(' was never closed (line 1)"),
        ("x = 1\n\nraise ValueError('so\tit  is')", "error", "ValueError: so it is (line 3)"),
        ("x = 1", "error", "NameError: the program does not define build_model(x_train, y_train)"),
        (building("return 1"), "error", "AttributeError: 'int' object has no attribute"),
        (building("raise SystemExit(3)"), "error", "SystemExit: 3 (line 2)"),
        (building("assert False"), "error", "AssertionError (line 2)"),
        (
            building("import torch"),
            "error",
            "ModuleNotFoundError: No module named 'torch' (line 2)",
        ),
        (building("import os", "os._exit(3)"), "killed", "without an answer (exit code 3)"),
        (building("import os", "os.abort()"), "killed", "ended by SIG"),
        (telling("[[.5, .5]] * 19"), "output", "shape (19, 2) instead of (20, 2)"),
        (telling("[.5] * 20"), "output", "shape (20,) instead of (20, 2)"),
        (telling("[[.5, np.nan]] * 20"), "output", "not finite"),
        (telling("['a'] * 20"), "error", "ValueError: could not convert string to float"),
        (building("raise ValueError('x' * 10**6)"), "error", "xxx (line 2)"),
        (building("import os", "raise ValueError(os.__file__)"), "error", "ValueError: .../"),
    ],
)
def test_failures_are_told_in_a_line_for_a_prompt(
    box: Sandbox, source: str, status: str, message: str
):
    answer = box.run(source, [job(), job()])
    assert answer.status == status
    assert message in answer.message
    assert answer.message.isprintable()
    assert len(answer.message.encode()) <= 2_000
    assert answer.probabilities is None


def test_a_class_that_was_never_seen_is_told(box: Sandbox):
    source = building(
        "from sklearn.dummy import DummyClassifier",
        "return DummyClassifier().fit(x_train[:2], y_train[:2])",
    )
    answer = box.run(source, [job(classes=3)])
    assert answer.status == "output"
    assert "knows the classes [0, 1], the data has 0 to 2" in answer.message


@pytest.mark.parametrize("text", ["\x1b[2J\x00bad", "a\u202eb", "\udc80", "é" * 3_000])
def test_messages_are_printable_whatever_a_program_puts_into_them(box: Sandbox, text: str):
    message = box.run(building(f"raise KeyError({text!r})"), [job()]).message
    assert message.isprintable()
    assert len(message.encode()) <= 2_000


LEAKS = {
    "labels": "raise ValueError(list(y_train))",
    "a class of error": "raise type('E' + ''.join(map(str, y_train)), (Exception,), {})",
    "a name": "getattr(np, 'a' + ''.join(map(str, y_train)))",
    "a number": "int('x' + ''.join(map(str, y_train)))",
    "a module": "__import__('m' + ''.join(map(str, y_train)))",
    "a line": "exec('\\n' * int(y_train[:6] @ 2 ** np.arange(6)) + '(')",
    "an exit": "os._exit(int(y_train[:6] @ 2 ** np.arange(6)) + 1)",
    "a signal": "os.abort() if y_train[0] else os._exit(1)",
    "a text": "os.write(3, struct.pack('<III', 2, 20, 0) + bytes(y_train.astype('u1') + 65))",
    "a shape": "os.write(3, struct.pack('<III', 0, int(y_train[:6] @ 2 ** np.arange(6)), 9))",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_message_says_nothing_of_the_labels(box: Sandbox, leak: str):
    """The agent reads it: programs that differ in their labels alone must not differ in it."""
    source = building("import os, struct", "import numpy as np", LEAKS[leak], "os._exit(0)")
    one = job()
    dealt = box.run(source, [one.decoy()]).message
    for seed in range(3):
        shuffled = np.random.RandomState(seed).permutation(one.y_train)
        answer = box.run(source, [replace(one, y_train=shuffled)])
        assert answer.probabilities is None
        assert answer.message == dealt or answer.message.endswith("the classes of the rows")
        assert answer.message != dealt or leak == "a signal", "else the program does not try"


def test_without_a_decoy_a_message_would_tell_the_labels(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
):
    """So it is the decoy that keeps them back."""
    monkeypatch.setattr(Job, "decoy", lambda self: self)
    source = building("import numpy as np", LEAKS["a number"])
    one = job()
    told = set()
    for seed in range(3):
        shuffled = np.random.RandomState(seed).permutation(one.y_train)
        message = box.run(source, [replace(one, y_train=shuffled)]).message
        assert "".join(map(str, shuffled))[:20] in message
        told.add(message)
    assert len(told) == 3


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.randoms())
def test_a_decoy_depends_on_nothing_but_the_size_of_the_classes(labels: list[int], order: Random):
    x = np.zeros((len(labels), 1))
    one = Job(x, np.array(labels, np.int64), x, classes=4, seed=0).decoy().y_train
    order.shuffle(labels)
    other = Job(x, np.array(labels, np.int64), x, classes=4, seed=0).decoy().y_train
    assert one.tolist() == other.tolist()
    assert sorted(one) == sorted(labels)
    assert set(one[: len(set(labels))]) == set(labels), "each class comes at the beginning"


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        ("b''", "killed"),
        ("b'123'", "killed"),
        ("struct.pack('<III', 0, 20, 2)", "output"),
        ("struct.pack('<III', 0, 2**31, 2**31) + bytes(999)", "output"),
        ("struct.pack('<III', 0, 20, 2) + bytes(321)", "output"),
        ("struct.pack('<III40d', 0, 20, 2, *[float('inf')] * 40)", "output"),
        ("struct.pack('<III', 1, 2**32 - 1, 0) + b'x' * 99_999", "error"),
        ("struct.pack('<III', 1, 0, 0)", "error"),
        ("struct.pack('<III', 1, 3, 0) + bytes([27, 7, 0])", "error"),
        ("struct.pack('<III', 77, 5, 0) + b'hello'", "output"),
        ("pickle.dumps(print)", "output"),
    ],
)
def test_a_forged_answer_is_only_ever_numbers_or_text(box: Sandbox, frame: str, status: str):
    """A program can write to its socket itself; the host believes nothing but counts."""
    write = "while data: data = data[os.write(3, data):]"
    source = building("import os, pickle, struct", f"data = {frame}", write, "os._exit(0)")
    answer = box.run(source, [job()])
    assert answer.status == status
    assert answer.probabilities is None
    assert answer.message
    assert answer.message.isprintable()
    assert len(answer.message.encode()) <= 2_000
    assert box.run(CONSTANT, [job()]).status == "ok"


def test_a_program_that_answers_and_runs_on_is_killed(box: Sandbox):
    before = started_by(box)
    write = "os.write(3, struct.pack('<III40d', 0, 20, 2, *[0.5] * 40)); os.close(3)"
    answer = box.run(building("import os, struct", write, "while True: pass"), [job()])
    assert answer.status == "killed"
    assert started_by(box) == before


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["while True: pass"],
        ["import time", "time.sleep(0.4)"],  # within the budget once, not three times
        [
            "import signal",
            "signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 64))",
            "sum(range(10**12))",
        ],
        ["import os", "os.close(3)", "while True: pass"],
        ["import struct, os", "os.write(3, struct.pack('<III', 0, 20, 2))", "while True: pass"],
        ["import os", "os.close(3)", "os.close(1)", "while True: pass"],
    ],
)
def test_one_budget_holds_for_all_jobs(process: Sandbox, lines: list[str]):
    answer = process.run(
        CONSTANT.replace("m = Model()", "\n    ".join([*lines, "m = Model()"])), [job()] * 3
    )
    assert answer.status in ("timeout", "killed")
    assert answer.probabilities is None
    assert works(process)


def works(opened: Sandbox) -> bool:
    """Whether an honest program is answered, given time enough on a busy machine."""
    budget, opened.budget = opened.budget, 60.0
    try:
        return opened.run(CONSTANT, [job()]).status == "ok"
    finally:
        opened.budget = budget


def test_a_timeout_says_how_long_it_was(process: Sandbox):
    answer = process.run(building("while True: pass"), [job()])
    assert answer.status == "timeout"
    assert answer.message == "TimeoutError: took longer than 0.6 s"
    assert answer.cpu_seconds > 0


def test_many_threads_cannot_use_more_than_the_budget(process: Sandbox):
    source = building(
        "import hashlib, threading",
        "work = lambda: [hashlib.sha256(bytes(10**7)) for _ in range(10**6)]",
        "threads = [threading.Thread(target=work) for _ in range(4)]",
        "[thread.start() for thread in threads]",
        "[thread.join() for thread in threads]",
    )
    assert process.run(source, [job()]).status == "timeout"


# --- workers -------------------------------------------------------------------------------------


def test_programs_of_many_threads_get_their_own_answers():
    with Sandbox("process", workers=2) as opened:
        futures = {n: opened.submit(telling(f"[[{n}, 0]] * 20"), [job()]) for n in range(24)}
        for n, future in futures.items():
            answer = future.result()
            assert answer.probabilities is not None
            assert (answer.probabilities[0][:, 0] == n).all()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_is_replaced_and_the_program_runs_again(
    box: Sandbox, how: int, monkeypatch: pytest.MonkeyPatch
):
    if box.isolation == "none":
        pytest.skip("the same server as in process")
    monkeypatch.setattr(client, "PATIENCE", 2.0)
    before = started_by(box)
    for one in before:
        os.kill(one, how)
    assert box.run(CONSTANT, [job()]).status == "ok"
    assert gone(before)
    assert set(started_by(box)).isdisjoint(before)


@pytest.mark.parametrize(("attempts", "status"), [(3, "ok"), (1, "killed")])
def test_a_program_whose_worker_is_lost_runs_again_but_not_forever(
    box: Sandbox, attempts: int, status: str, monkeypatch: pytest.MonkeyPatch
):
    if box.isolation != "process":
        pytest.skip("the same host")
    monkeypatch.setattr(sandbox, "ATTEMPTS", attempts)
    begun, exchange = threading.Event(), client._exchange

    def noted(*arguments: Any) -> client.Outcome:
        begun.set()
        return exchange(*arguments)

    monkeypatch.setattr(client, "_exchange", noted)
    future = box.submit(telling("[[.5, .5]] * 20", "import time", "time.sleep(2)"), [job()])
    assert begun.wait(60)
    for one in started_by(box):
        os.kill(one, signal.SIGKILL)
    assert future.result().status == status
    assert box.run(CONSTANT, [job()]).status == "ok"


def test_workers_have_a_session_and_a_few_descriptors_of_their_own(box: Sandbox):
    """Control-C in a terminal reaches the trainer alone, and no file of the trainer comes along."""
    for one in started_by(box):
        assert os.getsid(one) != os.getsid(0)
    source = telling("[[len(found), 0]] * 20", *OPEN_DESCRIPTORS)
    tables = box.run(source, [job()]).probabilities
    assert tables is not None
    assert tables[0][0, 0] == 4


OPEN_DESCRIPTORS = (
    "import errno, os",
    "found = []",
    "for number in range(256):",
    "    try: os.lseek(number, 0, 1)",
    "    except OSError as error:",
    "        if error.errno == errno.EBADF: continue",
    "    found.append(number)",
)


def test_the_kernel_ends_programs_before_the_trainer(box: Sandbox):
    assert started_by(box)
    for one in started_by(box):
        assert Path(f"/proc/{one}/oom_score_adj").read_text().strip() == "1000"
    assert Path("/proc/self/oom_score_adj").read_text().strip() != "1000"


def test_without_its_wrapper_a_worker_would_outlast_the_trainer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(confinement, "killed_first", lambda command: list(command))
    with Sandbox("process", workers=1) as box:
        for one in started_by(box):
            found = Path(f"/proc/{one}/oom_score_adj").read_text()
            assert found == Path("/proc/self/oom_score_adj").read_text()


def test_no_program_sees_how_many_threads_others_run():
    """The limit on threads is a constant where each split has a count of its own."""
    limit = telling("[[resource.getrlimit(resource.RLIMIT_NPROC)[0], 0]] * 20", "import resource")
    with Sandbox("process", workers=2) as opened:
        if not all(link.apart for link in opened._links):
            assert any("namespaces" in note for note in opened.notes)
            pytest.skip("no user namespaces here")
        busy = opened.submit(
            building(
                "import threading, time",
                "for _ in range(40): threading.Thread(target=time.sleep, args=(4,)).start()",
                "time.sleep(4)",
            ),
            [job()],
        )
        while not busy.running():
            time.sleep(0.02)
        time.sleep(2)
        tables = opened.run(limit, [job()]).probabilities
        assert tables is not None
        assert tables[0][0, 0] == client.SPARE_TASKS


def test_threads_of_c_libraries_are_joined(box: Sandbox):
    """The C library waits for a thread on a shared futex, which the filter does not let sleep."""
    source = telling(
        "[[slept, 0]] * 20",
        "import ctypes, time",
        "libc = ctypes.CDLL(None)",
        "thread, start = ctypes.c_ulong(), time.monotonic()",
        "assert libc.pthread_create(ctypes.byref(thread), None, libc.usleep, 200_000) == 0",
        "assert libc.pthread_join(thread, None) == 0",
        "slept = time.monotonic() - start",
    )
    answer = box.run(source, [job()])
    assert (answer.status, answer.message) == ("ok", "")
    assert answer.probabilities is not None
    assert answer.probabilities[0][0, 0] >= 0.2


def test_splits_that_share_process_numbers_are_told(monkeypatch: pytest.MonkeyPatch):
    whole = client.setup("process")
    shared = replace(whole, settings=whole.settings.replace('"apart": true', '"apart": false'))
    monkeypatch.setattr(sandbox, "setup", lambda _: shared)
    with Sandbox("process", workers=1) as opened:
        assert any("process numbers" in note for note in opened.notes)
        assert opened.run(CONSTANT, [job()]).status == "ok"


def test_each_split_is_the_first_process_of_its_own_space(process: Sandbox):
    if any("namespaces" in note for note in process.notes):
        pytest.skip("no user namespaces here")
    source = telling("[[os.getpid(), os.getppid()]] * 20", "import os")
    process.budget, budget = 60.0, process.budget
    tables = process.run(source, [job(), job()]).probabilities
    process.budget = budget
    assert tables is not None
    assert [table[0].tolist() for table in tables] == [[1, 0]] * 2


def test_closing_ends_every_process_and_whoever_waits():
    opened = Sandbox("process", workers=1)
    futures = [opened.submit(building("while True: pass"), [job()]) for _ in range(3)]
    while not futures[0].running():
        time.sleep(0.02)
    processes = started_by(opened)
    opened.close()
    opened.close()
    assert processes
    assert gone(processes)
    for future in futures:
        with pytest.raises(SandboxError, match=r"closed|lost"):
            future.result()
    with pytest.raises(SandboxError, match="closed"):
        opened.submit(CONSTANT, [job()])


def test_a_fork_of_the_trainer_does_not_end_its_workers(process: Sandbox):
    before = started_by(process)
    command = "import os\nbox.close()"
    if not (child := os.fork()):
        try:
            exec(command, {"box": process})
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert started_by(process) == before
    assert works(process)


# --- what is refused, what is told ---------------------------------------------------------------


def without_bubblewrap(monkeypatch: pytest.MonkeyPatch, folder: Path, words: str = "") -> None:
    """A machine whose bwrap is not there, or fails with these words."""
    if words:
        (folder / "bwrap").write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
        (folder / "bwrap").chmod(0o755)
    if setpriv := shutil.which("setpriv"):
        (folder / "setpriv").symlink_to(setpriv)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", ["bwrap is not installed", "apt install bubblewrap"]),
        (
            "bwrap: setting up uid map: Permission denied",
            ["uid map: Permission denied", "AppArmor"],
        ),
        ("python: cannot open shared object", ["cannot open shared object", "isolation='process'"]),
    ],
)
def test_without_bubblewrap_the_rest_remains_and_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, told: list[str]
):
    found = confinement.seccomp_filter()  # looking for libseccomp takes tools on the path
    monkeypatch.setattr(confinement, "seccomp_filter", lambda: found)
    without_bubblewrap(monkeypatch, tmp_path, words)
    layer = next(one for one in layers() if one.name == "bubblewrap")
    assert not layer.there
    assert all(one in f"{layer.detail} {layer.cure}" for one in told)
    with pytest.raises(SandboxError) as caught:
        Sandbox("bubblewrap", workers=1)
    assert all(one in str(caught.value) for one in ["bubblewrap", *told])
    if words.startswith("bwrap"):
        with Sandbox(workers=1) as opened:
            assert opened.isolation == "process"
            assert opened.run(CONSTANT, [job()]).status == "ok"
            assert all(one in opened.notes[0] for one in ["bubblewrap", *told])


def test_nothing_runs_where_there_is_no_seccomp(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(SandboxError, match=r"pip install .*pyseccomp.*isolation='none'"):
        Sandbox(workers=1)
    assert not next(one for one in layers() if one.name == "seccomp").there


def test_nothing_runs_on_another_system(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    for isolation in ("auto", "bubblewrap", "process"):
        with pytest.raises(SandboxError, match="there is none on darwin"):
            Sandbox(isolation, workers=1)
    assert not any(one.there for one in layers())


def test_what_is_in_use_is_told(box: Sandbox, request: pytest.FixtureRequest):
    assert box.isolation == request.node.callspec.params["box"]
    assert (box.isolation == "none") == ("whatever you can do" in " ".join(box.notes))


def test_a_sandbox_that_does_not_hold_is_never_used(monkeypatch: pytest.MonkeyPatch):
    open_door = replace(client.setup("none"), isolation="process")
    monkeypatch.setattr(sandbox, "setup", lambda _: open_door)
    with pytest.raises(SandboxError) as caught:
        Sandbox("process", workers=1)
    assert "not safe here" in str(caught.value)
    for attack in ("read a file", "open a socket", "start a process", "kill its server"):
        assert attack in str(caught.value)


def test_a_sandbox_in_which_nothing_works_is_never_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(selftest, "HONEST", "import no_such_module")
    with pytest.raises(SandboxError, match="an honest program fails"):
        Sandbox("process", workers=1)


def test_a_child_that_cannot_be_confined_never_sees_a_program(monkeypatch: pytest.MonkeyPatch):
    whole = client.setup("process")
    bad = replace(whole, settings=whole.settings.replace('"filter": "', '"filter": "ff'))
    monkeypatch.setattr(sandbox, "setup", lambda _: bad)
    with pytest.raises(SandboxError, match=r"could not be confined"):
        Sandbox("process", workers=1)


LOCKS = {
    "seccomp": "worker.prctl(38, 1); worker.allow_only(bytes.fromhex(sys.argv[1]))",
    "Landlock": "worker.prctl(38, 1); worker.deny_files_and_signals()",
    "limits": "worker.limit(1 << 30, 1, 5)",
    "user": "worker.drop_rights(65534 if os.getuid() == 0 else None, False)",
}
TRIES = {
    "read": "open(sys.executable).close()",
    "memory": "bytearray(2 << 30)",
    "write": "os.write(os.open('written', os.O_CREAT | os.O_WRONLY), b'x')",
    "fork": "os.fork() or os._exit(0)",
    "signal": "os.kill(os.getppid(), 0)",
    "socket": "socket.socket()",
    "connect": "socket.socket().connect(('127.0.0.1', 9))",
    "root": "os.setuid(0); open('/etc/shadow').close()",
}


@pytest.mark.parametrize(
    ("lock", "stopped"),
    [
        ("seccomp", {"read", "write", "fork", "signal", "socket", "connect", "root"}),
        ("Landlock", {"read", "write", "signal", "connect"}),
        ("limits", {"memory", "write"}),
        ("user", {"root"}),
    ],
)
def test_each_lock_holds_alone(tmp_path: Path, lock: str, stopped: set[str]):
    """Several locks stop most things twice; here each must do its part without the others."""
    if lock == "Landlock" and confinement.landlock_version() < 6:
        pytest.skip("Landlock of this kernel knows no signals")
    for name in sorted(stopped):
        code = (
            "import os, socket, sys\n"
            f"sys.path.insert(0, {str(Path(client.__file__).parent)!r})\n"
            f"import worker\n{LOCKS[lock]}\n"
            f"try: {TRIES[name]}\n"
            "except ConnectionRefusedError: print('won')\n"
            "except (OSError, MemoryError): os._exit(7)\n"
            "else: print('won')\n"
        )
        command = [sys.executable, "-c", code, confinement.seccomp_filter().hex()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        # SIGXFSZ is how the kernel says that a file may not grow.
        assert done.returncode in (7, -signal.SIGXFSZ), (name, done)
        assert "won" not in done.stdout


def test_the_filter_knows_no_call_that_leads_outside():
    forbidden = """open openat openat2 creat socket socketpair connect bind accept sendmsg recvmsg
        execve execveat fork vfork kill tkill tgkill pidfd_open ptrace process_vm_readv keyctl
        add_key request_key shmget msgget semget mq_open io_uring_setup bpf unshare setns mount
        memfd_create userfaultfd perf_event_open prctl seccomp ioctl fcntl dup pipe eventfd
        stat newfstatat statx access readlink chdir setrlimit personality clone3
        set_robust_list get_robust_list set_tid_address futex_wait futex_wake futex_waitv
        sysinfo getrusage mincore getrandom"""
    allowed = {*confinement.ALLOWED.split(), *confinement.NARROWED}
    assert allowed.isdisjoint(forbidden.split())
    assert not set(confinement.ALLOWED.split()) & set(confinement.NARROWED)
    assert all(rule for rules in confinement.NARROWED.values() for rule in rules)


def test_each_layer_says_what_it_does_and_how_to_get_it():
    found = layers()
    assert [one.name for one in found] == [
        "bubblewrap",
        "Landlock",
        "namespaces",
        "seccomp",
        "limits",
    ]
    for one in found:
        assert isinstance(one, Layer)
        assert one.what
        assert one.there == (not one.cure)


@pytest.mark.parametrize("arguments", [{"isolation": "jail"}, {"workers": -1}, {"budget": 0}])
def test_mistyped_arguments_are_told_at_once(arguments: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Sandbox(**arguments)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "change",
    [
        {"x_train": np.zeros((4, 2), np.float32)},
        {"y_train": np.zeros(4)},
        {"y_train": np.zeros((4, 1), np.int64)},
        {"x_test": np.zeros((2, 4)).T},
        {"x_test": np.array([[object()]])},
    ],
)
def test_a_job_of_other_arrays_is_refused(change: dict[str, np.ndarray]):
    with pytest.raises(ValueError, match=r"array|dimensions"):
        replace(job(), **change)  # pyright: ignore[reportArgumentType]


def test_importing_the_sandbox_needs_none_of_the_extra():
    code = (
        "import sys, poad.envs.datasci.sandbox\n"
        "extra = {'sklearn', 'pandas', 'scipy', 'pyseccomp', 'torch'}\n"
        "print(sorted(extra & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_future_may_be_cancelled_before_its_turn(process: Sandbox):
    first = process.submit(building("while True: pass"), [job()])
    second: Future[Answer] = process.submit(CONSTANT, [job()])
    assert second.cancel()
    assert first.result().status == "timeout"
    assert works(process)
