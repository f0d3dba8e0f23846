"""Trainings of several processes, for tests: each process is forked from one that knows torch."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_worlds import settings
from tolerance import float64

from poad.cli.main import main
from poad.config import Config
from poad.errors import PoadError
from poad.learn import Trainer
from poad.learn.evaluate import _Episodes, examine
from poad.learn.experience import gather
from poad.learn.resume import turn_to_json
from poad.lm import own_part, whole
from poad.lm.model import LanguageModel, layers_of
from poad.ranks import Ranks, joined
from poad.runs import Run, encode
from poad.workflows import resume_run, train_run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _take_place(rank: int, size: int, port: int) -> None:
    """Set what a launcher would set."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)} | place
    torch.set_num_threads(1)


def _enter(
    rank: int, size: int, port: int, work: Callable[..., Any], out: Path, args: tuple[Any, ...]
) -> None:
    _take_place(rank, size, port)
    with warnings.catch_warnings(action="ignore"), joined() as ranks:
        out.with_name(f"{rank}.out").write_bytes(pickle.dumps(work(ranks, *args)))


def _command(rank: int, size: int, port: int, log: Path, words: tuple[str, ...]) -> None:
    _take_place(rank, size, port)
    file = os.open(log.with_name(f"{rank}.err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 2)
    sys.exit(main(words))


def _start(target: Callable[..., Any], size: int, *args: Any) -> list[Any]:
    context: Any = multiprocessing.get_context("forkserver")
    port = free_port()
    processes = [context.Process(target=target, args=(r, size, port, *args)) for r in range(size)]
    for process in processes:
        process.start()
    return processes


def start_command(size: int, folder: Path, *words: str) -> list[Any]:
    """Start a command of poad on some ranks; `RANK.err` in the folder is what each complains."""
    return _start(_command, size, folder / "err", words)


def on_ranks(work: Callable[..., Any], size: int, folder: Path, *args: Any) -> list[Any]:
    """What a function returns on each rank."""
    folder.mkdir()
    processes = _start(_enter, size, work, folder / "out", args)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * size
    return [pickle.loads((folder / f"{r}.out").read_bytes()) for r in range(size)]


def learn(ranks: Ranks, changes: dict[str, Any], iterations: int) -> dict[str, Any]:
    """Train for some iterations in float64, and tell everything that came of it."""
    told: dict[str, Any] = {"rollouts": [], "terms": [], "values": [], "metrics": []}
    with float64():
        trainer = Trainer(settings(**{"randomness": "stream"} | changes), ranks=ranks)
        update = trainer.learner.update

        def watched(rollout: Any, progress: float) -> dict[str, float]:
            turns = [[turn_to_json(turn) for turn in stream] for stream in rollout.streams]
            others = [rollout.episodes, rollout.measures]
            told["rollouts"].append(json.loads(json.dumps([turns, others])))
            return update(rollout, progress)

        def watched_gather(*args: Any) -> Any:
            found = gather(*args)
            if found is not None:
                terms = found.policy
                told["terms"].append([t.tolist() for t in (terms.decision, terms.option)])
                told["values"].append([terms.advantage.tolist(), found.value.target.tolist()])
            return found

        watching = patch.object(trainer.learner, "update", watched)
        with watching, patch("poad.learn.ppo.gather", watched_gather):
            for _ in range(iterations):
                told["metrics"].append(trainer.iterate())
        tensors = trainer.agent.tensors()
        told["weights"] = {
            f"{group}.{name}": whole(tensor).double().numpy().copy()
            for group, named in tensors.items()
            for name, tensor in named.items()
        }
        trainer.collector.close()
    return told


def learn_all(ranks: Ranks, cases: dict[str, Any], iterations: int) -> dict[str, Any]:
    """Train in several ways, one after the other."""
    return {name: learn(ranks, changes, iterations) for name, changes in cases.items()}


@contextmanager
def short_of_memory(place: str, most: int) -> Iterator[None]:
    """Let memory run out in every pass with gradient that is larger, in one of its blocks."""
    read = LanguageModel.read_body

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    def hook(_: Any, __: Any, output: Any) -> None:
        if place == "forward":
            fail()
        output[0].register_hook(fail)  # when the rest of the block has its gradient

    def short(model: LanguageModel, body: Any, packed: Any) -> torch.Tensor:
        if not torch.is_grad_enabled() or packed.tokens <= most:
            return read(model, body, packed)
        layers = layers_of(body)
        assert layers is not None
        block: Any = layers[-2]
        handle = block.self_attn.register_forward_hook(hook)
        try:
            return read(model, body, packed)
        finally:
            handle.remove()

    with patch.object(LanguageModel, "read_body", short):
        yield


def learn_in_little_memory(
    ranks: Ranks, cases: dict[str, Any], places: dict[str, list[tuple[str, dict[int, int]]]]
) -> dict[str, Any]:
    """Learn from a rollout in several ways, while memory runs out on some ranks.

    Args:
        ranks: all of them.
        cases: what to train.
        places: by case, where memory runs out, and the largest pass that fits, by rank.
    """
    told = {}
    for name, changes in cases.items():
        for place, limits in places[name]:
            with warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("always")
                with short_of_memory(place, limits.get(ranks.rank, sys.maxsize)):
                    try:
                        found = learn(ranks, changes, 1)
                    except PoadError as error:
                        found = {"error": str(error)}
            said = [str(each.message) for each in notes if "Out of memory" in str(each.message)]
            told[f"{name}: {place} {limits}"] = found | {"said": said}
    return told


def examined(ranks: Ranks, episodes: int) -> Any:
    """Evaluate in the middle of a training, and tell the records as they are stored."""
    with float64():
        config = settings("Novel", randomness="stream", eval={"episodes": episodes})
        trainer = Trainer(config, ranks=ranks)
        trainer.collector.close()
        with patch("poad.learn.sharing._AT_A_TIME", 2):
            records = examine(trainer.agent, 3, ranks)
    return json.loads(json.dumps([encode(record) for record in records]))


def held(ranks: Ranks, kind: str) -> dict[str, Any]:
    """Count the numbers that a rank holds of a sharded model, after two iterations."""
    trainer = Trainer(settings("Novel", randomness="stream", model={"shard": kind}), ranks=ranks)
    metrics = [trainer.iterate() for _ in range(2)]
    trainer.collector.close()
    model, optimizer = trainer.agent.model, trainer.learner.optimizer
    weights = model.parameters()
    moments = [t for slots in optimizer.state.values() for t in slots.values() if t.dim()]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    assert model.shards is not None
    assert model._frozen is not None
    told: dict[str, Any] = {
        "all": sum(weight.numel() for weight in weights),
        "between steps": here(model.module.parameters()),
        "untrained between steps": here(model._frozen.parameters()),
        "kept in": str(own_part(weights[0]).dtype),
        "computed in": str(next(model.module.parameters()).dtype),
        "metrics": [[m["policy_loss"], m["value_loss"], m["grad_norm"]] for m in metrics],
    }
    for name, tensors in (("weights", weights), ("gradients", gradients), ("moments", moments)):
        told[name] = here(tensors)
    with model.shards.divided():
        told["in a step"] = here(model.module.parameters())
        told["untrained in a step"] = here(model._frozen.parameters())
    return told


def here(tensors: Iterable[torch.Tensor]) -> int:
    """Count the numbers of tensors that are in the memory of this process."""
    parts = [own_part(tensor) for tensor in tensors]
    memory = {part.untyped_storage().data_ptr(): part for part in parts if part.numel()}
    return sum(p.untyped_storage().nbytes() // p.element_size() for p in memory.values())


def play_last(_: Ranks, path: Path, episodes: int) -> list[int]:
    """Train a run, and return the seeds of the last evaluation's episodes that this rank played."""
    config = settings("Novel", steps=15, randomness="stream", eval={"episodes": episodes})
    seeds, play = [], _Episodes.play

    def watched(played: _Episodes, *args: Any) -> Any:
        seeds.extend(played._recorded)
        return play(played, *args)

    with patch.object(_Episodes, "play", watched):
        assert train_run(config, path, quiet=True) == 0
    return [seed - config.eval.seed for seed in seeds]


def train_in_parts(_: Ranks, path: Path, config: Config, resume: bool) -> int:
    """Train a run, or go on with it, in float64."""
    with float64():
        if resume:
            return resume_run(path, config, quiet=True)
        return train_run(config, path, quiet=True)


def same(found: Any, expected: Any, error: float) -> None:
    """Compare nested lists and numbers; NaN is as NaN."""
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for each, other in zip(found, expected, strict=True):
            same(each, other, error)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            same(found[name], expected[name], error)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=error, rel=error, nan_ok=True)
    else:
        assert found == expected


TIMED = ("seconds", "per_second", "plan", "seal")


def untimed_metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics without what a clock said."""
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(TIMED)} for line in found]


def assert_same_run(path: Path, expected: Path) -> None:
    assert len(untimed_metrics(path)) == len(untimed_metrics(expected))
    for line, other in zip(untimed_metrics(path), untimed_metrics(expected), strict=True):
        assert line.keys() == other.keys()
        for key, value in other.items():
            if value is None or "drift" in key:
                continue
            assert line[key] == pytest.approx(value, rel=1e-6, abs=1e-6), key
    found, wanted = (Run.open(p).load_checkpoint() for p in (path, expected))
    for group, named in wanted[0].items():
        assert found[0][group].keys() == named.keys()
        for name, tensor in named.items():
            torch.testing.assert_close(
                found[0][group][name], tensor, rtol=0, atol=1e-6, check_dtype=False
            )
    collected = [state["collector"] for _, state in (found, wanted)]
    assert collected[0] == collected[1]
