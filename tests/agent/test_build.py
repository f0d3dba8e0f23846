"""What a configuration means, and agents that are put back as they were."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from naive_credit import ALL_METHODS, GROUP_METHODS
from tiny_worlds import settings

from poad.agent.build import Agent, in_threads, load_agent, torch_threads
from poad.agent.settings import Acting, resolve
from poad.config import Config, from_dict, to_dict
from poad.errors import ConfigError, ModelError

POSITIONS = [((30, 31, 32), ()), ((30, 31, 32), (33,)), ((30, 31, 32), (33, 34))]
SCORES = {"twosome": ("score", "word"), "glam": ("score", "sum")}


@pytest.mark.parametrize("method", ALL_METHODS)
def test_nothing_is_left_to_guess(method: str) -> None:
    settings = resolve(from_dict({"credit": {"method": method, "gamma": 0.9, "lam": 0.8}}))
    config = settings.config
    assert config.model.name == "tiny-kitchen"
    assert (config.acting.scheme, config.acting.score) == SCORES.get(method, ("trie", "word"))
    assert config.credit.slots == ("tokens" if method == "ntpo" else "choices")
    fades = method in ("ntpo", "archer_adrl")
    assert config.credit.lam_token == (0.8 if fades else 1.0)
    assert config.credit.gamma_token == (0.9 if fades else 1.0)
    assert "auto" not in leaves(to_dict(config)) - {config.model.device}
    assert resolve(config) == settings
    assert settings.acting == Acting(**vars(config.acting))
    rates = settings.credit.rates
    assert rates._asdict().items() <= vars(config.credit).items()
    assert settings.credit.method.name == method


def leaves(tree: Any) -> set[Any]:
    if isinstance(tree, dict):
        return {leaf for branch in tree.values() for leaf in leaves(branch)}
    return {tree} if isinstance(tree, str) else set()


def test_what_is_said_stays_said() -> None:
    said = {
        "credit": {"lam_token": 1.0, "lam_actor": 1.0, "gamma_token": 0.5, "slots": "tokens"},
        "acting": {
            "scheme": "published",
            "score": "token",
            "stop": ["!"],
            "max_action_tokens": 9,
        },
        "model": {"name": "tiny-kitchen"},
        "randomness": "shared",
    }
    config = from_dict(said)
    assert resolve(config).config == config


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        *((method, "score") for method in ("poad", "ntpo", "archer_adrl", "reinforce")),
        *((method, scheme) for method in ("twosome", "glam") for scheme in ("trie", "published")),
    ],
)
def test_a_contradiction_is_told(method: str, scheme: str) -> None:
    config = from_dict({"credit": {"method": method}, "acting": {"scheme": scheme}})
    with pytest.raises(ConfigError, match=f"acting.scheme = {scheme} .*{method} .*use "):
        resolve(config)


@pytest.mark.parametrize("method", GROUP_METHODS)
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"streams": 12}, r"credit.group = 8: \w+ puts the streams into groups .* there are 12"),
        ({"randomness": "shared"}, "randomness = shared: under .* use randomness = stream"),
        ({"acting": {"engine": "transformers"}}, "randomness = shared: under .*"),
        ({"on_world_error": "restart"}, "on_world_error = restart: .*; use stop"),
    ],
)
def test_streams_that_cannot_be_grouped_are_refused(method: str, said: Any, told: str) -> None:
    credit = {"method": method}
    resolve(from_dict({"credit": credit}))
    with pytest.raises(ConfigError, match=told):
        resolve(from_dict({"credit": credit} | said))
    resolve(from_dict({"credit": {"method": "poad"}} | said))  # others have no groups


def test_a_vllm_server_is_for_adapters_and_for_streams_of_their_own() -> None:
    acting = {"engine": "vllm"}
    with pytest.raises(ConfigError, match=r"acting\.engine = vllm: .* use model\.tuning = lora"):
        resolve(from_dict({"acting": acting}))
    resolved = resolve(from_dict({"acting": acting, "model": {"tuning": "lora"}})).config
    assert resolved.randomness == "stream"
    assert resolved.acting.engine == "vllm"


def test_the_turns_advantage_goes_with_every_scheme() -> None:
    for scheme in ("trie", "score", "published"):
        config = from_dict({"credit": {"method": "turn_ppo"}, "acting": {"scheme": scheme}})
        assert resolve(config).acting.scheme == scheme


def test_an_unknown_method_or_world_is_told() -> None:
    with pytest.raises(ConfigError, match=r"credit\.method: .*'paod'.*poad"):
        resolve(from_dict({"credit": {"method": "paod"}}))
    with pytest.raises(ModelError, match=r"'my:World-v0'.*model\.name"):
        resolve(Config(env="my:World-v0"))


@torch.no_grad()
def changed(agent: Agent) -> Agent:
    generator = torch.Generator().manual_seed(3)
    for p in (*agent.model.parameters(), *agent.critic.parameters()):
        p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return agent


@pytest.mark.parametrize("body", ["frozen", "adapter", "shared"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_an_agent_is_its_tensors(tuning: str, body: str) -> None:
    model = {"name": "tiny-kitchen", "tuning": tuning}
    config = settings("Chain", model=model, critic={"body": body})
    trained, fresh = changed(load_agent(config)), load_agent(config)
    assert trained.values(POSITIONS) != fresh.values(POSITIONS)
    again = load_agent(config, trained.tensors())
    assert again.values(POSITIONS) == trained.values(POSITIONS)
    for group, tensors in trained.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(again.tensors()[group][name], tensor)
    # A copy, not a view: the one may go on learning without the other.
    changed(again)
    assert again.values(POSITIONS) != trained.values(POSITIONS)
    if tuning == "lora":
        assert sum(t.numel() for t in trained.tensors()["policy"].values()) < 10_000


def test_an_untrained_critic_says_nothing() -> None:
    for body in ("frozen", "adapter", "shared"):
        assert load_agent(settings("Chain", critic={"body": body})).values(POSITIONS) == [0.0] * 3


def test_tensors_of_another_tuning_are_refused() -> None:
    full = load_agent(settings("Chain")).tensors()
    lora = settings("Chain", model={"name": "tiny-kitchen", "tuning": "lora"})
    with pytest.raises(ModelError, match="another tuning mode"):
        load_agent(lora, full)


def test_the_callers_thread_count_and_random_state_are_kept() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    load_agent(settings("Chain", threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    with torch_threads(threads + 1):
        assert torch.get_num_threads() == threads + 1
        with torch_threads(0):
            assert torch.get_num_threads() == threads + 1
    assert torch.get_num_threads() == threads


def test_a_generator_runs_in_its_threads_and_its_user_in_their_own() -> None:
    before, closed = torch.get_num_threads(), []

    def counting() -> Generator[int, None, None]:
        try:
            for _ in range(2):
                yield torch.get_num_threads()
        finally:
            closed.append(True)

    for inside in in_threads(before + 1, counting()):
        assert inside == before + 1
        assert torch.get_num_threads() == before
    assert closed == [True]
    one = in_threads(before + 1, counting())
    next(one)
    one.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert closed == [True, True]
    assert torch.get_num_threads() == before


def test_a_shared_critic_reads_in_passes_of_bounded_size() -> None:
    """However long an episode is, recording its values takes no more memory at once."""
    values = {}
    for tokens in (16_384, 4):
        config = settings("Novel", critic={"body": "shared"}, ppo={"micro_batch_tokens": tokens})
        agent, sizes = load_agent(config), []
        torch.nn.init.constant_(agent.critic.layers[-1].weight, 0.1)  # pyright: ignore
        agent.model._body.register_forward_pre_hook(
            lambda _, __, given, sizes=sizes: sizes.append(given["input_ids"].numel()),
            with_kwargs=True,
        )
        values[tokens] = agent.values([*POSITIONS, ((40,), ()), ((41, 42, 43, 44), ())])
        assert len(sizes) == {16_384: 1, 4: 3}[tokens]
    assert values[4] == pytest.approx(values[16_384], rel=1e-4)
    assert len(set(values[4])) == 5
