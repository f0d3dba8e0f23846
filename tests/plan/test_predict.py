"""`poad plan` predicts the memory and the time that a run then takes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TOKENIZERS, Zoo
from tiny_worlds import settings as world
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PhiConfig

from poad.agent import load_agent, resolve
from poad.cli.main import main
from poad.config import Config, ModelConfig, PPOConfig, PromptConfig, from_dict
from poad.errors import HardwareError, ModelError
from poad.learn.train import Trainer
from poad.lm.packing import pack
from poad.plan import predict as plan
from poad.plan.hardware import matrix_speed, read_size
from poad.plan.predict import Plan
from poad.plan.sample import load_codec, sample_world
from poad.plan.shape import model_shape
from poad.runs.run import Run

SPEED = 1e11
ZOO = ("llama", "qwen", "gemma", "gpt2", "neox", "phi")
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
MORE = {
    "gemma": lambda size: Gemma3TextConfig(
        **_SMALL, vocab_size=size, head_dim=8, num_key_value_heads=2
    ),
    "phi": lambda size: PhiConfig(
        **_SMALL, vocab_size=size, bos_token_id=None, eos_token_id=None, pad_token_id=None
    ),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("models"))


def folder(zoo: Zoo, architecture: str) -> str:
    """A model's directory, with weights."""
    if architecture not in MORE:
        return str(zoo.path(architecture))
    path = zoo.folder / architecture
    if not path.exists():
        words = TOKENIZERS["bytes"]()
        AutoModelForCausalLM.from_config(MORE[architecture](len(words))).save_pretrained(path)
        words.save_pretrained(path)
    return str(path)


def large(folder: Path) -> Config:
    """A configuration whose model is a directory that holds nothing but sizes."""
    shape: Any = {"hidden_size": 1024, "num_hidden_layers": 4, "intermediate_size": 2816}
    LlamaConfig(**shape, num_attention_heads=8).save_pretrained(folder)
    model = ModelConfig(name=str(folder), device="cpu")
    return replace(Config(), model=model, streams=4, ppo=PPOConfig(micro_batch_tokens=64))


def predicted(config: Config) -> Plan:
    return plan.predict(config, flops=SPEED)


def size(found: Plan, name: str) -> int:
    return sum(part.size for part in found.parts if part.name == name)


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("architecture", ZOO)
def test_counts_and_bytes_are_those_of_the_loaded_model(
    zoo: Zoo, architecture: str, tuning: Any
) -> None:
    name = folder(zoo, architecture)
    for dtype in ("float32", "bfloat16"):
        config = ModelConfig(name=name, tuning=tuning, dtype=dtype, device="cpu")
        whole = Config(model=config, streams=2, horizon=4)
        shape, agent = model_shape(config, ""), load_agent(whole)
        trained = sum(p.numel() for p in agent.model.parameters())
        weights = list(agent.model.module.parameters())
        assert shape.weights + shape.adapters == sum(p.numel() for p in weights)
        assert trained == (shape.weights if tuning == "full" else shape.adapters)
        found = predicted(whole)
        assert size(found, "base weights") + size(found, "adapters") == sum(
            p.nbytes for p in weights
        )
        assert size(found, "gradients") == sum(p.nbytes for p in agent.model.parameters())
        copied = agent.model._frozen
        real = 0 if copied is None else sum(p.nbytes for p in copied.parameters())
        assert size(found, "frozen copy") == real
        assert (shape.vocabulary, shape.width) == tuple(_head(agent.model).weight.shape)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_critics_own_adapters_are_counted(tuning: Any, tmp_path: Path) -> None:
    model = ModelConfig(name="tiny-kitchen", tuning=tuning, lora_targets=("all-linear",))
    frozen = Config(model=model, streams=2, horizon=4)
    own = replace(frozen, critic=replace(frozen.critic, body="adapter", adapter_epochs=2))
    features = load_agent(own).features
    assert features is not None
    assert features.adapter is not None
    weights = sum(p.numel() for p in features.adapter.parameters())
    found, before = predicted(own), predicted(frozen)
    assert size(found, "critic's adapters") == 16 * weights  # with gradient and two moments
    assert found.memory - before.memory == 16 * weights
    # Twice a pass forward, and one backward that costs as much, and the products of the adapters.
    shape, tokens = before.shape, before.sample.critic_tokens
    added = 2 * (2 * 2 * shape.multiplied + 2 * weights) * tokens
    assert found.operations - before.operations == pytest.approx(added)
    assert found.seconds > before.seconds


def _head(model: Any) -> Any:
    return model.module.get_output_embeddings()


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("architecture", ZOO)
def test_the_backward_pass_is_predicted_to_keep_what_a_real_one_keeps(
    zoo: Zoo, architecture: str, tuning: Any
) -> None:
    config = ModelConfig(name=folder(zoo, architecture), tuning=tuning, device="cpu")
    model = load_agent(Config(model=config)).model
    own = {p.untyped_storage()._cdata for p in model.module.parameters()}
    sizes: dict[int, int] = {}
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros(1, 60, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model._body(input_ids=ids, use_cache=False)
    real = sum(sizes.values()) / 60
    assert 0.75 * real < model_shape(config, "").saved < 1.25 * real


def test_the_published_formula_replaces_a_pass_that_cannot_be_made_without_memory(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(name=folder(zoo, "llama"), dtype="bfloat16", device="cpu")
    monkeypatch.setattr("poad.plan.shape._saved", lambda *_: 0)
    assert model_shape(config, "").saved == 34 * 32 * 2


def test_a_directory_that_holds_only_sizes_can_be_planned(tmp_path: Path) -> None:
    found = predicted(large(tmp_path / "shape"))
    assert found.shape.weights > 1e8
    assert not found.sample.tokenizer
    assert 15 < found.sample.prompt_tokens < 60  # the embedded tokenizer counts 29


@pytest.mark.parametrize("name", ["no/such-model", "tiny-kitchn"])
def test_an_unknown_model_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("not there")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(ModelError, match=f"configuration of the model '{name}'.*tiny-kitchen"):
        predicted(Config(model=ModelConfig(name=name)))


# --- the world ------------------------------------------------------------------------------------


def test_a_random_agent_computes_about_as_much_as_an_untrained_one() -> None:
    settings = resolve(Config())
    config = settings.config
    found = sample_world(settings, *load_codec(config))
    trainer = Trainer(config)
    turns = trainer.collector.collect(config.horizon, trainer.generator).turns
    batch, _, _ = trainer.agent.policy.decisions(turns)
    real = int(pack(batch.positions, batch.pad_id).mask.sum())
    assert found.turns == len(turns)
    assert 0.5 * real < found.update_tokens < 2 * real
    distinct = len({turn.prompt_ids for turn in turns})
    assert 0.5 * distinct < found.prompts < 2 * distinct


def test_history_and_thinking_cost_tokens() -> None:
    def tokens(**prompt: Any) -> tuple[int, int]:
        settings = resolve(Config(prompt=PromptConfig(**prompt), streams=2, horizon=12))
        config = settings.config
        found = sample_world(settings, *load_codec(config))
        return found.update_tokens, found.longest

    plain, longest = tokens()
    last, longer = tokens(history="last", last=2)
    assert last > plain
    assert longer > longest
    whole, longest_of_all = tokens(history="episode")
    assert longest_of_all > longer
    assert whole < 12 * longest_of_all  # what was read before is not read again
    assert tokens(thinking=5)[0] >= plain + 2 * 12 * 5
    assert tokens(system="You are a cook.")[1] > longest


def test_freely_written_actions_fill_their_budget() -> None:
    settings = resolve(world("Diary"))
    config = settings.config
    found = sample_world(settings, *load_codec(config))
    assert not found.offered
    assert found.action_tokens == config.acting.max_action_tokens


# --- memory ---------------------------------------------------------------------------------------


def test_settings_that_should_save_memory_do(tmp_path: Path) -> None:
    full = large(tmp_path / "shape")
    lora = replace(full, model=replace(full.model, tuning="lora"))

    def memory(config: Config, **model: Any) -> int:
        return predicted(replace(config, model=replace(config.model, **model))).memory

    eight, four = memory(lora, quantize="8bit"), memory(lora, quantize="4bit")
    assert memory(full) > memory(lora) > eight > four
    assert memory(full) > memory(full, dtype="bfloat16")
    assert (
        memory(lora)
        > memory(lora, dtype="bfloat16")
        > memory(lora, dtype="bfloat16", quantize="4bit")
    )
    shared = replace(full, critic=replace(full.critic, body="shared"))
    assert memory(full) > memory(shared)
    assert memory(lora, lora_rank=64) > memory(lora)
    wide = replace(lora, env="poad/TomatoLettuceSalad-v0", streams=16, ppo=PPOConfig(minibatches=1))
    narrow = replace(wide, ppo=replace(wide.ppo, micro_batch_tokens=64))
    assert memory(wide) > memory(narrow)
    assert memory(wide, gradient_checkpointing=True) < memory(wide)
    assert size(predicted(lora), "frozen copy") == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 16_384))
def test_fewer_tokens_at_a_time_never_take_more_memory(a: int, b: int, tokens: int) -> None:
    small = Config(streams=8, horizon=16)
    few, many = sorted((64 * a, 64 * a + tokens))
    sizes = [
        predicted(replace(small, ppo=PPOConfig(micro_batch_tokens=n, minibatches=b))).memory
        for n in (few, many)
    ]
    assert sizes[0] <= sizes[1]


def test_changes_are_sorted_by_their_savings_and_save_what_they_claim(tmp_path: Path) -> None:
    config = large(tmp_path / "shape")
    found = predicted(config)
    listed = plan.changes(config, found)
    sizes = [change.memory for change in listed]
    assert sizes == sorted(sizes)
    assert all(s < found.memory for s in sizes)
    by_name = {change.setting: change.memory for change in listed}
    again = predicted(replace(config, model=replace(config.model, tuning="lora")))
    assert by_name["model.tuning = lora"] == again.memory
    shared = predicted(replace(config, critic=replace(config.critic, body="shared")))
    assert by_name["critic.body = shared"] == shared.memory
    assert listed[0].setting.startswith("model.quantize = 4bit")


# --- time and measurement -------------------------------------------------------------------------


def test_time_is_operations_over_speed(tmp_path: Path) -> None:
    config = large(tmp_path / "shape")
    slow, quick = plan.predict(config, flops=1e10), plan.predict(config, flops=1e11)
    assert 5 < slow.seconds / quick.seconds < 10
    shape, sample = quick.shape, quick.sample
    assert sample.few_logits  # the head computes the offered tokens alone, which costs nothing
    once = 2 * shape.multiplied * sample.update_tokens
    acting = 2 * shape.multiplied * sample.acting_tokens
    features = 2 * shape.multiplied * sample.critic_tokens
    after = once  # the policy is measured once more at the end of an update
    assert math.isclose(quick.operations, acting + 3 * config.ppo.epochs * once + features + after)


def test_recomputation_takes_time_but_does_not_count_as_operations(tmp_path: Path) -> None:
    config = large(tmp_path / "shape")
    again = replace(config, model=replace(config.model, gradient_checkpointing=True))
    assert predicted(again).seconds > predicted(config).seconds
    assert predicted(again).operations == predicted(config).operations


def test_the_speed_is_measured_in_the_precision_of_the_model() -> None:
    speed = matrix_speed(resolve(Config()).config, seconds=0.02)
    assert 1e8 < speed < 1e15


def test_a_prediction_is_compared_with_the_measurement(tmp_path: Path) -> None:
    rows = [{"collect_seconds": 1.0, "update_seconds": s} for s in (1.0, 9.0, 2.0)]
    found = predicted(Config())
    said = plan.compare(found, rows)
    assert said["predicted_memory"] == found.memory
    assert said["measured_seconds"] == 3.0
    assert said["measured_memory"] > 1e7
    assert plan.compare(found, [])["measured_seconds"] is None


def test_iterations_that_were_cut_short_are_no_measure_of_one_with_all_passes() -> None:
    rows = [
        {"collect_seconds": 1.0, "update_seconds": passes, "passes": passes}
        for passes in (1.0, 4.0, 1.0, 2.0, 1.0)
    ]
    found = predicted(Config())
    assert plan.compare(found, rows)["measured_seconds"] == 5.0
    assert plan.compare(found, rows[::2])["measured_seconds"] == 2.0


@pytest.mark.parametrize("credit", [{"regress": 256}, {"lam_actor": "auto"}])
def test_reading_the_scores_of_decisions_takes_a_pass(credit: dict[str, Any]) -> None:
    config, scored = Config(), from_dict({"credit": credit})
    without, found = predicted(config), predicted(scored)
    assert found.seconds > without.seconds
    assert found.operations - without.operations == pytest.approx(
        predicted(from_dict({"ppo": {"kl_reference": 0.1}})).operations - without.operations
    )


def test_a_run_records_the_prediction_and_never_fails_because_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["--steps", "64", "--streams", "2", "--horizon", "16", "--eval.episodes", "0"]
    assert main(["train", "--run", str(tmp_path / "a"), "--quiet", *short]) == 0
    summary = Run.open(tmp_path / "a").summary()
    assert summary is not None
    assert (said := summary.plan) is not None
    assert said.keys() == {
        "predicted_memory",
        "measured_memory",
        "predicted_seconds",
        "measured_seconds",
    }
    assert all(value > 0 for value in said.values())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of anything")

    monkeypatch.setattr(plan, "predict", fail)
    assert main(["train", "--run", str(tmp_path / "b"), "--quiet", *short]) == 0
    summary = Run.open(tmp_path / "b").summary()
    assert summary is not None
    assert summary.plan is None


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24e9), ("80GiB", 80 * 2**30), ("512 mb", 512e6), ("1.5g", 1.5e9), ("1000", 1000)],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "3XB", "-1GB", "0", "1.2.3GB"])
def test_texts_that_are_no_sizes_are_rejected(text: str) -> None:
    with pytest.raises(HardwareError, match="24GB"):
        read_size(text)


def test_the_command_reports_what_does_not_fit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = large(tmp_path / "shape").model.name
    given = ["plan", "--model.name", name, "--model.device", "cpu", "--flops", "1e11"]
    given += ["--preset", "plain"]
    assert main([*given, "--memory", "64GB"]) == 0
    shown = capsys.readouterr().out
    for part in ("base weights", "frozen copy", "Adam moments", "activations", "KV cache"):
        assert part in shown
    assert "fits into 64 GB" in " ".join(shown.split())
    assert main([*given, "--memory", "1GB"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "does not fit into 1 GB" in shown
    assert shown.index("model.quantize = 4bit") < shown.index("critic.body = shared")


def test_the_command_takes_files_and_flags(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("streams: 3\nhorizon: 8\n")
    given = ["plan", "--config", str(path), "--horizon", "4", "--flops", "1e11"]
    assert main([*given, "--memory", "9GB"]) == 0
    assert "3 x 4 turns" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--memory", "lots"], "24GB"),
        (["--flops", "0"], "above 0"),
        (["--env", "poad/TomatoSoup-v0"], "TomatoSalad"),
        pytest.param(
            ["--model.device", "cuda"],
            "--memory 24GB --flops",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_rounded_weights_take_half_the_bytes_once_all_of_them_were_loaded(tmp_path: Path) -> None:
    config = large(tmp_path / "shape")
    full, mixed = (
        predicted(replace(config, model=replace(config.model, tuning="lora", precision=precision)))
        for precision in ("full", "mixed")
    )
    saved = size(full, "base weights") - size(mixed, "base weights")
    assert saved == 2 * full.shape.quantizable
    assert size(full, "weights as loaded") == 0
    assert size(mixed, "weights as loaded") == size(full, "base weights")
    # Loading takes more than an update of so few tokens, so it is the peak.
    always = sum(part.size for part in mixed.parts if part.when == "always")
    assert mixed.memory == always + size(mixed, "weights as loaded")


def test_layers_below_all_adapters_are_not_computed_again(tmp_path: Path) -> None:
    config = large(tmp_path / "shape")
    lora = replace(config.model, tuning="lora")
    every, last = (
        predicted(replace(config, model=replace(lora, lora_layers=layers))) for layers in (None, 1)
    )
    assert (every.shape.adapted, last.shape.adapted) == (4, 1)
    assert size(every, "remembered states") == 0 < size(last, "remembered states")
    # A first pass over all layers is left; of the others only a quarter.
    assert 0.25 * every.operations < last.operations < 0.4 * every.operations
