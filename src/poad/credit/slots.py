"""The token stream, the one layout in which credit is computed, and its decision slots.

Positions that hold no token of an action (padding, observations) never contribute, whatever they
hold: they are replaced, not multiplied by zero, so not even a NaN gets through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Slots = Literal["choices", "tokens"]
"""Which tokens of an action are decisions: its real choices, or all of its tokens."""
Compared = Literal["none", "episodes", "steps"]
"""What is compared within a group: nothing, whole episodes, or also the turns of one state."""
FALL = (
    " decrease after the action token at {}; tokens must be in time order (turn_ids may start over "
    "only with a new episode id)."
)


@dataclass(frozen=True)
class TokenStream:
    """N rows of L positions in time order; every field is [N, L].

    The facts about a turn (`discount`, `cut`, `bootstrap`, `ended`) stand at each of its tokens.
    Outside `mask` only `turn` must be valid; everything else may hold anything.
    """

    reward: Tensor
    """Float. The sum over a turn's tokens is its reward."""
    value: Tensor
    """Float. The critic's reading before the token."""
    mask: Tensor
    """Bool. Tokens of an action."""
    choice: Tensor
    """Bool, within `mask`. Tokens that had an alternative."""
    turn: Tensor
    """Int. Counts the turns of a row up from 0; lies in [0, L) everywhere."""
    discount: Tensor
    """Float. γₜ, the discount after the turn."""
    cut: Tensor
    """Bool. The turn is the last of an episode or of the row."""
    bootstrap: Tensor
    """Float. The value after a cut."""
    ended: Tensor
    """Bool. At a cut: the episode is over."""
    bits: Tensor
    """Float. The entropy of the decision at the token, in bits."""

    @classmethod
    def from_rows(
        cls,
        reward: Tensor,
        value: Tensor,
        mask: Tensor,
        turn_ids: Tensor,
        gamma: float,
        choice: Tensor | None = None,
        discount: Tensor | None = None,
        bootstrap: Tensor | None = None,
        ended: Tensor | None = None,
        episode_ids: Tensor | None = None,
        bits: Tensor | None = None,
    ) -> TokenStream:
        """Check rows of conversation, fill in defaults, and number their turns.

        The arguments are those of `poad.token_credit`, all [B, L], except that `bootstrap` and
        `ended` may be [B] and then hold for the last turn of each row.

        Raises:
            ValueError: a wrong shape, a choice outside the mask, bits below 0, falling ids.
            TypeError: a wrong kind of dtype.
        """
        choice = mask if choice is None else choice
        discount = torch.full_like(value, gamma) if discount is None else discount
        bootstrap = value.new_zeros(len(value)) if bootstrap is None else bootstrap
        ended = mask.new_ones(len(mask)) if ended is None else ended
        episode_ids = torch.zeros_like(turn_ids) if episode_ids is None else episode_ids
        bits = torch.zeros_like(value) if bits is None else bits
        floats = {"reward": reward, "value": value, "discount": discount, "bits": bits}
        floats["bootstrap"] = bootstrap
        ints = {"turn_ids": turn_ids, "episode_ids": episode_ids}
        expect_rows(float=floats, bool={"mask": mask, "choice": choice, "ended": ended}, int=ints)
        reject(choice & ~mask, "choice is True at {}, where mask is False.")
        reject(mask & ~(bits >= 0), "bits is negative or NaN at {}; an entropy is at least 0.")
        return cls._numbered(
            reward, value, mask, turn_ids, choice, discount, bootstrap, ended, episode_ids, bits
        )

    @classmethod
    def _numbered(
        cls,
        reward: Tensor,
        value: Tensor,
        mask: Tensor,
        turn_ids: Tensor,
        choice: Tensor,
        discount: Tensor,
        bootstrap: Tensor,
        ended: Tensor,
        episode_ids: Tensor,
        bits: Tensor,
    ) -> TokenStream:
        """Number the turns of rows that are complete, and copy facts to all tokens of a turn."""
        # Compare each action token with the next one, however far ahead it lies: [B, L] each.
        ahead = following(mask)  # index of the next action token, L where there is none
        more = mask & (ahead < mask.shape[1])
        next_turn, next_episode = pick(turn_ids, ahead, fill=0), pick(episode_ids, ahead, fill=0)
        same_episode = more & (next_episode == episode_ids)
        reject(more & (next_episode < episode_ids), "episode_ids" + FALL)
        reject(same_episode & (next_turn < turn_ids), "turn_ids" + FALL)

        # A turn ends where the next action token belongs to another one. The number of a turn is
        # the count of the ends before it, so any ids become 0, 1, 2, ... With k ends in a row, what
        # follows the last of them gets the number k; it lies below L, since each end is a column.
        ends = mask & ~(same_episode & (next_turn == turn_ids))
        turn = ends.cumsum(-1) - ends.long()

        # [B] -> [B, L]. Facts about rows are those of the last turn; an earlier episode terminated.
        bootstrap = bootstrap if bootstrap.dim() > 1 else bootstrap[:, None].masked_fill(more, 0)
        ended = ended if ended.dim() > 1 else ended[:, None] | more

        def at_end(facts: Tensor) -> Tensor:
            """Copy what the turn's last token holds to all its tokens: a sum of zeros and that."""
            return turn_sum(facts.masked_fill(~ends, 0), turn)

        return cls(
            reward=reward,
            value=value,
            mask=mask,
            choice=choice,
            turn=turn,
            discount=at_end(discount),
            cut=at_end((~same_episode).long()) > 0,
            bootstrap=at_end(bootstrap),
            ended=at_end(ended.long()) > 0,
            bits=bits,
        )

    def in_working_precision(self) -> TokenStream:
        """Convert all floats to one dtype: that of the values, but at least float32."""
        dtype = torch.promote_types(self.value.dtype, torch.float32)
        floats = ("reward", "value", "discount", "bootstrap", "bits")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in floats})

    def without_critic(self) -> TokenStream:
        """Replace every value by 0, including those after a cut."""
        zero = torch.zeros_like(self.value)
        return replace(self, value=zero, bootstrap=zero)

    def shrunk(self, beta: float | Tensor) -> TokenStream:
        """Move the values inside actions towards the root's: V(o) + β·(V(o, w_<j) - V(o)).

        Args:
            beta: a number, or one for each row, [N]. 1 changes nothing, and needs no value at roots
                that are no slots; 0 leaves the roots alone.
        """
        if isinstance(beta, Tensor):
            beta = beta.to(self.value.dtype)[:, None]
        elif beta == 1:
            return self
        root = turn_sum(self.value.masked_fill(~self.roots(), 0), self.turn)  # [N, L] V(o)
        return replace(self, value=torch.lerp(root, self.value.masked_fill(~self.mask, 0), beta))

    def roots(self) -> Tensor:
        """Mark each turn's first token, where the critic reads V(oₜ). [N, L] bool."""
        # The first token of a turn is the last one, read from right to left.
        return last_of_turn(self.mask.flip(-1), self.turn.flip(-1)).flip(-1)

    def has_choice(self) -> Tensor:
        """Mark the positions of turns that hold a real choice. [N, L] bool."""
        return turn_sum(self.choice.long(), self.turn) > 0

    def finished(self) -> Tensor:
        """Mark the tokens of episodes whose end lies in the stream. [N, L] bool."""
        # A token of a cut turn asks that cut whether the episode is over, any other one the next
        # cut. Every token lies at or before a cut, since the last turn of a row is one.
        ahead = pick(self.ended, following(self.mask & self.cut), fill=False)
        return self.mask & torch.where(self.cut, self.ended, ahead)

    def token_slots(self, slots: Slots) -> Tensor:
        """Mark the tokens that are decisions. [N, L] bool.

        Under "choices" these are the real choices. A turn without any keeps its root, which carries
        its reward and its discount and trains the critic. Under "tokens", all tokens.
        """
        if slots == "tokens":
            return self.mask
        return self.choice | (self.roots() & ~self.has_choice())


def sequences(
    stream: TokenStream,
    slot: Tensor,
    *,
    gamma_token: float,
    lam: float,
    lam_token: float | Tensor,
    next_value: Literal["first", "last"] = "first",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Lay out the recursion's five sequences for the given slots: r, v, v′, γ′, λ′, each [N, L].

    Inside a turn γ′ = `gamma_token` and λ′ = `lam_token`, a number or [N, L]. A turn's last slot
    holds the turn's whole reward; after it γ′ = γₜ and λ′ = `lam`. v′ is the next slot's value.
    After a turn that is the value of the next turn's "first" or "last" slot; at a cut it is the
    bootstrap, and λ′ = 0.
    Positions that are no slots become transparent.
    """
    last = last_of_turn(slot, stream.turn)  # [N, L] bool: each turn's last slot
    cut = last & stream.cut
    value = stream.value.masked_fill(~slot, 0)
    ahead = pick(value, following(slot), fill=0)  # the value at the next slot, in any turn
    if next_value == "last":
        # Behind a turn's last slot, the next turn's last slot is the next place where `last` holds.
        ahead = torch.where(last, pick(value, following(last), fill=0), ahead)
    reward = turn_sum(stream.reward.masked_fill(~stream.mask, 0), stream.turn)
    inside = torch.full_like(value, gamma_token)
    # Later fills win: λ_token inside a turn, λ at its last slot, 0 at a cut, 1 where no slot is.
    inner = torch.zeros_like(value) + lam_token  # [N, L], from a number, a column or every token
    trace = inner.masked_fill(last, lam).masked_fill(cut, 0)
    return (
        reward.masked_fill(~last, 0),
        value,
        torch.where(cut, stream.bootstrap, ahead).masked_fill(~slot, 0),
        torch.where(last, stream.discount, inside).masked_fill(~slot, 1),
        trace.masked_fill(~slot, 1),
    )


def per_bit(lam: float | Tensor, bits: Tensor, slot: Tensor) -> Tensor:
    """Compute the trace from each slot to the next one, λ to the power of the next one's bits.

    The bits are the entropy of the next decision, which is known before it is made. So the trace
    does not depend on what is chosen, and exact values still give zero expected advantage. Behind
    the first decision of an action, one that is made already (0 bits) is transparent: it changes no
    other advantage. In first place it is what the turns before bootstrap from.

    Args:
        lam: a number in [0, 1], or [N, 1].
        bits: [N, L] the entropy of each decision, at least 0.
        slot: [N, L] bool.
    """
    ahead = pick(bits.masked_fill(~slot, 0), following(slot), fill=0)
    return (torch.zeros_like(ahead) + lam) ** ahead  # 0 ** 0 = 1


def following(flags: Tensor) -> Tensor:
    """Find the first True strictly after each position of [N, L]; L where there is none."""
    length = flags.shape[-1]
    index = torch.arange(length, device=flags.device).expand(flags.shape)
    # [N, L + 1] own index where True, else L; then drop position 0 and take the running minimum
    # from the right.
    index = pad(index.masked_fill(~flags, length), (0, 1), value=length)[:, 1:]
    return index.flip(-1).cummin(-1).values.flip(-1)


def pick(values: Tensor, index: Tensor, fill: float) -> Tensor:
    """Gather values [N, L] at an index from `following`, with `fill` where it found none."""
    # An index of L reads the column that is appended: [N, L] -> [N, L + 1] -> [N, L].
    return pad(values, (0, 1), value=fill).gather(-1, index)


def last_of_turn(flags: Tensor, turn: Tensor) -> Tensor:
    """Mark the last True of each turn. [N, L] bool."""
    # A True is the last one if the next True belongs to another turn, or there is none: -1.
    return flags & (pick(turn, following(flags), fill=-1) != turn)


def pick_first(cut: Tensor, root: Tensor) -> Tensor:
    """Mark, among roots, those of turns behind a cut turn, and each row's first. [N, L] bool."""
    # Read from right to left, the next root is the one before; a row's first root has none.
    before = pick(cut.flip(-1), following(root.flip(-1)), fill=True).flip(-1)
    return root & (before > 0)


def turn_sum(values: Tensor, turn: Tensor) -> Tensor:
    """Sum values [N, L] over each turn, and write the sum at every position of the turn."""
    # A row has at most L turns, so its sums by turn number fit into L columns. Add every value to
    # the column of its turn, then read that column at every position.
    return torch.zeros_like(values).scatter_add(-1, turn, values).gather(-1, turn)


def expect_rows(**kinds: Mapping[str, Tensor]) -> None:
    """Reject tensors of a wrong shape (ValueError) or kind of dtype (TypeError).

    All have the shape of the reward, [B, L]; `bootstrap` and `ended` may be [B].
    """
    shape = kinds["float"]["reward"].shape
    if len(shape) != 2:
        raise ValueError(f"reward has shape {tuple(shape)}; give [B, L]: rows of tokens.")
    for kind, tensors in kinds.items():
        for name, tensor in tensors.items():
            per_row = name in ("bootstrap", "ended") and tensor.dim() == 1
            expected = shape[:1] if per_row else shape
            if tensor.shape != expected:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; expected {tuple(expected)}, to match "
                    "the reward."
                )
            found = "float" if tensor.is_floating_point() else "int"
            if kind != ("bool" if tensor.dtype == torch.bool else found):
                raise TypeError(f"{name} has dtype {tensor.dtype}; expected {kind}.")


def expect_ids(shape: torch.Size, **given: Tensor | None) -> list[Tensor]:
    """Return ids of a shape, [B, L] int, with zeros for None; others are refused like rows."""
    ids = {name: torch.zeros(shape).long() if i is None else i for name, i in given.items()}
    expect_rows(float={"reward": torch.empty(shape, device="meta")}, int=ids)
    return [*ids.values()]


def reject(places: Tensor, message: str) -> None:
    """Raise ValueError for the first True; `{}` in the message stands for its place."""
    found = places.nonzero()
    if len(found):
        raise ValueError(message.format(tuple(found[0].tolist())))
