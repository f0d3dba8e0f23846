"""The inspector: episodes token by token, with their credit by every method, as one page.

The page needs no network and no other file. It holds the episodes as JSON and computes all credit
itself, so its sliders can move every rate. What a model or a world wrote is only ever shown as
text: it is made printable here, and the page's script puts it into text nodes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poad.display import compact, counted, printable
from poad.pages.template import LARGEST, embed, render, rounded, style
from poad.pages.views import Alternative, Dials, EpisodeView, TurnView, kinds

if TYPE_CHECKING:
    from poad.credit import Method

LONGEST_TEXT = 20_000
"""Longer observations and actions are cut off behind so many characters."""
LONGEST_PIECE = 200
"""A token's text is cut off behind so many characters."""
OFFERS = 40
"""Of an offer of more actions, the likeliest are listed, with the one that was chosen."""


@dataclass(frozen=True)
class Inspection:
    """What an inspector's page shows."""

    title: str
    agents: Mapping[str, Sequence[EpisodeView]]
    """Episodes by what acted in them, such as "checkpoint 24"; one entry or two."""
    dials: Dials = field(default_factory=Dials)
    """Where the sliders stand at first."""
    method: str = "poad"
    """The method whose credit colours the episode at first."""
    more_methods: tuple[Method, ...] = ()
    """Methods that are not in `METHODS`."""
    before: str = ""
    """The policy that probabilities are compared with, such as "the untrained model"."""
    clip: float = 0.2
    """The clip range of PPO, for the ratio to that policy."""
    notes: tuple[str, ...] = ()
    """Remarks for the reader: whose critic it is, and what is unknown."""


def inspector_page(inspection: Inspection) -> str:
    """Build the page."""
    return page_of_data(inspection.title, data_of(inspection))


def page_of_data(title: str, data: str) -> str:
    """Build the page of what `data_of` wrote."""
    css = style("inspect.css")
    return render("inspect.html.j2", title, data, css=css, scripts=SCRIPTS)


SCRIPTS = ("credit.js", "elements.js", "inspect.js")


def data_of(inspection: Inspection) -> str:
    """Write the episodes as JSON, as many as the size of the page allows."""
    texts = _Texts()
    heading = _heading(inspection)
    packed: list[dict[str, Any]] = []
    size = len(embed(heading).encode()) + 200_000  # room for the rest of the page
    for agent, episode in _in_turn(inspection.agents):
        before = len(texts.known)
        entry = {"agent": agent, **_episode(episode, texts)}
        more = len(embed([entry, texts.known[before:]]).encode())
        if size + more > LARGEST:
            del texts.known[before:]
            break
        size += more
        packed.append(entry)
    left_out = sum(map(len, inspection.agents.values())) - len(packed)
    if left_out:
        heading["notes"].append(
            f"This page leaves out {counted(left_out, 'more episode')}, because it would otherwise "
            f"be larger than {LARGEST / 1e6:g} MB."
        )
    return embed({**heading, "texts": texts.known, "episodes": packed})


def _in_turn(agents: Mapping[str, Sequence[EpisodeView]]) -> Iterator[tuple[int, EpisodeView]]:
    """Go through the episodes of all agents, those with the same seed next to each other."""
    pairs = [(n, i, e) for n, each in enumerate(agents.values()) for i, e in enumerate(each)]
    for agent, _, episode in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        yield agent, episode


def _heading(inspection: Inspection) -> dict[str, Any]:
    dials, methods = inspection.dials, kinds(inspection.more_methods)
    known = {name for names in methods for name in names.split(", ")}
    notes = list(inspection.notes)
    if inspection.method not in known:
        notes.append(
            f"{inspection.method} computes credit by a function of its own, which this page cannot "
            "repeat, so it is not among the methods."
        )
    return {
        "agents": [printable(name) for name in inspection.agents],
        "before": printable(inspection.before),
        "clip": inspection.clip,
        "method": inspection.method if inspection.method in known else "poad",
        "notes": [printable(note) for note in notes],
        "dials": {
            "gamma": dials.gamma,
            "lam": dials.lam,
            "gamma_token": dials.gamma_token,
            "lam_token": dials.lam_token,
            "lam_actor": dials.lam_actor,
            "beta": dials.beta,
            "trace": dials.trace,
            "by_duration": dials.by_duration,
        },
        "methods": [_method(names, method) for names, method in methods.items()],
    }


def _method(names: str, method: Method) -> dict[str, Any]:
    return {
        "names": names.split(", "),
        "decision": method.decision,
        "slots": method.slots,
        "gamma_token": method.gamma_token,
        "next_value": method.next_value,
        "uses_critic": method.uses_critic,
    }


class _Texts:
    """Texts by number, each stored once: prompts and offers come again and again."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str, longest: int = LONGEST_TEXT) -> int:
        text = printable(_cut(text, longest))
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.known)
            self.known.append(text)
        return number


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({len(text):,} characters)"


def _episode(episode: EpisodeView, texts: _Texts) -> dict[str, Any]:
    return {
        "seed": episode.seed,
        "return": rounded(episode.episode_return),
        "success": episode.success,
        "ending": episode.ending,
        "bootstrap": rounded(episode.bootstrap),
        "turns": [_turn(turn, texts) for turn in episode.turns],
    }


def _turn(turn: TurnView, texts: _Texts) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "prompt": texts(turn.prompt),
        "action": texts(turn.action),
        "reward": rounded(turn.reward),
        "duration": turn.duration,
        "ids": turn.token_ids,
        "pieces": [texts(piece, LONGEST_PIECE) for piece in turn.pieces],
        "choice": [int(choice) for choice in turn.choice],
        "logprob": [*map(rounded, turn.logprob)],
        "value": [*map(rounded, turn.value)],
    }
    if turn.invalid:
        entry["invalid"] = True
    if turn.cut is not None:
        entry["cut"] = texts(str(turn.cut))
    if turn.form:
        entry["form"] = texts(turn.form)
    if turn.before:
        entry["before"] = [*map(rounded, turn.before)]
    if turn.entropy:
        entry["entropy"] = [*map(rounded, turn.entropy)]
    if turn.alternatives:
        entry["alternatives"] = [[_alternative(a, texts) for a in p] for p in turn.alternatives]
    if turn.offered is not None:
        entry["offered"], rest = _offered(turn, texts)
        if rest:
            entry["more"] = [len(rest), rounded(sum(chance for _, chance in rest))]
    return entry


def _alternative(alternative: Alternative, texts: _Texts) -> list[Any]:
    text, probability, before, taken = alternative
    return [texts(text, LONGEST_PIECE), rounded(probability), rounded(before), int(taken)]


def _offered(turn: TurnView, texts: _Texts) -> tuple[list[Any], list[tuple[str, float]]]:
    """The likeliest offered actions, [text, probability, whether it was chosen], and the rest."""
    ranked = sorted(turn.offered or (), key=lambda pair: -pair[1])
    shown = [pair for i, pair in enumerate(ranked) if i < OFFERS or pair[0] == turn.action]
    rest = [pair for i, pair in enumerate(ranked) if i >= OFFERS and pair[0] != turn.action]
    listed = [[texts(text), rounded(chance), int(text == turn.action)] for text, chance in shown]
    return listed, rest


def describe_episodes(episodes: Sequence[EpisodeView]) -> str:
    """Describe episodes in a few words: "20 episodes, 18 successful, mean return 0.62"."""
    count, wins = len(episodes), sum(bool(e.success) for e in episodes)
    mean = sum(e.episode_return for e in episodes) / max(1, count)
    return f"{counted(count, 'episode')}, {wins} successful, mean return {compact(mean)}"
