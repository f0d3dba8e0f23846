"""Strict JSON, and files that are whole or as they were."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.runs import files as storage
from poad.runs.codec import plain
from poad.runs.files import append_line, atomic_directory, json_line, read_lines, write_text

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Prompts may hold anything, lone surrogates included.
    | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON))
def test_a_line_reads_back_as_what_was_written(record: dict[str, Any]):
    line = json_line(record)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert json.loads(line) == record
    line.encode("utf-8")


def test_what_is_no_number_becomes_null():
    values = {"a": math.nan, "b": [math.inf, -math.inf], "c": np.float32("nan"), "d": 1.5}
    assert json.loads(json_line(values)) == {"a": None, "b": [None, None], "c": None, "d": 1.5}


def test_arrays_and_tensors_become_lists():
    values = {"a": np.arange(3), "b": torch.tensor([[1.0, 2.0]]), "c": np.int64(7), "d": (1, 2)}
    expected = {"a": [0, 1, 2], "b": [[1.0, 2.0]], "c": 7, "d": [1, 2]}
    assert plain(values) == expected


def test_what_json_has_no_word_for_is_named():
    with pytest.raises(TypeError, match=r"cannot hold a \w*Path"):
        plain({"where": [Path("here")]})


def fail(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "state.txt"
    write_text(path, "old")
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.txt"]


def test_a_failing_append_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"n": 1})

    class Tearing:
        """A file that takes half of what it is given."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> Tearing:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, line: bytes) -> int:
            self._file.write(line[: len(line) // 2])
            self._file.flush()
            raise OSError(28, "No space left on device")

    original = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *a, **k: Tearing(original(*a, **k)))
        with pytest.raises(OSError, match="No space left"):
            append_line(path, {"n": 2})
    assert path.read_text() == '{"n": 1}\n'


def test_a_torn_last_line_is_skipped_and_reported_and_the_next_one_stands_alone(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "text": "cut of')
    with pytest.warns(UserWarning, match=r"lines.jsonl, line 2: not a complete record"):
        assert list(read_lines(path)) == [{"n": 1}]
    append_line(path, {"n": 3})
    with pytest.warns(UserWarning, match="line 2"):
        assert list(read_lines(path)) == [{"n": 1}, {"n": 3}]


def test_lines_torn_inside_a_character_are_skipped_too(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n{"text": "\xc3')
    with pytest.warns(UserWarning, match="line 2"):
        assert list(read_lines(path)) == [{"n": 1}]


def test_files_are_written_where_only_writable_files_can_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on Windows, which opens no directory either."""
    fcntl = pytest.importorskip("fcntl")
    really_open, really_sync = os.open, os.fsync

    def open_file(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, flags, *rest, **named)

    def sync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        really_sync(descriptor)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", sync)
    write_text(tmp_path / "a.txt", "whole")
    with atomic_directory(tmp_path / "b") as partial:
        (partial / "c.txt").write_text("whole")
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b" / "c.txt").read_text()


def test_an_absent_file_has_no_lines(tmp_path: Path):
    assert list(storage.read_lines(tmp_path / "absent.jsonl")) == []
