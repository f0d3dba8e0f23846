"""A damaged file of a run is put right exactly, or refused by name, or it does not matter."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_worlds import settings

from poad.errors import PoadError
from poad.runs import Run, read_json
from poad.study.workers import Task
from poad.workflows import (
    Weights,
    evaluate_run,
    generalize_run,
    load_weights,
    resume_run,
    train_run,
)

CHANGES: dict[str, Any] = {"checkpoint_every": 2, "eval": {"episodes": 3, "every": 2}}
OF_LINES = ("config.yaml", "versions.json", "metrics.jsonl", "episodes.jsonl", "summary.json")
OTHERS = (
    "best.txt",
    *(
        f"checkpoints/000002/{name}"
        for name in (
            "state.json",
            "policy.safetensors",
            "critic.safetensors",
            "optimizer.safetensors",
            "random.safetensors",
        )
    ),
)


def train(path: Path, seed: int) -> Path:
    train_run(settings("Workshop", seed=seed, **CHANGES), path, quiet=True)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings(action="ignore"):
        return train(tmp_path_factory.mktemp("runs") / "a", 0)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with another seed."""
    with warnings.catch_warnings(action="ignore"):
        return train(tmp_path_factory.mktemp("runs") / "b", 1)


def kill(path: Path) -> None:
    """Leave what a kill in the middle of the final evaluation leaves, before the last checkpoint
    was on disk."""
    shutil.rmtree(path / "checkpoints" / "000004")
    (path / "summary.json").unlink()
    with (path / "episodes.jsonl").open("a") as file:
        file.write('{"env": "tiny_wor')


def empty(file: Path, _: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path, _: Path) -> None:
    os.truncate(file, random.Random(file.name).randrange(1, file.stat().st_size - 1))


def swap(file: Path, other: Path) -> None:
    shutil.copy(other, file)


def lines(change: Callable[[list[bytes]], object]) -> Callable[[Path, Path], None]:
    def damage(file: Path, _: Path) -> None:
        found = file.read_bytes().splitlines(keepends=True)
        change(found)
        file.write_bytes(b"".join(found))

    return damage


WHOLE: dict[str, Callable[[Path, Path], None]] = {
    "gone": lambda file, _: file.unlink(),
    "empty": empty,
    "cut": cut,
    "another seed's": swap,
}
BY_LINE: dict[str, Callable[[Path, Path], None]] = {
    "shuffled": lines(lambda found: random.Random(1).shuffle(found)),
    "without a line": lines(lambda found: found.pop(len(found) // 2)),
    "without its last line": lines(lambda found: found.pop()),
    "with a line twice": lines(lambda found: found.insert(len(found) // 2, found[len(found) // 2])),
    "with its last line twice": lines(lambda found: found.append(found[-1])),
}


def alter(file: Path, _: Path) -> None:
    """Change one digit that is part of a number or a hash; not the last, which may be rounding."""
    content = bytearray(file.read_bytes())
    digits = [m.start() for m in re.finditer(rb"[0-9](?=[0-9])", content)]
    place = random.Random(file.name).choice(digits)
    content[place] = ord("0") + (content[place] - ord("0") + 1) % 10
    file.write_bytes(content)


DAMAGE = {
    f"{file}, {name}": (file, do) for file in OF_LINES for name, do in (WHOLE | BY_LINE).items()
}
DAMAGE |= {f"{file}, {name}": (file, do) for file in OTHERS for name, do in WHOLE.items()}
DAMAGE |= {
    f"{file}, a digit changed": (file, alter)
    for file in (*OF_LINES, *OTHERS)
    if file not in ("config.yaml", "best.txt")  # some settings may change
}
del DAMAGE["best.txt, cut"], DAMAGE["best.txt, empty"]  # it is written anew, whatever it holds


def untimed(record: Any) -> Any:
    """A record without what a clock or the machine said."""
    timed = ("seconds", "per_second", "plan", "seal")
    if isinstance(record, dict):
        return {k: untimed(v) for k, v in record.items() if not k.endswith(timed)}
    return record


def content(path: Path) -> dict[str, Any]:
    """What a finished run holds."""
    run = Run.open(path)
    tensors, state = run.load_checkpoint()
    found: dict[str, Any] = {
        "metrics": [repr(untimed(line)) for line in run.metrics()],
        "episodes": list(run.episodes()),
        "summary": untimed(json.loads((path / "summary.json").read_text())),
        "state": untimed(state),
        "best": (path / "best.txt").read_text(),
        "settings": run.config,
    }
    for group, values in tensors.items():
        found |= {f"{group}.{name}": tensor.tolist() for name, tensor in values.items()}
    return found


def refusal(action: Callable[[], object]) -> str:
    """The message with which an action is refused; empty if it is not."""
    try:
        action()
    except PoadError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", [name for name in DAMAGE if "summary" not in name])
def test_a_run_with_a_damaged_file_goes_on_exactly_or_names_the_file(
    damage: str, finished: Path, foreign: Path, tmp_path: Path
):
    path = shutil.copytree(finished, tmp_path / "run")
    kill(path)
    file, change = DAMAGE[damage]
    change(path / file, foreign / file)
    refused = refusal(lambda: resume_run(path, Run.open(path).config, quiet=True))
    if refused:
        assert Path(file).name in refused
    else:
        assert content(path) == content(finished)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file", ["metrics.jsonl", "episodes.jsonl", "summary.json"])
def test_a_directory_in_the_place_of_a_file_is_named(file: str, finished: Path, tmp_path: Path):
    path = shutil.copytree(finished, tmp_path / "run")
    (path / file).unlink()
    (path / file).mkdir()
    assert f"Cannot read {path / file}: " in refusal(lambda: content(path))
    assert f"{path / file}: " in refusal(
        lambda: resume_run(path, Run.open(path).config, quiet=True)
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", [name for name in DAMAGE if "/" not in name])
def test_a_damaged_file_does_not_matter_to_a_reader_or_is_named(
    damage: str, finished: Path, foreign: Path, tmp_path: Path
):
    path = shutil.copytree(finished, tmp_path / "run")
    file, change = DAMAGE[damage]
    change(path / file, foreign / file)
    if not (path / file).is_file() or file == "best.txt":
        return  # it is missed by whoever looks for it, and no command reads best.txt
    if refused := refusal(lambda: content(path)):
        assert Path(file).name in refused
        return
    found, told = content(path), content(finished)
    for each in (found, told):  # readers count an episode once
        each["episodes"] = list(dict.fromkeys(map(repr, each["episodes"])))
    assert found == told


def test_an_unharmed_run_goes_on_as_if_nothing_had_happened(finished: Path, tmp_path: Path):
    path = shutil.copytree(finished, tmp_path / "run")
    kill(path)
    with warnings.catch_warnings(action="ignore"):
        resume_run(path, Run.open(path).config, quiet=True)
    assert content(path) == content(finished)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_same_evaluation_is_not_told_twice(finished: Path, tmp_path: Path):
    path = shutil.copytree(finished, tmp_path / "run")
    for _ in range(2):  # after the end, too
        resume_run(path, Run.open(path).config, quiet=True)
        assert content(path) == content(finished)


def test_weights_of_another_run_are_not_taken_for_its_own(
    finished: Path, foreign: Path, tmp_path: Path
):
    path = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(path / "checkpoints")
    shutil.copytree(foreign / "checkpoints", path / "checkpoints")
    with pytest.raises(PoadError, match=r"000004.* belongs to a run with other settings"):
        load_weights(Weights(path))
    shutil.rmtree(path / "checkpoints" / "000004")
    (path / "checkpoints" / "000002").rename(path / "checkpoints" / "000003")
    shutil.copy(finished / "checkpoints/000002/state.json", path / "checkpoints/000003")
    with pytest.raises(PoadError, match=r"state.json is of iteration 2"):
        load_weights(Weights(path))


def test_a_state_that_was_edited_is_noticed(finished: Path, tmp_path: Path):
    path = shutil.copytree(finished, tmp_path / "run")
    file = path / "checkpoints" / "000004" / "state.json"
    edited = json.loads(file.read_text())
    edited["state"]["env_steps"] += 1
    file.write_text(json.dumps(edited))
    with pytest.raises(PoadError, match=r"state.json was changed after it was written"):
        load_weights(Weights(path))


def evaluated(run: Path, place: Path) -> Path:
    """A finished run that was evaluated later, in its own world and in others."""
    path = shutil.copytree(run, place)
    config = Run.open(path).config
    with warnings.catch_warnings(action="ignore"):
        evaluate_run(Weights(path), replace(config, eval=replace(config.eval, seed=7)), quiet=True)
        generalize_run(path, [], ["tiny_worlds:tiny/Diary-v0"], 2, quiet=True)
    return path


LATER = {name: do for name, do in (WHOLE | BY_LINE).items() if name != "another seed's"}


@pytest.mark.parametrize("damage", [*LATER, "a digit changed", "a digit of its last line changed"])
def test_episodes_that_were_added_later_are_sealed_as_well(
    damage: str, finished: Path, tmp_path: Path
):
    path = evaluated(finished, tmp_path / "run")
    file = path / "episodes.jsonl"
    before = content(path)
    assert len(before["episodes"]) > len(content(finished)["episodes"])
    if damage == "a digit of its last line changed":
        text = file.read_bytes()
        place = text.rindex(b'"seed": ') + len(b'"seed": ')
        file.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
    else:
        (LATER | {"a digit changed": alter})[damage](file, file)
    if damage == "with its last line twice":  # readers count an episode once
        assert content(path)["metrics"] == before["metrics"]
        return
    assert "episodes.jsonl was damaged" in refusal(lambda: content(path))


def test_damaged_lines_are_not_vouched_for_by_a_later_evaluation(finished: Path, tmp_path: Path):
    path = shutil.copytree(finished, tmp_path / "run")
    alter(path / "episodes.jsonl", path)
    with Run.open(path) as run:
        run.add_episodes(list(Run.open(finished).episodes())[:1])
    assert "episodes.jsonl was damaged" in refusal(lambda: content(path))


def test_results_in_other_worlds_vouch_for_themselves(finished: Path, tmp_path: Path):
    path = evaluated(finished, tmp_path / "run")
    file = path / "generalization.json"
    task = Task(path, ("tiny_worlds:tiny/Diary-v0",), 2)
    assert task.evaluated_unseen
    alter(file, file)
    assert "generalization.json was changed" in refusal(lambda: read_json(file))
    assert not task.evaluated_unseen  # so a study evaluates again
