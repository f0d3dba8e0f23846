"""The language of the embedded code model: whole, harmless to learn from, and evenly drawn."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from poad.envs.datasci.scoring import REFUSED
from poad.envs.datasci.text import MAX_BODY, MAX_NAME, program, prompt

pytest.importorskip("sklearn", reason="needs pip install 'poad[datasci]'")

BODIES = 400


@pytest.fixture(scope="module")
def grammar() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "code_grammar.py"
    spec = importlib.util.spec_from_file_location("code_grammar", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["code_grammar"] = module  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module


def run(body: str) -> Any:
    """What the program makes of a table without meaning: its probabilities."""
    x = np.random.RandomState(0).normal(size=(90, 4))
    namespace: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(program(body), "<program>", "exec"), namespace)
        return namespace["build_model"](x, np.arange(90) % 3).predict_proba(x)


def fails(body: str) -> bool:
    try:
        run(body)
    except Exception:
        return True
    return False


# --- bodies ---


def test_a_body_imports_what_it_uses_and_fits_what_it_calls_model(grammar: ModuleType) -> None:
    rng = Random(0)
    for _ in range(BODIES):
        text = grammar.draw_body(rng).text
        imports, used, assigned, fitted = set(), set(), set(), []
        for node in ast.walk(ast.parse(program(text))):
            if isinstance(node, ast.ImportFrom):
                imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else assigned).add(node.id)
            elif isinstance(node, ast.Attribute):
                fitted.append(node.attr)
        assert used - assigned == imports | {"x_train", "y_train"}
        assert assigned - {"model"} <= set("abc")
        assert "model" in assigned
        assert fitted == ["fit"]


def test_a_body_is_shaped_as_a_model_is_to_write_it(grammar: ModuleType) -> None:
    rng = Random(1)
    for _ in range(BODIES):
        text = grammar.draw_body(rng).text
        assert all(re.match(r" {4}\S", line) for line in text.splitlines())
        assert text == text.rstrip()
        assert text.isascii()
        assert len(text) <= grammar.LONGEST < MAX_BODY
        assert "return" not in text
        assert not any(refused in text for refused in REFUSED)
        assert program(text) == program(text.strip())


def test_equal_seeds_draw_equal_bodies(grammar: ModuleType) -> None:
    drawn = [[grammar.draw_body(rng).text for _ in range(50)] for rng in (Random(3), Random(3))]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 40


def test_bodies_without_a_fault_run(grammar: ModuleType) -> None:
    rng = Random(4)
    for _ in range(40):
        table = run(grammar.draw_body(rng).text)
        assert table.shape == (90, 3)
        np.testing.assert_allclose(table.sum(axis=1), 1.0)


def test_every_setting_of_every_part_is_one_that_it_accepts(grammar: ModuleType) -> None:
    first = dict.fromkeys(("BaggingClassifier", "CalibratedClassifierCV"), "GaussianNB()")
    parts = grammar.ESTIMATORS + grammar.SCALERS + grammar.FEATURES + grammar.JOINTS
    for part in parts + grammar.WITHOUT_PROBABILITIES:
        names: dict[str, Any] = {}
        exec(f"from {part.module} import {part.name}", names)
        exec("from sklearn.naive_bayes import GaussianNB", names)
        always = {key: values[0] for key, values in part.always}
        for key, values in [*part.always, *part.sometimes]:
            for value in values:
                settings = ", ".join(f"{k}={v}" for k, v in (always | {key: value}).items())
                before = f"{first[part.name]}, " if part.name in first else ""
                eval(f"{part.name}({before}{settings})", names)._validate_params()


def test_estimators_and_forms_are_drawn_uniformly(grammar: ModuleType) -> None:
    rng, number = Random(5), 8000
    found = Counter(grammar._estimator(rng).split("(")[0] for _ in range(number))
    behind_a_scaler = found.pop("make_pipeline")
    expected = number / len(grammar.ESTIMATORS)
    allowed = 5 * expected**0.5
    assert set(found) == {p.name for p in grammar.ESTIMATORS} - set(grammar.NOT_NEGATIVE)
    assert all(abs(count - expected) < allowed for count in found.values())
    assert abs(behind_a_scaler - 2 * expected) < 2 * allowed
    assert len(grammar.ESTIMATORS) >= 19


def test_what_scores_best_on_the_balance_scale_is_an_ordinary_member(grammar: ModuleType) -> None:
    rng = Random(6)
    text = "\n\n".join(grammar.draw_body(rng).text for _ in range(10_000))
    for wanted in (
        r"make_pipeline\(PolynomialFeatures\([^()]*\), LogisticRegression",
        r"make_pipeline\(StandardScaler\(\), MLPClassifier",
        r"StackingClassifier\(.*MLPClassifier",
        r"VotingClassifier\(.*LogisticRegression",
    ):
        assert re.search(wanted, text), wanted


# --- faults ---


def test_every_kind_of_fault_breaks_the_program(grammar: ModuleType) -> None:
    rng = Random(7)
    for kind, plant in grammar.FAULTS.items():
        planted = 0
        while planted < 8:
            broken = plant(rng, grammar.draw_body(rng))
            if broken is None:
                continue
            planted += 1
            assert fails(broken), f"{kind}: {broken}"


def test_a_fault_changes_the_body_and_all_kinds_are_planted(grammar: ModuleType) -> None:
    rng, kinds = Random(8), Counter()
    for _ in range(1300):
        body = grammar.draw_body(rng)
        kind, broken = grammar.plant_fault(rng, body)
        kinds[kind] += 1
        assert broken != body.text
        assert broken.startswith("    ")
        assert len(broken) <= MAX_BODY
    assert len(grammar.FAULTS) >= 10
    assert set(kinds) == set(grammar.FAULTS)
    assert min(kinds.values()) >= 0.3 * 1300 / len(kinds)


# --- prompts ---


def test_the_data_sets_of_prompts_are_many_and_of_all_sizes(grammar: ModuleType) -> None:
    rng = Random(9)
    drawn = [grammar.draw_data(rng) for _ in range(2000)]
    for name, rows, features, classes in drawn:
        assert len(name) <= MAX_NAME
        assert rows >= 50
        assert features >= 2
        assert classes >= 2
        assert prompt(name, rows, features, classes).count(name) == 1
    assert len({name for name, *_ in drawn}) >= 30
    assert len({tuple(sizes) for _, *sizes in drawn}) > 1000
