"""The language check: every token counted once, paired errors, a harness that agrees with us."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from changed_run import run_of
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import metrics
from tiny_models import PROMPTS, Zoo
from tiny_worlds import settings as small_run
from tolerance import EXACT, drift

from poad.agent.build import load_agent
from poad.cli.main import main
from poad.config import Config
from poad.runs import Run, write_json
from poad.workflows.language import compare, compare_losses, text_loss, windows
from poad.workflows.load import Weights, load_weights

ROOT = Path(__file__).parents[2]
TASK = Path(__file__).parents[1] / "language_task"
TEXT = " ".join(PROMPTS) * 3
KITCHEN = "poad/TomatoSalad-v0"


@given(st.integers(0, 300), st.integers(1, 40))
@settings(deadline=None)
def test_every_token_is_counted_once_with_half_a_window_before_it(tokens: int, size: int) -> None:
    counted: list[int] = []
    for number, (begin, first, end) in enumerate(windows(tokens, size)):
        assert 0 <= begin <= first < end <= tokens
        assert end - begin <= size
        assert number == 0 or first - begin >= size // 2
        counted += range(first, end)
    assert counted == list(range(tokens))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tokenizer", ["bytes", "pieces"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_loss_of_a_text_is_what_transformers_says(
    zoo: Zoo, architecture: str, tokenizer: str
) -> None:
    model = zoo.load(architecture, tokenizer)
    words, causal = model.codec.tokenizer, model.module
    opening = words.bos_token_id if tokenizer == "pieces" else words.eos_token_id
    ids = torch.tensor([opening, *words(TEXT, add_special_tokens=False)["input_ids"]])
    size = 16
    nats, count = text_loss(model, TEXT, window=size)
    spans = list(windows(len(ids) - 1, size))
    assert len(spans) > 3
    assert count.tolist() == [end - first for _, first, end in spans]
    for found, (begin, first, end) in zip(nats, spans, strict=True):
        with torch.no_grad():
            logits = causal(input_ids=ids[None, begin:end]).logits[0, first - begin :]
        loss = torch.nn.functional.cross_entropy(logits, ids[first + 1 : end + 1], reduction="sum")
        assert found == pytest.approx(float(loss), rel=EXACT)
    whole, total = text_loss(model, PROMPTS[0])
    assert len(total) == 1
    labels = words(PROMPTS[0], add_special_tokens=False)["input_ids"]
    row = torch.tensor([[opening, *labels]])
    with torch.no_grad():
        mean = causal(input_ids=row, labels=row).loss
    assert whole[0] / total[0] == pytest.approx(float(mean), rel=EXACT)


def test_losses_are_compared_token_by_token() -> None:
    count = np.array([10, 10, 10, 4])
    before = np.array([20.0, 30.0, 25.0, 9.0])
    per_token, per_byte, perplexity = compare_losses("t", before, before - 0.5 * count, count, 100)
    assert (per_token.before, per_token.after) == pytest.approx((84 / 34, 84 / 34 - 0.5))
    assert per_token.difference == pytest.approx(-0.5)
    assert per_token.difference_error == pytest.approx(0, abs=1e-9), "the same in every window"
    assert per_token.before_error == pytest.approx(per_token.after_error)
    equal = np.full(4, 10)
    first, *_ = compare_losses("t", before, before, equal, 100)
    assert first.before_error == pytest.approx(np.std(before / 10, ddof=1) / 2)
    assert per_byte.before == pytest.approx(0.84)
    assert perplexity.before == pytest.approx(math.exp(84 / 34))
    single, *_ = compare_losses("t", before[:1], before[:1], count[:1], 30)
    assert single.difference_error is None


def answers(hits: dict[str, list[int]], group: str | None = None) -> dict[str, Any]:
    """Results in the harness's form: some tasks, and perhaps a group of all of them."""

    def numbers(values: list[int]) -> dict[str, Any]:
        error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
        kept = {"alias": "x", "acc,none": float(np.mean(values)), "acc_stderr,none": error}
        return kept | {"sample_len": len(values), "word,none": "text"}

    results = {task: numbers(values) for task, values in hits.items()}
    samples = {
        task: [{"doc_id": i, "filter": "none", "acc": v} for i, v in enumerate(values)][::-1]
        for task, values in hits.items()
    }
    found: dict[str, Any] = {"results": results, "samples": samples, "group_subtasks": {}}
    if group:
        results[group] = numbers([v for values in hits.values() for v in values])
        found["group_subtasks"] = {group: list(hits)}
    return found


def test_the_difference_of_paired_items_is_sharper() -> None:
    before = answers({"a": [1, 0, 1, 0, 1, 0], "b": [1, 1, 0, 0]}, "both")
    after = answers({"a": [1, 0, 1, 0, 1, 1], "b": [1, 1, 0, 0]}, "both")
    changes = {change.task: change for change in compare(before, after)}
    assert set(changes) == {"a", "b", "both"}
    for task, items in (("a", 6), ("both", 10)):
        change = changes[task]
        differences = [1] + [0] * (items - 1)
        assert change.difference == pytest.approx(1 / items)
        expected = np.std(differences, ddof=1) / math.sqrt(items)
        assert change.difference_error == pytest.approx(expected)
        alone = math.hypot(change.before_error or 0, change.after_error or 0)
        assert expected < alone
    assert changes["b"].difference_error == 0


def test_where_a_number_is_no_mean_of_items_errors_add_up() -> None:
    both = [answers({"a": [1, 0, 1, 0]}), answers({"a": [1, 1, 1, 0]})]
    for results in both:
        results["results"]["a"]["acc,none"] += 0.1
    (change,) = compare(*both)
    assert change.before_error is not None
    assert change.after_error is not None
    expected = math.hypot(change.before_error, change.after_error)
    assert change.difference_error == pytest.approx(expected)
    both[0]["results"]["a"]["acc_stderr,none"] = "N/A"
    (change,) = compare(*both)
    assert (change.before_error, change.difference_error) == (None, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    model = {"name": "tiny-kitchen", "tuning": "lora", "device": "cpu"}
    return run_of(tmp_path_factory.mktemp("runs") / "run", small_run(KITCHEN, model=model))


def left(run: Run, part: str) -> dict[str, Any]:
    found = json.loads((run.path / "language.json").read_text())[part]
    return found | {"changes": {c["metric"]: c for c in found["changes"]}}


def test_a_text_before_and_after(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(TEXT)
    kept = {"checkpoint": 1, "model": None, "limit": 5, "changes": []}
    write_json(run.path / "language.json", {"tasks": kept})
    assert main(["eval", str(run.path), "--language", "--text", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "before" in shown
    assert "mine.txt" in shown
    found = left(run, "text")
    per_token = found["changes"]["nats per token"]
    for key, untrained in (("before", True), ("after", False)):
        nats, count = text_loss(
            load_weights(Weights(run.path, untrained=untrained)).agent.model, TEXT
        )
        assert per_token[key] == pytest.approx(nats.sum() / count.sum())
    assert per_token["difference"] != 0
    assert found["checkpoint"] == 1
    assert json.loads((run.path / "language.json").read_text())["tasks"] == kept


def test_what_did_not_train_did_not_change(tmp_path: Path) -> None:
    agent = load_agent(small_run(KITCHEN))
    with Run.create(tmp_path / "run", agent.config) as same:
        same.log(metrics(1))
        same.save_checkpoint(1, agent.tensors(), {})
    (tmp_path / "t.txt").write_text(TEXT)
    assert main(["eval", str(same.path), "--language", "--text", str(tmp_path / "t.txt")]) == 0
    assert {c["difference"] for c in left(same, "text")["changes"].values()} == {0.0}


def test_an_exported_model_is_asked_in_place_of_the_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    out, asked = str(tmp_path / "out"), ("--language", "--text", str(tmp_path / "t.txt"))
    assert main(["export", str(run.path), "--to", out]) == 0
    assert main(["eval", str(run.path), *asked]) == 0
    own = left(run, "text")["changes"]
    assert main(["eval", str(run.path), *asked, "--model", out]) == 0
    assert left(run, "text")["model"] == out
    again = left(run, "text")["changes"]["nats per token"]
    assert again == pytest.approx(own["nats per token"], abs=drift())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--text", "t.txt"), "belong to --language"),
        (("--limit", "3"), "belong to --language"),
        (("--language", "--text", "nowhere.txt"), "Cannot read the text nowhere.txt"),
        (("--language", "--text", "empty.txt"), "is empty"),
        (("--language", "--text", "empty.txt", "--tasks", "piqa"), "replaces the tasks"),
        (("--language", "--text", "t.txt", "--checkpoint", "9"), "it has 1"),
        (("--language", "--untrained"), "Leave out"),
        (("--language", "--limit", "0"), "at least 1 item"),
        (("--language", "--task-folder", "."), "name the tasks"),
        (("--language",), "pip install lm-eval"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_does_not_apply_is_told(
    run: Run,
    arguments: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "lm_eval" else find(n))
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(TEXT)
    Path("empty.txt").write_text(" \n")
    assert main(["eval", str(run.path), *arguments]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())


@torch.no_grad()
def accuracy(config: Config, tensors: Any) -> float:
    """Of the local task, by the definition: the likelier of two continuations."""
    model = load_agent(config, tensors).model
    words, hits = model.codec.tokenizer, []
    items = [json.loads(line) for line in (TASK / "kitchen_sense.jsonl").read_text().splitlines()]
    for item in items:
        start, scores = len(words(item["question"])["input_ids"]), []
        for choice in item["choices"]:
            ids = torch.tensor(words(f"{item['question']} {choice}")["input_ids"])
            logprob = model.module(input_ids=ids[None]).logits[0].log_softmax(-1)
            scores.append(float(logprob[:-1].gather(1, ids[1:, None])[start - 1 :].sum()))
        hits.append(scores.index(max(scores)) == item["answer"])
    assert len(hits) == 20
    return float(np.mean(hits))


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs pip install 'poad[language]'"
)
def test_the_harness_asks_both_models(run: Run, tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "poad", "eval", str(run.path), "--language"]

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **offline}
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    local = ("--tasks", "kitchen_sense", "--task-folder", str(TASK))
    done = ask(*local)
    assert done.returncode == 0, done.stderr
    assert "kitchen_sense" in done.stdout
    acc = left(run, "tasks")["changes"]["acc"]
    assert acc["before"] == pytest.approx(accuracy(run.config, None))
    assert acc["after"] == pytest.approx(accuracy(run.config, run.load_checkpoint()[0]))
    assert acc["difference_error"] is not None
    away = ask("--tasks", "piqa")
    assert (away.returncode, "--task-folder" in away.stderr) == (2, True), away.stderr
    assert "Traceback" not in away.stderr
