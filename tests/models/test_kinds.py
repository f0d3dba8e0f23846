"""The size of a model is told by its files or its name, and tells which preset suits it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_gguf import write_gguf
from tiny_models import Zoo

from poad.config import PRESETS
from poad.errors import ModelError
from poad.models import kinds
from poad.models.kinds import count_weights, model_size, suitable_preset
from poad.models.known import KNOWN
from poad.models.names import embedded_models


@pytest.mark.parametrize(
    ("name", "millions", "preset"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 500, "small"),
        ("HuggingFaceTB/SmolLM2-1.7B", 1_700, "small"),
        ("meta-llama/Llama-3.2-1B", 1_000, "small"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_000, "large"),
        ("google/gemma-3-270m-it", 270, "small"),
        ("google/gemma-2b", 2_000, "large"),
        ("roneneldan/TinyStories-1M", 1, "plain"),
        ("EleutherAI/pythia-70m-deduped", 70, "small"),
        ("Qwen/Qwen3-30B-A3B", 30_000, "large"),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7_000, "large"),  # 1M tokens of context
        ("mistralai/Mixtral-8x7B-v0.1", 56_000, "large"),
        ("some_7b_lab/model-360m", 360, "small"),
        ("openai-community/gpt2", None, "small"),
        ("mistralai/Ministral-3-base", None, "small"),
        ("codellama/v2bold", None, "small"),
    ],
)
def test_a_name_often_tells_the_size(name: str, millions: int | None, preset: str) -> None:
    assert model_size(name) == (None if millions is None else millions * 10**6)
    assert suitable_preset(name) == preset


def test_tiny_models_take_the_plain_defaults() -> None:
    for name in ("auto", *embedded_models()):
        for tuning in (None, "lora", "full"):
            assert suitable_preset(name, tuning) == "plain"


@pytest.mark.parametrize("name", KNOWN)
def test_models_that_can_be_fetched_are_small_whether_they_are_here_or_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POAD_CACHE", str(tmp_path))
    assert model_size(name) == KNOWN[name].parameters
    assert suitable_preset(name) == suitable_preset(name, "lora") == "small"
    assert suitable_preset(name, "full") == "small-full"


def test_files_tell_the_size_exactly(zoo: Zoo, tmp_path: Path) -> None:
    path = zoo.path()
    weights = sum(weight.numel() for weight in zoo.load().module.parameters())
    assert model_size(str(path)) == weights
    assert suitable_preset(str(path)) == "plain"
    half = tmp_path / "half-7B"  # what the files say counts more than the name
    half.mkdir()
    for part in "ab":
        tensors = {part: torch.zeros(3, 5, dtype=torch.bfloat16), f"{part}2": torch.zeros(())}
        save_file(tensors, half / f"model-{part}.safetensors")
    save_file({"lora": torch.zeros(100)}, half / "adapter_model.safetensors")
    assert model_size(str(half)) == 2 * (15 + 1)
    assert count_weights(half / "model-a.safetensors") == 16


def test_a_directory_without_weights_says_nothing(tmp_path: Path) -> None:
    assert model_size(str(tmp_path)) is None
    assert suitable_preset(str(tmp_path)) == "small"


def test_the_size_of_a_gguf_file_stands_for_its_weights(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(zoo.path(), file)
    assert model_size(str(file)) == file.stat().st_size
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_size("~/tiny.gguf") == file.stat().st_size


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"Cannot read the weights in .*model\.safetensors"):
        model_size(str(tmp_path))


def test_every_kind_has_a_preset(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    size = model_size(str(zoo.path()))
    assert size is not None
    found = {}
    for tiny, small in ((size + 1, size + 1), (size, size + 1), (size, size)):
        monkeypatch.setattr(kinds, "_TINY", tiny)
        monkeypatch.setattr(kinds, "_SMALL", small)
        for tuning in (None, "full", "lora"):
            found[tiny, small, tuning] = suitable_preset(str(zoo.path()), tuning)
    assert [*found.values()] == [
        *("plain", "plain", "plain"),
        *("small", "small-full", "small"),
        *("large", "large", "large"),
    ]
    assert set(found.values()) == set(PRESETS)
