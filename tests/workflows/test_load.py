"""A run's weights are used with the model that they were trained from, and with no other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.torch import load_file, save_file
from tiny_worlds import settings

from poad.errors import ModelError, RankError
from poad.learn import Trainer
from poad.models import ASSETS
from poad.ranks import Ranks
from poad.runs import Run
from poad.workflows import resume_run, train_run
from poad.workflows.load import Weights, load_weights
from poad.workflows.together import check_alike


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that trained adapters on a model in a directory."""
    folder = tmp_path_factory.mktemp("load")
    model = Path(shutil.copytree(ASSETS / "tiny-kitchen", folder / "model"))
    tuned = {"name": str(model), "device": "cpu", "tuning": "lora"}
    config = settings("Chain", model=tuned, steps=15, eval={"episodes": 0})
    assert train_run(config, folder / "run", quiet=True) == 0
    return Run.open(folder / "run")


@contextmanager
def replaced(run: Run) -> Iterator[None]:
    """Another model lies under the same name."""
    file = Path(run.config.model.name) / "model.safetensors"
    before = file.read_bytes()
    weights = load_file(file)
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, file, {"format": "pt"})
    try:
        yield
    finally:
        file.write_bytes(before)


def test_a_model_that_was_replaced_is_refused_by_all_who_use_the_run(run: Run) -> None:
    changed = replace(run.config, steps=30)
    with replaced(run):
        for use in (
            lambda: load_weights(Weights(run.path)),
            lambda: load_weights(Weights(run.path, 0)),
            lambda: load_weights(Weights(run.path, untrained=True)),
            lambda: resume_run(run.path, changed, quiet=True),
        ):
            with pytest.raises(
                ModelError, match=r"no longer the model .*its weights changed\. Put"
            ):
                use()
    assert len(run.metrics()) == 1
    load_weights(Weights(run.path))


def test_all_processes_must_have_loaded_the_same_model(run: Run) -> None:
    class Other(Ranks):
        def exchange(self, what: str, value: Any) -> list[Any]:
            return [value, value if what != "model" else value | {"weights": "others"}]

    trainer = Trainer(run.config)
    trainer.ranks = cast(Any, Other(0, 2))
    with pytest.raises(RankError, match=r"rank 1 has loaded another model .*: its weights differ"):
        check_alike(trainer)
    trainer.collector.close()
