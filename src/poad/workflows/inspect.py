"""Look into episodes: play them again and read everything that the agent computed in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from poad.agent import (
    ActingCache,
    Agent,
    DecisionBatch,
    Policy,
    read_hidden,
    torch_threads,
)
from poad.envs import make
from poad.errors import ConfigError, ModelError
from poad.learn import Step, WorldStream, play
from poad.pages import (
    Alternative,
    Dials,
    EpisodeView,
    Inspection,
    TurnView,
    names,
    read_episodes,
    world_of,
)
from poad.trie import Form, Grammar
from poad.workflows.load import LoadedRun, Weights, load_weights

ALTERNATIVES = 8
"""How many alternatives are kept at each token, besides the one that was taken."""


@dataclass(frozen=True)
class Selection:
    """The episodes to look into: those of an evaluation, by their seeds."""

    episodes: int = 20
    seed: int | None = None
    """Of the first episode; None: the run's own (eval.seed)."""
    greedy: bool = False


def inspect_runs(
    chosen: Sequence[Weights],
    selection: Selection,
    *,
    compare_before: bool = True,
    reference: int | None = None,
) -> Inspection:
    """Play the same seeds with one or two agents, and gather all that a page shows of them.

    An episode depends on its seed and the weights alone, so these are the episodes that `poad eval`
    records for the same seeds.

    Args:
        chosen: one or two sets of weights, of the same run or of two runs in the same world.
        selection: which episodes.
        compare_before: also compute the probabilities of the reference.
        reference: the checkpoint of each run that is the reference; None takes the untrained model.

    Raises:
        ConfigError: two runs in different worlds.
        RunError, ModelError: a run cannot be read, or its model cannot be loaded.
    """
    loaded = [load_weights(weights) for weights in chosen]
    _check_worlds(loaded)
    called = _agent_names(loaded, chosen)
    first = loaded[0]
    start = first.run.config.eval.seed if selection.seed is None else selection.seed
    seeds = range(start, start + selection.episodes)
    references: dict[Path, Agent] = {}  # of one run at a time, to save memory
    agents: dict[str, list[EpisodeView]] = {}
    for name, each, weights in zip(called, loaded, chosen, strict=True):
        before = None
        if compare_before and (each.iteration != reference or weights.exported is not None):
            if each.run.path not in references:
                other = Weights(each.run.path, reference, untrained=reference is None)
                references = {each.run.path: load_weights(other).agent}
            before = references[each.run.path]
        agents[name] = view_episodes(each.agent, before, seeds, greedy=selection.greedy)
    settings = first.agent.settings.credit
    mode = "Greedy" if selection.greedy else "Sampled"
    return Inspection(
        title=f"{first.run.config.env}: {' and '.join(agents)}",
        agents=agents,
        dials=dials_of(first),
        method=settings.method.name,
        more_methods=(settings.method,),
        before=_reference_name(reference) if compare_before else "",
        clip=first.run.config.ppo.clip,
        notes=(
            f"{mode} episodes of {' and '.join(dict.fromkeys(_run_names(loaded)))}.",
            *dict.fromkeys(_critic_notes(loaded)),
        ),
    )


def _reference_name(reference: int | None) -> str:
    return "the untrained model" if reference is None else f"checkpoint {reference}"


def _check_worlds(loaded: Sequence[LoadedRun]) -> None:
    worlds = dict.fromkeys(world_of(e.run.config.env, e.run.config.env_args) for e in loaded)
    if len(worlds) > 1:
        raise ConfigError(
            f"These runs act in different worlds ({' and '.join(worlds)}), so the same seed is not "
            "the same episode. Inspect them one by one."
        )


def _agent_names(loaded: Sequence[LoadedRun], chosen: Sequence[Weights]) -> list[str]:
    """Name agents by their weights, and by their runs if there are several.

    Raises:
        ConfigError: two of them are the same.
    """
    runs = _run_names(loaded)
    called = [w.describe(each.iteration) for each, w in zip(loaded, chosen, strict=True)]
    if len(set(zip(runs, called, strict=True))) < len(called):
        raise ConfigError(f"Both are {called[0]} of {loaded[0].run.path}. Name two that differ.")
    if len(set(runs)) == 1:
        return called
    return [f"{run}, {name}" for run, name in zip(runs, called, strict=True)]


def _run_names(loaded: Sequence[LoadedRun]) -> list[str]:
    """Name the run of each, with as much of its path as tells different runs apart."""
    runs = {each.run.path.resolve(): each.run for each in loaded}
    called = dict(zip(runs, names([*runs.values()]), strict=True))
    return [called[each.run.path.resolve()] for each in loaded]


def inspect_file(
    path: Path, *, limit: int, checkpoint: int | None = None, tokenizer: str | None = None
) -> Inspection:
    """Gather recorded episodes, ours or those of other tools, for a page.

    Args:
        path: a file of JSON lines; see `poad.pages.read_episodes`.
        limit: how many episodes of each agent.
        checkpoint: of our own episodes; None: the newest in the file.
        tokenizer: a directory or a name on the hub, to decode tokens without texts.

    Raises:
        RunError: the file or a line cannot be read.
        ModelError: the tokenizer cannot be loaded.
    """
    pieces = None if tokenizer is None else _decoder(tokenizer)
    agents = read_episodes(path, limit=limit, checkpoint=checkpoint, pieces=pieces)
    episodes = [episode for each in agents.values() for episode in each]
    notes = [
        "Recorded episodes. The sliders stand at γ = 0.99 and λ = 0.95 at first, whatever the "
        "training used."
    ]
    if not any(episode.knows_values for episode in episodes):
        notes.append("No values of a critic were recorded, so 0 stands for them everywhere.")
    elif any(e.ending != "terminated" and math.isnan(e.bootstrap) for e in episodes):
        notes.append("The value after a truncated episode was not recorded; 0 stands for it.")
    return Inspection(title=path.name, agents=agents, notes=tuple(notes))


def _decoder(name: str) -> Callable[[Sequence[int]], list[str]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Cannot load the tokenizer {name!r}: {error}. Name a directory that holds one, or one "
            "on the hub."
        ) from error
    return lambda ids: [tokenizer.decode([token]) for token in ids]


def _critic_notes(loaded: Sequence[LoadedRun]) -> Iterator[str]:
    """Say whose values the page shows, and how far they can be trusted."""
    runs = _run_names(loaded)
    for each, name in zip(loaded, runs, strict=True):
        credit = each.agent.settings.credit
        whose = f" of {name}" if len(set(runs)) > 1 else ""
        if each.agent.config.credit.regress:
            yield (
                f"The run{whose} divided advantages among decisions by a regression "
                "(credit.regress), which remembers turns that are not here: the page shows what it "
                "divided."
            )
        if not credit.method.uses_critic:
            yield (
                f"The run{whose} was trained by {credit.method.name}, which trains no critic: the "
                "values are those of an untrained critic, and other methods' credit means little."
            )
        elif credit.method.decision == "turn":
            yield (
                f"All values are by the critic{whose}, which {credit.method.name} trained before "
                "the first token alone: its values inside actions mean nothing."
            )
        elif credit.rates.slots == "choices":
            yield (
                f"All values are by the critic{whose}, which {credit.method.name} trained at real "
                "choices and before first tokens: at other forced tokens its values mean little, "
                "and ntpo uses them."
            )
        else:
            yield f"All values are by the critic{whose}, which {credit.method.name} trained."


def dials_of(loaded: LoadedRun) -> Dials:
    """Read where the sliders stand for a run; None where it uses the method's own rate.

    A λ that the run chooses is the one that it took last before these weights. Where it has taken
    none yet, as before its first iteration, the method's own stands for it.
    """
    settings = loaded.agent.settings.credit
    rates, own = settings.rates, settings.method.rates(settings.rates.gamma, settings.rates.lam)
    beta, lam_actor = rates.beta, rates.lam_actor
    if settings.fitted:
        lam_actor = _found_lam(loaded, lam_actor)
    assert not isinstance(beta, Tensor), "configurations hold one number for all rows"
    assert not isinstance(lam_actor, Tensor), "configurations hold one number for all rows"
    return Dials(
        gamma=rates.gamma,
        lam=rates.lam,
        gamma_token=None if rates.gamma_token == own.gamma_token else rates.gamma_token,
        lam_token=None if rates.lam_token == own.lam_token else rates.lam_token,
        lam_actor=None if lam_actor == rates.lam_token else lam_actor,
        beta=beta,
        trace=rates.trace,
        by_duration=settings.by_duration,
    )


def _found_lam(loaded: LoadedRun, otherwise: float | Tensor) -> float | Tensor:
    """Look up the newest λ that the run chose up to the weights that were loaded, if any."""
    last = loaded.iteration or 0
    found = [
        m["lam_actor"]
        for m in loaded.run.metrics()
        if m["iteration"] <= last and math.isfinite(m.get("lam_actor", math.nan))
    ]
    return found[-1] if found else otherwise


# Episodes.


def view_episodes(
    agent: Agent, before: Agent | None, seeds: range, *, greedy: bool = False
) -> list[EpisodeView]:
    """Play episodes and read what the agent computed in them.

    Args:
        agent: who plays.
        before: whose probabilities are compared with; None for nobody's.
        seeds: of the episodes.
        greedy: take the likeliest token or action instead of sampling.
    """
    config, cache = agent.config, ActingCache()
    make_env = partial(make, config.env, **config.env_args)
    waiting = iter(seeds)
    worlds: list[WorldStream] = []
    steps: dict[int, list[Step]] = {seed: [] for seed in seeds}
    with torch_threads(config.threads):
        try:
            for _, seed in zip(range(config.eval.streams), waiting, strict=False):
                worlds.append(WorldStream(make_env, agent.policy.dialogue(), seed))
            for step in play(
                agent.policy, worlds, lambda _: next(waiting, None), greedy=greedy, cache=cache
            ):
                steps[step.seed].append(step)
        finally:
            for world in worlds:
                world.close()
        return [_view(agent, before, cache, seed, each) for seed, each in steps.items()]


def _view(
    agent: Agent, before: Agent | None, cache: ActingCache, seed: int, steps: Sequence[Step]
) -> EpisodeView:
    """Read everything that an agent computed in one episode."""
    last, outcome = steps[-1], steps[-1].episode()
    positions = [
        (step.observation.prompt_ids, beginning)
        for step in steps
        for beginning in step.action.beginnings
    ]
    goes_on = [] if last.terminated else [(last.next_observation.prompt_ids, ())]
    values = agent.values([*positions, *goes_on])
    decided = _decided(agent, before, steps)
    turns: list[TurnView] = []
    for step in steps:
        size, start = len(step.action.token_ids), sum(len(turn.token_ids) for turn in turns)
        here = slice(start, start + size)
        turns.append(_turn(agent, cache, step, values[here], decided[here], before is not None))
    return EpisodeView(
        seed=seed,
        episode_return=outcome.episode_return,
        success=outcome.success,
        ending="terminated" if last.terminated else "truncated",
        turns=tuple(turns),
        bootstrap=values[-1] if goes_on else math.nan,
    )


class _Decided(NamedTuple):
    """The decision at one token; entropy 0 and no alternatives where it was forced."""

    entropy: float = 0.0
    before: float = 0.0
    alternatives: tuple[Alternative, ...] = ()


def _turn(
    agent: Agent,
    cache: ActingCache,
    step: Step,
    values: Sequence[float],
    decided: Sequence[_Decided],
    compared: bool,
) -> TurnView:
    observation, action = step.observation, step.action
    actions, offered = observation.admissible_actions, None
    if actions is not None and not isinstance(actions, Form | Grammar):
        thoughts = action.token_ids[: action.thought]
        read = replace(observation, prompt_ids=(*observation.prompt_ids, *thoughts))
        offered = tuple(zip(actions, agent.policy.probabilities(read, cache), strict=True))
    return TurnView(
        prompt=observation.prompt,
        action=action.text,
        token_ids=action.token_ids,
        pieces=tuple(agent.policy.codec.pieces(action.token_ids)),
        choice=action.choice,
        logprob=action.logprob,
        value=tuple(values),
        reward=step.reward,
        duration=step.duration,
        invalid="invalid_action" in step.info,
        offered=offered,
        form=str(actions) if isinstance(actions, Form | Grammar) else "",
        cut=observation.cut,
        before=tuple(d.before for d in decided) if compared else (),
        entropy=tuple(d.entropy for d in decided),
        alternatives=tuple(d.alternatives for d in decided),
    )


# Decisions.


@torch.no_grad()
def _decided(agent: Agent, before: Agent | None, steps: Sequence[Step]) -> list[_Decided]:
    """Read the decision at each of the M tokens of some turns. [M]."""
    turns = [step.turn() for step in steps]
    if not any(any(turn.action.choice) for turn in turns):
        return [_Decided()] * sum(len(turn.action.token_ids) for turn in turns)
    batch, decision, option = agent.policy.decisions(turns)
    now = _Options.read(agent.policy, batch)
    earlier = None if before is None else _Options.read(before.policy, batch, now.listed)
    tries = [step.action.trie for step in steps for _ in step.action.token_ids]
    found: list[_Decided] = []
    for q, k, trie in zip(decision.tolist(), option.tolist(), tries, strict=True):
        if q < 0:
            found.append(_Decided())
            continue
        whole = trie is not None and bool((batch.token_mask[q].sum(-1) > 1).any())
        actions = [trie.text(leaf) for leaf in trie.all_leaves()] if trie and whole else None
        told = {} if earlier is None else {key: p for key, p, _ in earlier.chances(q, k)}
        alternatives = tuple(
            Alternative(
                actions[key] if actions else agent.policy.codec.pieces([now.token(q, key)])[0],
                chance,
                told.get(key, math.nan),
                taken,
            )
            for key, chance, taken in now.chances(q, k)
        )
        before_it = math.nan if earlier is None else earlier.logprob[q, k].item()
        found.append(_Decided(now.entropy[q].item(), before_it, alternatives))
    return found


@dataclass(frozen=True)
class _Options:
    """The options of Q decisions, as one policy sees them."""

    logprob: Tensor
    """[Q, K] of the options that were listed."""
    entropy: Tensor
    """[Q] in nats."""
    listed: Tensor
    """[Q, A] int64: the likeliest tokens of the vocabulary, for decisions between all of it."""
    among_all: Tensor
    """[Q, A] their log-probabilities."""
    batch: DecisionBatch

    @classmethod
    def read(cls, policy: Policy, batch: DecisionBatch, listed: Tensor | None = None) -> _Options:
        """Read a batch; ``listed`` names the tokens of the vocabulary, if others chose them."""
        limit, temperature = policy.acting.pass_tokens, policy.acting.temperature
        evaluated = policy.evaluate(batch, limit)
        free = (~batch.renormalize).nonzero().squeeze(1)  # [Q']
        size = (len(batch.read), ALTERNATIVES)
        tokens = torch.zeros(size, dtype=torch.int64) if listed is None else listed
        among_all = torch.full(size, -math.inf)
        if len(free):
            places = batch.read[free, 0, 0].tolist()
            states = read_hidden(
                policy.model, policy.model.read, [batch.positions[p] for p in places], limit
            )
            for q, state in zip(free.tolist(), states, strict=True):
                logprob = (policy.model.logits(state) / temperature).log_softmax(-1).cpu()
                if listed is None:
                    tokens[q] = logprob.topk(ALTERNATIVES).indices
                among_all[q] = logprob[tokens[q]]
        return cls(evaluated.logprob.cpu(), evaluated.entropy.cpu(), tokens, among_all, batch)

    def chances(self, q: int, taken: int) -> list[tuple[int, float, bool]]:
        """List (option, probability, taken) of a decision, the likeliest first, with the one taken.

        Where the decision is between all of the vocabulary, an option is a token.
        """
        if self.batch.renormalize[q]:
            pairs = [(k, p) for k, p in enumerate(self.logprob[q].exp().tolist()) if p > 0]
            chosen = taken
        else:
            chosen = int(self.batch.token[q, taken, 0])
            pairs = [*zip(self.listed[q].tolist(), self.among_all[q].exp().tolist(), strict=True)]
            if chosen not in dict(pairs):
                pairs.append((chosen, self.logprob[q, taken].exp().item()))
        ranked = sorted(pairs, key=lambda pair: -pair[1])
        return [
            (key, chance, key == chosen)
            for i, (key, chance) in enumerate(ranked)
            if i < ALTERNATIVES or key == chosen
        ]

    def token(self, q: int, key: int) -> int:
        """Find the token of an option that `chances` lists."""
        return int(self.batch.token[q, key, 0]) if self.batch.renormalize[q] else key
