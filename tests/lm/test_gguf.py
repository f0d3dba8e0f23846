"""A model in a .gguf file is the one whose weights it holds. A bad file says what is wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_run import run_of
from tiny_gguf import TYPES, write_gguf
from tiny_models import ACTIONS, PROMPTS, Zoo
from tiny_worlds import settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from poad.cli.main import main
from poad.config import ModelConfig
from poad.errors import ModelError
from poad.lm.gguf import read_contents
from poad.lm.loading import load_model, resolve_model
from poad.lm.tokenizer import TextCodec
from poad.plan.sample import load_codec
from poad.plan.shape import model_shape
from poad.runs import Run
from poad.workflows.export import export
from poad.workflows.load import Weights, load_weights

pytest.importorskip("gguf")
KITCHEN = "poad/TomatoSalad-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, zoo: Zoo) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def file(folder: Path, zoo: Zoo) -> Path:
    write_gguf(zoo.path(), folder / "tiny.gguf")
    return folder / "tiny.gguf"


def logits(causal: Any) -> torch.Tensor:
    with torch.no_grad():
        return causal(input_ids=torch.arange(5, 40)[None]).logits


def rejection(name: Path | str, **rest: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(ModelConfig(name=str(name), device="cpu", **rest))
    return str(caught.value)


def test_its_weights_are_those_in_the_file_dequantized(folder: Path, zoo: Zoo):
    stored = write_gguf(zoo.path(), folder / "same.gguf")
    model = load_model(ModelConfig(name=str(folder / "same.gguf"), device="cpu"))
    found = dict(model.causal_lm.named_parameters())
    assert found.keys() == dict(stored.named_parameters()).keys()
    for name, weight in stored.named_parameters():
        assert torch.equal(found[name], weight), name
    assert torch.equal(logits(model.causal_lm), logits(stored))
    quantized = logits(stored) - logits(AutoModelForCausalLM.from_pretrained(zoo.path()))
    assert quantized.abs().max() > 1e-3  # the types of storage do count


def test_it_writes_and_reads_the_words_of_its_model(file: Path, zoo: Zoo):
    codec = load_model(ModelConfig(name=str(file), device="cpu")).codec
    own = TextCodec(AutoTokenizer.from_pretrained(zoo.path()))
    for text in PROMPTS:
        assert codec.prompt(text) == own.prompt(text)
    assert [codec.action(text) for text in ACTIONS] == [own.action(text) for text in ACTIONS]
    assert (codec.end_id, codec.pad_id) == (own.end_id, own.pad_id)


def test_what_is_dequantized_is_said(file: Path):
    model = load_model(ModelConfig(name=str(file), device="cpu", dtype="bfloat16", tuning="lora"))
    (note,) = model.notes
    assert note.startswith("tiny.gguf has 21 tensors: ")
    assert "8 in Q4_1, 2 in Q5_0, 2 in Q4_0 and 1 in Q8_0 were dequantized to bfloat16" in note
    assert note.endswith("and 8 in F32 were not quantized.")
    assert set(TYPES.values()) == {"Q4_1", "Q5_0", "Q4_0", "Q8_0"}


def test_loading_prints_nothing(file: Path, capfd: pytest.CaptureFixture[str]):
    load_model(ModelConfig(name=str(file), device="cpu", tuning="lora"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("pre", "apart"), [("smollm", True), ("gpt-2", False)])
def test_numbers_are_cut_into_digits_where_the_file_says_so(folder: Path, zoo: Zoo, pre, apart):
    write_gguf(zoo.path(), folder / f"{pre}.gguf", pre)
    tokenizer = load_model(ModelConfig(name=str(folder / f"{pre}.gguf"), device="cpu")).codec
    backend = tokenizer.tokenizer.backend_tokenizer
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("a  12")]
    assert pieces == (["a", "ĠĠ", "1", "2"] if apart else ["a", "Ġ", "Ġ12"])


def test_its_path_becomes_absolute(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(file.parent)
    assert resolve_model("tiny.gguf", "any/World-v0") == str(file)
    assert resolve_model("other.gguf", "any/World-v0") == "other.gguf"


def test_a_file_that_cannot_be_used_says_why(file: Path, tmp_path: Path, monkeypatch):
    content = file.read_bytes()
    assert "No such file" in rejection(tmp_path / "absent.gguf")
    for name, changed, said in (
        ("empty", b"", "empty"),
        ("cut", content[:-100], "ends 100 bytes too early"),
        ("head", content[:100], "damaged"),
        ("other", b"PK\3\4" + content[4:], "does not begin with GGUF"),
        ("old", content[:4] + b"\1" + content[5:], "version is 1"),
    ):
        (tmp_path / f"{name}.gguf").write_bytes(changed)
        assert said in rejection(tmp_path / f"{name}.gguf"), name
    strange = content.replace(b"llama", b"trump")
    (tmp_path / "strange.gguf").write_bytes(strange)
    assert "trump" in rejection(tmp_path / "strange.gguf")
    assert "poad models convert" in rejection(file, tuning="lora", quantize="8bit")
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else there(name)
    )
    assert "pip install gguf" in rejection(file)


def test_one_of_several_parts_is_refused(tmp_path: Path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "one of 3 parts" in rejection(tmp_path / "part.gguf")


def test_a_look_reads_settings_and_types(file: Path):
    contents = read_contents(str(file))
    assert contents.metadata["general.architecture"] == "llama"
    assert contents.metadata["llama.block_count"] == 2
    assert "tokenizer.ggml.tokens" not in contents.metadata  # long ones are left out
    assert contents.types["Q4_1"] == 8


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_on_it_is_evaluated_and_exported_as_an_ordinary_model(
    file: Path, tmp_path: Path, tuning, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(file.parent)
    model = {"name": file.name, "tuning": tuning, "device": "cpu"}
    run = run_of(tmp_path / "run", settings(KITCHEN, model=model))
    monkeypatch.chdir(tmp_path)  # a run is opened from other directories
    assert Run.open(run.path).config.model.name == str(file)
    loaded = load_weights(Weights(run.path))
    assert main(["eval", str(run.path), "--episodes", "2", "--quiet"]) == 0
    expected = logits(loaded.agent.model.module)
    export(loaded, tmp_path / "to")
    assert not (tmp_path / "to" / "adapter_config.json").exists()
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "to", dtype="auto")
    assert "quantization_config" not in plain.config.to_dict()
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-4)
    words = AutoTokenizer.from_pretrained(tmp_path / "to")
    for text in PROMPTS:
        assert tuple(words(text)["input_ids"]) == loaded.agent.model.codec.prompt(text)


@pytest.mark.filterwarnings("always:tiny.gguf has")
def test_a_training_on_it_says_what_it_holds_and_is_resumed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(file.parent)
    small = ["--streams", "2", "--horizon", "8", "--eval.episodes", "0", "--quiet"]
    start = ["train", "--model.name", file.name, *small, "--run", str(tmp_path / "run")]
    assert main([*start, "--steps", "16"]) == 0
    assert "note: tiny.gguf has 21 tensors" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "run", "--steps", "32", "--quiet"]) == 0
    assert "dequantized to float32" in capsys.readouterr().err
    assert [m["env_steps"] for m in Run.open(tmp_path / "run").metrics()] == [16, 32]


def test_adapters_find_their_base_in_the_file(file: Path, tmp_path: Path):
    model = {"name": str(file), "tuning": "lora", "device": "cpu"}
    run = run_of(tmp_path / "run", settings(KITCHEN, model=model))
    loaded = load_weights(Weights(run.path))
    export(loaded, tmp_path / "to", adapter=True)
    card = (tmp_path / "to" / "README.md").read_text()
    assert 'gguf_file="tiny.gguf"' in card
    again = load_model(ModelConfig(name=str(tmp_path / "to"), device="cpu"))
    expected = logits(loaded.agent.model.module)
    torch.testing.assert_close(logits(again.causal_lm), expected, rtol=0, atol=1e-4)


def test_it_can_be_planned_for_without_its_weights(file: Path):
    config = ModelConfig(name=str(file), device="cpu")
    weights = sum(p.numel() for p in load_model(config).causal_lm.parameters())
    assert model_shape(config, KITCHEN).weights == weights
    codec, own = load_codec(settings(KITCHEN, model={"name": str(file)}))
    assert own
    assert codec.prompt(PROMPTS[0]) == load_model(config).codec.prompt(PROMPTS[0])
