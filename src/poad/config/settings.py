"""The settings of a run, as frozen dataclasses.

The docstring below a field is also its help text on the command line. A range stands in the field's
annotation. A configuration never changes: ``dataclasses.replace`` makes another one.
"""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from poad.config.ranges import Above, AtLeast, Between, out_of_range
from poad.errors import ConfigError

SEEDS_PER_RUN = 1_000_003
"""Training episodes use the seeds from (2 + run seed) * 1,000,003 on, so that no two runs share
them and none of them is an evaluation episode (those start at 1,000,000)."""
_WORKERS = r"serial|(threads|processes|ray):([1-9][0-9]{0,5})"
"""The form of the setting `workers`, as a regular expression."""
_LAST_SEED = 2**63 - 1
"""Beyond this, torch takes no seed."""


def world_seed(seed: int) -> int:
    """Fold the seed of an episode into [0, 2³²), since some worlds accept no others.

    Smaller seeds stay as they are. The others go where no evaluation episode lies, and neighbours
    stay apart.
    """
    first = 2 * SEEDS_PER_RUN
    return seed if seed < 2**32 else first + (seed - first) % (2**32 - first)


@dataclass(frozen=True)
class ModelConfig:
    """The language model that acts."""

    name: str = "auto"
    """An embedded model (`auto` selects the one for the world), a model that `poad models` lists, a
    local directory or .gguf file, or a model name on the Hugging Face hub. `~` stands for your home
    directory."""
    tuning: Literal["full", "lora"] = "full"
    """`full` trains every weight. `lora` trains low-rank adapters on frozen weights."""
    lora_rank: Annotated[int, Above(0)] = 8
    """Rank of the adapters (paper: 8)."""
    lora_alpha: Annotated[int, Above(0)] = 16
    """Scale of the adapters. Their output is multiplied by alpha / rank (paper: 16)."""
    lora_dropout: Annotated[float, Between(0, 1)] = 0.0
    """Dropout probability for the inputs of the adapters, in gradient steps only."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get adapters. Empty selects the query and value projections, as in
    the paper; `all-linear` selects every linear layer but the head."""
    lora_layers: Annotated[int | None, Above(0)] = None
    """Adapt at most this many transformer blocks, counted from the last. What the blocks below
    compute never changes, so an iteration computes it once per token. None adapts all blocks."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the model's weights. Adapters and critic are always float32."""
    precision: Literal["auto", "full", "mixed"] = "full"
    """`full` computes in the precision of the weights. `mixed` rounds the factors of products with
    frozen float32 weights to bfloat16, and computes everything else in float32. `auto` measures
    whether that is faster here. Only `lora` has frozen weights."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Store the frozen weights in 8 bits, or in 4 bits (NF4), and train adapters on them (QLoRA).
    Requires the extra `poad[quantize]`."""
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Attention kernel. Architectures without `sdpa` compute attention step by step (`eager`).
    `flash_attention_2` needs a GPU and does not support custom masks, so actions that share a
    prompt get separate rows."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them. This saves memory and
    takes about a third more time."""
    shard: Literal["none", "full", "mixed"] = "none"
    """In several processes: divide the trained weights, their gradients and moments among them
    (FSDP), block by block. `full` computes in the precision of the weights. `mixed` keeps float32
    weights and computes in bfloat16. In one process it has no effect (docs/scaling.md)."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` and so on. `auto` uses a GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Set it only for code that you have read."""

    def __post_init__(self) -> None:
        """Expand `~`, which a shell leaves alone in a file and behind an equals sign."""
        if isinstance(self.name, str) and self.name.startswith("~"):
            object.__setattr__(self, "name", os.path.expanduser(self.name))


def has_frozen_float32(model: ModelConfig) -> bool:
    """Return whether a model keeps frozen weights in float32, which `precision` is about."""
    return model.tuning == "lora" and model.dtype == "float32" and model.quantize == "none"


@dataclass(frozen=True)
class PromptConfig:
    """How an observation becomes the model's prompt."""

    format: Literal["plain", "chat"] = "plain"
    """`plain` uses the text of the world as it is. `chat` applies the model's chat template."""
    system: str | None = None
    """Text before everything else: the system message of a chat, or the first lines of a plain
    prompt. None leaves a chat template its own, which some have; an empty text removes that."""
    examples: tuple[tuple[str, str], ...] = ()
    """Example turns before the first real one. Each is a pair of an observation and an action."""
    history: Literal["none", "last", "episode"] = "none"
    """Earlier turns in the prompt: none, the last few (see `last`), or the whole episode as one
    growing sequence, whose beginning is computed only once."""
    last: Annotated[int, Above(0)] = 4
    """Number of earlier turns in the prompt if history is `last`."""
    date: str = "2024-07-26"
    """Date that chat templates show as today's, as year-month-day, so that a run is the same
    tomorrow. The default is what Llama's templates show where there is no clock."""
    control_tokens: bool = False
    """Let names of control tokens in a world's text, such as `<|im_end|>`, become these tokens. If
    not, they are spelled out, so that a world cannot end its turn or speak for the agent."""
    thinking: Annotated[int, AtLeast(0)] = 0
    """Number of tokens that the agent may write before each action. They are trained like the
    tokens of the action."""
    thinking_open: str = "<think>\n"
    """Text that opens the agent's thoughts."""
    thinking_close: str = "\n</think>\n\n"
    """Text that closes the agent's thoughts. It is appended when the token budget is used up."""


@dataclass(frozen=True)
class ActingConfig:
    """How text becomes an action."""

    scheme: Literal["auto", "trie", "score", "published"] = "auto"
    """`trie` samples an offered action token by token, `score` by its whole-action score, and
    `published` by score with token-level ratios, as the paper's code does. `auto` takes the
    method's own. It has no effect where a world offers no actions."""
    score: Literal["auto", "word", "token", "sum"] = "auto"
    """Whole-action score: the mean log-probability per word (TWOSOME) or per token, or the sum
    (GLAM). `auto` takes the method's own."""
    score_end: bool = False
    """Include the end-of-action token in whole-action scores."""
    temperature: Annotated[float, Above(0)] = 1.0
    """Divides the logits, in sampling and in training. A pretrained model may all but exclude some
    of the offered actions; a temperature of 2 to 5 gives them a chance."""
    temperature_free: Annotated[float | None, Above(0)] = None
    """Temperature of tokens that are written freely, thoughts included. None takes `temperature`,
    which has to be near 1 then."""
    engine: Literal["own", "transformers", "vllm"] = "own"
    """Who writes freely during training: the decoder of poad, the continuous batching of
    transformers (a paged cache, for many long rows on a GPU), or a vLLM server (see `vllm`).
    Evaluations and choices among offered actions use poad's."""
    max_action_tokens: Annotated[int | None, Above(0)] = None
    """Token limit of a freely written action. The action ends there; the episode goes on. None
    takes the limit of the world, or 64."""
    stop: tuple[str, ...] | None = None
    """Texts that end a freely written action, besides the model's end token. None takes those of
    the world, or the end of the line."""


@dataclass(frozen=True)
class CreditConfig:
    """The credit method and its discounts."""

    method: str = "poad"
    """Token credit: `poad`, `ntpo` (discounts tokens), `archer_adrl` or `reinforce` (no critic).
    Action credit: `twosome`, `glam` or `turn_ppo`. Groups of episodes: `grpo` or `gigpo`.
    A `poad.credit.Method` of your own: `package.module:NAME`."""
    gamma: Annotated[float, Between(0, 1)] = 0.99
    """Discount γ between actions: per primitive step, or per action if discount is `turn`."""
    discount: Literal["duration", "turn"] = "duration"
    """`duration` discounts by γ to the power of the action's primitive steps (semi-Markov). `turn`
    discounts by γ once per action. They differ only where actions take several steps."""
    lam: Annotated[float, Between(0, 1)] = 0.95
    """λ of the advantage trace between actions."""
    lam_token: Annotated[float | None, Between(0, 1)] = None
    """λ between the tokens of an action. None takes 1, so that credit does not depend on an
    action's length, or `lam` for methods that discount tokens (ntpo, archer_adrl)."""
    lam_actor: Annotated[float, Between(0, 1)] | Literal["auto"] | None = None
    """λ inside an action for the policy's advantages alone, while the critic's targets keep
    `lam_token`. None takes `lam_token`. `auto` takes the λ whose gradients have pointed best along
    those of λ = 1 of other turns: below 1 once the critic knows the inside of actions, and 1 where
    it is silent or wrong. Only for methods that credit tokens."""
    trace: Literal["token", "bit"] = "token"
    """`lam_actor` acts once per decision (`token`), or once per bit of the decision's entropy
    (`bit`), so that decisions that are nearly made already cost nothing."""
    beta: Annotated[float, Between(0, 1)] = 1.0
    """Share β of the critic's inner values: the policy's advantages use
    V(o) + β·(V(o, w_<j) - V(o))."""
    regress: Annotated[int, AtLeast(0)] = 0
    """How many of the newest turns a regression learns from what each decision added to the
    advantage of its action; 0 leaves credit as the method gives it. 512 suit actions of many
    decisions. Memory and time grow with its square and its cube."""
    rest: Annotated[float, Between(0, 1)] = 0.1
    """Share of what `regress` leaves unexplained of an action's advantage that each of its
    decisions gets."""
    gamma_token: Annotated[float | None, Between(0, 1)] = None
    """Discount γ_w between the tokens of an action. None takes the method's own: 1 for poad, γ for
    ntpo."""
    group: Annotated[int, AtLeast(2)] = 8
    """Streams that begin the same episodes, which `grpo` and `gigpo` compare. It must divide
    `streams`; other methods ignore it."""
    slots: Literal["auto", "choices", "tokens"] = "auto"
    """Tokens that count as decisions: those with an alternative (`choices`), or all of them
    (`tokens`, as in the paper's code). `auto` takes the method's own."""

    @property
    def label(self) -> str:
        """The method's name as part of a file name: `package.module.NAME` without the colon."""
        return re.sub(r"[^\w.-]", ".", self.method)


@dataclass(frozen=True)
class CriticConfig:
    """The critic, which estimates the value of a prompt and the beginning of an action."""

    body: Literal["frozen", "adapter", "shared"] = "frozen"
    """`frozen` reads the last hidden state of the untrained model (paper). `adapter` adds low-rank
    adapters to it, which the critic alone trains and reads; the policy never does. `shared` reads
    the trained model, and its gradient trains that model too."""
    adapter_lr: Annotated[float, AtLeast(0)] = 1e-3
    """Learning rate of the critic's adapters. Only with `body = adapter`; their shape is that of
    `model.lora_rank`, `lora_alpha`, `lora_targets` and `lora_layers`."""
    adapter_epochs: Annotated[int, Above(0)] = 1
    """Passes over a rollout in which these adapters learn, in `critic.minibatches` steps each. They
    read the whole model again, so each costs about as much as one of the policy's passes."""
    hidden: tuple[Annotated[int, Above(0)], ...] = (256,)
    """Widths of the hidden layers (paper: 1024 512)."""
    standardize: bool = False
    """Shift and scale each dimension of what the critic reads to mean 0 and variance 1, by
    statistics over all rollouts so far. Only with a frozen body."""
    root: bool = False
    """Read the hidden state at the root of the action beside the one at the position. Only with a
    frozen body."""
    codes: Annotated[int, AtLeast(0)] = 0
    """Dimensions of random codes that tell the critic which tokens of the action are written
    already; 64 is plenty for short texts, and 0 leaves them out. Only with a frozen body."""
    lr: Annotated[float, Above(0)] = 3e-4
    """Learning rate of the critic (paper, 7B model: 1e-5 to 5e-5)."""
    replay: Annotated[int, Above(0)] = 1
    """Rollouts, the newest included, that the critic learns from. Only with a frozen body."""
    epochs: Annotated[int, Above(0)] = 4
    """How many times the readings of a rollout are drawn from those remembered. These passes are
    the critic's own: the policy's KL stop does not end them, and its annealing does not slow them
    down. A shared body learns in the policy's passes instead."""
    minibatches: Annotated[int, Above(0)] = 2
    """Gradient steps per pass over the cached features of a frozen body."""
    warmup: Annotated[int, AtLeast(0)] = 0
    """Iterations at the beginning in which only the critic learns. Only with a frozen body."""
    pretrain: str = ""
    """A run in the same world, whose recorded episodes the critic learns from before the first
    iteration. It may be of any method. Empty names none. Not with a shared body."""
    coefficient: Annotated[float, AtLeast(0)] = 0.5
    """Weight of the value loss (paper: 0.5). Only with a shared body."""
    clip: Annotated[float | None, Above(0)] = None
    """Largest change of a value in one update that still lowers the loss (PPO's value clipping).
    None turns clipping off. Only with a shared body."""

    @property
    def apart(self) -> bool:
        """True if the critic reads the untrained model, and not the policy's."""
        return self.body != "shared"


@dataclass(frozen=True)
class PPOConfig:
    """The learner: clipped PPO over decisions."""

    lr: Annotated[float, Above(0)] = 5e-4
    """Learning rate of the policy (paper, 7B model: 5e-7 to 1e-6). On a tiny model, LoRA needs a
    rate about ten times higher than full tuning."""
    anneal: bool = True
    """Decrease both learning rates linearly to 0 over the run."""
    epochs: Annotated[int, Above(0)] = 4
    """Passes over a rollout (paper: 5 with offered actions, 1 for code)."""
    minibatches: Annotated[int, Above(0)] = 2
    """Gradient steps per pass. A minibatch is a share of the distinct prompts, because identical
    prompts share a forward pass."""
    clip: Annotated[float, Above(0)] = 0.2
    """Distance from 1 at which the gradient of a probability ratio stops (paper: 0.2)."""
    ratio: Literal["token", "turn"] = "token"
    """`token` forms one ratio per decision, `turn` one per action, as the product over its
    decisions. Entropy, divergences and their limits are then those of whole actions, too. `turn`
    needs a method with one advantage per action, such as turn_ppo."""
    kl_stop: Annotated[float | None, Above(0)] = 0.05
    """End an update when its approximate KL divergence exceeds this (paper: 0.02). None never
    does."""
    kl_limit: Annotated[float | None, Above(0)] = 0.2
    """Shorten an update that would end at a larger approximate KL divergence than this, and lower
    the rate of those that follow. Where there are few prompts, or small steps change a model
    much, one step can be too large to stop after it. None never does."""
    entropy: Annotated[float, AtLeast(0)] = 0.05
    """Weight of the entropy bonus over the admissible tokens (paper: 1e-4 to 1e-2). If it is too
    small, an agent that has found no reward stops exploring; see docs/training.md."""
    entropy_free: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the entropy bonus over the whole vocabulary, for free writing and for the scheme
    `published`. Even small values destroy what a small model writes."""
    std_floor: Annotated[float, Above(0)] = 0.1
    """Advantages are divided by their standard deviation, or by this if it is larger. The floor
    keeps nearly constant returns from being amplified to noise."""
    return_floor: Annotated[float, AtLeast(0)] = 0.0
    """A floor relative to the standard deviation of all returns so far, of which the larger counts.
    With a small `std_floor`, it suits any scale of rewards. At 1, a better critic makes advantages
    smaller, where otherwise the entropy bonus would be worth less."""
    max_grad_norm: Annotated[float, Above(0)] = 0.5
    """Clip the gradient norm of the policy, and that of the critic, to this (paper: 0.5)."""
    micro_batch_tokens: Annotated[int, Above(0)] = 16_384
    """Tokens per forward pass, padding included, in learning and in acting. A larger minibatch
    accumulates gradients over several passes."""
    recompute_logprob: bool = False
    """Recompute the old log-probabilities before an update instead of using those recorded while
    sampling."""
    importance_cap: Annotated[float | None, Above(0)] = None
    """With recompute_logprob: weight each term by its recomputed over its recorded probability, at
    most by this (truncated importance sampling). For samplers that differ from the learner."""
    drift_stop: Annotated[float | None, Above(0)] = 0.1
    """Stop with an error if sampler and learner differ in log-probability by more than this on
    average before the first step of an update. None never does."""
    kl_reference: Annotated[float, AtLeast(0)] = 0.0
    """Weight of a KL penalty that keeps the policy close to the untrained model."""


@dataclass(frozen=True)
class EvalConfig:
    """The evaluation of the agent."""

    episodes: Annotated[int, AtLeast(0)] = 100
    """Episodes of the final evaluation, in each of two modes: sampled and greedy. 0 skips it."""
    every: Annotated[int, AtLeast(0)] = 0
    """Evaluate after every so many iterations as well. 0 evaluates only at the end."""
    seed: Annotated[int, Between(0, _LAST_SEED)] = 1_000_000
    """Seed of the first evaluation episode. The following episodes count up from it."""
    streams: Annotated[int, Above(0)] = 64
    """Episodes that are played in parallel."""
    turns: bool = True
    """Record every turn of the episodes. Recording only their results takes a tenth of the time
    and almost no disk space."""
    max_turns: Annotated[int, AtLeast(0)] = 0
    """Cut an episode of an evaluation off after so many turns, without success. 0 never does: the
    world must end each episode by itself."""


@dataclass(frozen=True)
class TrackingConfig:
    """How trackers file a run. Environment variables of wandb, such as WANDB_PROJECT, win."""

    project: str = "poad"
    """The project."""
    name: str | None = None
    """The name of the run, by default that of its directory."""
    group: str | None = None
    """A group of runs that belong together, for example the seeds of a method."""
    entity: str | None = None
    """The user or team of wandb."""
    tags: tuple[str, ...] = ()
    """Tags of wandb."""


@dataclass(frozen=True)
class VllmConfig:
    """The vLLM server that writes, if `acting.engine` is `vllm` (docs/scaling.md)."""

    url: str = "http://127.0.0.1:8000"
    """Address of the server. If it needs a key, poad takes it from the environment variable
    VLLM_API_KEY."""
    folder: str = ""
    """Directory in which the adapters are handed over. The server must see it under the same path.
    Empty makes a temporary one, for a server on the same machine."""
    timeout: Annotated[float, Above(0)] = 600.0
    """Seconds that the server may take for an action, or to load the adapters."""


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Raises:
        ConfigError: settings that are out of range or contradict each other. The message lists all
            of them.
    """

    env: str = "poad/TomatoSalad-v0"
    """Name of the world, as `poad envs` lists them, or `package.module:EnvId` for your own."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world's constructor. Each value is read as YAML."""
    seed: Annotated[int, Between(0, _LAST_SEED)] = 0
    """Seed of all random numbers of the run."""
    steps: Annotated[int, Above(0)] = 12_288
    """Turns to train for, over all streams. The last iteration is always a whole one."""
    streams: Annotated[int, Above(0)] = 16
    """Episodes that are played in parallel (N)."""
    horizon: Annotated[int, Above(0)] = 32
    """Turns per stream and iteration (T)."""
    randomness: Literal["auto", "shared", "stream"] = "auto"
    """Where streams take random numbers and episodes from: one source for all (`shared`), or one
    for each (`stream`), so that a stream is the same whichever process plays it. `auto` takes
    `stream`, except with the engine of transformers. Only with `stream` can a run go on in another
    number of processes, and worlds of a rollout play on without waiting for each other."""
    workers: str = "serial"
    """Where worlds work: one after the other (`serial`), or up to N at the same time, each in a
    thread (`threads:N`), a process (`processes:N`) or an actor of a Ray cluster (`ray:N`) of its
    own. Results are the same to the last bit. Threads suit worlds that wait for something;
    processes suit worlds that compute in Python or have global state (docs/scaling.md)."""
    step_timeout: Annotated[float, AtLeast(0)] = 0.0
    """Seconds that a step of a world may take. Then the world has failed. 0 waits forever."""
    reset_timeout: Annotated[float, AtLeast(0)] = 0.0
    """Seconds that opening a world or beginning an episode may take. 0 waits forever."""
    on_world_error: Literal["stop", "restart"] = "stop"
    """What a training does when a world fails. `stop` saves a checkpoint and ends. `restart` breaks
    the episode off, opens the world anew, and counts (`world_errors`). Evaluations always count
    such episodes as failed and go on."""
    world_error_limit: Annotated[float, Between(0, 1)] = 0.1
    """With `restart`, the largest share of the last 100 episodes whose world may fail. Beyond it,
    the training stops, as with `stop`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    checkpoint_every: Annotated[int, AtLeast(0)] = 10
    """Iterations between checkpoints. 0 writes one only at the end, as every run does."""
    checkpoint_minutes: Annotated[float, AtLeast(0)] = 30.0
    """Minutes after which a checkpoint is written in any case, at the end of an iteration. 0 leaves
    it to `checkpoint_every`."""
    keep_checkpoints: Annotated[int, Above(0)] = 2
    """Number of checkpoints to keep. Older ones are deleted, except the best by evaluation
    (`eval.every`)."""
    threads: Annotated[int, AtLeast(0)] = 1
    """CPU threads of torch. 1 is fastest for tiny models; 0 leaves the choice to torch."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Services that receive a copy of the metrics. Each requires the extra of its name."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        """Check ranges, then the rules that involve several settings."""
        wrong = [*out_of_range(self), *(message for bad, message in _rules(self) if bad)]
        if wrong:
            raise ConfigError("This configuration cannot be used:\n  " + "\n  ".join(wrong))


def _rules(c: Config) -> list[tuple[bool, str]]:
    """Rules that no range expresses: whether each is broken, and its message."""
    full, capped = c.model.tuning == "full", c.ppo.importance_cap is not None
    return [
        (
            full and c.model.quantize != "none",
            f"model.quantize = {c.model.quantize}: quantized weights cannot be trained themselves; "
            "set model.tuning = lora.",
        ),
        (
            full and c.model.dtype == "float16",
            "model.dtype = float16: weights would underflow in full training; use bfloat16 or "
            "float32, or set model.tuning = lora.",
        ),
        (
            c.model.precision == "mixed" and not has_frozen_float32(c.model),
            "model.precision = mixed: requires frozen float32 weights: model.tuning = lora, "
            "model.dtype = float32 and model.quantize = none.",
        ),
        (
            not full and c.model.shard != "none",
            f"model.shard = {c.model.shard}: adapters are small, and every process keeps them "
            "whole; set model.shard = none, or model.tuning = full.",
        ),
        (
            c.model.shard == "mixed" and c.model.dtype != "float32",
            f"model.shard = mixed: keeps weights in float32, but model.dtype = {c.model.dtype}; "
            "set model.dtype = float32, or model.shard = full.",
        ),
        (
            full and c.model.lora_dropout > 0,
            "model.lora_dropout: there are no adapters with model.tuning = full.",
        ),
        (
            capped and not c.ppo.recompute_logprob,
            "ppo.importance_cap: requires ppo.recompute_logprob, which computes the probabilities "
            "that it compares.",
        ),
        (not c.prompt.thinking_close.strip(), "prompt.thinking_close: must not be blank."),
        (
            c.randomness == "stream" and c.acting.engine == "transformers",
            f"acting.engine = {c.acting.engine}: draws for all streams at once; set randomness = "
            "shared, in one process.",
        ),
        (
            re.fullmatch(_WORKERS, c.workers) is None,
            f"workers = {c.workers}: write serial, or threads:N, processes:N or ray:N with a "
            "whole number N from 1, for example threads:8.",
        ),
        ("" in (c.acting.stop or ()), "acting.stop: an empty text would end every action at once."),
    ]
