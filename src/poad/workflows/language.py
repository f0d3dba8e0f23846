"""Evaluate a run's model as a language model, before and after training.

The items are tasks of the Language Model Evaluation Harness (the package lm-eval, which only this
module imports) or the tokens of a text, which need neither the harness nor a network. Both models
answer the same items, so the standard error of a difference is that of the *paired* difference.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from poad.agent import torch_threads
from poad.display import Screen, Table, number
from poad.errors import LanguageError, did_you_mean
from poad.lm import LanguageModel, Packed
from poad.runs import Run, decode, read_json, write_sealed
from poad.workflows.load import Weights, load_weights

T = TypeVar("T")
TASKS = ("arc_challenge", "hellaswag", "piqa", "mmlu")
"""Default tasks: the paper's, about common sense and knowledge."""
LONGEST_WINDOW = 1024
"""Most tokens of a text that are read at once."""
BATCH = 8
"""Items per forward pass of the harness."""


@dataclass(frozen=True)
class Change:
    """One metric before and after training, with standard errors; None where they are unknown."""

    task: str
    metric: str
    before: float
    before_error: float | None
    after: float
    after_error: float | None
    difference: float
    difference_error: float | None


@dataclass(frozen=True)
class TaskReport:
    """Changes in tasks of the harness."""

    checkpoint: int
    model: str | None
    """Directory of the exported model, if it replaced the run's weights."""
    limit: int | None
    """Items of each task, if not all."""
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class TextReport:
    """Changes in the loss on a text."""

    checkpoint: int
    model: str | None
    """Directory of the exported model, if it replaced the run's weights."""
    tokens: int
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class LanguageReport:
    """The content of language.json."""

    tasks: TaskReport | None = None
    text: TextReport | None = None


def evaluate_tasks(
    weights: Weights, tasks: Sequence[str], *, limit: int | None = None, folder: Path | None = None
) -> int:
    """Evaluate a run's model on tasks of the harness, untrained and trained; the exit status.

    The result is printed and saved in the run as ``language.json``.

    Args:
        weights: the trained weights.
        tasks: names that the harness knows, or tasks in ``folder``.
        limit: at most this many items of each task.
        folder: a directory with tasks of your own, as YAML files of the harness.

    Raises:
        LanguageError: the harness is not installed, a task is unknown, or its data is missing.
    """
    manager, checkpoint = _task_manager(tasks, folder), _checkpoint(weights)
    saved = _saved(weights.run)
    pinned = replace(weights, checkpoint=checkpoint)
    before, after = _both(pinned, lambda model: _answers(model, tasks, limit, manager))
    changes = compare(before, after)
    report = TaskReport(checkpoint, _exported(weights), limit, tuple(changes))
    _save(weights.run, replace(saved, tasks=report), changes)
    return 0


def evaluate_text(weights: Weights, text: Path) -> int:
    """Evaluate how well a run's model, untrained and trained, predicts a text; the exit status.

    The result is printed and saved in the run as ``language.json``.

    Raises:
        LanguageError: the file cannot be read, is not UTF-8, or is empty.
    """
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LanguageError(f"Cannot read the text {text}: {error}. It must be UTF-8.") from error
    if not words.strip():
        raise LanguageError(f"The text {text} is empty, so there is nothing to predict.")
    checkpoint, saved = _checkpoint(weights), _saved(weights.run)
    pinned = replace(weights, checkpoint=checkpoint)
    (before, count), (after, _) = _both(pinned, lambda model: text_loss(model, words))
    changes = compare_losses(text.name, before, after, count, len(words.encode()))
    report = TextReport(checkpoint, _exported(weights), int(count.sum()), tuple(changes))
    _save(weights.run, replace(saved, text=report), changes)
    return 0


def _checkpoint(weights: Weights) -> int:
    return int(Run.open(weights.run).checkpoint_path(weights.checkpoint).name)


def _exported(weights: Weights) -> str | None:
    return None if weights.exported is None else str(weights.exported)


def _both(weights: Weights, measure: Callable[[LanguageModel], T]) -> tuple[T, T]:
    """Measure the untrained model, then the trained one. Only one is in memory at a time."""
    with torch_threads(Run.open(weights.run).config.threads):
        before = measure(load_weights(replace(weights, untrained=True)).agent.model)
        return before, measure(load_weights(weights).agent.model)


# Predicting a text.


@torch.no_grad()
def text_loss(
    model: LanguageModel, text: str, window: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the negative log-likelihood of a text, read in windows that overlap by half.

    Every token is counted once, in the first window that reaches it. After the first window, each
    counted token therefore has at least half a window of context. A beginning-of-text token (or
    else the end-of-text token) is put before the text, so that its first token is predicted, too.
    A window has as many tokens as the model can read, at most 1024.

    Returns:
        [W] float64 nats and [W] int64 counted tokens, for each window.
    """
    tokenizer = model.codec.tokenizer
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, model.codec.end_id)
    ids = [
        next(i for i in special if i is not None),
        *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
    ]
    longest = model.context_length or LONGEST_WINDOW
    nats, counts = [], []
    for begin, first, end in windows(len(ids) - 1, window or min(longest, LONGEST_WINDOW)):
        # ids[i] predicts ids[i + 1]: the window reads ids[begin:end] and scores first + 1 … end.
        packed = _plain_row(ids[begin:end], first - begin)
        logprob = model.logits(model.read(packed)).log_softmax(-1)
        target = torch.tensor(ids[first + 1 : end + 1], device=logprob.device)
        nats.append(-float(logprob.gather(1, target[:, None]).double().sum()))
        counts.append(end - first)
    return np.array(nats), np.array(counts)


def windows(tokens: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, first, end): read positions begin to end - 1, and count them from first on."""
    end = 0
    while end < tokens:
        first, end = end, min(tokens, end + (max(size // 2, 1) if end else size))
        yield max(0, end - size), first, end


def _plain_row(ids: Sequence[int], first: int) -> Packed:
    """Pack one sequence, to be read from position ``first`` on."""
    length = len(ids)
    columns = torch.arange(first, length)
    return Packed(
        token_ids=torch.tensor([ids]),
        mask=torch.ones(1, length, dtype=torch.bool),
        position_ids=torch.arange(length)[None],
        attention=None,
        row=torch.zeros_like(columns),
        column=columns,
    )


def compare_losses(
    name: str, before: np.ndarray, after: np.ndarray, count: np.ndarray, size: int
) -> list[Change]:
    """Compute nats per token, nats per byte and perplexity, with standard errors over windows.

    ``before`` and ``after`` are [W] nats, ``count`` [W] tokens, ``size`` bytes of the whole text.
    """
    tokens = int(count.sum())

    def change(metric: str, units: float) -> Change:
        errors = [_ratio_error(nats, count) for nats in (before, after, after - before)]
        scaled = [None if e is None else e * tokens / units for e in errors]
        return _change(name, metric, before.sum() / units, after.sum() / units, scaled)

    low, high = (math.exp(nats.sum() / tokens) for nats in (before, after))
    return [
        change("nats per token", tokens),
        change("nats per byte", size),
        _change(name, "perplexity", low, high, [None] * 3),
    ]


def _ratio_error(nats: np.ndarray, count: np.ndarray) -> float | None:
    """Standard error of the ratio estimator Σ nats / Σ count, over windows."""
    number, total = len(nats), count.sum()
    if number < 2:
        return None
    residual = nats - count * (nats.sum() / total)  # [W]
    return float(math.sqrt(number / (number - 1) * (residual**2).sum()) / total)


# Tasks of the harness.


def _task_manager(tasks: Sequence[str], folder: Path | None) -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        raise LanguageError(
            "Language tasks need the Language Model Evaluation Harness, which is not installed. "
            "Install it with `pip install lm-eval`, or measure how well a text is predicted with "
            "--text FILE."
        )
    if folder is not None and not any(folder.glob("**/*.yaml")):
        raise LanguageError(f"There is no task in {folder}. A task is a YAML file of the harness.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    include = None if folder is None else str(folder.resolve())
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=include)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise LanguageError(
            f"The harness has no task {', '.join(unknown)}. "
            f"{did_you_mean(unknown[0], manager.all_tasks)}`lm-eval ls tasks` lists its tasks, and "
            "--task-folder adds tasks of your own."
        )
    return manager


def _answers(
    model: LanguageModel, tasks: Sequence[str], limit: int | None, manager: Any
) -> dict[str, Any]:
    """The results of the harness, with the outcome of every item."""
    harness = importlib.import_module("lm_eval")
    answering = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=model.module,
        tokenizer=model.codec.tokenizer,
        backend="causal",
        batch_size=BATCH,
    )
    try:
        found = harness.simple_evaluate(
            answering, tasks=[*tasks], limit=limit, task_manager=manager
        )
    except OSError as error:  # data sets raise it both offline and when they are not found
        reason = str(error).splitlines()[0].rstrip(".")
        raise LanguageError(
            f"The data of {', '.join(tasks)} is not on this machine and could not be downloaded: "
            f"{reason}. Without a network, use --task-folder DIR with a task whose data is a local "
            "file (see docs/after-training.md), or --text FILE."
        ) from error
    return dict(found or {})


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Compare the results of two models on the same items.

    The error of a difference is that of paired items if the metric is a mean over items. Otherwise
    it is that of two independent results, which overestimates it.
    """
    changes = []
    for task, numbers in before["results"].items():
        for key, old in numbers.items():
            metric, _, kind = key.partition(",")
            new = after["results"][task].get(key)
            if not kind or metric.endswith("_stderr") or not isinstance(old, float | int):
                continue
            both = before, after
            errors = [_finite(r["results"][task].get(f"{metric}_stderr,{kind}")) for r in both]
            items = [_items(r, task, metric, kind) for r in both]
            error = _difference_error(items, (old, new), errors)
            changes.append(_change(task, metric, old, new, [*errors, error]))
    return changes


def _difference_error(
    items: Sequence[np.ndarray], means: Sequence[float], errors: Sequence[float | None]
) -> float | None:
    """Standard error of the difference of two means, from [I] paired items where they are known."""
    paired = all(
        len(each) > 1 and math.isclose(each.mean(), mean, abs_tol=1e-9)
        for each, mean in zip(items, means, strict=True)
    )
    if paired:
        differences = items[1] - items[0]  # [I]
        return float(differences.std(ddof=1) / math.sqrt(len(differences)))
    known = [error for error in errors if error is not None]
    return math.hypot(*known) if len(known) == 2 else None


def _items(results: Mapping[str, Any], task: str, metric: str, kind: str) -> np.ndarray:
    """[I] outcomes of the items of a task or a group of tasks; empty if they are not numbers."""
    parts = results.get("group_subtasks", {}).get(task)
    if parts:
        return np.concatenate([_items(results, part, metric, kind) for part in parts])
    rows = [r for r in results.get("samples", {}).get(task, ()) if r.get("filter", kind) == kind]
    values = [row.get(metric) for row in sorted(rows, key=lambda row: row["doc_id"])]
    numbers = [float(v) for v in values if isinstance(v, float | int)]
    return np.array(numbers if len(numbers) == len(values) else [], dtype=float)


def _change(
    task: str, metric: str, before: float, after: float, errors: Sequence[float | None]
) -> Change:
    old, new = float(before), float(after)
    return Change(task, metric, old, errors[0], new, errors[1], new - old, errors[2])


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None


# The report.


def _saved(run: Path) -> LanguageReport:
    """The report that an earlier evaluation left in the run; empty if there is none."""
    file = run / "language.json"
    content = read_json(file)
    if content is None:
        return LanguageReport()
    content.pop("seal", None)
    return decode(LanguageReport, content, str(file))


def _save(run: Path, report: LanguageReport, changes: Sequence[Change]) -> None:
    """Print the new changes as a table, and save the report in the run."""
    columns = ("task", "metric", "before", "after", "difference")
    rows = [
        [
            change.task,
            change.metric,
            _with_error(change.before, change.before_error, ".4f"),
            _with_error(change.after, change.after_error, ".4f"),
            _with_error(change.difference, change.difference_error, "+.4f"),
        ]
        for change in changes
    ]
    screen, file = Screen(), run / "language.json"
    screen.print(Table(columns, rows, align="llrrr").to_terminal())
    write_sealed(file, report)
    screen.print(f"\n± is one standard error. The results are in {file}.", soft_wrap=True)


def _with_error(value: float, error: float | None, form: str) -> str:
    return number(value, form) + ("" if error is None else f" ± {error:.4f}")
