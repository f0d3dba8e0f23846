"""`poad plan`: what a run will need, said before any weights are loaded.

Memory is added up part by part; time is floating-point operations over the speed of the machine.
Both are predictions: a run's summary puts what was measured beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from rich.table import Table

from poad.agent import resolve
from poad.config import Config
from poad.display import Screen
from poad.errors import HardwareError
from poad.plan.hardware import (
    Kind,
    device_kind,
    device_memory,
    matrix_speed,
    peak_memory,
    read_size,
)
from poad.plan.profile import Sample, Shape, load_codec, model_shape, sample_world

OVERHEAD: Mapping[Kind, int] = {"cpu": 430_000_000, "cuda": 600_000_000}
"""Bytes before the first weight. CPU: Python with torch, transformers and poad loaded and a first
step taken, measured on Linux with torch 2.13. CUDA: the context and cuBLAS work space; that torch
does not count among what it allocated."""
UTILIZATION: Mapping[Kind, tuple[float, float]] = {"cpu": (0.7, 0.7), "cuda": (0.3, 0.45)}
"""Share of the sustained matrix speed reached while acting and while updating. CPU: roughly that of
one core with Llamas of 0.3 and 60 million weights. CUDA: an assumption, never measured here."""
LAYER_SECONDS: Mapping[Kind, float] = {"cpu": 5e-4, "cuda": 5e-4}
"""What a layer costs in a forward pass even for one token: Python and the launch of kernels."""
TURN_SECONDS = 1e-4
"""A turn's own cost: the world's step, text, bookkeeping."""
INTENSITY: Mapping[Kind, float] = {"cpu": 5, "cuda": 150}
"""Operations in the time in which a byte of the weights is read: a pass is never quicker."""
QUANTIZED = {"none": 0.0, "8bit": 1.0, "4bit": 0.516}
"""Bytes of a quantized weight with its scales (NF4, double quantization: arXiv 2305.14314)."""
LOGITS = {True: 3, False: 7}
"""Float32 copies of the logits in an update: among offered tokens, over the vocabulary."""
SAMPLING = 28
"""Bytes per entry of the vocabulary while a token is drawn: float32 twice, float64 twice, index."""


class Part(NamedTuple):
    """Memory for one thing."""

    name: str
    size: int
    """Bytes."""
    when: Literal["always", "acting", "updating"] = "always"
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """A prediction."""

    parts: tuple[Part, ...]
    kind: Kind
    seconds_acting: float
    """Of one iteration."""
    seconds_updating: float
    """Of one iteration, with all its passes."""
    operations: float
    """Floating-point operations of one iteration."""
    speed: float
    """Sustained matrix speed it was reckoned with, operations per second."""
    shape: Shape
    sample: Sample

    @property
    def memory(self) -> int:
        """Bytes at the peak: what is always there, and the larger of acting and updating."""
        size = dict.fromkeys(("always", "acting", "updating"), 0)
        for part in self.parts:
            size[part.when] += part.size
        return size["always"] + max(size["acting"], size["updating"])

    @property
    def seconds(self) -> float:
        """Of one iteration."""
        return self.seconds_acting + self.seconds_updating


def predict(config: Config, *, flops: float | None = None, measure: float = 1.0) -> Plan:
    """Predict memory and time of an iteration, without loading weights.

    Args:
        config: what would be trained.
        flops: sustained matrix speed of the machine, in operations per second; none measures it.
        measure: seconds to spend on measuring.

    Raises:
        HardwareError: the device is not here and no speed is given.
        ConfigError, poad.lm.model.ModelError: it could not be built either.
    """
    config = resolve(config).config
    kind = device_kind(config)
    if flops is None:
        flops = matrix_speed(config, measure)
    shape = model_shape(config.model, config.env)
    sample = sample_world(config, *load_codec(config))
    return _reckon(config, kind, flops, shape, sample)


def _reckon(config: Config, kind: Kind, speed: float, shape: Shape, sample: Sample) -> Plan:
    acting, updating, operations = _seconds(config, kind, speed, shape, sample)
    parts = (*_standing(config, kind, shape, sample), *_passing(config, shape, sample))
    kept = tuple(part for part in parts if part.size)
    return Plan(kept, kind, acting, updating, operations, speed, shape, sample)


# --- memory ---------------------------------------------------------------------------------------


def _standing(config: Config, kind: Kind, shape: Shape, sample: Sample) -> Iterator[Part]:
    """What is there from the first update to the last."""
    number = getattr(torch, config.model.dtype).itemsize
    full = config.model.tuning == "full"
    yield Part("base weights", base_bytes(config, shape), note=_precision(config, shape))
    if full and (config.critic.body == "frozen" or config.ppo.kl_reference > 0):
        # A tied head is part of the body; another is copied only where it is asked.
        size = shape.weights if config.ppo.kl_reference > 0 else shape.body
        yield Part("frozen copy", size * number, note="of the untrained body, for the critic")
    trained, width = (shape.weights, number) if full else (shape.adapters, 4)
    yield Part("adapters", 4 * shape.adapters, note=f"rank {config.model.lora_rank}, float32")
    yield Part("gradients", trained * width, note=f"of {trained:,} weights")
    yield Part("Adam moments", 2 * trained * width, note="two of each")
    sizes = (shape.width, *config.critic.hidden, 1)
    critic = sum((a + 1) * b for a, b in pairwise(sizes))
    features = sample.values * shape.width * 4 if config.critic.body == "frozen" else 0
    yield Part("critic", 16 * critic + features, note=f"{critic:,} weights, and what it reads")
    name = "libraries" if kind == "cpu" else "CUDA context"
    yield Part(name, OVERHEAD[kind], note="torch and its like")


def base_bytes(config: Config, shape: Shape) -> int:
    """Bytes of the base weights; quantization leaves embeddings, norms and the head alone."""
    number = getattr(torch, config.model.dtype).itemsize
    if config.model.quantize == "none":
        return shape.weights * number
    rest = shape.weights - shape.quantizable
    return math.ceil(shape.quantizable * QUANTIZED[config.model.quantize]) + rest * number


def _precision(config: Config, shape: Shape) -> str:
    billions = f"{shape.weights / 1e9:.2f} billion" if shape.weights >= 1e8 else ""
    count = billions or f"{shape.weights:,}"
    quantized = config.model.quantize
    how = f"{quantized}, rest {config.model.dtype}" if quantized != "none" else config.model.dtype
    return f"{count}, {how}"


def _passing(config: Config, shape: Shape, sample: Sample) -> Iterator[Part]:
    """What comes and goes: while updating, and while acting.

    Activations of a micro-batch of m tokens in rows of L, after Korthikanti et al. (arXiv
    2205.05198): m·c bytes, c counted by `poad.plan.profile.model_shape`, for kernels that keep no
    attention matrix. With checkpointing, one hidden state per layer and token, and c of a single
    layer. On top come the largest intermediate results of the
    backward pass and the attention mask, a byte and a number for every pair of tokens in a row.
    """
    number = getattr(torch, config.model.dtype).itemsize
    once = max(1, min(config.ppo.minibatches, sample.prompts))
    tokens = min(config.ppo.micro_batch_tokens, math.ceil(sample.updating / once))
    readings = math.ceil(sample.readings * tokens / max(1, sample.updating))
    row = max(240, 2 * sample.longest) if sample.offered else sample.longest
    each = shape.saved
    if config.model.gradient_checkpointing:
        each = shape.layers * shape.width * number + math.ceil(each / shape.layers)
    working = 2 * shape.feed * number + row * (1 + number)
    unpacked = shape.largest * number if config.model.quantize != "none" else 0
    note = f"{tokens:,} tokens" + (", layer by layer" * config.model.gradient_checkpointing)
    yield Part("activations", tokens * (each + working) + unpacked, "updating", note)
    offered = sample.offered and config.acting.scheme != "published"
    copies = LOGITS[offered and config.acting.scheme == "trie"]
    size = readings * shape.vocabulary * (4 * copies + 2 * number)
    yield Part("logits", size, "updating", f"{readings:,} decisions, float32")
    # While acting no row waits for another, and an evaluation may play more of them.
    rows = max(config.streams, config.eval.streams if config.eval.episodes else 0)
    rows = min(rows, sample.prompts) if sample.offered else rows
    # Where prompts grow, what was read is kept beside the rows that go on from it.
    copies = 2 if config.prompt.history == "episode" or config.prompt.thinking else 1
    cached = copies * rows * sample.longest * shape.cached * number
    yield Part("KV cache", cached, "acting", f"{rows} rows of {sample.longest} tokens")
    reading = min(rows, sample.prompts) * sample.longest
    hidden = reading * (4 * shape.width + 3 * shape.feed) * number + rows * sample.longest**2
    drawn = rows * shape.vocabulary * (SAMPLING if not sample.offered else 8)
    yield Part(
        "a pass of acting", hidden + unpacked + drawn, "acting", "prompts, and what is drawn"
    )


# --- time -----------------------------------------------------------------------------------------


def _seconds(
    config: Config, kind: Kind, speed: float, shape: Shape, sample: Sample
) -> tuple[float, float, float]:
    """Seconds of acting and of updating, and the operations of both.

    A token costs 2 operations per weight it is multiplied with: forward, backward through every
    layer, and once more for the weights that are trained. What is recomputed takes time but is no
    operation in the count.
    """
    per_token, per_reading = 2 * shape.multiplied, 2 * shape.head
    trained = 2 * (shape.multiplied if config.model.tuning == "full" else shape.adapters)
    forward = per_token * sample.updating + per_reading * sample.readings
    act = per_token * sample.acting + per_reading * sample.readings
    step = 2 * forward + trained * sample.updating
    if config.model.tuning == "full":
        step += per_reading * sample.readings
    epochs = config.ppo.epochs
    extra = forward * (config.ppo.recompute_logprob + (config.ppo.kl_reference > 0))
    if config.critic.body == "frozen":
        extra += per_token * sample.features
    update = step * epochs + extra
    redone = forward * epochs if config.model.gradient_checkpointing else 0
    runs = max(
        min(config.ppo.minibatches, sample.prompts),
        math.ceil(sample.updating / config.ppo.micro_batch_tokens),
    )
    least = base_bytes(config, shape) * INTENSITY[kind] / speed
    a_pass = shape.layers * LAYER_SECONDS[kind] + least
    share_acting, share_updating = UTILIZATION[kind]
    turns = TURN_SECONDS * sample.turns
    acting = act / speed / share_acting + sample.passes * a_pass + turns
    updating = (update + redone) / speed / share_updating + 3 * runs * epochs * a_pass + turns
    return acting, updating, act + update


# --- what to change -------------------------------------------------------------------------------


class Change(NamedTuple):
    """A setting that would save memory."""

    setting: str
    memory: int
    """Bytes at the peak with it, all else unchanged."""


def changes(config: Config, plan: Plan) -> list[Change]:
    """Settings that would save at least a hundredth of the peak, the most saving first."""
    config = resolve(config).config
    found = []
    for setting, other in _alternatives(config):
        shape = plan.shape
        if other.model != config.model:
            shape = model_shape(other.model, other.env)
        memory = _reckon(other, plan.kind, plan.speed, shape, _fewer(plan.sample, config, other))
        if memory.memory < 0.99 * plan.memory:
            found.append(Change(setting, memory.memory))
    return sorted(found, key=lambda change: change.memory)


def _fewer(sample: Sample, config: Config, other: Config) -> Sample:
    """The sample with another number of streams; as many prompts repeat."""
    share = other.streams / config.streams
    counts = ("turns", "prompts", "acting", "updating", "readings", "features", "values")
    return replace(sample, **{n: math.ceil(getattr(sample, n) * share) for n in counts})


def _alternatives(c: Config) -> Iterator[tuple[str, Config]]:
    lora = replace(c.model, tuning="lora")
    if c.model.tuning == "full":
        yield "model.tuning = lora", replace(c, model=lora)
    if c.model.dtype == "float32":
        yield "model.dtype = bfloat16", replace(c, model=replace(c.model, dtype="bfloat16"))
    if c.model.quantize != "4bit":
        also = " with model.tuning = lora" * (c.model.tuning == "full")
        small = replace(lora, quantize="4bit")
        yield f"model.quantize = 4bit{also}", replace(c, model=small)
    if not c.model.gradient_checkpointing:
        again = replace(c.model, gradient_checkpointing=True)
        yield "model.gradient_checkpointing = true", replace(c, model=again)
    if c.ppo.micro_batch_tokens > 2048:
        fewer = max(2048, c.ppo.micro_batch_tokens // 4)
        ppo = replace(c.ppo, micro_batch_tokens=fewer)
        yield f"ppo.micro_batch_tokens = {fewer}", replace(c, ppo=ppo)
    if c.streams > 1:
        half = max(1, c.streams // 2)
        less = replace(c, streams=half, eval=replace(c.eval, streams=min(half, c.eval.streams)))
        yield f"streams = {half}, eval.streams = {less.eval.streams}", less
    if c.model.tuning == "full" and c.critic.body == "frozen":
        yield "critic.body = shared", replace(c, critic=replace(c.critic, body="shared"))


# --- beside measurement ---------------------------------------------------------------------------


def compare(plan: Plan, metrics: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """A prediction beside what was measured in this process.

    Args:
        plan: the prediction.
        metrics: of each iteration; the time is their median.

    Returns:
        Bytes at the peak and seconds per iteration, each predicted and measured. On a GPU the
        CUDA context is left out of both, since torch does not count it.
    """
    seconds = [row["collect_seconds"] + row["update_seconds"] for row in metrics]
    uncounted = OVERHEAD["cuda"] if plan.kind == "cuda" else 0
    return {
        "predicted_memory": plan.memory - uncounted,
        "measured_memory": peak_memory(plan.kind),
        "predicted_seconds": round(plan.seconds, 4),
        "measured_seconds": round(median(seconds), 4) if seconds else None,
    }


def hindsight(config: Config, metrics: Iterable[Mapping[str, float]]) -> dict[str, Any] | None:
    """What would have been predicted of a run that is over, beside what it took; or nothing."""
    try:
        # Measured first: predicting takes memory, too.
        peak = peak_memory(device_kind(config))
        return compare(predict(config, measure=0.05), metrics) | {"measured_memory": peak}
    except Exception:  # a remark in the summary must not cost anyone their run
        return None


# --- the command ----------------------------------------------------------------------------------


def show(config: Config, memory: str | None = None, flops: float | None = None) -> int:
    """Print a plan; the exit status, 1 when it does not fit."""
    if flops is not None and not flops > 0:
        raise HardwareError(f"--flops {flops:g}: must be above 0, in operations per second.")
    room = device_memory(config) if memory is None else read_size(memory)
    plan = predict(config, flops=flops)
    console = Screen()
    console.print(
        _table(plan, config), "", *_times(plan, config, given=flops is not None), sep="\n"
    )
    fits = plan.memory <= room
    verdict = "fits" if fits else "does not fit"
    console.print(
        f"\n[bold]{_bytes(plan.memory)}[/] at the peak {verdict} into {_bytes(room)}.",
        highlight=False,
    )
    if fits:
        return 0
    table = Table("change", "then", "saves", title="What to change, most saving first", box=None)
    for change in changes(config, plan):
        enough = " (fits)" if change.memory <= room else ""
        saved = _bytes(plan.memory - change.memory)
        table.add_row(change.setting, _bytes(change.memory) + enough, saved)
    console.print(table if table.row_count else "Nothing in the settings would save much.")
    return 1


def _table(plan: Plan, config: Config) -> Table:
    sample, shape = plan.sample, plan.shape
    title = f"{shape.architecture}, {config.env}, {config.streams} x {config.horizon} turns"
    table = Table("memory", "", "when", "", title=title, box=None, title_justify="left")
    table.columns[1].justify = "right"
    for part in plan.parts:
        table.add_row(part.name, _bytes(part.size), part.when, part.note)
    table.caption = (
        f"{sample.prompts:,} distinct prompts of {sample.prompt_tokens:.0f} tokens, actions of "
        f"{sample.action_tokens:.1f}"
        + ("" if sample.offered else " (their budget)")
        + ("" if sample.tokenizer else "; there is no tokenizer, so tokens are guessed")
    )
    table.caption_justify = "left"
    return table


def _times(plan: Plan, config: Config, given: bool) -> Iterator[str]:
    acting, updating = (100 * share for share in UTILIZATION[plan.kind])
    iterations = math.ceil(config.steps / plan.sample.turns)
    yield (
        f"an iteration: {_duration(plan.seconds)} ({_duration(plan.seconds_acting)} acting, "
        f"{_duration(plan.seconds_updating)} updating); the run's {iterations:,}: "
        f"{_duration(iterations * plan.seconds)}, evaluations aside"
    )
    yield (
        f"reckoned with {_scaled(plan.operations)}FLOP at {_scaled(plan.speed)}FLOP/s "
        f"{'as given' if given else 'as measured now'}, of which {acting:.0f} % are reached while "
        f"acting, {updating:.0f} % while updating"
    )
    if config.acting.engine != "own":
        yield f"acting.engine = {config.acting.engine} is not reckoned with: acting as by our own"


def _bytes(size: float) -> str:
    return _scaled(size) + "B"


def _scaled(number: float) -> str:
    """Three digits and a prefix of the unit that follows."""
    unit = next((i for i in range(5) if number < 1000 ** (i + 1)), 5)
    return f"{number / 1000**unit:.3g} {('', 'k', 'M', 'G', 'T', 'P')[unit]}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
