"""The command's words: a plan as tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from poad.agent import resolve
from poad.config import Config
from poad.display import Screen, Table
from poad.errors import HardwareError
from poad.plan.hardware import device_memory, read_size
from poad.plan.predict import Plan, changes, predict, utilization
from poad.plan.scale import Machines, Step, ladder, pays_up_to


def show(
    config: Config,
    memory: str | None = None,
    flops: float | None = None,
    machines: Machines | None = None,
) -> int:
    """Print a plan and return the exit status: 0 if the run fits into memory, 1 if not.

    Args:
        config: the run.
        memory: size of the machine's memory, such as ``24GB``. None asks this machine.
        flops: as in :func:`predict`.
        machines: what processes there are, if more than one.

    Raises:
        HardwareError: the size or the speed makes no sense, or the device is not in this machine.
    """
    if flops is not None and not flops > 0:
        raise HardwareError(f"--flops {flops:g}: must be above 0, in operations per second.")
    room = device_memory(config) if memory is None else read_size(memory)
    config = resolve(config).config
    machines = machines or Machines()
    plan = predict(config, flops=flops, ranks=machines.ranks)
    console = Screen(markup=True)
    console.print(_table(plan, config).to_terminal(), "", *_world_lines(plan), "", sep="\n")
    console.print(*_time_lines(plan, config, given=flops is not None), "", sep="\n")
    if machines.ranks > 1:
        each = ladder(config, plan, machines)
        console.print(
            _ladder_table(each).to_terminal(),
            "",
            *_ladder_lines(each, machines, config),
            "",
            sep="\n",
        )
    fits = plan.memory <= room
    verdict = "fits" if fits else "does not fit"
    console.print(
        f"The peak of [bold]{_bytes(plan.memory)}[/] {verdict} into {_bytes(room)} of memory"
        f"{' of each process' * (machines.ranks > 1)}."
    )
    if fits:
        return 0
    fixed = sum(part.size for part in plan.parts if part.name in ("libraries", "CUDA context"))
    if fixed > room:
        console.print(f"No training can fit: {_bytes(fixed)} are taken before it begins.")
        return 1
    listed = changes(config, plan)
    if not listed:
        console.print("No single setting would save much memory.")
        return 1
    rows = [
        (setting, _bytes(peak) + " (fits)" * (peak <= room), _bytes(plan.memory - peak))
        for setting, peak in listed
    ]
    columns, title = ("setting", "peak", "saves"), "Settings that save memory"
    console.print(Table(columns, rows, title, align="lll").to_terminal())
    return 1


def _table(plan: Plan, config: Config) -> Table:
    title = f"{plan.shape.architecture} in {config.env}, {config.streams} x {config.horizon} turns"
    rows = [
        (name, _bytes(size), when if when == "always" else f"while {when}", note)
        for name, size, when, note in plan.parts
    ]
    return Table(("memory", "size", "needed", "details"), rows, title, align="lrll")


def _ladder_table(steps: Sequence[Step]) -> Table:
    columns = ("processes", "an iteration", "messages", "tokens/s", "faster", "memory", "limit")
    rows = [
        (
            f"{step.ranks:,}",
            _duration(step.seconds),
            _duration(step.messages),
            _scaled(step.tokens_per_second),
            f"{steps[0].seconds / step.seconds:.1f} times",
            _bytes(step.memory),
            step.limit,
        )
        for step in steps
    ]
    return Table(columns, rows, "More processes, each on a device of its own", align="rrrrrrl")


def _ladder_lines(steps: Sequence[Step], machines: Machines, config: Config) -> Iterator[str]:
    enough = pays_up_to(steps)
    if enough < steps[-1].ranks:
        yield f"Beyond {enough:,} processes, twice as many save less than a fifth of the time."
    else:
        yield f"{enough:,} processes still pay: each doubling saves a fifth of the time or more."
    many = machines.nodes > 1
    yield (
        f"This assumes {_bytes(machines.link)}/s between devices of a machine"
        + f" and {_bytes(machines.network)}/s between machines" * many
        + ", and messages that wait for computing and computing that waits for messages. "
        "Evaluations are left out."
    )
    if config.ppo.kl_stop is not None and config.ppo.epochs > 1:
        yield (
            f"All {config.ppo.epochs} passes of an update are counted. Where ppo.kl_stop leaves "
            "some out, an iteration is shorter, and more processes gain less."
        )


def _world_lines(plan: Plan) -> Iterator[str]:
    sample = plan.sample
    yield (
        f"A random agent reads {sample.prompts:,} distinct prompts per iteration, of "
        f"{sample.prompt_tokens:.0f} tokens on average."
    )
    if sample.offered:
        yield f"An action has {sample.action_tokens:.1f} tokens on average."
    else:
        yield f"Every action is assumed to fill its budget of {sample.action_tokens:.0f} tokens."
    if not sample.tokenizer:
        yield "The model's tokenizer was not found, so all numbers of tokens are estimates."


def _time_lines(plan: Plan, config: Config, given: bool) -> Iterator[str]:
    acting, updating = (100 * share for share in utilization(config, plan.kind))
    iterations = math.ceil(config.steps / plan.sample.turns)
    yield (
        f"One iteration takes {'one process ' * (plan.ranks > 1)}about {_duration(plan.seconds)}: "
        f"{_duration(plan.seconds_acting)} for acting and "
        f"{_duration(plan.seconds_updating)} for updating."
    )
    yield (
        f"The run has {iterations:,} iterations and takes about "
        f"{_duration(iterations * plan.seconds)}, without evaluations."
    )
    yield (
        f"This assumes {_scaled(plan.operations)}FLOP per iteration at "
        f"{_scaled(plan.speed)}FLOP/s ({'as given' if given else 'measured now'}), of which acting "
        f"reaches {acting:.0f} % and updating {updating:.0f} %."
    )
    if config.acting.engine != "own":
        yield (
            "The time for acting is that of acting.engine = own; "
            f"{config.acting.engine} may be faster."
        )


def _bytes(size: float) -> str:
    return _scaled(size) + "B"


def _scaled(number: float) -> str:
    """Format a number with three digits and the prefix of the unit that follows it."""
    unit = next((i for i in range(5) if number < 1000 ** (i + 1)), 5)
    return f"{number / 1000**unit:.3g} {('', 'k', 'M', 'G', 'T', 'P')[unit]}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 120:
        return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"
