"""Measure one iteration with large models of random weights against the published style.

The models are a Llama of 7B parameters and a model of 0.5B parameters, both in bfloat16 with LoRA.
There are three tasks: the kitchen, where prompts repeat; the order desk, where no prompt repeats,
which is the worst case for our savings; and programs written freely, each for another prompt.

Ours is one iteration of the Trainer. The rival computes the same turns like the trainers published
with TWOSOME and POAD. Every turn is a padded row, with the prompt repeated for each offered action.
There are logits over the whole vocabulary at every column, acting has no cache, and values and the
untrained model take separate passes in every epoch. iteration.py checks that this style has our
losses. Here only the cost matters, so the loss is a plain policy gradient. Both process the same
number of tokens at a time.

Both sides are credited with the same work, the necessary minimum: 2 operations per weight and token
in the forward pass, 2 in the backward pass through frozen weights, and 2 per trained weight. Each
prompt counts once per pass, and padding does not count. The share is relative to the speed of
matrix products measured on this machine.

python benchmarks/large_models.py            # one GPU with 80 GB
python benchmarks/large_models.py --small    # tiny shapes on the CPU, under two minutes
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import order_desk
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

import poad
from poad.config import ActingConfig, Config, CriticConfig, ModelConfig, PPOConfig
from poad.learn import Trainer
from poad.plan import Shape, matrix_speed, model_shape
from poad.turns import TokenIds, Turn

ASSETS = Path(poad.__file__).parent / "assets"
PROGRAMS = "benchmarks/Programs-v0"
HEADINGS = (
    "model",
    "task",
    "side",
    "env steps/s",
    "tokens/s",
    "peak memory",
    "acting, s",
    "updating, s",
    "share acting",
    "share updating",
    "speed-up",
)
SHAPES: dict[str, Any] = {
    "7B": lambda: LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=11008,
        vocab_size=32000,
    ),
    "0.5B": lambda: Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "small": lambda: LlamaConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=344,
        vocab_size=2000,
    ),
}


class Programs(gym.Env[str, str]):
    """Asks for a different program each turn. The reward is proportional to the action's length."""

    def __init__(self, lines: int = 16) -> None:
        self.lines = lines
        self.observation_space = Text(max_length=80 * (lines + 1))
        self.action_space = Text(max_length=4096)
        self.running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Ask for the first program."""
        super().reset(seed=seed)
        self.turns, self.running = 0, True
        return self._ask(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Reward the action and ask for the next program."""
        if not self.running:
            raise ResetNeeded("No episode is running; call reset() before step().")
        self.turns += 1
        over, self.running = self.turns == 4, self.turns < 4
        reward = min(1.0, len(action) / 400)
        info = {"episode": {"r": reward, "l": self.turns, "success": reward > 0.5}} if over else {}
        return self._ask(), reward, over, False, info

    def _ask(self) -> str:
        columns = [
            f"# column {i}: mean {self.np_random.normal():.3f}, most {self.np_random.random():.3f}"
            for i in range(self.lines)
        ]
        return "\n".join([*columns, "def classify(table):"])


if PROGRAMS not in gym.registry:
    gym.register(PROGRAMS, entry_point=f"{__name__}:Programs", order_enforce=False)


@dataclass(frozen=True)
class Task:
    """A world, with the embedded model whose tokenizer knows its words."""

    world: str
    tokenizer: str
    epochs: int
    """As in the paper: 5 with offered actions, 1 with programs."""


TASKS = {
    "kitchen": Task("poad/TomatoLettuceSalad-v0", "tiny-kitchen", 5),
    "order desk": Task(order_desk.WORLD, "tiny-kitchen", 5),
    "programs": Task(PROGRAMS, "tiny-code", 1),
}


def build(shape: str, tokenizer: str, dtype: str, device: str, folder: Path) -> Path:
    """Write a model of random weights with an embedded tokenizer to a directory."""
    path = folder / f"{shape}-{tokenizer}"
    if path.exists():
        return path
    words = AutoTokenizer.from_pretrained(ASSETS / tokenizer)
    config = SHAPES[shape]()
    config.bos_token_id = None
    config.eos_token_id, config.pad_token_id = words.eos_token_id, words.pad_token_id
    torch.manual_seed(0)
    with torch.device(device):
        causal = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    causal.save_pretrained(path)
    words.save_pretrained(path)
    return path


def settings(path: Path, task: Task, options: argparse.Namespace) -> Config:
    """Configure one minibatch, for as many tokens at a time as possible, and no early stop."""
    return Config(
        env=task.world,
        streams=options.streams,
        horizon=options.steps,
        model=ModelConfig(
            name=str(path), tuning="lora", dtype=options.dtype, device=options.device
        ),
        acting=ActingConfig(max_action_tokens=options.action_tokens),
        critic=CriticConfig(hidden=(1024, 512), lr=1e-5),
        ppo=PPOConfig(
            lr=1e-6,
            epochs=task.epochs,
            minibatches=1,
            kl_stop=None,
            drift_stop=None,
            micro_batch_tokens=options.micro_batch,
        ),
        threads=1,
    )


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Cost:
    """The seconds of acting and updating, and the peak memory."""

    seconds: dict[str, float] = field(default_factory=dict)
    memory: int = 0

    @contextmanager
    def clock(self, what: str, device: str) -> Iterator[None]:
        """Measure what happens inside a `with` block."""
        if device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        if device != "cpu":
            torch.cuda.synchronize()
            self.memory = max(self.memory, torch.cuda.max_memory_allocated())
        self.seconds[what] = time.perf_counter() - start


def real_tokens(turns: Sequence[Turn]) -> tuple[int, int]:
    """Count the tokens of one pass, with each prompt once, and the places that need logits."""
    prompts, beginnings, decisions = set(), set(), set()
    for turn in turns:
        prompts.add(turn.prompt_ids)
        chosen = [j for j, choice in enumerate(turn.action.choice) if choice]
        for j in range(max(chosen, default=0)):
            beginnings.add((turn.prompt_ids, turn.action.token_ids[: j + 1]))
        decisions |= {(turn.prompt_ids, turn.action.token_ids[:j]) for j in chosen}
    return sum(map(len, prompts)) + len(beginnings), len(decisions)


def work(shape: Shape, tokens: int, readings: int, epochs: int) -> dict[str, float]:
    """Count the operations of acting and of updating, including the critic's frozen features."""
    forward = 2.0 * (shape.multiplied * tokens + shape.head * readings)
    trained = 2.0 * shape.adapters * tokens
    features = 2.0 * shape.multiplied * tokens
    return {"acting": forward, "updating": epochs * (2 * forward + trained) + features}


# --- ours, and the published style ----------------------------------------------------------------


def ours(trainer: Trainer, device: str) -> tuple[Cost, list[list[Turn]]]:
    """Measure one iteration after a warm-up. Returns the cost and the turns of each stream."""
    trainer.iterate()
    cost = Cost()
    with cost.clock("acting", device):
        rollout = trainer.collector.collect(trainer.config.horizon, trainer.generator)
    with cost.clock("updating", device):
        trainer.learner.update(rollout)
    return cost, [list(stream) for stream in rollout.streams]


class Published:
    """Computes the same turns in the published style."""

    def __init__(self, trainer: Trainer) -> None:
        model = trainer.agent.model
        self.module: Any = model.module
        self.codec, self.device = model.codec, model.device
        self.critic, self.config = trainer.agent.critic, trainer.config
        weights = [*model.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(weights, lr=1e-6, fused=True)

    def act(self, streams: Sequence[Sequence[Turn]]) -> None:
        """Compute what choosing all actions takes, without the time of the worlds."""
        for together in zip(*streams, strict=True):
            if together[0].action.trie is None:
                self._write([turn.prompt_ids for turn in together])
                continue
            for batch in self._batches(together):
                with torch.no_grad():
                    self._scores(batch)

    def update(self, turns: Sequence[Turn]) -> None:
        """Compute values, then run epochs of one gradient step each."""
        for batch in self._batches(turns):
            with torch.no_grad():
                self.critic(self._untrained(batch))
        for _ in range(self.config.ppo.epochs):
            self.optimizer.zero_grad(set_to_none=True)
            for batch in self._batches(turns):
                with torch.no_grad():
                    self._scores(batch, untrained=True)
                    hidden = self._untrained(batch)
                loss = self.critic(hidden).square().mean() - self._scores(batch).mean()
                loss.backward()
            self.optimizer.step()

    def _rows(self, turn: Turn) -> list[tuple[TokenIds, TokenIds]]:
        """Make a row for each offered action, each with the prompt."""
        trie = turn.action.trie
        if trie is None:
            return [(turn.prompt_ids, turn.action.token_ids)]
        return [(turn.prompt_ids, trie.token_path(leaf)) for leaf in trie.all_leaves()]

    def _batches(self, turns: Sequence[Turn]) -> Iterator[list[Turn]]:
        """Yield batches of turns for the model."""
        batch, spent = [], 0
        for turn in turns:
            cost = sum(len(prompt) + len(action) for prompt, action in self._rows(turn))
            if batch and spent + cost > self.config.ppo.micro_batch_tokens:
                yield batch
                batch, spent = [], 0
            batch.append(turn)
            spent += cost
        yield batch

    def _lay(self, rows: Sequence[tuple[TokenIds, TokenIds]]) -> tuple[Tensor, Tensor, Tensor]:
        """Pad rows on the right. Returns token ids, mask, and a mask of the action's columns."""
        width = max(len(prompt) + len(action) for prompt, action in rows)
        ids = np.full((len(rows), width), self.codec.pad_id)
        mask, acted = np.zeros_like(ids), np.zeros_like(ids, dtype=bool)
        for r, (prompt, action) in enumerate(rows):
            end = len(prompt) + len(action)
            ids[r, :end], mask[r, :end] = (*prompt, *action), 1
            acted[r, len(prompt) : end] = True
        laid = (torch.from_numpy(array).to(self.device) for array in (ids, mask, acted))
        return next(laid), next(laid), next(laid)

    def _scores(self, turns: Sequence[Turn], untrained: bool = False) -> Tensor:
        """Sum the log-probabilities of the rows' actions, from logits at every column."""
        ids, mask, acted = self._lay([row for turn in turns for row in self._rows(turn)])
        with self._plain(untrained):
            logits = self.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logprob = logits[:, :-1].float().log_softmax(-1)
        taken = logprob.gather(2, ids[:, 1:, None]).squeeze(2)
        return (taken * acted[:, 1:]).sum(1)

    def _untrained(self, turns: Sequence[Turn]) -> Tensor:
        """Compute the untrained model's hidden states along the chosen actions."""
        ids, mask, acted = self._lay([(t.prompt_ids, t.action.token_ids) for t in turns])
        with self._plain(True):
            body = self.module.get_base_model().base_model
            hidden = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden[acted]

    @contextmanager
    def _plain(self, untrained: bool) -> Iterator[None]:
        if not untrained:
            yield
            return
        with self.module.disable_adapter():
            yield

    @torch.no_grad()
    def _write(self, prompts: Sequence[TokenIds]) -> None:
        """Write up to the limit of tokens by `generate`, without a cache."""
        width, budget = max(map(len, prompts)), self.config.acting.max_action_tokens
        ids = np.full((len(prompts), width), self.codec.pad_id)
        mask = np.zeros_like(ids)
        for r, prompt in enumerate(prompts):
            ids[r, width - len(prompt) :], mask[r, width - len(prompt) :] = prompt, 1
        self.module.generate(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(mask).to(self.device),
            do_sample=True,
            top_k=0,
            max_new_tokens=budget,
            use_cache=False,
            pad_token_id=self.codec.pad_id,
        )


def published(trainer: Trainer, streams: Sequence[Sequence[Turn]], device: str) -> Cost:
    """Measure one iteration over the same turns."""
    rival, cost = Published(trainer), Cost()
    if device != "cpu":
        rival.act([stream[:1] for stream in streams])  # warm up
    with cost.clock("acting", device):
        rival.act(streams)
    with cost.clock("updating", device):
        rival.update([turn for stream in streams for turn in stream])
    return cost


# --- the table ------------------------------------------------------------------------------------


def measure(model: str, task: str, options: argparse.Namespace, folder: Path) -> list[str]:
    """Measure both sides for one model and task. Returns rows of the table."""
    device, how = options.device, TASKS[task]
    path = build(model, how.tokenizer, options.dtype, device, folder)
    config = settings(path, how, options)
    trainer = Trainer(config)
    shape, speed = model_shape(config.model, config.env), matrix_speed(trainer.config)
    own, streams = ours(trainer, device)
    trainer.collector.close()
    theirs = published(trainer, streams, device)
    turns = [turn for stream in streams for turn in stream]
    tokens, readings = real_tokens(turns)
    counted = work(shape, tokens, readings, how.epochs)
    written = sum(len(turn.prompt_ids) + len(turn.action.token_ids) for turn in turns)
    rows = []
    for side, cost in (("published style", theirs), ("ours", own)):
        whole = sum(cost.seconds.values())
        share = {name: counted[name] / cost.seconds[name] / speed for name in counted}
        ratio = sum(theirs.seconds.values()) / whole
        rows.append(
            f"| {model} | {task} | {side} | {len(turns) / whole:.2f} | {written / whole:,.0f} "
            f"| {f'{cost.memory / 1e9:.1f} GB' if cost.memory else '-'} "
            f"| {cost.seconds['acting']:.2f} | {cost.seconds['updating']:.2f} "
            f"| {share['acting']:.1%} | {share['updating']:.1%} | {ratio:.1f} |"
        )
    del trainer
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
    distinct = len({turn.prompt_ids for turn in turns})
    rows.append(
        f"<!-- {model}, {task}: {len(turns)} turns, {distinct} distinct prompts, {tokens:,} real "
        f"tokens a pass, {speed / 1e12:.3g} TFLOP/s measured -->"
    )
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure one iteration with large models.")
    parser.add_argument("--models", nargs="+", default=["7B", "0.5B"], choices=list(SHAPES))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--streams", type=int, help="number of streams; default 16")
    parser.add_argument("--steps", type=int, help="turns per stream; default 16")
    parser.add_argument(
        "--action-tokens", type=int, help="limit of tokens per program; default 128"
    )
    parser.add_argument("--micro-batch", type=int, default=8192, help="tokens per forward pass")
    parser.add_argument("--small", action="store_true", help="measure tiny shapes on the CPU")
    options = parser.parse_args()
    options.device, options.dtype = "cuda", "bfloat16"
    if options.small:
        options.models, options.device, options.dtype = ["small"], "cpu", "float32"
    elif not torch.cuda.is_available():
        raise SystemExit("There is no GPU here. Use --small for tiny shapes on the CPU.")
    few, budget = (4, 24) if options.small else (16, 128)
    options.streams, options.steps = options.streams or few, options.steps or few
    options.action_tokens = options.action_tokens or budget
    return options


def main() -> None:
    options = arguments()
    if options.small:
        torch.set_num_threads(1)
        print("A Llama of 1.3 million weights, float32, one CPU thread. This only tests")
        print("the script; the figures say nothing about large models.\n")
    else:
        print(f"{torch.cuda.get_device_name()}, {options.dtype}, LoRA\n")
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            for task in options.tasks:
                for row in measure(model, task, options, Path(folder)):
                    print(row)


if __name__ == "__main__":
    main()
