"""An export is the same agent in poad, transformers and PEFT, and it is complete or absent."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_run import run_of
from peft import PeftModel
from safetensors.torch import load_file
from synthetic_run import evaluation, metrics, summary
from tiny_models import ACTIONS, PROMPTS, Zoo
from tiny_worlds import settings
from tolerance import drift
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from poad.agent.build import Agent
from poad.cli.main import main
from poad.errors import ExportError
from poad.learn.evaluate import evaluate
from poad.lm.packing import pack
from poad.runs import Run, encode
from poad.workflows.export import export
from poad.workflows.load import Weights, load_weights, with_exported

KITCHEN = "poad/TomatoSalad-v0"
PEFT_ASKS = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
"""PEFT asks transformers by a name that is going away."""
SHORT: Any = {"env_args": {"max_steps": 30}}
LORA = {"name": "tiny-kitchen", "tuning": "lora", "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    shared = {"critic": {"body": "shared"}}
    return {
        "full": run_of(folder / "full", settings(KITCHEN)),
        "lora": run_of(folder / "lora", settings(KITCHEN, model=LORA)),
        "shared": run_of(folder / "shared", settings(KITCHEN, model=LORA, **shared)),
    }


def exported(run: Run, to: Path, adapter: bool = False, full: bool = False) -> Path:
    export(load_weights(Weights(run.path), full=full), to, adapter=adapter)
    return to


def played(agent: Agent, greedy: bool) -> list[dict[str, Any]]:
    records = evaluate(agent, episodes=4, seed=7, greedy=greedy, env=KITCHEN, **SHORT)
    return [encode(record) for record in records]


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (
            pytest.approx(expected, abs=drift()) if type(expected) is float else expected
        )


@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
@pytest.mark.parametrize(
    ("kind", "adapter"),
    [("full", False), ("lora", False), ("lora", True), ("shared", False), ("shared", True)],
)
def test_an_export_plays_the_episodes_of_its_run(
    runs: dict[str, Run], tmp_path: Path, kind: str, adapter: bool, greedy: bool
) -> None:
    to = exported(runs[kind], tmp_path / "out", adapter)
    _, agent, _ = load_weights(Weights(runs[kind].path))
    _, untrained, _ = load_weights(Weights(runs[kind].path, untrained=True))
    own = played(agent, greedy)
    assert_same(played(with_exported(agent, to), greedy), own)
    assert played(untrained, greedy)[0]["turns"][0]["offered"] != own[0]["turns"][0]["offered"]


def test_the_commands_export_and_examine(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, to = tmp_path / "run", tmp_path / "out"
    shutil.copytree(runs["lora"].path, path)
    assert main(["export", str(path), "--to", str(to)]) == 0
    assert f"--model {to}" in capsys.readouterr().out
    few = ("--episodes", "2", "--env-args", "max_steps=20", "--quiet")
    assert main(["eval", str(path), *few]) == 0
    printed = capsys.readouterr().out
    before = (path / "episodes.jsonl").read_text()
    assert main(["eval", str(path), "--model", str(to), *few]) == 0
    again = capsys.readouterr().out
    assert [line.split("success_interval")[0] for line in again.splitlines()] == [
        line.split("success_interval")[0] for line in printed.splitlines()
    ]
    assert (path / "episodes.jsonl").read_text() == before, "they are not the checkpoint's"
    kept = [json.loads(line) for line in (path / "exported.jsonl").read_text().splitlines()]
    own = [json.loads(line) for line in before.splitlines()]
    assert [record.pop("model") for record in kept] == [str(to)] * 4
    assert_same(kept, own)


@torch.no_grad()
def logits(causal: Any, rows: list[tuple[int, ...]]) -> list[torch.Tensor]:
    return [causal(input_ids=torch.tensor([row])).logits[0, -1].float() for row in rows]


@PEFT_ASKS
@pytest.mark.parametrize("adapter", [False, True], ids=["merged", "adapter"])
@pytest.mark.parametrize("architecture", ["llama", "qwen", "gpt2", "neox"])
def test_plain_transformers_and_peft_compute_the_same(
    zoo: Zoo, tmp_path: Path, architecture: str, adapter: bool
) -> None:
    from peft import PeftModel

    base = zoo.path(architecture)
    model = {"name": str(base), "tuning": "lora", "device": "cpu"}
    run = run_of(tmp_path / "run", settings("Chain", model=model))
    to = exported(run, tmp_path / "out", adapter)
    _, agent, _ = load_weights(Weights(run.path))
    codec = agent.model.codec
    rows = [codec.prompt(text) + codec.action(act) for text in PROMPTS for act in ACTIONS[:3]]
    causal = AutoModelForCausalLM.from_pretrained(base if adapter else to)
    untrained = logits(AutoModelForCausalLM.from_pretrained(base), rows)
    if adapter:
        causal = PeftModel.from_pretrained(causal, str(to))
    with torch.no_grad():
        packed = pack([(row, ()) for row in rows], codec.pad_id)
        own = agent.model.logits(agent.model.read(packed))
    for found, expected, old in zip(logits(causal, rows), own, untrained, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=drift())
        assert not torch.allclose(found, old, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
def test_weights_keep_the_precision_they_were_trained_in(
    zoo: Zoo, tmp_path: Path, trained: str
) -> None:
    asset = tmp_path / "half"
    causal: Any = AutoModelForCausalLM.from_pretrained(zoo.path(), dtype=torch.bfloat16)
    causal.save_pretrained(asset)
    for file in zoo.path().glob("*token*"):
        shutil.copy(file, asset)
    for tuning in ("full", "lora"):
        model = {"name": str(asset), "tuning": tuning, "dtype": trained, "device": "cpu"}
        run = run_of(tmp_path / tuning, settings("Chain", model=model))
        to = exported(run, tmp_path / f"{tuning}-out")
        weights = load_file(to / "model.safetensors")
        assert {str(weight.dtype) for weight in weights.values()} == {f"torch.{trained}"}
        assert json.loads((to / "config.json").read_text())["dtype"] == trained
        own = load_weights(Weights(run.path))[1].model.state()
        if tuning == "full":
            assert all(torch.equal(weights[name], weight) for name, weight in own.items())
        rounded = "rounded to bfloat16" in (to / "README.md").read_text()
        assert rounded == (tuning == "lora" and trained == "bfloat16")


@PEFT_ASKS
def test_weights_that_were_rounded_for_products_are_exported_exactly(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The export is the base in float32 plus the adapters, not plus what products lost."""
    base, path, to = zoo.path(), tmp_path / "run", tmp_path / "out"
    model = LORA | {"name": str(base), "precision": "mixed"}
    run = run_of(path, settings("Chain", model=model))
    assert main(["export", str(path), "--to", str(to)]) == 0
    before, found = load_file(base / "model.safetensors"), load_file(to / "model.safetensors")
    assert {str(weight.dtype) for weight in found.values()} == {"torch.float32"}
    assert found.keys() == before.keys()
    state = load_weights(Weights(path))[1].model.state()
    for name, weight in found.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        change = torch.zeros_like(weight)
        if f"{stem}.lora_A.default.weight" in state:
            down, up = (state[f"{stem}.lora_{half}.default.weight"] for half in "AB")
            change = 16 / 8 * up @ down
            assert float(change.abs().max()) > 0
        torch.testing.assert_close(weight, before[name] + change)
    assert "taken in bfloat16 during training" in (to / "README.md").read_text()
    # Rounding the merged weights for an evaluation would round the adapters' changes, too.
    agent = with_exported(load_weights(Weights(path))[1], to)
    assert {p.dtype for p in agent.model.module.parameters()} == {torch.float32}
    with pytest.raises(ExportError, match=r"rounded to bfloat16.*full=True"):
        export(load_weights(Weights(path)), tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()
    assert run.config.model.precision == "mixed"
    few = ("--episodes", "1", "--quiet")
    for adapter in ((), ("--adapter",)):
        to = tmp_path / f"out{len(adapter)}"
        assert main(["export", str(path), "--to", str(to), *adapter]) == 0
        assert main(["eval", str(path), "--model", str(to), *few]) == 0
    assert "sampled" in capsys.readouterr().out


@PEFT_ASKS
@pytest.mark.parametrize("precision", ["full", "mixed"])
def test_adapters_in_the_last_blocks_are_exported_and_examined(
    zoo: Zoo, tmp_path: Path, precision: str
) -> None:
    base, few = zoo.path(layers=3), {"lora_layers": 2, "precision": precision}
    run = run_of(tmp_path / "run", settings("Chain", model=LORA | few | {"name": str(base)}))
    to = exported(run, tmp_path / "out", adapter=True, full=True)
    said = json.loads((to / "adapter_config.json").read_text())
    assert said["layers_to_transform"] == [1, 2]
    _, agent, _ = load_weights(Weights(run.path))
    # Whatever the run says of the blocks, the adapter knows its own.
    other = run_of(tmp_path / "other", settings("Chain", model=LORA | {"name": str(base)}))
    for whose in (agent, load_weights(Weights(other.path))[1]):
        found = with_exported(whose, to).model
        assert found.state().keys() == agent.model.state().keys()
        for name, weight in found.state().items():
            assert torch.equal(weight, agent.model.state()[name])
    assert main(["eval", str(run.path), "--model", str(to), "--episodes", "2", "--quiet"]) == 0
    everywhere = exported(other, tmp_path / "everywhere", adapter=True)
    assert len(with_exported(agent, everywhere).model.state()) == 3 * 4


@PEFT_ASKS
@pytest.mark.parametrize(
    ("blocks", "says"), [([0, 1], "blocks 0, 1 of 3"), ([0, 2], "blocks 0, 2"), (1, "blocks 1 of")]
)
def test_adapters_of_other_than_the_last_blocks_are_refused(
    zoo: Zoo, tmp_path: Path, blocks: Any, says: str
) -> None:
    model = LORA | {"name": str(zoo.path(layers=3)), "lora_layers": 2}
    run = run_of(tmp_path / "run", settings("Chain", model=model))
    to = exported(run, tmp_path / "out", adapter=True)
    _, agent, _ = load_weights(Weights(run.path))
    file = to / "adapter_config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"layers_to_transform": blocks}))
    with pytest.raises(ExportError, match=f"{says}.*last blocks only"):
        with_exported(agent, to)


@PEFT_ASKS
@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_an_export_holds_what_others_expect_and_a_card(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run, adapter = runs["full" if kind == "full" else "lora"], kind == "adapter"
    to = exported(run, tmp_path / "cook", adapter)
    names = {file.name for file in to.iterdir()}
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    assert {weights, "tokenizer.json", "README.md"} <= names
    assert {Path(name).suffix for name in names} <= {".safetensors", ".json", ".md", ".jinja"}
    assert len({file.stat().st_mode for file in to.iterdir()}) == 1
    if adapter:
        said = json.loads((to / "adapter_config.json").read_text())
        assert said["base_model_name_or_path"] == "tiny-kitchen"
    card = (to / "README.md").read_text()
    for fact in (KITCHEN, "poad, acting by `trie`", "| seed | 0 |", "512 environment steps"):
        assert fact in card
    assert "| sampled | 75.0% | 50.0% – 90.0% | 0.200 | 9.0 | 4 |" in card
    for file in to.iterdir():
        assert str(tmp_path) not in file.read_text(errors="replace"), "a path of this machine"
    usage = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(textwrap.dedent(usage), found)
    assert found["tokenizer"].eos_token is not None
    assert next(found["model"].parameters()).dtype == torch.float32


@pytest.mark.parametrize("kept", [None, {"do_sample": False, "temperature": 0.6, "top_p": 0.9}])
def test_generate_ends_where_the_runs_actions_end(
    zoo: Zoo, tmp_path: Path, kept: dict[str, Any] | None
) -> None:
    """A chat's answers end with the template's token. What the base generated by does not matter,
    not even if transformers would refuse to save it."""
    base = Path(shutil.copytree(zoo.path("llama", "marked"), tmp_path / "base"))
    (base / "generation_config.json").unlink(missing_ok=True)
    if kept is not None:
        (base / "generation_config.json").write_text(json.dumps(kept | {"eos_token_id": 5}))
    model = {"name": str(base), "device": "cpu"}
    run = run_of(tmp_path / "run", settings("Chain", model=model, prompt={"format": "chat"}))
    to = exported(run, tmp_path / "out")
    codec = load_weights(Weights(run.path))[1].model.codec
    assert codec.end_id != codec.tokenizer.eos_token_id
    causal: Any = AutoModelForCausalLM.from_pretrained(to)
    assert causal.generation_config.eos_token_id == codec.end_id
    with torch.no_grad():  # the end token becomes the likeliest
        head = causal.get_output_embeddings()
        head.weight[codec.end_id] = (
            10 * causal.model(torch.tensor([[6, 7, 8]])).last_hidden_state[0, -1]
        )
    prompt = torch.tensor([[6, 7, 8]])
    written = causal.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9)
    assert written[0, 3:].tolist() == [codec.end_id]


@PEFT_ASKS
@pytest.mark.parametrize("adapter", [False, True])
def test_generate_writes_no_id_without_a_token(zoo: Zoo, tmp_path: Path, adapter: bool) -> None:
    """As while acting, though the model may have rows beyond its tokenizer's tokens."""
    base = Path(shutil.copytree(zoo.path(), tmp_path / "base"))
    padded: Any = AutoModelForCausalLM.from_pretrained(base)
    padded.resize_token_embeddings(padded.config.vocab_size + 8)
    padded.save_pretrained(base)
    trained = (LORA if adapter else {}) | {"name": str(base), "device": "cpu"}
    run = run_of(tmp_path / "run", settings("Chain", model=trained))
    model = load_weights(Weights(run.path))[1].model
    to = exported(run, tmp_path / "out", adapter)
    plain: Any = AutoModelForCausalLM.from_pretrained(base if adapter else to)
    causal: Any = plain
    if adapter:  # as its card says
        causal = PeftModel.from_pretrained(plain, to)
        causal.generation_config = GenerationConfig.from_pretrained(to)
    rows = plain.get_output_embeddings().weight
    beyond = range(len(model.codec.tokenizer), len(rows))
    assert len(beyond) == 8
    without_token = set(model.codec.without_token(len(rows)))
    assert set(beyond) <= without_token
    prompt = torch.tensor([[6, 7, 8]])
    with torch.no_grad():  # a row without a token becomes the likeliest
        rows[beyond[-1]] = 10 * plain.model(prompt).last_hidden_state[0, -1]
        assert int(causal(prompt).logits[0, -1].argmax()) == beyond[-1]
    for sampled in (False, True):
        written = causal.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=sampled
        )
        assert not set(written[0].tolist()) & without_token


def test_others_may_read_every_file_of_an_export(zoo: Zoo, tmp_path: Path) -> None:
    """Several chat templates are stored in a directory of their own."""
    base = Path(shutil.copytree(zoo.path("llama", "marked"), tmp_path / "base"))
    words = AutoTokenizer.from_pretrained(base)
    words.chat_template = {"default": words.chat_template, "tools": "{{ messages }}"}
    words.save_pretrained(base)
    model = {"name": str(base), "device": "cpu"}
    run = run_of(tmp_path / "run", settings("Chain", model=model, prompt={"format": "chat"}))
    to = exported(run, tmp_path / "out")
    probe = tmp_path / "probe"
    probe.mkdir()
    (probe / "file").touch()
    assert any(path.is_dir() for path in to.iterdir())
    for path in (to, *to.rglob("*")):
        like = probe if path.is_dir() else probe / "file"
        assert path.stat().st_mode == like.stat().st_mode, path
    assert AutoTokenizer.from_pretrained(to).chat_template.keys() == {"default", "tools"}


@PEFT_ASKS
def test_a_run_that_began_at_an_adapter_is_exported_whole(zoo: Zoo, tmp_path: Path) -> None:
    first = run_of(tmp_path / "first", settings("Chain", model=LORA | {"name": str(zoo.path())}))
    start = exported(first, tmp_path / "start", adapter=True)
    run = run_of(tmp_path / "run", settings("Chain", model=LORA | {"name": str(start)}))
    with pytest.raises(ExportError, match="began at an adapter"):
        exported(run, tmp_path / "adapter", adapter=True)
    to = exported(run, tmp_path / "out")
    _, agent, _ = load_weights(Weights(run.path))
    rows = [agent.model.codec.prompt(text) for text in PROMPTS]
    with torch.no_grad():
        packed = pack([(row, ()) for row in rows], agent.model.codec.pad_id)
        own = agent.model.logits(agent.model.read(packed))
    found = logits(AutoModelForCausalLM.from_pretrained(to), rows)
    torch.testing.assert_close(torch.stack(found), own, rtol=0, atol=drift())


def test_results_of_another_checkpoint_are_not_claimed(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    run = Run.open(shutil.copytree(runs["full"].path, tmp_path / "run"))
    run.log(metrics(2))
    run.write_summary(summary(iteration=2, evaluation={"sampled": evaluation()}))
    card = (exported(run, tmp_path / "out") / "README.md").read_text()
    assert "no evaluation of this checkpoint" in card
    assert "75.0%" not in card


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return " ".join(capsys.readouterr().err.split())


def test_nothing_is_overwritten(
    runs: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        said = error_of(capsys, "export", str(runs["full"].path), "--to", str(tmp_path / name))
        assert "overwrites nothing" in said
        assert "--to" in said
    assert {path.name for path in tmp_path.rglob("*")} == {"full", "file", "note.txt"}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    exported(runs["full"], Path())
    assert (tmp_path / "empty" / "config.json").exists()


def test_what_cannot_be_exported_or_examined_is_told(
    runs: dict[str, Run], zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, to = str(runs["full"].path), str(tmp_path / "out")
    assert "no adapters" in error_of(capsys, "export", run, "--to", to, "--adapter")
    assert "it has 1" in error_of(capsys, "export", run, "--to", to, "--checkpoint", "5")
    assert not Path(to).exists()
    assert "is not an exported model" in error_of(capsys, "eval", run, "--model", to)
    assert "another tokenizer" in error_of(capsys, "eval", run, "--model", str(zoo.path()))
    both = ("--model", to, "--untrained")
    assert "Leave out --untrained" in error_of(capsys, "eval", run, *both)


def test_an_adapter_that_poad_cannot_have_written_is_refused(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    to = exported(runs["lora"], tmp_path / "out", adapter=True)
    _, agent, _ = load_weights(Weights(runs["lora"].path, untrained=True))
    config = to / "adapter_config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps(written | {"use_rslora": True}))
    with pytest.raises(ExportError, match="use_rslora"):
        with_exported(agent, to)
    config.write_text(json.dumps(written))
    (to / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ExportError, match="damaged"):
        with_exported(agent, to)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning")
def test_adapters_of_a_tied_head_are_not_merged_into_the_words(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", settings(KITCHEN, model=LORA | {"lora_targets": ["lm_head"]}))
    with pytest.raises(ExportError, match=r"tied .*--adapter"):
        exported(run, tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]
    to = exported(run, tmp_path / "out", adapter=True)
    _, agent, _ = load_weights(Weights(run.path))
    assert_same(played(with_exported(agent, to), False), played(agent, False))


@pytest.mark.parametrize("what", ["full disk", "interrupt"])
def test_whatever_happens_nothing_partial_is_left(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    loaded = load_weights(Weights(runs["full"].path))
    to = tmp_path / "out"
    if what == "interrupt":

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("poad.runs.files._sync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export(loaded, to)
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
        try:
            with pytest.raises(ExportError, match="disk full"):
                export(loaded, to)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_training_can_go_on_from_an_export(runs: dict[str, Run], tmp_path: Path) -> None:
    to = exported(runs["lora"], tmp_path / "out")
    small = ("--steps", "32", "--streams", "2", "--horizon", "8", "--eval.episodes", "0", "--quiet")
    run = tmp_path / "next"
    assert main(["train", "--run", str(run), "--model.name", str(to), *small]) == 0
    assert Run.open(run).config.model.name == str(to)
