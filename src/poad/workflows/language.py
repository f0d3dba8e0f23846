"""Did it stay a language model? The same questions before training and after it.

Either tasks of the Language Model Evaluation Harness (the package lm-eval, which this module alone
knows), or how well a text is predicted, which needs neither harness nor network. Both models answer
the same items, so a difference comes with the standard error of the *paired* difference.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from poad.display import Screen
from poad.errors import LanguageError
from poad.lm import LanguageModel, Packed
from poad.runs import Run, write_json
from poad.workflows.export import with_exported
from poad.workflows.train import load_run

TASKS = ("arc_challenge", "hellaswag", "piqa", "mmlu")
"""Commonsense and knowledge: what the paper looks at."""
LONGEST_WINDOW = 1024
BATCH = 8
"""Items that the harness asks at once."""


@dataclass(frozen=True)
class Change:
    """One number before and after training. Errors are standard errors; none where unknown."""

    task: str
    metric: str
    before: float
    before_error: float | None
    after: float
    after_error: float | None
    difference: float
    difference_error: float | None


def examine_tasks(
    path: Path,
    tasks: Sequence[str],
    *,
    checkpoint: int | None = None,
    model: Path | None = None,
    limit: int | None = None,
    folder: Path | None = None,
) -> int:
    """Put a run's model, untrained and trained, to tasks of the harness; the exit status.

    Args:
        path: the run; ``language.json`` is left in it.
        tasks: names the harness knows, or those in ``folder``.
        checkpoint: iteration to take; none: the newest.
        model: an exported model to take in place of the run's weights.
        limit: only so many items of each task.
        folder: tasks of one's own, as YAML files of the harness.

    Raises:
        LanguageError: the harness is not installed, a task is unknown, or its data is not here.
    """
    manager, checkpoint = _task_manager(tasks, folder), _iteration(path, checkpoint)

    def answers(untrained: bool) -> dict[str, Any]:
        return _ask(_model(path, checkpoint, model, untrained), tasks, limit, manager)

    changes = compare(answers(untrained=True), answers(untrained=False))
    return _tell(path, "tasks", changes, {"checkpoint": checkpoint, "model": model, "limit": limit})


def examine_text(
    path: Path, text: Path, *, checkpoint: int | None = None, model: Path | None = None
) -> int:
    """How well a text file is predicted, by a run's model untrained and trained; the exit status.

    Raises:
        LanguageError: the file cannot be read, is not UTF-8, or is empty.
    """
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LanguageError(f"Cannot read the text {text}: {error}.") from error
    if not words.strip():
        raise LanguageError(f"The text {text} is empty; there is nothing to predict in it.")
    checkpoint = _iteration(path, checkpoint)
    before, count = text_loss(_model(path, checkpoint, model, untrained=True), words)
    after, _ = text_loss(_model(path, checkpoint, model, untrained=False), words)
    changes = compare_losses(text.name, before, after, count, len(words.encode()))
    facts = {"checkpoint": checkpoint, "model": model, "tokens": int(count.sum())}
    return _tell(path, "text", changes, facts)


def _iteration(path: Path, checkpoint: int | None) -> int:
    return int(Run.open(path).checkpoint_path(checkpoint).name)


def _model(
    path: Path, checkpoint: int | None, exported: Path | None, untrained: bool
) -> LanguageModel:
    """One model at a time: the one before is gone when the next is loaded."""
    _, agent, _ = load_run(path, None if untrained else checkpoint, untrained)
    if exported is not None and not untrained:
        agent = with_exported(agent, exported)
    return agent.model


# Predicting a text.


@torch.no_grad()
def text_loss(
    model: LanguageModel, text: str, window: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of a text, read in windows that overlap by half.

    Every token is counted once, in the first window that reaches it, so that each but the first
    window's has at least half a window before it. An opening token (the tokenizer's own, or else
    its end of text) stands before the first, so that this is predicted too.

    Args:
        model: who predicts.
        text: what.
        window: tokens read at once; default what the model can read, at most 1024.

    Returns:
        [W] float64 nats and [W] int64 tokens counted, by window.
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
        packed = _plain_row(ids[begin:end], first - begin)
        logprob = model.logits(model.read(packed)).log_softmax(-1)
        target = torch.tensor(ids[first + 1 : end + 1], device=logprob.device)
        nats.append(-float(logprob.gather(1, target[:, None]).double().sum()))
        counts.append(end - first)
    return np.array(nats), np.array(counts)


def windows(tokens: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end): read positions begin … end - 1, count the predictions from first on."""
    end = 0
    while end < tokens:
        first, end = end, min(tokens, end + (max(size // 2, 1) if end else size))
        yield max(0, end - size), first, end


def _plain_row(ids: Sequence[int], first: int) -> Packed:
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
    """Nats per token and per byte, and perplexity, with standard errors over windows.

    Args:
        name: of the text.
        before: [W] nats by window.
        after: [W] the same.
        count: [W] tokens.
        size: of the text, in bytes.
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
    """Standard error of Σ nats / Σ count (a ratio estimator's), over windows."""
    number, total = len(nats), count.sum()
    if number < 2:
        return None
    left = nats - count * (nats.sum() / total)
    return float(math.sqrt(number / (number - 1) * (left**2).sum()) / total)


# Tasks of the harness.


def _task_manager(tasks: Sequence[str], folder: Path | None) -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        raise LanguageError(
            "Tasks are examined with the Language Model Evaluation Harness, which is not "
            "installed: pip install 'poad[language]'. Without it: --text FILE."
        )
    if folder is not None and not any(folder.glob("**/*.yaml")):
        raise LanguageError(f"There is no task in {folder}: no YAML file.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    where = None if folder is None else str(folder.resolve())
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=where)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise LanguageError(
            f"The harness has no task {', '.join(unknown)}; `lm-eval ls tasks` lists its own, and "
            "--task-folder adds yours."
        )
    return manager


def _ask(
    model: LanguageModel, tasks: Sequence[str], limit: int | None, manager: Any
) -> dict[str, Any]:
    """What the harness finds, with every item's outcome."""
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
    except OSError as error:  # the data sets' errors, offline and not found, are all of this kind
        reason = str(error).splitlines()[0].rstrip(".")
        raise LanguageError(
            f"The data of {', '.join(tasks)} is not here and could not be fetched: {reason}. "
            "Without a network: --task-folder DIR with a task whose data is a file of yours "
            "(docs/after-training.md), or --text FILE."
        ) from error
    return dict(found or {})


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """The harness's numbers of two models, side by side.

    The difference's error is that of paired items where the number is a mean over items, else that
    of two independent numbers, which is too large rather than too small.

    Args:
        before: results of ``lm_eval.simple_evaluate`` with samples.
        after: the same tasks and items.
    """
    changes = []
    for task, numbers in before["results"].items():
        for key, old in numbers.items():
            metric, _, kind = key.partition(",")
            new = after["results"][task].get(key)
            if not kind or metric.endswith("_stderr") or not isinstance(old, float | int):
                continue
            both = before, after
            errors = [_number(r["results"][task].get(f"{metric}_stderr,{kind}")) for r in both]
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
    """[I] outcomes of a task's items, or of all in a group of tasks; empty if not numbers."""
    parts = results.get("group_subtasks", {}).get(task)
    if parts:
        return np.concatenate([_items(results, part, metric, kind) for part in parts])
    rows = [r for r in results.get("samples", {}).get(task, ()) if r.get("filter", kind) == kind]
    values = [row.get(metric) for row in sorted(rows, key=lambda row: row["doc_id"])]
    numbers = [float(v) for v in values if isinstance(v, float | int)]
    return np.array(numbers if len(numbers) == len(values) else [], dtype=float)


# Telling.


def _change(
    task: str, metric: str, before: float, after: float, errors: Sequence[float | None]
) -> Change:
    old, new = float(before), float(after)
    return Change(task, metric, old, errors[0], new, errors[1], new - old, errors[2])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None


def _tell(path: Path, part: str, changes: Sequence[Change], facts: Mapping[str, Any]) -> int:
    """Print the table, and keep it in the run beside what the other way of asking has left."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("task", "", "before", "after", "difference"):
        table.add_column(heading, justify="left" if heading in ("task", "") else "right")
    for c in changes:
        pairs = (c.before, c.before_error), (c.after, c.after_error)
        shown = [_with_error(*pair, form=".4f") for pair in pairs]
        change = _with_error(c.difference, c.difference_error, form="+.4f")
        table.add_row(c.task, c.metric, *shown, change)
    screen, file = Screen(), Run.open(path).path / "language.json"
    screen.print(table)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    told = {key: str(value) if isinstance(value, Path) else value for key, value in facts.items()}
    write_json(file, kept | {part: told | {"changes": [asdict(change) for change in changes]}})
    screen.print(f"\n± one standard error. Saved as {file}", highlight=False, soft_wrap=True)
    return 0


def _with_error(value: float, error: float | None, form: str) -> str:
    return format(value, form) + ("" if error is None else f" ± {error:.4f}")
