"""A checkpoint is complete or absent, whatever happens in between, and damage is noticed."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from poad.runs.checkpoint import read_checkpoint, write_checkpoint

TENSORS = {
    "policy": {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3).bfloat16()},
    "optimizer": {"step": torch.tensor(7), "rng": torch.arange(5, dtype=torch.uint8)},
}
STATE = {"env_steps": 512, "generator": {"big": 2**127}, "recent": [[1.5, 6, True]]}


def same(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(
        left[name].keys() == right[name].keys()
        and all(torch.equal(left[name][key], right[name][key]) for key in left[name])
        for name in left
    )


@contextlib.contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Writes beyond ``size`` bytes fail with an error, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path):
    folder = tmp_path / "000003"
    write_checkpoint(folder, 3, TENSORS, STATE)
    tensors, state = read_checkpoint(folder)
    assert same(tensors, TENSORS)
    assert state == STATE
    assert os.listdir(tmp_path) == ["000003"]
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def test_tied_strided_and_trainable_tensors_keep_their_values(tmp_path: Path):
    weight = torch.nn.Parameter(torch.randn(4, 6))
    group = {"embedding": weight, "head": weight, "view": weight[:, ::2], "turned": weight.T}
    write_checkpoint(tmp_path / "000001", 1, {"policy": group}, {})
    tensors, _ = read_checkpoint(tmp_path / "000001")
    assert same(tensors, {"policy": {key: value.detach() for key, value in group.items()}})


def test_a_full_disk_leaves_no_trace_and_harms_no_neighbour(tmp_path: Path):
    write_checkpoint(tmp_path / "000001", 1, TENSORS, STATE)
    large = {"small": {"a": torch.zeros(10)}, "large": {"b": torch.zeros(100_000)}}
    with files_at_most(65_536), pytest.raises(OSError):
        write_checkpoint(tmp_path / "000002", 2, large, STATE)
    assert os.listdir(tmp_path) == ["000001"]
    assert same(read_checkpoint(tmp_path / "000001")[0], TENSORS)


def test_an_interruption_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("poad.runs.checkpoint.write_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "000002", 2, TENSORS, STATE)
    assert os.listdir(tmp_path) == []


def test_a_state_that_json_cannot_hold_leaves_no_trace(tmp_path: Path):
    with pytest.raises(TypeError, match="cannot hold a object"):
        write_checkpoint(tmp_path / "000002", 2, TENSORS, {"odd": object()})
    assert os.listdir(tmp_path) == []


def test_a_process_killed_in_the_middle_leaves_only_what_the_next_write_clears(tmp_path: Path):
    write_checkpoint(tmp_path / "000001", 1, TENSORS, STATE)
    dies_half_way = """
import os, pathlib, sys, torch, poad.runs.checkpoint
poad.runs.checkpoint.write_text = lambda *_: os._exit(9)
folder = pathlib.Path(sys.argv[1])
poad.runs.checkpoint.write_checkpoint(folder, 2, {"policy": {"a": torch.zeros(3)}}, {})
"""
    arguments = [sys.executable, "-c", dies_half_way, str(tmp_path / "000002")]
    assert subprocess.run(arguments).returncode == 9
    assert sorted(os.listdir(tmp_path)) == [".partial-000002", "000001"]
    write_checkpoint(tmp_path / "000003", 3, TENSORS, STATE)
    assert sorted(os.listdir(tmp_path)) == ["000001", "000003"]


def test_writing_a_checkpoint_again_replaces_it(tmp_path: Path):
    folder = tmp_path / "000001"
    write_checkpoint(folder, 1, {"policy": {"a": torch.zeros(1)}}, {"try": 1})
    write_checkpoint(folder, 1, TENSORS, {"try": 2})
    tensors, state = read_checkpoint(folder)
    assert same(tensors, TENSORS)
    assert state == {"try": 2}
    assert os.listdir(tmp_path) == ["000001"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "policy.safetensors"),
        lambda folder: os.truncate(folder / "policy.safetensors", 20),
        lambda folder: (folder / "optimizer.safetensors").unlink(),
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: os.truncate(folder / "state.json", 20),
        lambda folder: (folder / "state.json").write_text("[]"),
        shutil.rmtree,
    ],
    ids=["flipped", "cut", "missing", "stateless", "cut state", "odd state", "gone"],
)
def test_damage_of_any_kind_is_noticed(damage: Any, tmp_path: Path):
    write_checkpoint(tmp_path / "000001", 1, TENSORS, STATE)
    damage(tmp_path / "000001")
    with pytest.raises((OSError, ValueError)):
        read_checkpoint(tmp_path / "000001")
