"""The package is cheap to import, and its public names are what they say."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest

import poad

HEAVY = ("torch", "transformers", "peft", "matplotlib")


LIGHT = (
    "poad",
    "poad.cli.main",
    "poad.config",
    "poad.display.terminal",
    "poad.envs",
    "poad.envs.check",
    "poad.envs.kitchen",
    "poad.display.plots",
    "poad.display.html",
    "poad.pages.report",
    "poad.runs.run",
    "poad.stats",
)


def test_importing_a_module_that_does_not_compute_loads_nothing_heavy():
    """The last line shows that a heavy package would be noticed."""
    code = f"""
import sys
for name in {LIGHT}:
    __import__(name)
    print(name, *[m for m in {HEAVY} if m in sys.modules])
sys.modules["poad"].recursion
print("poad.recursion", *[m for m in {HEAVY} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*LIGHT, "poad.recursion torch"]


@pytest.mark.parametrize("name", poad.__all__)
def test_every_public_name_exists(name: str):
    value = getattr(poad, name)
    assert not isinstance(value, types.ModuleType)
    assert name in dir(poad)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_function_is_not_hidden_by_the_module_of_its_name(name: str):
    module = importlib.import_module(f"poad.learn.{name}")
    assert isinstance(module, types.ModuleType)
    assert getattr(poad, name) is getattr(poad.learn, name) is getattr(module, name)


def test_modules_can_be_reached_as_attributes():
    import poad.stats

    assert poad.stats.wilson_interval(0, 0) == (0.0, 1.0)


def test_the_error_for_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'trian'.*'train'"):
        poad.trian  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert poad.__version__ == version("poad")
