"""What the programmer reads, and what becomes of what it writes."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.envs.datasci.text import (
    CHARACTERS,
    MARKINGS,
    MAX_BODY,
    MAX_ERROR,
    MAX_NAME,
    OPENING,
    Marking,
    program,
    prompt,
)

TASK = ("balance scale", 125, 4, 3)
FIRST = """\
# Data: balance scale; 125 rows, 4 features, 3 classes.
# Fit a scikit-learn classifier `model` with a high ROC-AUC.
def build_model(x_train, y_train):
"""
AGAIN = """\
def build_model(x_train, y_train):
    from sklearn import Tree
    model = Tree()
# ImportError: cannot import name 'Tree' (line 2)
"""
BODY = "    from sklearn import Tree\n    model = Tree()"


def test_the_first_prompt_states_the_task_and_begins_the_function():
    assert prompt(*TASK) == FIRST


def test_the_prompt_after_a_failure_shows_the_attempt_and_its_error_first():
    error = "ImportError: cannot import name 'Tree' (line 2)"
    assert prompt(*TASK, (BODY, error)) == AGAIN + FIRST
    assert prompt(*TASK, (BODY.strip() + "\n", f" {error}\n")) == AGAIN + FIRST


def test_the_line_an_error_names_is_that_line_of_the_attempt_as_shown():
    assert AGAIN.splitlines()[1] == program(BODY).splitlines()[1] == "    from sklearn import Tree"


@given(st.text(), st.text(), st.text(), st.sampled_from(sorted(MARKINGS)))
@settings(deadline=None)
def test_any_attempt_makes_a_bounded_readable_prompt_that_ends_as_the_first(
    name: str, body: str, error: str, marking: Marking
):
    first = prompt(name, 10, 2, 3, fill_in_the_middle=marking)
    again = prompt(name, 10, 2, 3, (body, error), fill_in_the_middle=marking)
    before = MARKINGS[marking][0]
    assert again.endswith(first.removeprefix(before))
    assert set(again) <= set(CHARACTERS)
    assert len(first) <= MAX_NAME + 250
    assert len(again) <= len(first) + MAX_BODY + MAX_ERROR + 50
    told = again.removesuffix(first.removeprefix(before)).splitlines()
    assert told[-1].startswith("# ")
    assert len(told[-1]) <= MAX_ERROR + 2


def test_a_long_attempt_is_cut_and_marked():
    shown = prompt(*TASK, ("x = 1\n" * 200, "e" * 500))
    body, error = shown.removesuffix(FIRST).removeprefix(OPENING).rstrip("\n").rsplit("\n# ", 1)
    assert body.endswith(" ...")
    assert MAX_BODY - 10 < len(body) <= MAX_BODY + 4
    assert error == "e" * MAX_ERROR


def test_other_characters_become_question_marks():
    shown = prompt(*TASK, ("a\t= 'é\x1b[0m'", "E: \x07ü"))
    assert "    a   = '??[0m'\n# E: ??\n" in shown


@pytest.mark.parametrize("marking", [m for m in MARKINGS if m != "none"])
def test_fill_in_the_middle_shows_the_end_of_the_function(marking: Marking):
    before, between, after = MARKINGS[marking]
    shown = prompt(*TASK, fill_in_the_middle=marking)
    assert shown == f"{before}{FIRST}{between}    return model\n{after}"
    assert between


def test_an_attempt_cannot_contain_the_markings():
    marks = [mark for marks in MARKINGS.values() for mark in marks if mark]
    body = " ".join(marks)
    shown = prompt(*TASK, (body, body), fill_in_the_middle="code-llama")
    assert shown.count("<FILL_ME>") == 1
    assert [mark for mark in marks if mark != "<FILL_ME>" and mark in shown] == []


@pytest.mark.parametrize("body", [BODY, BODY.strip(), f"\n{BODY}\n\n", BODY + "  \n"])
def test_a_program_is_the_function_around_the_body(body: str):
    assert program(body) == f"{OPENING}{BODY}\n    return model\n"
    (function,) = ast.parse(program(body)).body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == "build_model"


@given(st.text(alphabet="ab =\n\t("))
@settings(deadline=None)
def test_stripping_a_body_indented_by_four_gives_the_same_program(body: str):
    assert program(body.strip()) == program("    " + body.strip())


def test_an_empty_body_is_a_program():
    assert ast.parse(program(""))


def test_other_indentation_is_left_unchanged():
    assert program("  a = 1").splitlines()[1] == "  a = 1"
    assert program("if x:\n        model = 1").splitlines()[1] == "    if x:"
