"""Language ability before and after training.

It is measured by tasks of the Language Model Evaluation Harness (the package lm-eval, which only
this module imports), or by the loss on a text, which needs neither harness nor network. Both models
answer the same items, so each difference comes with the standard error of the *paired* difference.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poad.display import Screen, Table, number
from poad.errors import LanguageError
from poad.lm import LanguageModel, Packed
from poad.runs import Run, decode, write_json
from poad.workflows.export import with_exported
from poad.workflows.train import load_run

TASKS = ("arc_challenge", "hellaswag", "piqa", "mmlu")
"""Tasks of common sense and knowledge, as in the paper."""
MAX_WINDOW = 1024
BATCH_SIZE = 8
"""Items that the harness evaluates at once."""


@dataclass(frozen=True)
class Change:
    """One number before and after training. Errors are standard errors; None where unknown."""

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


def examine_tasks(
    path: Path,
    tasks: Sequence[str],
    *,
    checkpoint: int | None = None,
    model: Path | None = None,
    limit: int | None = None,
    folder: Path | None = None,
) -> int:
    """Evaluate a run's model on tasks of the harness, before and after training.

    The results are printed, and saved in the run as ``language.json``.

    Args:
        path: the run.
        tasks: names of tasks that the harness or ``folder`` contains.
        checkpoint: training iteration of the weights; default: the newest.
        model: an exported model to use instead of the run's weights.
        limit: use only this many items of each task.
        folder: a directory of your own tasks, as YAML files of the harness.

    Returns:
        The exit status.

    Raises:
        LanguageError: the harness is not installed, a task is unknown, or its data is missing.
    """
    manager, checkpoint = _task_manager(tasks, folder), _iteration(path, checkpoint)

    def evaluate(untrained: bool) -> dict[str, Any]:
        return _run_harness(_model(path, checkpoint, model, untrained), tasks, limit, manager)

    changes = compare(evaluate(untrained=True), evaluate(untrained=False))
    report = TaskReport(checkpoint, model and str(model), limit, tuple(changes))
    _save(path, replace(_saved(path), tasks=report), changes)
    return 0


def examine_text(
    path: Path, text: Path, *, checkpoint: int | None = None, model: Path | None = None
) -> int:
    """Evaluate how well a run's model predicts a text file, before and after training.

    Arguments and results are as for :func:`examine_tasks`.

    Raises:
        LanguageError: the file cannot be read, is not UTF-8, or is empty.
    """
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LanguageError(f"Cannot read the text {text}: {error}.") from error
    if not content.strip():
        raise LanguageError(f"The text {text} is empty, so there is nothing to predict.")
    checkpoint = _iteration(path, checkpoint)
    before, count = text_loss(_model(path, checkpoint, model, untrained=True), content)
    after, _ = text_loss(_model(path, checkpoint, model, untrained=False), content)
    changes = compare_losses(text.name, before, after, count, len(content.encode()))
    report = TextReport(checkpoint, model and str(model), int(count.sum()), tuple(changes))
    _save(path, replace(_saved(path), text=report), changes)
    return 0


def _iteration(path: Path, checkpoint: int | None) -> int:
    return int(Run.open(path).checkpoint_path(checkpoint).name)


def _model(
    path: Path, checkpoint: int | None, exported: Path | None, untrained: bool
) -> LanguageModel:
    """Load one of the two models; they are never in memory together."""
    _, agent, _ = load_run(path, None if untrained else checkpoint, untrained)
    if exported is not None and not untrained:
        agent = with_exported(agent, exported)
    return agent.model


# Predicting a text.


@torch.no_grad()
def text_loss(
    model: LanguageModel, text: str, window: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the negative log-likelihood of a text, read in windows that overlap by half.

    Every token counts once, in the first window that contains it, so that each token beyond the
    first window is predicted from at least half a window. A start token (the tokenizer's own, or
    else its end of text) precedes the text, so that its first token is predicted too.

    Args:
        model: the model.
        text: the text.
        window: tokens read at once; default: as many as the model can read, at most 1024.

    Returns:
        [W] float64 nats and [W] int64 counted tokens, by window.
    """
    tokenizer = model.codec.tokenizer
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, model.codec.end_id)
    ids = [
        next(i for i in special if i is not None),
        *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
    ]
    longest = model.longest or MAX_WINDOW
    nats, counts = [], []
    for begin, first, end in windows(len(ids) - 1, window or min(longest, MAX_WINDOW)):
        # ids[i] predicts ids[i + 1]: the window reads ids[begin:end] and scores first + 1 … end.
        packed = _plain_row(ids[begin:end], first - begin)
        logprob = model.logits(model.read(packed)).log_softmax(-1)
        target = torch.tensor(ids[first + 1 : end + 1], device=logprob.device)
        nats.append(-float(logprob.gather(1, target[:, None]).double().sum()))
        counts.append(end - first)
    return np.array(nats), np.array(counts)


def windows(tokens: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Divide a text into windows (begin, first, end).

    Each reads positions begin … end - 1 and counts the predictions from position first on.
    """
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
    """Compare nats per token, nats per byte and perplexity, with standard errors over windows.

    Args:
        name: name of the text.
        before: [W] nats by window, before training.
        after: [W] nats by window, after training.
        count: [W] tokens by window.
        size: bytes of the text.
    """
    tokens = int(count.sum())

    def change(metric: str, per: float) -> Change:
        error = [_ratio_error(nats, count) for nats in (before, after, after - before)]
        scaled = [None if e is None else e * tokens / per for e in error]
        rates = before.sum() / per, after.sum() / per
        return _change(name, metric, *rates, scaled)

    low, high = (math.exp(nats.sum() / tokens) for nats in (before, after))
    return [
        change("nats per token", tokens),
        change("nats per byte", size),
        _change(name, "perplexity", low, high, [None] * 3),
    ]


def _ratio_error(nats: np.ndarray, count: np.ndarray) -> float | None:
    """Standard error of the ratio estimator Σ nats / Σ count, over windows."""
    windows, total = len(nats), count.sum()
    if windows < 2:
        return None
    residuals = nats - count * (nats.sum() / total)
    return float(math.sqrt(windows / (windows - 1) * (residuals**2).sum()) / total)


# Tasks of the harness.


def _task_manager(tasks: Sequence[str], folder: Path | None) -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        raise LanguageError(
            "Tasks need the Language Model Evaluation Harness, which is not installed: "
            "pip install 'poad[language]'. Without it, use --text FILE."
        )
    if folder is not None and not any(folder.glob("**/*.yaml")):
        raise LanguageError(f"There is no task in {folder}: it contains no YAML file.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    where = None if folder is None else str(folder.resolve())
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=where)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise LanguageError(
            f"The harness has no task {', '.join(unknown)}. `lm-eval ls tasks` lists its own, and "
            "--task-folder adds yours."
        )
    return manager


def _run_harness(
    model: LanguageModel, tasks: Sequence[str], limit: int | None, manager: Any
) -> dict[str, Any]:
    """Run the harness; its results contain every item's outcome."""
    harness = importlib.import_module("lm_eval")
    adapter = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=model.module,
        tokenizer=model.codec.tokenizer,
        backend="causal",
        batch_size=BATCH_SIZE,
    )
    try:
        found = harness.simple_evaluate(adapter, tasks=[*tasks], limit=limit, task_manager=manager)
    except OSError as error:  # the datasets package raises these when offline or not found
        reason = str(error).splitlines()[0].rstrip(".")
        raise LanguageError(
            f"The data of {', '.join(tasks)} could not be loaded or fetched: {reason}. "
            "Without a network, use --task-folder DIR with a task whose data is a local file "
            "(docs/after-training.md), or --text FILE."
        ) from error
    return dict(found or {})


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Compare the harness's results of two models.

    Where a number is a mean over items, the error of its difference is that of the paired items.
    Elsewhere it is that of two independent numbers, which is rather too large than too small.

    Args:
        before: results of ``lm_eval.simple_evaluate`` with samples.
        after: results on the same tasks and items.
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
            pairs = all(
                len(each) > 1 and math.isclose(each.mean(), mean, abs_tol=1e-9)
                for each, mean in zip(items, (old, new), strict=True)
            )
            if pairs:
                between = items[1] - items[0]
                error = float(between.std(ddof=1) / math.sqrt(len(between)))
            else:
                known = [e for e in errors if e is not None]
                error = math.hypot(*known) if len(known) == 2 else None
            changes.append(_change(task, metric, old, new, [*errors, error]))
    return changes


def _items(results: Mapping[str, Any], task: str, metric: str, kind: str) -> np.ndarray:
    """[I] outcomes of a task's items, or of a group's tasks; empty if they are not numbers."""
    parts = results.get("group_subtasks", {}).get(task)
    if parts:
        return np.concatenate([_items(results, part, metric, kind) for part in parts])
    rows = [r for r in results.get("samples", {}).get(task, ()) if r.get("filter", kind) == kind]
    values = [row.get(metric) for row in sorted(rows, key=lambda row: row["doc_id"])]
    numbers = [float(v) for v in values if isinstance(v, float | int)]
    return np.array(numbers if len(numbers) == len(values) else [], dtype=float)


# Output.


def _change(
    task: str, metric: str, before: float, after: float, errors: Sequence[float | None]
) -> Change:
    old, new = float(before), float(after)
    return Change(task, metric, old, errors[0], new, errors[1], new - old, errors[2])


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None


def _file(path: Path) -> Path:
    return Run.open(path).path / "language.json"


def _saved(path: Path) -> LanguageReport:
    """The report that an earlier evaluation left in the run; empty if there is none."""
    file = _file(path)
    if not file.is_file():
        return LanguageReport()
    return decode(LanguageReport, json.loads(file.read_text(encoding="utf-8")), str(file))


def _save(path: Path, report: LanguageReport, changes: Sequence[Change]) -> None:
    """Print the new changes as a table, and save the report in the run."""
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
    screen, file = Screen(), _file(path)
    columns = ("task", "metric", "before", "after", "difference")
    screen.print(Table(columns, rows, align="llrrr").to_terminal())
    write_json(file, report)
    screen.print(f"\n± one standard error. Saved as {file}", highlight=False, soft_wrap=True)


def _with_error(value: float, error: float | None, form: str) -> str:
    return number(value, form) + ("" if error is None else f" ± {error:.4f}")
