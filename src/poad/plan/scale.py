"""Many processes: what an iteration takes them, and when more of them stop paying.

The work of one process is divided as the training divides it. What limits R processes is one of
five things: computing, which is divided; the costliest share, where there are fewer streams or
distinct prompts than processes; what each pass costs in any case; what every process repeats; and
messages. The speed of messages is an assumption. Nothing is assumed to happen at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from poad.agent import critic_width, resolve
from poad.config import Config
from poad.plan.hardware import Kind
from poad.plan.predict import (
    TURN_SECONDS,
    Plan,
    computed_bytes,
    critic_adapters,
    is_sharded,
    largest_share,
    minibatches,
    plan_of,
    step_seconds,
    utilization,
    waits,
    work,
)
from poad.plan.sample import Sample, load_codec, sample_world

LINK: Mapping[Kind, float] = {"cpu": 4e8, "cuda": 200e9}
"""Bytes per second that a device exchanges with its neighbours in the machine, all told. CPU: gloo
between two processes, in the seconds of the CPU that they take. CUDA: about half of what NVLink of
an A100 or H100 advertises, an assumption."""
_PAYS = 1.25
"""So many times as fast must twice as many processes be."""


@dataclass(frozen=True)
class Machines:
    """The machines of a training, each with the same devices."""

    devices: int = 1
    """Devices of each machine. Each has a process, a rank."""
    nodes: int = 1
    """Machines."""
    link: float = LINK["cuda"]
    """Bytes per second that a device exchanges with its neighbours in the machine, all told."""
    network: float = 25e9
    """Bytes per second between one machine and another: half of 400 Gbit/s."""

    @property
    def ranks(self) -> int:
        """R, the number of processes."""
        return self.devices * self.nodes

    def some(self, ranks: int) -> Machines:
        """Take so many processes, on as few machines as have room for them."""
        nodes = -(-ranks // self.devices)
        return replace(self, devices=-(-ranks // nodes), nodes=nodes)

    @property
    def speed(self) -> float:
        """Bytes per second around a ring of all ranks, whose slowest link decides."""
        return self.link if self.nodes == 1 else min(self.link, self.network)


@dataclass(frozen=True)
class Step:
    """What one iteration takes so many processes, in seconds unless stated otherwise."""

    ranks: int
    computing: float
    """That more processes would shorten."""
    uneven: float
    """Computing of the busiest process beyond its even share."""
    launching: float
    """What passes cost in any case."""
    repeated: float
    """What every process does."""
    messages: float
    tokens: int
    """Read in an iteration, by acting and by the passes of the update; a number."""
    memory: int
    """Bytes of each process at its peak."""

    @property
    def seconds(self) -> float:
        """Seconds of an iteration."""
        return self.computing + self.uneven + self.launching + self.repeated + self.messages

    @property
    def tokens_per_second(self) -> float:
        """Tokens that all processes read in a second."""
        return self.tokens / self.seconds

    @property
    def limit(self) -> str:
        """What takes most of the time."""
        parts = {
            "computing": self.computing,
            "streams or distinct prompts": self.uneven,
            "launches of passes": self.launching,
            "what each repeats": self.repeated,
            "messages": self.messages,
        }
        return max(parts, key=lambda name: parts[name])


def ladder(config: Config, plan: Plan, machines: Machines) -> list[Step]:
    """Predict an iteration of 1, 2, 4 … processes, up to all that there are.

    Args:
        config: the run, resolved.
        plan: its prediction.
        machines: what there is.
    """
    counts = [2**i for i in range(machines.ranks.bit_length()) if 2**i < machines.ranks]
    return [step_of(config, plan, machines.some(n)) for n in (*counts, machines.ranks)]


def pays_up_to(steps: Sequence[Step]) -> int:
    """Return the number of processes beyond which twice as many save less than a fifth."""
    for step, more in pairwise(steps):
        wanted = 1 + (_PAYS - 1) * (more.ranks / step.ranks - 1)  # the last step may be smaller
        if step.seconds / more.seconds < wanted:
            return step.ranks
    return steps[-1].ranks


def step_of(config: Config, plan: Plan, machines: Machines) -> Step:
    """Predict an iteration of some processes.

    Acting is that of the busiest process with its own streams, where prompts of other processes
    are not known. The update's prompts are divided, minibatch by minibatch.
    """
    ranks, ppo, sample = machines.ranks, config.ppo, plan.sample
    own = _own_sample(config, sample, ranks)
    acting, updating = utilization(config, plan.kind)
    mine = work(config, plan.kind, plan.speed, plan.shape, own)
    all_of_it = work(config, plan.kind, plan.speed, plan.shape, sample)
    act = mine.acting / plan.speed / acting
    update = (all_of_it.updating + all_of_it.repeated) / plan.speed / updating
    even = (all_of_it.acting / plan.speed / acting + update) / ranks
    parts = minibatches(config, sample)
    share = largest_share(sample.prompts / parts, ranks)
    passes = max(parts, math.ceil(sample.update_passes * share))
    launching = (own.acting_passes + waits(config, passes)) * mine.latency
    sent = _bytes_sent(config, plan, ranks, passes * ppo.epochs, parts * ppo.epochs)
    # Every process changes all weights that it has.
    steps = step_seconds(config, plan.kind, plan.speed, plan.shape, sample)
    shared = steps / ranks if is_sharded(config, ranks) else 0.0
    return Step(
        ranks=ranks,
        computing=even + shared + TURN_SECONDS * own.turns,
        uneven=max(0.0, act + update * share - even),
        launching=launching,
        repeated=TURN_SECONDS * sample.turns + (0.0 if shared else steps),
        messages=sent / machines.speed,
        tokens=sample.acting_tokens + ppo.epochs * sample.update_tokens,
        memory=plan_of(config, plan, ranks).memory,
    )


def _own_sample(config: Config, sample: Sample, ranks: int) -> Sample:
    """Count the acting of the process with the most streams."""
    if ranks == 1:
        return sample
    settings = resolve(config)
    group = settings.credit.group  # streams of a group cannot be counted apart
    streams = -(-config.streams // ranks)
    streams = min(config.streams, -(-streams // group) * group)
    return sample_world(resolve(replace(config, streams=streams)), *load_codec(config))


def _bytes_sent(config: Config, plan: Plan, ranks: int, passes: int, steps: int) -> float:
    """Count the bytes that pass each link of a ring of ranks in an iteration."""
    return sum(_messages(config, plan, ranks, passes, steps)) * (ranks - 1) / ranks


def _messages(config: Config, plan: Plan, ranks: int, passes: int, steps: int) -> Iterator[float]:
    """Yield bytes of messages: once for what is gathered or scattered, twice for a sum."""
    shape, sample = plan.shape, plan.sample
    full = config.model.tuning == "full"
    trained = sum(part.size for part in plan_of(config, plan, 1).parts if part.name == "gradients")
    if is_sharded(config, ranks):
        whole = shape.weights * computed_bytes(config)
        # A pass gathers the weights forward and backward, and scatters the gradients.
        yield passes * (2 * whole + trained)
        # Once an update, and again where it was too long, all are gathered for acting.
        yield whole * (2 if config.critic.apart and full else 1)
    else:
        yield 2 * steps * trained
    frozen = config.critic.apart
    width = critic_width(shape.width, config.critic) if frozen else shape.width
    own_steps = config.critic.minibatches * config.critic.adapter_epochs
    yield 2 * 4 * own_steps * critic_adapters(config)
    yield 2 * 4 * width * sample.critic_positions
