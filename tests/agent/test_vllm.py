"""A vLLM server writes what the learner computes, with the adapters that it was handed."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_vllm import FakeVllm, Lies, serving
from tiny_models import PROMPTS, Zoo
from tiny_worlds import settings
from tolerance import drift

from poad.agent import Acting, OwnEngine, Policy
from poad.agent.vllm import VllmEngine
from poad.config import ActingConfig, Config, ModelConfig, VllmConfig, from_dict
from poad.errors import DivergenceError, EngineError
from poad.learn.train import Trainer, train
from poad.lm import ASSETS, LanguageModel
from poad.ranks import ALONE, Ranks
from poad.runs import Run
from poad.turns import Action, Observation, Turn

ACTING = Acting(engine="vllm", max_action_tokens=7, stop=("\n", "door"))
WRITE = [Observation(prompt) for prompt in PROMPTS * 3]
KITCHEN = ASSETS / "tiny-kitchen"


def config_for(server: FakeVllm, **changes: Any) -> Config:
    model = ModelConfig(name=str(server.model), tuning="lora", device="cpu")
    return Config(
        model=model, acting=ActingConfig(engine="vllm"), vllm=VllmConfig(server.url, **changes)
    )


def opened(server: FakeVllm, model: LanguageModel, **changes: Any) -> VllmEngine:
    engine = VllmEngine(config_for(server, **changes), model)
    engine.update(ALONE)
    return engine


def rngs(seed: int, count: int = len(WRITE)) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, i)) for i in range(count)]


def written(server: FakeVllm, model: LanguageModel, seed: int = 0) -> list[Action]:
    engine = opened(server, model)
    actions = Policy(model, ACTING, engine=engine).act(WRITE, rngs(seed))
    engine.close()
    return actions


@pytest.fixture
def server(zoo: Zoo) -> Iterator[FakeVllm]:
    with serving(zoo.path("llama")) as running:
        yield running


# --- what it writes ---


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "temperature"),
    [("llama", "bytes", 1.0), ("qwen", "pieces", 0.7)],
)
def test_it_samples_what_the_learner_computes(
    zoo: Zoo, architecture: str, tokenizer: str, temperature: float
) -> None:
    model = zoo.load(architecture, tokenizer, "lora")
    with serving(zoo.path(architecture, tokenizer)) as server:
        policy = Policy(model, replace(ACTING, temperature=temperature))
        actions = policy.writing_with(opened(server, model)).act(WRITE, rngs(0))
    turns = [Turn(policy.prompt_ids(o), a, 0.0) for o, a in zip(WRITE, actions, strict=True)]
    batch, decision, option = policy.decisions(turns)
    with torch.no_grad():
        logprob = policy.evaluate(batch).logprob
    found_each = logprob[decision, option].split([len(a.token_ids) for a in actions])
    for found, action in zip(found_each, actions, strict=True):
        torch.testing.assert_close(found, torch.tensor(action.logprob), atol=drift(), rtol=0)


def test_ids_without_a_token_are_never_written(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner gives them no probability, so the server must not, either."""
    model = zoo.load(tuning="lora")
    written_most = max(
        (a.token_ids[0] for a in Policy(model, ACTING).act(WRITE, rngs(0))), default=0
    )
    monkeypatch.setattr(model.codec, "without_token", lambda _: (written_most,))
    with serving(zoo.path("llama")) as server:
        actions = written(server, model)
        assert server.asked[0]["logit_bias"] == {str(written_most): -100.0}
    assert not any(written_most in action.token_ids for action in actions)


def test_a_vocabulary_with_too_many_of_them_is_refused(
    zoo: Zoo, server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.load(tuning="lora")
    for count in (1024, 1025):
        monkeypatch.setattr(model.codec, "without_token", lambda _, n=count: tuple(range(n)))
        if count == 1024:
            VllmEngine(config_for(server), model)
            continue
        with pytest.raises(EngineError, match=r"1,025 rows .* leaves out 1,024 at most"):
            VllmEngine(config_for(server), model)


def test_actions_end_at_a_stop_text_the_end_token_or_the_budget(zoo: Zoo, server: FakeVllm) -> None:
    model = zoo.load(tuning="lora")
    decode = model.codec.tokenizer.decode
    for seed in range(4):
        for action in written(server, model, seed):
            tokens = list(action.token_ids)
            stopped = any(stop in decode(tokens) for stop in ACTING.stop)
            assert stopped or tokens[-1] == model.codec.end_id or len(tokens) == 7
            assert not any(stop in decode(tokens[:-1]) for stop in ACTING.stop)
            assert not any(stop in action.text for stop in ACTING.stop)


def test_the_same_seeds_write_the_same_and_rows_do_not_depend_on_each_other(
    zoo: Zoo, server: FakeVllm
) -> None:
    model = zoo.load(tuning="lora")
    once = written(server, model)
    assert once == written(server, model)
    assert once != written(server, model, seed=1)
    assert len({a.token_ids for a in once[:: len(PROMPTS)]}) > 1, "equal prompts, other seeds"
    alone = Policy(model, ACTING, engine=opened(server, model)).act(WRITE[5:6], rngs(0)[5:6])
    assert alone == once[5:6]


def test_text_of_the_server_has_no_say(zoo: Zoo, server: FakeVllm) -> None:
    """Tokens go out and come back, so nothing is tokenized again."""
    model = zoo.load(tuning="lora")
    honest = written(server, model)
    server.lies.text = "open  the\ndoor"
    assert written(server, model) == honest


def test_a_key_is_taken_from_the_environment(
    zoo: Zoo, server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    written(server, zoo.load(tuning="lora"))
    assert {request["key"] for request in server.asked} == {"Bearer sesame"}


# --- weights ---


def test_adapters_never_keep_their_name_or_place(
    zoo: Zoo, server: FakeVllm, tmp_path: Path
) -> None:
    """vLLM knows by these two which prompts it has computed."""
    engine = opened(server, zoo.load(tuning="lora"), folder=str(tmp_path / "new"))
    for _ in range(2):
        engine.update(ALONE)
        assert len(server.adapters) == 1, "old ones are taken back"
    assert len(server.paths) == len({*server.paths.values()}) == 3
    assert all(Path(path).is_relative_to(tmp_path / "new") for path in server.paths.values())
    engine.close()
    assert not server.adapters
    assert not list((tmp_path / "new").iterdir())


class Pair(Ranks):
    """One of two ranks that are threads."""

    def __init__(self, rank: int, heard: list[Any], meeting: threading.Barrier) -> None:
        super().__init__(rank, 2)
        self.heard, self.meeting = heard, meeting

    def exchange(self, what: str, value: Any) -> list[Any]:
        self.heard[self.rank] = value
        self.meeting.wait()
        heard = [*self.heard]
        self.meeting.wait()
        return heard


def test_ranks_share_the_adapters_of_the_first(zoo: Zoo, server: FakeVllm) -> None:
    heard, meeting = [None, None], threading.Barrier(2, timeout=60)
    engines = [VllmEngine(config_for(server), zoo.load(tuning="lora")) for _ in range(2)]
    failures: list[str] = []

    def update(rank: int) -> None:
        try:
            engines[rank].update(Pair(rank, heard, meeting))
        except EngineError as error:
            failures.append(str(error))

    def together() -> None:
        threads = [threading.Thread(target=update, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    together()
    assert len(server.paths) == 1
    for engine in engines:
        list(engine.write(ACTING, [(5, 6)], rngs(0, 1)))
    assert {request["model"] for request in server.asked} == server.adapters.keys()
    server.lies.updates = False
    together()
    assert len(failures) == 2
    assert failures[0] == failures[1]
    engines[0].close()


# --- training ---


def small(server: FakeVllm, world: str = "Diary", **changes: Any) -> Config:
    base = settings(
        world,
        model={"tuning": "lora"},
        acting={"engine": "vllm", "max_action_tokens": 5},
        vllm={"url": server.url},
        ppo={"lr": 0.01},
    )
    return from_dict(changes, base)


@pytest.fixture
def kitchen() -> Iterator[FakeVllm]:
    with serving(KITCHEN, "tiny-kitchen") as running:
        yield running


def test_it_trains_and_the_drift_is_rounding(kitchen: FakeVllm) -> None:
    trainer = Trainer(small(kitchen))
    assert trainer.config.randomness == "stream"
    for iteration in range(3):
        metrics = trainer.iterate()
        assert metrics["logprob_drift"] <= drift()
        assert metrics["passes"] >= 1
        assert len(kitchen.paths) == iteration + 1, "each rollout has the newest weights"
    asked = len(kitchen.asked)
    assert asked == 3 * 15
    trainer.evaluate()
    assert len(kitchen.asked) == asked, "evaluations use our decoder"
    trainer.engine.close()


def test_stale_weights_are_noticed(kitchen: FakeVllm) -> None:
    kitchen.lies.ignores_loads = True
    trainer = Trainer(small(kitchen, ppo={"drift_stop": 0.01}))
    assert trainer.iterate()["logprob_drift"] <= drift()
    with pytest.raises(DivergenceError, match=r"differ by .* If another acting\.engine writes"):
        trainer.iterate()
    trainer.engine.close()


def test_a_rollout_is_the_same_with_any_workers(kitchen: FakeVllm) -> None:
    rollouts = []
    for workers in ("serial", "threads:3"):
        trainer = Trainer(small(kitchen, workers=workers))
        trainer.engine.update(ALONE)
        rollouts.append(trainer.collector.collect(5, trainer.generator).streams)
        trainer.collector.close()
        trainer.engine.close()
    assert rollouts[0] == rollouts[1]


@pytest.mark.parametrize(
    ("world", "changes", "free"),
    [("Chain", {}, 0), ("Chain", {"prompt": {"thinking": 3}}, 15), ("Mixed", {}, None)],
)
def test_offered_actions_are_chosen_by_our_decoder(
    kitchen: FakeVllm, world: str, changes: Any, free: int | None
) -> None:
    trainer = Trainer(small(kitchen, world, **changes))
    metrics = trainer.iterate()
    assert metrics["logprob_drift"] <= drift()
    if free is None:
        assert 0 < len(kitchen.asked) < 15
    else:
        assert len(kitchen.asked) == free
    trainer.engine.close()


def outcome(run: Run) -> tuple[Any, ...]:
    tensors, state = run.load_checkpoint()
    flat = {name: t.tolist() for group in tensors.values() for name, t in group.items()}
    return flat, state["collector"], [m["return"] for m in run.metrics()]


def test_a_server_that_dies_costs_nothing(kitchen: FakeVllm, tmp_path: Path) -> None:
    """It dies in the middle of the second rollout; the run goes on with another one."""
    config = small(kitchen, steps=45, checkpoint_every=0)
    with Run.create(tmp_path / "whole", config) as whole:
        list(train(config, whole))
    kitchen.lies.patience = len(kitchen.asked) + 15 + 4
    with Run.create(tmp_path / "cut", config) as cut, pytest.raises(EngineError) as failure:
        list(train(config, cut))
    assert "No vLLM server answers" in str(failure.value)
    assert failure.value.__notes__ == [
        f"Nothing is lost: `poad train --resume {tmp_path / 'cut'}` goes on."
    ]
    assert cut.checkpoints()[-1] == 1
    with serving(KITCHEN, "tiny-kitchen") as other, Run.open(tmp_path / "cut") as cut:
        moved = replace(cut.config, vllm=VllmConfig(other.url))
        assert len(list(train(moved, cut, resume=True))) == 2
    assert outcome(cut) == outcome(whole)


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("lies", "changes", "match"),
    [
        (Lies(without="logprobs"), {}, "without token ids or log-probabilities"),
        (Lies(without="token_ids"), {}, "poad needs vLLM 0.10.2 or newer"),
        (Lies(without="prompt_token_ids"), {}, "for another prompt than it was asked about"),
        (Lies(finish="length"), {}, r"its max_model_len is too short"),
        (Lies(finish="abort"), {}, r"broke an action off \(abort\)"),
        (Lies(delay=1.0), {"timeout": 0.2}, r"has not answered /v1/completions for 0\.2 s"),
        (Lies(patience=0), {}, r"No vLLM server answers"),
    ],
)
def test_a_bad_answer_is_told(zoo: Zoo, lies: Lies, changes: Any, match: str) -> None:
    model = zoo.load(tuning="lora")
    acting = replace(ACTING, stop=(" ", "e", "o", "a"), max_action_tokens=30)
    with serving(zoo.path("llama"), lies=lies) as server:
        engine = opened(server, model, **changes)
        with pytest.raises(EngineError, match=match):
            list(engine.write(acting, [(5, 6)] * 3, rngs(0, 3)))
        engine.close()


@pytest.mark.parametrize(
    ("lies", "name", "match"),
    [
        (Lies(), "other", r"serves /.*, other, and the run's model is /.* vllm serve /"),
        (Lies(updates=False), None, r"takes no adapters.*\n  VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (Lies(plain=b"<html>"), None, "answers without JSON"),
        (Lies(plain=b"[]"), None, "is no vLLM server"),
    ],
)
def test_an_unsuitable_server_is_refused_before_anything_is_written(
    zoo: Zoo, tmp_path: Path, lies: Lies, name: str | None, match: str
) -> None:
    model = zoo.load(tuning="lora")
    with serving(zoo.path("llama"), name, lies=lies) as server:
        config = config_for(server)
        if name is not None:  # another model under the path of the server's own
            server.model = tmp_path
        with pytest.raises(EngineError, match=re.compile(match, re.DOTALL)):
            VllmEngine(config, model)


def test_what_does_not_fit_is_told_before_it_is_sent(zoo: Zoo) -> None:
    model = zoo.load(tuning="lora")
    with serving(zoo.path("llama"), longest=8) as server:
        engine = opened(server, model)
        with pytest.raises(EngineError, match=r"max_model_len of 8\. .* --max-model-len 9 or more"):
            list(engine.write(ACTING, [(5, 6)], rngs(0, 1)))
        assert not server.asked
        engine.close()


def test_no_server_is_told(zoo: Zoo) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        config = replace(
            settings("Diary"), vllm=VllmConfig(f"http://127.0.0.1:{closed.getsockname()[1]}")
        )
        with pytest.raises(EngineError, match=r"No vLLM server answers at .*refused"):
            VllmEngine(config, zoo.load(tuning="lora"))
    for address in ("nowhere", "ftp://here", "http://[", "http://a b"):
        with pytest.raises(EngineError, match=r"set vllm\.url"):
            VllmEngine(replace(config, vllm=VllmConfig(address)), zoo.load(tuning="lora"))


def test_a_server_that_was_started_anew_is_told(zoo: Zoo, server: FakeVllm) -> None:
    """It knows no adapters; the next update hands them over again."""
    model = zoo.load(tuning="lora")
    engine = opened(server, model)
    server.adapters.clear()
    with pytest.raises(EngineError, match=r"refuses /v1/completions \(404\): The model `poad-.*"):
        list(engine.write(ACTING, [(5, 6)], rngs(0, 1)))
    engine.update(ALONE)
    assert list(engine.write(ACTING, [(5, 6)], rngs(0, 1)))
    engine.close()


def test_a_folder_that_the_server_does_not_see_is_told(
    zoo: Zoo, server: FakeVllm, tmp_path: Path
) -> None:
    model, file = zoo.load(tuning="lora"), tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(EngineError, match=r"Cannot write the adapters .* Set vllm\.folder"):
        opened(server, model, folder=str(file))


def test_our_decoder_is_an_engine_too(zoo: Zoo) -> None:
    model = zoo.load(tuning="lora")
    engine = OwnEngine(model)
    engine.update(ALONE)
    plain = Policy(model, ACTING)
    assert plain.act(WRITE, rngs(0)) == plain.writing_with(engine).act(WRITE, rngs(0))
    engine.close()
