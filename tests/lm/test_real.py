"""Real pretrained models, where `poad models get` has fetched them: `make real` does.

They are what they should be: they predict English, end where they should, and learn a little.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_worlds import settings

from poad.config import ModelConfig, PromptConfig
from poad.learn.train import Trainer
from poad.lm.loading import load_model
from poad.lm.model import LanguageModel
from poad.lm.prompts import Dialogue
from poad.models.known import KNOWN
from poad.plan.shape import model_shape
from poad.workflows.language import text_loss

SMOLLM, GEMMA = "smollm2-135m-instruct", "gemma3-270m"
KITCHEN = "poad/TomatoSalad-v0"
TEXT = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")[:3000]
ENDS = {SMOLLM: ("<|im_end|>", "<|im_end|>"), GEMMA: ("<eos>", "<pad>")}
"""The tokens that end and pad a text."""


@pytest.fixture(scope="module", params=[SMOLLM, GEMMA])
def real(request: pytest.FixtureRequest) -> tuple[str, LanguageModel]:
    return request.param, loaded(request.param)


def loaded(name: str, prompt: PromptConfig | None = None) -> LanguageModel:
    if not KNOWN[name].is_here:
        pytest.skip(f"{name} has not been fetched: `make real` does so")
    config = ModelConfig(name=name, tuning="lora", device="cpu")
    return load_model(config, prompt)


def test_it_predicts_english_and_ends_as_it_should(real: tuple[str, LanguageModel]):
    name, model = real
    loss, count = text_loss(model, TEXT)
    assert 4 < math.exp(loss.sum() / count.sum()) < 25
    words = model.codec.tokenizer
    end, pad = words.convert_ids_to_tokens([model.codec.end_id, model.codec.pad_id])
    assert (end, pad) == ENDS[name]
    assert words.decode(model.codec.prompt("a  12\n 5"), skip_special_tokens=True) == "a  12\n 5"
    # the vocabulary is that of the model, and the plan counts the weights as they are
    weights = sum(p.numel() for p in model.causal_lm.parameters() if not p.requires_grad)
    assert KNOWN[name].parameters == weights == model_shape(ModelConfig(name=name), "").weights


def test_the_chat_of_smollm_says_what_it_adds_and_leaves_it_out():
    model = loaded(SMOLLM, PromptConfig(format="chat"))
    assert [("SmolLM, trained by Hugging Face" in note) for note in model.notes] == [True]
    bare = PromptConfig(format="chat", system="")
    ids = Dialogue(model.codec, bare).first_prompt("You see a door.")
    assert model.codec.tokenizer.decode(ids) == (
        "<|im_start|>user\nYou see a door.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.codec.tokenizer.decode([model.codec.action("open")[-1]]) == "<|im_end|>"


def test_smollm_trains_on_what_it_sampled():
    """One iteration: sampler and learner agree, and the adapters move."""
    if not KNOWN[SMOLLM].is_here:
        pytest.skip(f"{SMOLLM} has not been fetched: `make real` does so")
    model = {"name": SMOLLM, "tuning": "lora", "device": "cpu"}
    small = {"streams": 4, "horizon": 4, "steps": 16, "eval": {"episodes": 0}}
    trainer = Trainer(settings(KITCHEN, model=model, **small))
    before = {name: weight.clone() for name, weight in trainer.agent.model.state().items()}
    (metrics,) = trainer.train()
    assert metrics["logprob_drift"] < 1e-3
    assert math.isfinite(metrics["kl"])
    moved = [not weight.equal(before[name]) for name, weight in trainer.agent.model.state().items()]
    assert any(moved)
