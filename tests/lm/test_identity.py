"""A model is known by what it computes with, wherever and in however many files it lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Zoo
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from poad.config import ModelConfig
from poad.lm.identity import Identity, _checksum
from poad.lm.loading import load_model


def identity(path: Path | str) -> Identity:
    return load_model(ModelConfig(name=str(path), device="cpu")).identity


def test_files_do_not_matter(zoo: Zoo, tmp_path: Path):
    path = Path(shutil.copytree(zoo.path(), tmp_path / "copy"))
    (path / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(zoo.path()).save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    assert identity(path) == identity(zoo.path())


def test_neither_training_nor_adapters_matter(zoo: Zoo):
    name = str(zoo.path())
    tuned = load_model(ModelConfig(name=name, device="cpu", tuning="lora", precision="full"))
    assert tuned.identity == identity(name)


def test_any_other_weight_or_word_is_told(zoo: Zoo, tmp_path: Path):
    before = identity(zoo.path())
    causal = AutoModelForCausalLM.from_pretrained(zoo.path())
    with torch.no_grad():
        next(p for p in causal.parameters() if p.dim() == 2)[1, 2] += 1e-3
    path = Path(shutil.copytree(zoo.path(), tmp_path / "weight"))
    causal.save_pretrained(path)
    after = identity(path)
    assert [part for part in before if before[part] != after[part]] == ["weights"]

    path = Path(shutil.copytree(zoo.path(), tmp_path / "words"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(path)
    after = identity(path)
    changed = [part for part in before if before[part] != after[part]]
    assert changed == ["vocabulary or chat template"]


@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_every_bit_counts(data: st.DataObject, dtype: torch.dtype):
    shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
    first = data.draw(st.integers(0, 3))  # a view may begin anywhere
    whole = torch.randn(first + torch.Size(shape).numel()).to(dtype)
    tensor = whole[first:].reshape(shape)
    before = _checksum(nn.Parameter(tensor).detach())
    assert before == _checksum(tensor.clone())
    if tensor.numel():
        flat = tensor.clone().reshape(-1).view(torch.uint8)
        flat[data.draw(st.integers(0, len(flat) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        assert _checksum(flat.view(dtype).reshape(shape)) != before
