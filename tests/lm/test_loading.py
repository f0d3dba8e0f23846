"""Models of several architectures load, and read the same packed, growing and frozen."""

from __future__ import annotations

import json
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import huggingface_hub.constants
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import (
    CONFIGURATIONS,
    PROMPTS,
    TOKENIZERS,
    Zoo,
    assert_same,
    byte_level,
    next_token_logits,
)
from tolerance import drift
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma3TextConfig,
    T5Config,
)
from transformers.utils import logging

from poad.config import ModelConfig
from poad.errors import ModelError
from poad.lm.adapters import _attention_projections
from poad.lm.loading import load_model, resolve_device, resolve_model
from poad.lm.model import LanguageModel
from poad.lm.packing import Packed, pack
from poad.lm.tokenizer import TextCodec
from poad.models.known import KNOWN
from poad.models.names import embedded_models, model_card
from poad.turns import Position

Tuning = Literal["full", "lora"]
TUNINGS: tuple[Tuning, ...] = ("full", "lora")
CROWD: list[Position] = [((5, 6, 7, 8, 9), (70, 71)), ((5, 6, 7, 8, 9), (71,)), ((10, 11), (70,))]
SMALL: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "initializer_range": 0.3}


@pytest.fixture
def packed() -> Packed:
    return pack(CROWD, pad_id=1)


def take_a_large_step(model: LanguageModel, packed: Packed) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.logits(model.read(packed)).log_softmax(-1)[:, 30].sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def from_config(config: Any) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        causal = AutoModelForCausalLM.from_config(config)
    return LanguageModel(causal, TextCodec(byte_level()))


# --- loading ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", CONFIGURATIONS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_saved_directory_loads_whole_and_ready(zoo: Zoo, architecture, tuning: Tuning, packed):
    model = zoo.load(architecture, tuning=tuning)
    assert model.width == 32
    assert model.device == torch.device("cpu")
    assert not model.module.training  # so that there is no dropout
    with torch.no_grad():
        found = model.logits(model.read(packed))
        expected = [next_token_logits(model, *prompt, *rest) for prompt, rest in CROWD]
    assert_same(found.log_softmax(-1), torch.stack(expected).log_softmax(-1))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_its_tokenizer_comes_with_it(zoo: Zoo, tokenizer):
    codec, own = zoo.load("llama", tokenizer).codec, TextCodec(TOKENIZERS[tokenizer]())
    for prompt in PROMPTS:
        assert codec.prompt(prompt) == own.prompt(prompt)
    assert codec.action("open red door") == own.action("open red door")
    assert (codec.end_id, codec.pad_id) == (own.end_id, own.pad_id)


def test_the_embedded_model_is_known_by_name_and_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "tiny-kitchen" in embedded_models()
    assert resolve_model("auto", "poad/TomatoSalad-v0") == "tiny-kitchen"
    assert resolve_model("some/model", "poad/TomatoSalad-v0") == "some/model"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    (tmp_path / "tiny-length").mkdir()
    assert resolve_model("some/model", "any/World-v0") == str(tmp_path / "some" / "model")
    assert resolve_model("tiny-length", "any/World-v0") == "tiny-length"
    name = resolve_model("auto", "poad/TomatoLettuceSalad-v0")
    model = load_model(ModelConfig(name=name, device="cpu"))
    with torch.no_grad():
        hidden = model.read(pack([(model.codec.prompt("You see"), ())], model.codec.pad_id))
    assert model.logits(hidden).isfinite().all()
    assert model_card("tiny-kitchen")


def test_a_world_without_embedded_model_says_what_to_name():
    with pytest.raises(ModelError, match=r"'my/World-v0'.*--model.name.*tiny-kitchen"):
        resolve_model("auto", "my/World-v0")


def test_loading_a_directory_prints_nothing(zoo: Zoo, capfd: pytest.CaptureFixture[str]):
    zoo.path()
    capfd.readouterr()
    for tuning in TUNINGS:
        zoo.load(tuning=tuning)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_loading_leaves_progress_bars_as_they_were(zoo: Zoo, shown):
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        zoo.load()
        assert logging.is_progress_bar_enabled() == shown
    finally:
        logging.enable_progress_bar()


# --- what cannot be loaded --------------------------------------------------------------------


def rejection(name: Path | str, **settings: Any) -> str:
    config = replace(ModelConfig(name=str(name), device="cpu"), **settings)
    with pytest.raises(ModelError) as caught:
        load_model(config)
    return str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/model", "no/such-model", "nowhere"])
def test_a_name_that_is_neither_here_nor_reachable_is_rejected(name):
    message = rejection(name)
    assert f"Cannot load the model {name!r}: there is no such directory" in message
    assert f"Expected an embedded model ({', '.join(embedded_models())}), one that" in message
    assert (
        f"poad fetches ({', '.join(KNOWN)}), a directory, a .gguf file, or a hub name." in message
    )


def test_a_directory_that_is_not_a_whole_causal_model_is_rejected(zoo: Zoo, tmp_path: Path):
    def broken(name: str, file: str = "") -> Path:
        path = Path(shutil.copytree(zoo.path(), tmp_path / name))
        if file:
            (path / file).unlink()
        return path

    assert "no weights in safetensors" in rejection(broken("no weights", "model.safetensors"))
    assert "tokenizer" in rejection(broken("no words", "tokenizer.json"))
    (broken("cut short") / "model.safetensors").write_bytes(b"\0" * 99)
    assert "Cannot load the model" in rejection(tmp_path / "cut short")
    T5Config().save_pretrained(path := broken("not causal"))
    assert "AutoModelForCausalLM" in rejection(path)
    tokenizer = byte_level()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(path := broken("no end"))
    assert "no end-of-text token" in rejection(path)


def test_auto_is_a_gpu_where_there_is_one():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_there_is_rejected(zoo: Zoo, device):
    message = rejection(zoo.path(), device=device)
    assert f"Device {device!r} cannot be used" in message
    assert "use cpu, or cuda" in message


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [("llama", "down_proj, gate_proj, k_proj, lm_head"), ("gpt2", "c_attn, c_fc, c_proj, lm_head")],
)
def test_adapters_that_fit_no_layer_name_those_there_are(zoo: Zoo, architecture, layers):
    message = rejection(zoo.path(architecture), tuning="lora", lora_targets=("foo", "bar"))
    assert message.startswith("No layer to adapt is called foo or bar")
    assert layers in message
    assert "model.lora_targets" in message


def test_an_unknown_attention_layer_asks_for_the_layers_to_adapt():
    with pytest.raises(ModelError, match=r"not known.*model\.lora_targets"):
        _attention_projections(nn.Sequential(nn.Linear(2, 2)))


def test_a_model_with_more_than_body_and_head_is_rejected():
    config = BertConfig(**SMALL, intermediate_size=48, is_decoder=True)
    with pytest.raises(ModelError, match="BertLMHeadModel does something between"):
        from_config(config)


def test_weights_that_are_not_numbers_are_rejected(zoo: Zoo):
    causal: Any = zoo.load().module
    with torch.no_grad():
        causal.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        LanguageModel(causal, TextCodec(byte_level()))


# --- what a directory may lack ----------------------------------------------------------------


def changed(zoo: Zoo, to: Path, change: Any, architecture: str = "llama") -> Path:
    """A copy of a directory whose named tensors were changed."""
    path = Path(shutil.copytree(zoo.path(architecture), to))
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("layers.1.", "lacks weights .* model.layers.1.* and 6 more"),
        ("lm_head", "lacks weights .* lm_head.weight"),
        ("embed_tokens", "lacks weights .* model.embed_tokens.weight"),
    ],
)
def test_a_checkpoint_with_weights_missing_is_rejected(zoo: Zoo, tmp_path: Path, lost, said):
    def lose(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if lost in name]:
            del tensors[name]

    assert re.search(said, rejection(changed(zoo, tmp_path / "part", lose)))


def test_a_checkpoint_with_other_weights_is_rejected(zoo: Zoo, tmp_path: Path):
    def add(tensors: dict[str, Any]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)

    def cut(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:31].clone()

    assert "does not mention: model.layers.2" in rejection(changed(zoo, tmp_path / "more", add))
    assert "other sizes" in rejection(changed(zoo, tmp_path / "less", cut))


def test_what_stands_beside_the_model_does_no_harm(zoo: Zoo, tmp_path: Path, packed: Packed):
    """A value head from another trainer; and tied heads are stored once."""

    def add(tensors: dict[str, Any]) -> None:
        tensors["v_head.summary.weight"] = torch.zeros(1, 32)

    for kind in ("llama", "qwen"):
        path = changed(zoo, tmp_path / kind, add, kind)
        model = load_model(ModelConfig(name=str(path), device="cpu"))
        assert torch.equal(model.read(packed), zoo.load(kind).read(packed))


def test_pickled_weights_are_never_read(zoo: Zoo, tmp_path: Path):
    """Not even by torch's restricted reader: other formats than safetensors are left alone."""
    path = Path(shutil.copytree(zoo.path(), tmp_path / "pickled"))
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    load_model(ModelConfig(name=str(path), device="cpu"))
    (path / "model.safetensors").unlink()
    assert "no weights in safetensors. Others are not read" in rejection(path)
    (path / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert "no weights in safetensors. Others are not read" in rejection(path)


def test_a_directory_without_a_model_says_so(tmp_path: Path):
    assert "neither a config.json nor an adapter_config.json" in rejection(tmp_path)


def test_a_tokenizer_of_another_model_is_rejected(zoo: Zoo, tmp_path: Path):
    path = Path(shutil.copytree(zoo.path(), tmp_path / "mixed"))
    TOKENIZERS["pieces"]().save_pretrained(path)
    assert re.search(r"tokenizer.*does not know: ids up to \d+, where.*320", rejection(path))


def test_a_padding_token_without_a_row_changes_nothing(zoo: Zoo, tmp_path: Path, packed: Packed):
    path = Path(shutil.copytree(zoo.path(tokenizer="bytes_without_pad"), tmp_path / "padded"))
    words = byte_level(pad=False)
    words.add_special_tokens({"pad_token": "[PAD]"})
    words.save_pretrained(path)
    model = load_model(ModelConfig(name=str(path), device="cpu"))
    assert model.codec.pad_id == model.codec.end_id
    same = zoo.load(tokenizer="bytes_without_pad")
    assert torch.equal(model.read(packed), same.read(packed))


def test_what_was_a_directory_is_never_looked_up_on_the_hub(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: Packed
):
    """A run is opened from other directories, and its model may be gone by then."""
    shutil.copytree(zoo.path(), tmp_path / "mine")
    (tmp_path / "other").mkdir()
    asked: list[Any] = []

    def connect(*address: Any) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    written = ("mine", "./mine", str(Path("~", "mine")), str(Path("other", "..", "mine")))
    names = {resolve_model(ModelConfig(name=name).name, "any/World-v0") for name in written}
    assert names == {str(tmp_path / "mine")}
    monkeypatch.chdir("other")
    (name,) = names
    model = load_model(ModelConfig(name=name, device="cpu"))
    assert torch.equal(model.read(packed), zoo.load().read(packed))
    shutil.rmtree(tmp_path / "mine")
    assert "there is no such directory" in rejection(name)
    assert asked == []
    assert "cannot be reached" in rejection("owner/mine")  # a hub name is asked for
    assert asked != []


# --- code and hub -----------------------------------------------------------------------------


def test_code_that_comes_with_a_model_runs_only_if_the_setting_says_so(zoo: Zoo, tmp_path: Path):
    """Nobody is asked on the terminal."""
    path = Path(shutil.copytree(zoo.path(), tmp_path / "own"))
    ran = tmp_path / "ran"
    (path / "own.py").write_text(
        f"from transformers import LlamaConfig\nopen({str(ran)!r}, 'w').close()\n"
        "class Own(LlamaConfig):\n    model_type = 'own-llama'\n"
    )
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "own-llama", "auto_map": {"AutoConfig": "own.Own"}}
    (path / "config.json").write_text(json.dumps(config))
    assert "model.trust_remote_code = true" in rejection(path)
    assert not ran.exists()
    with pytest.raises(ModelError):  # the configuration is known now, but there is no such model
        load_model(ModelConfig(name=str(path), device="cpu", trust_remote_code=True))
    assert ran.exists()


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def refuse(self: Any, name: str, **_: Any) -> None:
        asked.append(name)
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    assert "from the hub: it cannot be reached" in rejection("some/model")
    assert asked == ["some/model"]


# --- adapters ---------------------------------------------------------------------------------


def adapter(zoo: Zoo, to: Path, base: Path | None = None, **settings: Any) -> Any:
    """Save an adapter with opinions of its own; the model it makes of its base."""
    causal: Any = AutoModelForCausalLM.from_pretrained(base or zoo.path())
    chosen: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "up_proj"]} | settings
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted: Any = get_peft_model(causal, LoraConfig(task_type="CAUSAL_LM", **chosen))
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora" in name:
                    weight.copy_(torch.randn_like(weight) * 0.3)
    adapted.eval().save_pretrained(to)
    return adapted


PEFT_ASKS = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@PEFT_ASKS
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}]
)
def test_an_adapter_is_start_and_reference(zoo: Zoo, tmp_path: Path, tuning, settings, packed):
    adapted = adapter(zoo, tmp_path / "sft", **settings)
    config = ModelConfig(name=str(tmp_path / "sft"), tuning=tuning, device="cpu")
    zoo.path()  # the tokenizer is that of the base
    model = load_model(config, keep_reference=True)
    with torch.no_grad():
        expected = [
            adapted(input_ids=torch.tensor([[*prompt, *rest]])).logits[0, -1]
            for prompt, rest in CROWD
        ]
        for logits in (
            model.logits(model.read(packed)),
            model.frozen_logits(model.read_frozen(packed)),
        ):
            torch.testing.assert_close(logits, torch.stack(expected), rtol=0, atol=drift())
    before = {name: weight.clone() for name, weight in model.state().items()}
    assert len(before) == (8 if tuning == "lora" else len(zoo.load().state()))
    take_a_large_step(model, packed)
    assert any(not torch.equal(before[name], weight) for name, weight in model.state().items())


@PEFT_ASKS
def test_an_adapter_that_cannot_be_used_says_why(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(zoo.path(), tmp_path / "models" / "mine")
    adapter(zoo, tmp_path / "good")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "good", tmp_path / name))

    (copy("empty") / "adapter_model.safetensors").unlink()
    assert "no weights in safetensors" in rejection(tmp_path / "empty")
    (copy("cut") / "adapter_model.safetensors").write_bytes(b"\0" * 99)
    assert "cannot be merged" in rejection(tmp_path / "cut")
    path = copy("part") / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensors[name] for name in list(tensors)[1:]}, path, {"format": "pt"})
    assert "missing adapter keys" in rejection(tmp_path / "part")
    for name, base, said in (
        ("lost", "/no/such/base", "base model '/no/such/base'"),
        ("lost, too", "runs/no/base", "base model 'runs/no/base'"),
        ("elsewhere", "some/base", "Cannot load the model 'some/base'"),
        ("relative", "models/mine", f"Write {str(tmp_path / 'models' / 'mine')!r} as base"),
        ("on another", str(tmp_path / "good"), "on the adapter"),
        ("nameless", None, "does not name its base"),
    ):
        path = copy(name) / "adapter_config.json"
        settings = json.loads(path.read_text()) | {"base_model_name_or_path": base}
        path.write_text(json.dumps(settings))
        assert said in rejection(tmp_path / name)
    assert "model.quantize = none" in rejection(tmp_path / "good", tuning="lora", quantize="4bit")
    weights = copy("pickled") / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "pickled" / "adapter_model.bin")
    weights.unlink()
    assert "no weights in safetensors" in rejection(tmp_path / "pickled")
    prompts = get_peft_model(
        AutoModelForCausalLM.from_pretrained(zoo.path()),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    )
    prompts.save_pretrained(str(tmp_path / "prompts"))
    assert "cannot be merged" in rejection(tmp_path / "prompts")


def test_a_model_with_nothing_to_train_is_rejected(zoo: Zoo):
    causal: Any = zoo.load().module
    causal.requires_grad_(False)
    with pytest.raises(ModelError, match=r"No weight .* can be trained"):
        LanguageModel(causal, TextCodec(byte_level()))


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_capped_logits_are_capped(packed: Packed):
    config = Gemma3TextConfig(**SMALL, intermediate_size=48, final_logit_softcapping=2.0)
    model = from_config(config)
    with torch.no_grad():
        found = model.logits(model.read(packed))
        expected = torch.stack([next_token_logits(model, *p, *rest) for p, rest in CROWD])
    assert 1.5 < found.abs().max() <= 2.0
    assert_same(found, expected)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_half_precision_reads_finite_float32_logits(zoo: Zoo, tuning: Tuning, packed: Packed):
    half, whole = (zoo.load(tuning=tuning, dtype=dtype) for dtype in ("bfloat16", "float32"))
    with torch.no_grad():
        logits, expected = (model.logits(model.read(packed)) for model in (half, whole))
    assert half.read(packed).dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert (logits - expected).abs().mean() < 0.1 * expected.std()


rows = st.lists(st.integers(5, 60), min_size=1, max_size=7).map(tuple)
steps = st.lists(
    st.tuples(st.integers(0, 99), rows.map(lambda row: row[:3])), min_size=1, max_size=4
)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_growing_rows_read_as_if_computed_at_once(zoo: Zoo, architecture):
    model = zoo.load(architecture)

    @settings(deadline=None, max_examples=15, derandomize=True)
    @given(st.lists(rows, min_size=1, max_size=3), st.lists(steps, max_size=3))
    def check(prompts, rounds):
        decoder = model.decoder()
        written, found = prompts, decoder.read(prompts)
        for some in rounds:  # rows are dropped, kept, and continued twice
            parents = [parent % len(written) for parent, _ in some]
            chunks = [chunk for _, chunk in some]
            found = decoder.read(chunks, parents)
            written = [(*written[p], *chunk) for p, chunk in zip(parents, chunks, strict=True)]
        with torch.no_grad():
            expected = torch.stack([next_token_logits(model, *row) for row in written])
        assert_same(model.logits(found).log_softmax(-1), expected.log_softmax(-1))

    check()


# --- the untrained model ----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_training_never_moves_the_frozen_features(zoo: Zoo, architecture, tuning: Tuning, packed):
    model = zoo.load(architecture, tuning=tuning)
    frozen, trained = model.read_frozen(packed), model.read(packed)
    assert not frozen.requires_grad
    assert trained.requires_grad
    take_a_large_step(model, packed)
    assert torch.equal(model.read_frozen(packed), frozen)
    assert (model.read(packed) - trained).abs().max() > 0.1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_without_its_adapters_a_model_is_the_one_it_was_loaded_from(zoo: Zoo, architecture, packed):
    base, adapted = zoo.load(architecture), zoo.load(architecture, tuning="lora")
    assert_same(adapted.read_frozen(packed), base.read(packed).detach())
    assert (adapted.read(packed) - base.read(packed)).abs().max() > 0.1  # the adapters do count
    assert all(
        weight.requires_grad for weight in adapted.parameters()
    )  # even after they were switched off


def test_fresh_adapters_change_nothing(zoo: Zoo, packed: Packed):
    config = ModelConfig(name=str(zoo.path()), tuning="lora", device="cpu")
    model = load_model(config)
    assert torch.equal(model.read(packed), model.read_frozen(packed))


def test_a_model_loaded_without_its_frozen_body_says_so(zoo: Zoo, packed: Packed):
    model = zoo.load(keep_frozen=False)
    with pytest.raises(ModelError, match="without its frozen body"):
        model.read_frozen(packed)
    adapted = zoo.load(tuning="lora", keep_frozen=False)  # adapters are switched off instead
    assert adapted.read_frozen(packed).shape == (len(CROWD), 32)


def test_tied_embeddings_are_trained_once_and_the_frozen_ones_stay(zoo: Zoo, packed: Packed):
    model = zoo.load("qwen")
    causal: Any = model.module
    assert causal.lm_head.weight is causal.model.embed_tokens.weight
    assert [n for n in model.state() if "embed" in n or "head" in n] == [
        "model.embed_tokens.weight"
    ]
    assert len(model.state()) == len(model.parameters())
    frozen = model.read_frozen(packed)
    with torch.no_grad():
        causal.lm_head.weight.add_(1.0)
    assert torch.equal(model.read_frozen(packed), frozen)


# --- what is trained --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [("llama", {"q_proj", "v_proj"}), ("gpt2", {"c_attn"}), ("neox", {"query_key_value"})],
)
def test_adapters_sit_on_query_and_value(zoo: Zoo, architecture, layers):
    model = zoo.load(architecture, tuning="lora", lora_rank=3)
    names = model.state()
    assert {name.split(".")[-4] for name in names} == layers
    assert {min(weight.shape) for weight in names.values()} == {3}
    assert len(names) == 2 * 2 * len(layers)  # two matrices each, in two layers


def test_adapters_sit_where_they_are_asked_to(zoo: Zoo):
    for architecture, layers in (("llama", ("o_proj", "up_proj")), ("gpt2", ("c_fc",))):
        model = zoo.load(architecture, tuning="lora", lora_targets=layers)
        assert {name.split(".")[-4] for name in model.state()} == set(layers)


def test_the_seed_decides_the_adapters(zoo: Zoo):
    config = ModelConfig(name=str(zoo.path()), tuning="lora", device="cpu")
    one, again, other = (load_model(config, seed=seed).state() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_loading_leaves_the_random_state_of_the_caller_alone(zoo: Zoo, tuning: Tuning):
    config = ModelConfig(name=str(zoo.path()), tuning=tuning, device="cpu")
    before = torch.get_rng_state()
    load_model(config, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", ["llama", "qwen", "gpt2"])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_saved_state_is_restored_exactly(zoo: Zoo, architecture, tuning: Tuning, packed: Packed):
    model, other = zoo.load(architecture, tuning=tuning), zoo.load(architecture, tuning=tuning)
    take_a_large_step(model, packed)
    assert not torch.equal(model.read(packed), other.read(packed))
    other.load_state(model.state())
    assert torch.equal(model.read(packed), other.read(packed))
    take_a_large_step(model, packed)  # the state was copied, not shared
    assert not torch.equal(model.read(packed), other.read(packed))


def test_the_state_of_another_model_is_rejected(zoo: Zoo):
    model = zoo.load()
    narrower = {name: weight[:1] for name, weight in model.state().items()}
    others = [zoo.load("gpt2").state(), zoo.load(tuning="lora").state(), narrower, {}]
    before = {name: weight.clone() for name, weight in model.state().items()}
    for state in others:
        with pytest.raises(ModelError, match="another model or another tuning mode"):
            model.load_state(state)
    assert all(torch.equal(before[name], weight) for name, weight in model.state().items())
