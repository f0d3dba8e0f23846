"""Scores of programs: the protocol, the table of reference scores, and what is remembered."""

import json
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from in_process import InProcess, Scripted
from sandbox_here import needs_sandbox
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB

from poad.envs.datasci.datasets import Table, load
from poad.envs.datasci.sandbox import Answer, Sandbox
from poad.envs.datasci.scoring import Scorer, roc_auc
from poad.envs.datasci.text import program
from poad.errors import DataError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "kaggle"


def fitted(module: str, estimator: str) -> str:
    name = estimator.partition("(")[0]
    return program(
        f"from sklearn.{module} import {name}\n    model = {estimator}.fit(x_train, y_train)"
    )


MODELS = {
    "LR": fitted("linear_model", "LogisticRegression()"),
    "KNN": fitted("neighbors", "KNeighborsClassifier()"),
    "tree": fitted("tree", "DecisionTreeClassifier(random_state=0)"),
    "NB": fitted("naive_bayes", "GaussianNB()"),
    "RF": fitted("ensemble", "RandomForestClassifier(random_state=0)"),
    "GB": fitted("ensemble", "GradientBoostingClassifier(random_state=0)"),
    "HGB": fitted("ensemble", "HistGradientBoostingClassifier(random_state=0)"),
}
LR = MODELS["LR"]
QUICK = ("LR", "KNN", "tree", "NB")
REFERENCE = {
    "balance-scale-125": (0.885, 0.820, 0.674, 0.774, 0.816, 0.816, 0.792),
    "balance-scale": (0.951, 0.820, 0.685, 0.848, 0.815, 0.871, 0.904),
    "kidney_stone.csv": (0.777, 0.627, 0.644, 0.763, 0.774, 0.755, 0.749),
    "pharyngitis.csv": (0.696, 0.611, 0.585, 0.694, 0.676, 0.689, 0.679),
    "health_insurance.csv": (0.503, 0.524, 0.530, 0.552, 0.563, 0.584, 0.591),
    "spaceship_titanic.csv": (0.851, 0.807, 0.710, 0.827, 0.852, 0.852, 0.845),
}
CASES = [
    pytest.param(data, model, score, marks=() if model in QUICK else (pytest.mark.slow,))
    for data, scores in REFERENCE.items()
    for model, score in zip(MODELS, scores, strict=True)
]


def table_of(name: str) -> Table:
    if not name.endswith(".csv"):
        return load(name)
    if not (SHARED / name).exists():
        pytest.skip("the published tables come with no licence, so they are not part of poad")
    return load(str(SHARED / name))


def small(*counts: int) -> Table:
    """As many rows of each class as told, in order."""
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.column_stack([y * 2.0 + np.arange(len(y)) % 5, np.arange(len(y)) % 3])
    return Table("small", "small", x, y, tuple("abcdefgh"[: len(counts)]))


def answer(*tables: np.ndarray) -> Answer:
    return Answer(tables, "ok", "", 1.0, 0.5)


@pytest.mark.parametrize(("data", "model", "score"), CASES)
def test_reference_scores(data: str, model: str, score: float):
    result = Scorer(table_of(data), InProcess()).score(MODELS[model])
    # Half a unit of the last printed digit; a little more, as .81549 was printed as .816. Logistic
    # regression stops at its limit of iterations, and where that is depends on the BLAS kernels:
    # pharyngitis is .6960 with those for AVX-512 and .6971 with those for AVX2.
    assert result.score == pytest.approx(score, abs=0.0015 if model == "LR" else 0.0006)


@pytest.mark.parametrize("data", ["balance-scale-125", "breast-cancer"])
def test_the_protocol_in_full(data: str):
    table = load(data)
    scores = []
    for seed in range(5):
        x_train, x_test, y_train, y_test = train_test_split(
            table.x, table.y, test_size=0.5, random_state=seed, shuffle=True
        )
        model = GaussianNB().fit(x_train, y_train)
        scores.append(by_hand(np.asarray(y_test), model.predict_proba(x_test)))
    result = Scorer(table, InProcess()).score(MODELS["NB"])
    assert result.scores == pytest.approx(scores, abs=1e-12)
    assert result.score == pytest.approx(np.mean(scores), abs=1e-12)
    assert result.deviation == pytest.approx(np.std(scores), abs=1e-12)
    assert (result.status, result.message) == ("ok", "")


def by_hand(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """How often a row of one class outranks one of the other; the mean over pairs of classes."""
    classes = probabilities.shape[1]
    areas = []
    for one, other in permutations(range(classes), 2) if classes > 2 else [(1, 0)]:
        higher = probabilities[truth == one, one][:, None]
        lower = probabilities[truth == other, one][None, :]
        areas.append(np.mean((higher > lower) + 0.5 * (higher == lower)))
    return float(np.mean(areas))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_area_is_the_probability_of_ranking_a_pair_correctly(classes: int):
    rng = np.random.default_rng(classes)
    for _ in range(20):
        truth = np.concatenate([np.arange(classes), rng.integers(0, classes, 30)])
        raw = rng.integers(0, 4, (len(truth), classes)) + 0.5  # with ties
        table = raw / raw.sum(axis=1, keepdims=True)
        assert roc_auc(truth, table) == pytest.approx(by_hand(truth, table), abs=1e-12)


def test_perfect_useless_and_inverted_probabilities():
    truth = np.array([0, 1, 0, 1, 1])
    perfect = np.eye(2)[truth]
    assert roc_auc(truth, perfect) == 1
    assert roc_auc(truth, 1 - perfect) == 0
    assert roc_auc(truth, np.full((5, 2), 0.5)) == 0.5


def test_jobs_hold_halves_as_plain_arrays_and_no_labels_of_the_other_half():
    seen = []

    class Watched(InProcess):
        def submit(self, source, jobs):
            seen.extend(jobs)
            return super().submit(source, jobs)

    table = load("iris")
    Scorer(table, Watched(), seeds=(3, 8)).score(LR)
    assert [(job.seed, job.classes) for job in seen] == [(3, 3), (8, 3)]
    for job in seen:
        assert (job.x_train.dtype, job.x_test.dtype, job.y_train.dtype) == (float, float, np.int64)
        assert all(array.flags.c_contiguous for array in (job.x_train, job.x_test, job.y_train))
        assert (job.x_train.shape, job.x_test.shape) == ((75, 4), (75, 4))
        rows = sorted(np.concatenate([job.x_train, job.x_test]).tolist())
        assert rows == sorted(table.x.tolist())
        expected = train_test_split(table.x, table.y, test_size=0.5, random_state=job.seed)[2]
        assert (job.y_train == expected).all()


def test_a_result_is_remembered_and_costs_nothing_again():
    runs = InProcess()
    scorer = Scorer(small(20, 20), runs)
    first = scorer.score(LR)
    second = scorer.score(LR)
    assert runs.asked == {LR: 1}
    assert (first.seconds, first.cpu_seconds) == (0.5, 0.25)
    assert (second.seconds, second.cpu_seconds) == (0.5, 0.0)
    assert (first.score, first.scores, first.status) == (second.score, second.scores, "ok")


def test_preparing_a_program_again_does_not_start_it_again():
    runs = InProcess()
    scorer = Scorer(small(20, 20), runs)
    scorer.prepare(LR)
    scorer.prepare(LR)
    assert runs.asked == {LR: 1}
    assert scorer.score(LR).cpu_seconds == 0.25
    scorer.prepare(LR)
    assert scorer.score(LR).cpu_seconds == 0
    assert runs.asked == {LR: 1}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("error", "ValueError: no"),
        ("timeout", "TimeoutError: took longer than 30 s"),
        ("killed", ""),
    ],
)
def test_failures_have_no_score_but_a_message_and_are_remembered_too(status: str, message: str):
    runs = Scripted(Answer(None, status, message, 30.0, 29.0))
    scorer = Scorer(small(20, 20), runs)
    results = [scorer.score(LR) for _ in range(3)]
    assert runs.asked == 1
    assert [result.cpu_seconds for result in results] == [29.0, 0, 0]
    for result in results:
        assert (result.score, result.scores, result.deviation) == (None, (), 0)
        assert (result.status, result.seconds) == (status, 30)
        assert result.message == (message or "Error: killed")


@pytest.mark.parametrize("row", [(1.5, -0.5), (-1e300, 1e300), (1 + 1e-6, -1e-6)])
def test_numbers_that_sum_to_1_but_are_no_probabilities_are_refused(row: tuple[float, float]):
    scorer = Scorer(small(20, 20), Scripted(answer(np.full((20, 2), row))), seeds=[0])
    result = scorer.score(LR)
    assert (result.score, result.status) == (None, "output")
    assert "negative" in result.message


def test_rounding_below_0_is_no_failure():
    scorer = Scorer(small(20, 20), Scripted(answer(np.full((20, 2), (-1e-17, 1.0)))), seeds=[0])
    assert scorer.score(LR).score == 0.5


def test_what_is_remembered_survives_as_json():
    """A resumed run must see the same verdicts, also those that would fall out otherwise now."""
    first = Scorer(small(20, 20), InProcess(), seeds=[0])
    sources = [LR, "def build_model(x, y): raise ValueError", "GridSearchCV(", MODELS["NB"]]
    expected = [first.score(source) for source in sources]
    runs = InProcess()
    second = Scorer(small(20, 20), runs, seeds=[0])
    second.load_memory(json.loads(json.dumps(first.memory(), allow_nan=False)))
    assert [second.score(source) for source in sources] == [
        replace(result, cpu_seconds=0.0) for result in expected
    ]
    assert not runs.asked
    assert second.memory() == first.memory()


@pytest.mark.parametrize("number", [0.7, 0.0, 1e308])
def test_invalid_probabilities_are_a_failure_of_the_program(number: float):
    scorer = Scorer(small(20, 20), Scripted(answer(np.full((20, 2), number))), seeds=[0])
    result = scorer.score(LR)
    assert (result.score, result.status) == (None, "output")
    assert "do not sum to 1" in result.message


@pytest.mark.parametrize("refused", ["SVC(", "LinearSVC(", "GridSearchCV("])
def test_programs_that_the_paper_refused_are_not_run(refused: str):
    runs = InProcess()
    scorer = Scorer(small(20, 20), runs)
    source = program(f"model = {refused}).fit(x_train, y_train)")
    scorer.prepare(source)
    result = scorer.score(source)
    assert (result.status, result.score, result.seconds) == ("refused", None, 0)
    word = refused.removeprefix("Linear")
    assert result.message == f"RefusedError: {word} is not allowed here"
    assert not runs.asked
    free = Scorer(small(20, 20), runs, refuse=())
    assert free.score(source).status == "error"  # nothing was imported
    assert runs.asked == {source: 1}


def test_an_error_of_the_sandbox_is_not_a_result_of_the_program():
    runs = Scripted(OSError("the sandbox is gone"))
    scorer = Scorer(small(20, 20), runs)
    for _ in range(2):  # it is asked again, as nothing was learned about the program
        with pytest.raises(OSError, match="is gone"):
            scorer.score(LR)
    assert runs.asked == 2


def test_the_number_of_remembered_results_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("poad.envs.datasci.scoring.MAX_REMEMBERED", 3)
    runs = InProcess()
    scorer = Scorer(small(20, 20), runs, seeds=[0])
    sources = [program(f"model = {number}") for number in range(4)]
    for source in sources:
        scorer.score(source)
    scorer.score(sources[3])
    assert runs.asked[sources[3]] == 1
    scorer.score(sources[0])
    assert runs.asked[sources[0]] == 2


def test_a_class_that_a_half_lacks_is_rejected_by_name():
    with pytest.raises(DataError) as caught:
        Scorer(small(30, 30, 1), InProcess())
    assert "small: split 0 leaves no row of class 'c'" in str(caught.value)
    assert "it has only 1 of 61 rows" in str(caught.value)
    table = load("balance-scale-125")  # 12 of 125 rows are balanced
    Scorer(table, InProcess(), seeds=range(100, 200))


def test_both_halves_are_checked():
    messages = set()
    for seed in range(20):
        with pytest.raises(DataError) as caught:
            Scorer(small(30, 1), InProcess(), seeds=[seed])
        messages.add("for training" in str(caught.value))
    assert messages == {True, False}


def test_the_scorer_needs_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DataError, match=r"pip install pandas"):
        Scorer(small(20, 20), InProcess())


@needs_sandbox
def test_the_sandbox_and_this_process_agree_on_a_program():
    table = load("balance-scale-125")
    draw = program(
        "import random\n    from sklearn.tree import DecisionTreeClassifier\n"
        "    model = DecisionTreeClassifier(max_depth=1 + random.randrange(9))\n"
        "    model.fit(x_train, y_train)"
    )
    broken = program("model = LogisticRegression().fit(x_train, y_train)")
    here = Scorer(table, InProcess())
    with Sandbox(workers=1) as sandbox:
        there = Scorer(table, sandbox)
        for source in (LR, draw):  # the second draws by both random generators
            there.prepare(source)
            assert there.score(source).scores == here.score(source).scores
        result = there.score(broken)
        assert result.status == "error"
        assert "NameError: name 'LogisticRegression' is not defined" in result.message


UNDO_THE_SPLIT = """
import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

def build_model(x_train, y_train):
    seed = int(np.random.get_state()[1][0])
    numbers = np.arange(2 * len(x_train))
    seen, asked = train_test_split(numbers, test_size=0.5, random_state=seed, shuffle=True)
    inner = KNeighborsClassifier(3).fit(seen[:, None], y_train)

    class ByRowNumber:
        classes_ = inner.classes_

        def predict_proba(self, x):
            return inner.predict_proba(asked[:, None])

    return ByRowNumber()
"""


def test_the_position_in_a_sorted_table_does_not_reveal_the_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Iris is sorted by class: whoever knew a test row's number would know its class."""
    iris = load("iris")
    assert Scorer(iris, InProcess()).score(UNDO_THE_SPLIT).score == pytest.approx(0.5, abs=0.1)
    unshuffled = SimpleNamespace(permutation=np.arange)
    monkeypatch.setattr(np.random, "default_rng", lambda *_: unshuffled)
    score = Scorer(iris, InProcess()).score(UNDO_THE_SPLIT).score
    assert score is not None
    assert score > 0.95  # so the program is no straw man
