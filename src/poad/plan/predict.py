"""Memory and time of a training run, predicted before any weights are loaded.

Memory is a sum over parts. Time is floating-point operations divided by the speed of the machine,
plus a fixed cost for every forward pass and turn. A run's summary shows both predictions next to
what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal, NamedTuple

import torch

from poad.agent import critic_width, resolve
from poad.config import Config, from_dict, nested
from poad.plan.hardware import Kind, device_kind, matrix_speed, peak_memory
from poad.plan.sample import Sample, load_codec, sample_world
from poad.plan.shape import Shape, adapter_weights, model_shape

OVERHEAD: Mapping[Kind, int] = {"cpu": 430_000_000, "cuda": 600_000_000}
"""Bytes before the first weight. CPU: Python with torch, transformers and poad loaded and one step
taken, measured on Linux with torch 2.13. CUDA: the context and the work space of cuBLAS, which
torch does not count as allocated."""
UTILIZATION: Mapping[str, tuple[float, float]] = {
    "cpu": (0.7, 0.7),
    "mixed": (0.65, 0.65),
    "cuda": (0.3, 0.45),
}
"""Share of the sustained matrix speed that acting and updating reach. CPU: about that of one core
with Llamas of 0.3 and 60 million weights. Mixed precision: of the speed in bfloat16, that of one
core with SmolLM2-135M, where attention, norms and rounding take their time in float32. CUDA: an
assumption that was never measured."""
LAYER_SECONDS: Mapping[Kind, float] = {"cpu": 5e-4, "cuda": 5e-4}
"""Seconds per layer of a forward pass, even of one token: Python, and the launch of kernels."""
TURN_SECONDS = 1e-4
"""Seconds per turn: the world's step, its text, and bookkeeping."""
INTENSITY: Mapping[Kind, float] = {"cpu": 5, "cuda": 150}
"""Operations in the time it takes to read a byte of the weights. No pass is faster than that."""
STEP = 10
"""Times that a gradient step reads or writes the bytes of all trained weights: three to clip the
gradient, seven for Adam's weights, gradients and moments."""
QUANTIZED = {"none": 0.0, "8bit": 1.0, "4bit": 0.516}
"""Bytes per quantized weight with its scales. 4 bits: NF4 with double quantization, 4.127 bits
(QLoRA, arXiv 2305.14314, section 3)."""
LOGITS = {True: 3, False: 7}
"""Float32 copies of the logits in an update: among offered tokens, or over the vocabulary."""
SAMPLING = {True: 8, False: 28}
"""Bytes per logit while acting. Among offered actions: float32 twice. Over the vocabulary: float32
twice, float64 twice and an index."""


class Part(NamedTuple):
    """Memory for one purpose."""

    name: str
    size: int
    """Bytes."""
    when: Literal["always", "loading", "acting", "updating"] = "always"
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """A prediction for one iteration of a run."""

    parts: tuple[Part, ...]
    kind: Kind
    seconds_acting: float
    seconds_updating: float
    """Seconds of the update, with all its passes over the rollout."""
    operations: float
    """Floating-point operations of acting and updating."""
    speed: float
    """Sustained speed of a large matrix product, in operations per second."""
    shape: Shape
    sample: Sample
    ranks: int = 1
    """Processes that train together; memory is that of one, seconds are those of one alone."""

    @property
    def memory(self) -> int:
        """Bytes at the peak: the permanent parts, and the largest of those that take turns."""
        size = dict.fromkeys(("always", "loading", "acting", "updating"), 0)
        for part in self.parts:
            size[part.when] += part.size
        return size.pop("always") + max(size.values())

    @property
    def seconds(self) -> float:
        """Seconds of one iteration."""
        return self.seconds_acting + self.seconds_updating


def predict(
    config: Config, *, flops: float | None = None, measure: float = 1.0, ranks: int = 1
) -> Plan:
    """Predict memory and time of one iteration, without loading weights.

    Args:
        config: the run.
        flops: sustained speed of matrix products, in operations per second. None measures it.
        measure: seconds to spend on measuring.
        ranks: processes that train together, each on a device of its own.

    Raises:
        HardwareError: the device is not in this machine and no speed is given.
        ConfigError, ModelError: the run could not be started either.
    """
    settings = resolve(config)
    config = settings.config
    speed = matrix_speed(config, measure) if flops is None else flops
    shape = model_shape(config.model, config.env)
    sample = sample_world(settings, *load_codec(config))
    return _plan(config, device_kind(config), speed, shape, sample, ranks)


def _plan(
    config: Config, kind: Kind, speed: float, shape: Shape, sample: Sample, ranks: int
) -> Plan:
    acting, updating, operations = _seconds(config, kind, speed, shape, sample)
    parts = (
        *_weights(config, kind, shape, ranks),
        *_permanent(config, kind, shape, sample),
        *_temporary(config, shape, sample, ranks),
    )
    needed = tuple(part for part in parts if part.size)
    return Plan(needed, kind, acting, updating, operations, speed, shape, sample, ranks)


def plan_of(config: Config, plan: Plan, ranks: int) -> Plan:
    """Predict the same run with so many processes."""
    return _plan(config, plan.kind, plan.speed, plan.shape, plan.sample, ranks)


# --- memory ---------------------------------------------------------------------------------------


def _weights(config: Config, kind: Kind, shape: Shape, ranks: int) -> Iterator[Part]:
    """Yield what holds weights, their gradients and their moments, of one process."""
    number = getattr(torch, config.model.dtype).itemsize
    full = config.model.tuning == "full"
    trained, width = (shape.weights, number) if full else (shape.adapters, 4)
    copied = 0
    if full and (config.critic.apart or config.ppo.kl_reference > 0):
        # A tied head is part of the body. Another head is copied only for the reference.
        copied = shape.weights if config.ppo.kl_reference > 0 else shape.body
    if is_sharded(config, ranks):
        yield from _shards(config, shape, ranks, copied)
    else:
        if config.model.precision == "mixed":
            yield Part("weights as loaded", 4 * shape.weights, "loading", "until they are rounded")
        yield Part("base weights", base_bytes(config, shape), note=_precision(config, shape))
        yield Part("frozen copy", copied * number, note="of the untrained model")
        ranks = 1  # each process keeps all of the following
    each = -(-trained // ranks) * width
    yield Part("adapters", 4 * shape.adapters, note=f"rank {config.model.lora_rank}, float32")
    yield Part("gradients", each, note=f"of {-(-trained // ranks):,} trained weights")
    yield Part("Adam moments", 2 * each, note="two per trained weight")
    own = critic_adapters(config)
    yield Part("critic's adapters", 16 * own, note=f"{own:,} weights, gradients and moments")
    if kind == "cpu" and config.ppo.kl_limit is not None:
        yield Part("trust region", each, note="the trained weights before an update")


def critic_adapters(config: Config) -> int:
    """Count the weights of the critic's own adapters."""
    return adapter_weights(config.model, config.env) if config.critic.body == "adapter" else 0


def is_sharded(config: Config, ranks: int) -> bool:
    """Return whether processes divide the weights among them."""
    return ranks > 1 and config.model.shard != "none"


def _shards(config: Config, shape: Shape, ranks: int, copied: int) -> Iterator[Part]:
    """Yield the weights of one process of many that divide them among each other.

    Args:
        config: the run.
        shape: the model's.
        ranks: the processes.
        copied: weights of the untrained model that are kept.
    """
    kept = getattr(torch, config.model.dtype).itemsize
    number = computed_bytes(config)
    part = -(-shape.weights // ranks)
    yield Part("base weights", part * kept, note=f"1/{ranks} of {_precision(config, shape)}")
    whole = shape.weights * number
    loaded = (shape.weights + copied) * kept
    yield Part(
        "weights as loaded", loaded - part * kept, "loading", "whole, until they are divided"
    )
    yield Part("whole weights", whole, "acting", "put together between updates")
    # Embeddings and head stay whole, with their gradients, and so do two blocks.
    beside = shape.weights - shape.multiplied
    at_work = beside + 2 * -(-shape.multiplied // shape.layers)
    yield Part("weights at work", 2 * at_work * number, "updating", "two blocks and the embeddings")
    blocks, rest = min(copied, shape.multiplied), max(0, copied - shape.multiplied)
    yield Part("frozen copy", (rest + -(-blocks // ranks)) * number, note="of the untrained model")
    yield Part("whole frozen copy", blocks * number, "acting", "put together between updates")


def computed_bytes(config: Config) -> int:
    """Return the bytes of a weight in the precision in which sharded weights are computed."""
    return 2 if config.model.shard == "mixed" else getattr(torch, config.model.dtype).itemsize


def _permanent(config: Config, kind: Kind, shape: Shape, sample: Sample) -> Iterator[Part]:
    """Yield what else stays in memory from the first update to the last."""
    frozen = config.critic.apart
    read = critic_width(shape.width, config.critic) if frozen else shape.width
    sizes = (read, *config.critic.hidden, 1)
    critic = sum((a + 1) * b for a, b in pairwise(sizes))
    # Float32 weight, gradient and two moments are 16 bytes; frozen features are [values, read].
    # Those of the rollout at hand, and copies of those that the critic remembers.
    features = sample.critic_positions * read * 4 * (1 + config.critic.replay) if frozen else 0
    yield Part("critic", 16 * critic + features, note=f"{critic:,} weights, and its input")
    if shape.adapted < shape.layers:
        # As many again while the memory grows.
        tokens = sample.acting_tokens + sample.critic_tokens
        note = f"of the {shape.layers - shape.adapted} layers below all adapters"
        yield Part("remembered states", 8 * shape.width * tokens, note=note)
    name = "libraries" if kind == "cpu" else "CUDA context"
    yield Part(name, OVERHEAD[kind], note="Python, torch, transformers and poad")


def utilization(config: Config, kind: Kind) -> tuple[float, float]:
    """Return the share of the sustained matrix speed that acting and updating reach."""
    return UTILIZATION["mixed" if kind == "cpu" and config.model.precision == "mixed" else kind]


def base_bytes(config: Config, shape: Shape) -> int:
    """Return the bytes of the base weights. Embeddings, norms and head keep their precision."""
    number = getattr(torch, config.model.dtype).itemsize
    if config.model.precision == "mixed":  # linear layers in bfloat16
        return 2 * shape.quantizable + number * (shape.weights - shape.quantizable)
    if config.model.quantize == "none":
        return shape.weights * number
    rest = shape.weights - shape.quantizable
    return math.ceil(shape.quantizable * QUANTIZED[config.model.quantize]) + rest * number


def _precision(config: Config, shape: Shape) -> str:
    number, quantize, dtype = shape.weights, config.model.quantize, config.model.dtype
    count = f"{number / 1e9:.2f} billion" if number >= 1e8 else f"{number:,}"
    if config.model.precision == "mixed":
        quantize = "bfloat16"
    precision = dtype if quantize == "none" else f"{quantize}, rest {dtype}"
    return f"{count} weights, {precision}"


def _temporary(config: Config, shape: Shape, sample: Sample, ranks: int) -> Iterator[Part]:
    """Yield what is in memory of one process only while acting or only while updating.

    The activations of a micro-batch of m tokens take m · c bytes, where c is ``Shape.saved``
    (Korthikanti et al., arXiv 2205.05198, equation 1, without the attention matrices). With
    gradient checkpointing they are a hidden state per layer and token, and c of a single layer.
    """
    number = getattr(torch, config.model.dtype).itemsize
    parts = minibatches(config, sample)
    share = largest_share(sample.prompts / parts, ranks)
    learned = math.ceil(sample.tokens_at_once / parts * share)
    tokens = min(config.ppo.micro_batch_tokens, learned)
    readings = math.ceil(sample.update_positions * tokens / max(1, sample.tokens_at_once))
    row = max(240, 2 * sample.longest) if sample.offered else sample.longest  # as `pack` fills them
    each = shape.saved
    if config.model.gradient_checkpointing:
        each = shape.layers * shape.width * number + math.ceil(each / shape.layers)
    # The backward pass's largest results; the mask, one byte and one number per pair in a row.
    working = 2 * shape.feed * number + row * (1 + number)
    unpacked = shape.largest * number if config.model.quantize != "none" else 0
    note = f"{tokens:,} tokens" + (", layer by layer" * config.model.gradient_checkpointing)
    yield Part("activations", tokens * (each + working) + unpacked, "updating", note)
    copies = LOGITS[sample.offered and config.acting.scheme == "trie"]
    size = readings * shape.vocabulary * (4 * copies + 2 * number)
    if sample.few_logits:
        size = 0
    yield Part("logits", size, "updating", f"{readings:,} positions, float32")
    yield from _acting(config, shape, sample, number, unpacked, ranks)


def largest_share(pieces: float, ranks: int) -> float:
    """Return the share of the work of the busiest of some ranks that divide equal pieces."""
    pieces = max(1, round(pieces))
    return -(-pieces // ranks) / pieces


def _acting(
    config: Config, shape: Shape, sample: Sample, number: int, unpacked: int, ranks: int
) -> Iterator[Part]:
    """Yield what a pass of acting needs; ``number`` and ``unpacked`` are in bytes."""
    # While acting no row waits for another. An evaluation may play more of them than training.
    evaluated = min(config.eval.streams, -(-config.eval.episodes // ranks))
    rows = max(-(-config.streams // ranks), evaluated)
    drawn = math.ceil(sample.acting_logits * rows / config.streams)
    read = min(rows, sample.prompts)
    rows = read if sample.offered else rows
    if not sample.offered or config.acting.scheme == "trie":  # other schemes keep no cache
        # Where prompts grow, finished rows are kept next to those that continue them.
        copies = 2 if config.prompt.history == "episode" or config.prompt.thinking else 1
        cached = copies * rows * sample.longest * shape.cached * number
        yield Part("KV cache", cached, "acting", f"{rows} rows of {sample.longest} tokens")
    tokens = min(read * sample.longest, max(config.ppo.micro_batch_tokens, sample.longest)) + drawn
    hidden = tokens * (4 * shape.width + 3 * shape.feed) * number + rows * sample.longest**2
    logits = drawn * shape.vocabulary * SAMPLING[sample.offered]
    note = f"hidden states and {drawn:,} x {shape.vocabulary:,} logits"
    yield Part("forward pass", hidden + logits + unpacked, "acting", note)


# --- time -----------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What one iteration computes, and what each of its passes costs in any case."""

    acting: float
    """Floating-point operations of acting."""
    updating: float
    """Floating-point operations of the update."""
    repeated: float
    """Operations that gradient checkpointing repeats, beside those."""
    latency: float
    """Seconds of a forward pass, even of one token."""


def work(config: Config, kind: Kind, speed: float, shape: Shape, sample: Sample) -> Work:
    """Count the operations of one iteration.

    A forward pass takes 2 operations per token and weight, a backward pass 2 through every layer
    and 2 more for each trained weight (Kaplan et al., arXiv 2001.08361, section 2.1). Attention
    scores are left out. What gradient checkpointing computes again takes time, but the count of
    operations does not include it.
    """
    # Of a token that is read again, only the layers from the first that is trained on.
    per_new_token, per_reading = 2 * shape.multiplied, 0 if sample.few_logits else 2 * shape.head
    per_token = per_new_token * shape.adapted // shape.layers
    trained = 2 * (shape.multiplied if config.model.tuning == "full" else shape.adapters)
    forward = per_token * sample.update_tokens + per_reading * sample.update_positions
    act = per_new_token * sample.acting_tokens + per_reading * sample.update_positions
    step = 2 * forward + trained * sample.update_tokens
    if config.model.tuning == "full":
        step += per_reading * sample.update_positions
    ppo = config.ppo
    around = passes_around(config)
    features, own = per_token * sample.critic_tokens, critic_adapters(config)
    passes = config.critic.adapter_epochs if own else 0
    update = step * ppo.epochs + forward * around + features
    update += passes * (2 * features + 2 * own * sample.critic_tokens)
    recomputed = 0
    if config.model.gradient_checkpointing:
        recomputed = forward * ppo.epochs + features * passes
    # A pass waits for every layer to be launched, and for all weights to be read from memory.
    weights = base_bytes(config, shape) * INTENSITY[kind] / speed
    return Work(act, update, recomputed, shape.layers * LAYER_SECONDS[kind] + weights)


def step_seconds(config: Config, kind: Kind, speed: float, shape: Shape, sample: Sample) -> float:
    """Predict the seconds of clipping and of the optimizer in an update of the policy."""
    full = config.model.tuning == "full"
    size = shape.weights * getattr(torch, config.model.dtype).itemsize if full else 0
    steps = config.ppo.epochs * minibatches(config, sample)
    return steps * STEP * (size or 4 * shape.adapters) * INTENSITY[kind] / speed


def passes_around(config: Config) -> int:
    """Count an update's forward passes over the policy's decisions beside its gradient steps.

    They find fresh and reference log-probabilities, the policy after the last step, and the scores
    of decisions, from which λ is chosen and the regression inside actions learns.
    """
    ppo, credit = config.ppo, resolve(config).credit
    compared = ppo.recompute_logprob or config.model.lora_dropout > 0
    scored = config.credit.regress > 0 or credit.fitted or credit.rates.trace == "bit"
    return compared + (ppo.kl_reference > 0) + (ppo.kl_limit is not None) + scored


def waits(config: Config, passes: int) -> int:
    """Count how often an update waits for a pass, if one over the rollout takes so many.

    A backward pass waits about twice as long as a forward pass. The critic's values take one more.
    """
    epochs = config.ppo.epochs + (config.critic.adapter_epochs if critic_adapters(config) else 0)
    return passes * (3 * epochs + passes_around(config) + 1)


def minibatches(config: Config, sample: Sample) -> int:
    """Return the number of gradient steps in a pass over a rollout."""
    return max(1, min(config.ppo.minibatches, sample.prompts))


def _seconds(
    config: Config, kind: Kind, speed: float, shape: Shape, sample: Sample
) -> tuple[float, float, float]:
    """Predict the seconds of acting and of updating in one process, and the operations of both."""
    each = work(config, kind, speed, shape, sample)
    share_acting, share_updating = utilization(config, kind)
    turns = TURN_SECONDS * sample.turns
    acting = each.acting / speed / share_acting + sample.acting_passes * each.latency + turns
    passes = waits(config, sample.update_passes)
    computing = (each.updating + each.repeated) / speed / share_updating
    computing += step_seconds(config, kind, speed, shape, sample)
    return acting, computing + passes * each.latency + turns, each.acting + each.updating


# --- what to change -------------------------------------------------------------------------------


class Change(NamedTuple):
    """A setting that would save memory."""

    setting: str
    memory: int
    """Bytes at the peak with this setting and all else unchanged."""


def changes(config: Config, plan: Plan) -> list[Change]:
    """List settings that would save at least 1 % of the peak, the largest saving first."""
    config = resolve(config).config
    found = []
    for setting, other in _alternatives(config, plan.ranks):
        shape, sample = plan.shape, plan.sample
        if other.model != config.model:
            shape = model_shape(other.model, other.env)
        if (other.streams, other.critic) != (config.streams, config.critic):
            sample = sample_world(resolve(other), *load_codec(other))
        memory = _plan(other, plan.kind, plan.speed, shape, sample, plan.ranks).memory
        if memory < 0.99 * plan.memory:
            found.append(Change(setting, memory))
    return sorted(found, key=lambda change: change.memory)


def _alternatives(c: Config, ranks: int) -> Iterator[tuple[str, Config]]:
    """Yield what to try: settings as they are written, and the whole configuration."""
    full, half = c.model.tuning == "full", c.streams // 2
    lora = {"model.tuning": "lora"} | ({"model.shard": "none"} if c.model.shard != "none" else {})
    tokens = max(2048, c.ppo.micro_batch_tokens // 4)
    for useful, settings in (
        (full, lora),
        (full and ranks > 1 and c.model.shard == "none", {"model.shard": "full"}),
        (c.model.dtype == "float32" and c.model.shard != "mixed", {"model.dtype": "bfloat16"}),
        (c.model.quantize != "4bit", {"model.quantize": "4bit"} | (lora if full else {})),
        (not c.model.gradient_checkpointing, {"model.gradient_checkpointing": True}),
        (c.ppo.micro_batch_tokens > 2048, {"ppo.micro_batch_tokens": tokens}),
        (c.streams > 1, {"streams": half, "eval.streams": min(half, c.eval.streams)}),
        (full and c.critic.apart, {"critic.body": "shared"}),
    ):
        if useful:
            written = ", ".join(f"{name} = {value}" for name, value in settings.items())
            yield written.replace("True", "true"), from_dict(nested(settings), c)


# --- comparison with a run ------------------------------------------------------------------------


def compare(plan: Plan, metrics: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Compare a prediction with what this process has measured in the iterations of ``metrics``.

    Returns bytes at the peak and median seconds per iteration, each predicted and measured. On a
    GPU both leave out the CUDA context, which torch does not count. A prediction counts all passes
    of an update, so iterations that ``ppo.kl_stop`` cut short are left out if others were not.
    """
    rows = list(metrics)
    most = max((row.get("passes", 0.0) for row in rows), default=0.0)
    whole = [row for row in rows if row.get("passes", 0.0) == most]
    seconds = [row["collect_seconds"] + row["update_seconds"] for row in whole]
    uncounted = OVERHEAD["cuda"] if plan.kind == "cuda" else 0
    return {
        "predicted_memory": plan.memory - uncounted,
        "measured_memory": peak_memory(plan.kind),
        "predicted_seconds": round(plan.seconds, 4),
        "measured_seconds": round(median(seconds), 4) if seconds else None,
    }


def hindsight(config: Config, metrics: Iterable[Mapping[str, float]]) -> dict[str, Any] | None:
    """Compare a finished run with its prediction; None if there is no prediction."""
    try:
        peak = peak_memory(device_kind(config))  # measured first: predicting takes memory, too
        return compare(predict(config, measure=0.05), metrics) | {"measured_memory": peak}
    except Exception:  # a note in the summary must never cost anyone their run
        return None
