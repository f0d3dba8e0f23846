"""Honest programs do in the sandbox what they do outside: the same probabilities, to 1e-12."""

from __future__ import annotations

import io
import sys
import textwrap
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import redirect_stderr, redirect_stdout
from functools import cache

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs pip install 'poad[datasci]'")
try:
    pytest.importorskip("pyseccomp", reason="needs pip install 'poad[datasci]'")
except RuntimeError:  # what it raises without libseccomp
    pytest.skip("needs libseccomp", allow_module_level=True)
if not sys.platform.startswith("linux"):
    pytest.skip("the sandbox is Linux's", allow_module_level=True)

from in_process import probabilities
from threadpoolctl import threadpool_limits

from poad.envs.datasci.sandbox import Answer, Job, Sandbox
from poad.errors import SandboxError

ARGUMENTS = {
    "CategoricalNB": "min_categories=6",
    "FixedThresholdClassifier": "LogisticRegression()",
    "GradientBoostingClassifier": "n_estimators=10",
    "HistGradientBoostingClassifier": "max_iter=10",
    "MLPClassifier": "max_iter=20",
    "NuSVC": "nu=0.1, probability=True",
    "OneVsRestClassifier": "LogisticRegression()",
    "QuadraticDiscriminantAnalysis": "reg_param=0.5",
    "RadiusNeighborsClassifier": "radius=10.0",
    "SGDClassifier": "loss='log_loss'",
    "SVC": "probability=True",
    "SelfTrainingClassifier": "LogisticRegression()",
    "StackingClassifier": "[('a', GaussianNB()), ('b', LogisticRegression())]",
    "TunedThresholdClassifierCV": "LogisticRegression()",
    "VotingClassifier": "[('a', GaussianNB()), ('b', LogisticRegression())], voting='soft'",
}
"""What some classifiers need, or need to be quick."""
BINARY = ("FixedThresholdClassifier", "TunedThresholdClassifierCV")
SEVERAL_TARGETS = ("ClassifierChain", "MultiOutputClassifier")
"""They answer with one table per target, so a program has to take the table out; see PROGRAMS."""

COMMON = """\
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
"""

PROGRAMS = {
    "chain": """
        from sklearn.multioutput import ClassifierChain
        class Chain(ClassifierChain):
            classes_ = property(lambda self: np.array([0, 1, 2]), lambda self, _: None)
            def predict_proba(self, x):
                return super().predict_proba(x)
        targets = np.eye(3)[y_train]
        return Chain(LogisticRegression(), order="random", random_state=0).fit(x_train, targets)
    """,
    "several targets": """
        from sklearn.multioutput import MultiOutputClassifier
        class First(MultiOutputClassifier):
            classes_ = property(lambda self: np.array([0, 1, 2]), lambda self, _: None)
            def predict_proba(self, x):
                return super().predict_proba(x)[0]
        return First(GaussianNB(), n_jobs=-1).fit(x_train, y_train[:, None])
    """,
    "pipeline": """
        from sklearn.decomposition import PCA
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler
        return make_pipeline(
            StandardScaler(), PolynomialFeatures(2), PCA(5), LogisticRegression(C=3)
        ).fit(x_train, y_train)
    """,
    "columns": """
        from sklearn.compose import ColumnTransformer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer, KBinsDiscretizer, OneHotEncoder
        columns = ColumnTransformer([
            ("hot", OneHotEncoder(handle_unknown="ignore"), [0]),
            ("log", FunctionTransformer(lambda x: np.log1p(x)), [1, 2]),
            ("bins", KBinsDiscretizer(3), [3]),
        ], n_jobs=2)
        return make_pipeline(columns, LogisticRegression()).fit(x_train, y_train)
    """,
    "voting": """
        from sklearn.ensemble import RandomForestClassifier, VotingClassifier
        from sklearn.neighbors import KNeighborsClassifier
        parts = [("f", RandomForestClassifier(20)), ("k", KNeighborsClassifier()),
                 ("n", GaussianNB())]
        return VotingClassifier(parts, voting="soft", weights=[2, 1, 1]).fit(x_train, y_train)
    """,
    "stacking": """
        from sklearn.ensemble import ExtraTreesClassifier, StackingClassifier
        parts = [("t", ExtraTreesClassifier(20, random_state=1)), ("n", GaussianNB())]
        return StackingClassifier(parts, cv=3, passthrough=True, n_jobs=-1).fit(x_train, y_train)
    """,
    "bagging": """
        from sklearn.ensemble import BaggingClassifier
        from sklearn.tree import DecisionTreeClassifier
        return BaggingClassifier(DecisionTreeClassifier(), 10, n_jobs=-1).fit(x_train, y_train)
    """,
    "forests on all cores": """
        from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
        forest = RandomForestClassifier(30, n_jobs=-1, oob_score=True).fit(x_train, y_train)
        forest.classes_ = ExtraTreesClassifier(30, n_jobs=2).fit(x_train, y_train).classes_
        return forest
    """,
    "neighbours on all cores": """
        from sklearn.neighbors import KNeighborsClassifier
        return KNeighborsClassifier(5, algorithm="brute", n_jobs=-1).fit(x_train, y_train)
    """,
    "neighbours in a tree": """
        from sklearn.neighbors import KNeighborsClassifier
        return KNeighborsClassifier(
            5, algorithm="kd_tree", weights="distance", n_jobs=-1
        ).fit(x_train, y_train)
    """,
    "regression on all cores": """
        from sklearn.linear_model import LogisticRegressionCV
        return LogisticRegressionCV(Cs=3, cv=3, n_jobs=-1).fit(x_train, y_train)
    """,
    "calibrated": """
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import LinearSVC
        return CalibratedClassifierCV(LinearSVC(), method="isotonic", cv=3, n_jobs=-1).fit(
            x_train, y_train)
    """,
    "grid search": """
        from sklearn.model_selection import GridSearchCV
        from sklearn.tree import DecisionTreeClassifier
        grid = {"max_depth": [2, 4, None], "min_samples_leaf": [1, 3]}
        tree = DecisionTreeClassifier(random_state=0)
        return GridSearchCV(tree, grid, cv=3, n_jobs=-1, verbose=3).fit(x_train, y_train)
    """,
    "random search": """
        from scipy.stats import loguniform
        from sklearn.model_selection import RandomizedSearchCV
        search = {"C": loguniform(1e-2, 1e2)}
        return RandomizedSearchCV(LogisticRegression(), search, n_iter=5, cv=3).fit(
            x_train, y_train)
    """,
    "halving search": """
        from sklearn.experimental import enable_halving_search_cv
        from sklearn.model_selection import HalvingGridSearchCV
        search = HalvingGridSearchCV(
            LogisticRegression(), {"C": [0.1, 1, 10]}, cv=3, random_state=0, n_jobs=2)
        return search.fit(x_train, y_train)
    """,
    "joblib": """
        from joblib import Parallel, delayed
        def part(seed):
            rows = np.random.RandomState(seed).permutation(len(x_train))[:40]
            return LogisticRegression().fit(x_train[rows], y_train[rows]).coef_
        model = LogisticRegression().fit(x_train, y_train)
        model.coef_ = np.mean(Parallel(n_jobs=-1)(delayed(part)(i) for i in range(4)), axis=0)
        model.coef_ += np.mean(Parallel(n_jobs=2, backend="threading")(
            delayed(part)(i) for i in range(4)), axis=0)
        model.coef_ += np.mean(Parallel(n_jobs=2, prefer="processes")(
            delayed(part)(i) for i in range(4)), axis=0)
        return model
    """,
    "thread pool": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as pool:
            means = list(pool.map(lambda k: x_train[y_train == k].mean(0), range(3)))
        model = GaussianNB().fit(x_train, y_train)
        model.theta_ = np.stack(means)
        return model
    """,
    "feature union": """
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD
        from sklearn.kernel_approximation import Nystroem, RBFSampler
        from sklearn.pipeline import make_pipeline, make_union
        from sklearn.feature_selection import SelectKBest, mutual_info_classif
        from sklearn.preprocessing import QuantileTransformer, SplineTransformer
        union = make_union(KMeans(3, n_init=2, random_state=0), TruncatedSVD(2, random_state=0),
                           Nystroem(n_components=8, random_state=0), RBFSampler(random_state=0),
                           QuantileTransformer(n_quantiles=10), SplineTransformer(), n_jobs=-1)
        best = SelectKBest(mutual_info_classif, k=12)
        return make_pipeline(union, best, LogisticRegression()).fit(x_train, y_train)
    """,
    "imputation": """
        from sklearn.experimental import enable_iterative_imputer
        from sklearn.impute import IterativeImputer, KNNImputer
        from sklearn.pipeline import make_pipeline
        x_train = np.where(np.random.rand(*x_train.shape) < 0.1, np.nan, x_train)
        return make_pipeline(IterativeImputer(max_iter=3), KNNImputer(), GaussianNB()).fit(
            x_train, y_train)
    """,
    "pandas": """
        import pandas as pd
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer
        def features(x):
            frame = pd.DataFrame(x, columns=list("abcd"))
            frame["left"], frame["right"] = frame.a * frame.b, frame.c * frame.d
            frame["rank"] = frame.groupby("a").left.rank()
            frame["mean"] = frame.left.rolling(3, min_periods=1).mean()
            frame["when"] = pd.to_datetime("2020-01-01") + pd.to_timedelta(frame.d, "D")
            frame["day"] = frame.when.dt.dayofweek
            counts = frame.groupby("b", as_index=False).size()
            frame = frame.merge(counts, on="b", how="left").drop(columns="when")
            print(frame.describe(), frame.head().to_string(), frame.info(), frame.dtypes)
            return pd.get_dummies(frame, columns=["c"]).reindex(
                columns=[*"abd", "left", "right", "rank", "mean", "day", "size", "c_3.0"]).fillna(0)
        return make_pipeline(FunctionTransformer(features), LogisticRegression(max_iter=500)).fit(
            x_train, y_train)
    """,
    "scipy": """
        from scipy import linalg, optimize, sparse, spatial, special, stats
        y = np.eye(3)[y_train]
        def loss(w):
            return -(y * special.log_softmax(x_train @ w.reshape(4, 3), axis=1)).sum() + w @ w
        found = optimize.minimize(loss, np.zeros(12), method="L-BFGS-B", options={"maxiter": 20})
        class Model:
            classes_ = np.arange(3)
            def predict_proba(self, x):
                near = spatial.cKDTree(x_train).query(x, k=2)[0].sum(1, keepdims=True)
                rank = sparse.csr_matrix(x).dot(linalg.svd(x_train)[2])[:, :1]
                shift = stats.norm.cdf(near + rank - rank.mean())
                return special.softmax(x @ found.x.reshape(4, 3) + shift, axis=1)
        return Model()
    """,
    "numpy": """
        left, values, right = np.linalg.svd(x_train - x_train.mean(0))
        big = np.random.randn(300, 300)
        weight = np.einsum("ij,jk->ik", big, big.T)[:4, :3] / 300 + np.abs(np.fft.fft(values))[:3]
        class Model:
            def predict_proba(self, x):
                score = np.exp((x @ right.T @ weight) / 50)
                return score / score.sum(1, keepdims=True)
        return Model()
    """,
    "chance": """
        import random
        from sklearn.ensemble import RandomForestClassifier
        model = RandomForestClassifier(random.randint(5, 9), max_features=np.random.choice([1, 2]))
        rows = random.sample(range(len(x_train)), 50)
        return model.fit(x_train[rows], y_train[rows])
    """,
    "standard library": """
        import collections, copy, dataclasses, datetime, functools, itertools, json, logging, math
        import operator, pickle, re, statistics, string, time, typing
        @dataclasses.dataclass
        class Options:
            smoothing: float = 1e-9
        @functools.lru_cache
        def power(n):
            return 10.0 ** -n
        options = copy.deepcopy(Options(power(math.floor(statistics.mean([4, 6, 8])))))
        counts = collections.Counter(y_train.tolist())
        pairs = list(itertools.combinations(string.ascii_lowercase[:4], 2))
        assert re.match("a.*", str(pairs[0][0])) and json.loads(json.dumps(pairs))
        datetime.datetime.strptime("2020-01-01", "%Y-%m-%d").strftime("%A")
        logging.getLogger("program").warning("counts %s at %s", counts, time.perf_counter())
        time.sleep(0.01)
        model = GaussianNB(var_smoothing=options.smoothing).fit(x_train, y_train)
        return pickle.loads(pickle.dumps(model))
    """,
    "own estimator": """
        from sklearn.base import BaseEstimator, ClassifierMixin, clone
        from sklearn.ensemble import BaggingClassifier
        class Nearest(ClassifierMixin, BaseEstimator):
            def __init__(self, scale=1.0):
                self.scale = scale
            def fit(self, x, y):
                self.classes_ = np.unique(y)
                self.means_ = np.stack([x[y == k].mean(0) for k in self.classes_])
                return self
            def predict_proba(self, x):
                far = ((x[:, None] - self.means_) ** 2).sum(-1) / self.scale
                near = np.exp(-far)
                return near / near.sum(1, keepdims=True)
            def predict(self, x):
                return self.classes_[self.predict_proba(x).argmax(1)]
        return clone(BaggingClassifier(Nearest(2.0), 5)).fit(x_train, y_train)
    """,
    "warnings": """
        import warnings
        from sklearn.neural_network import MLPClassifier
        warnings.warn("the program complains")
        np.log(np.zeros(3))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = MLPClassifier((5,), max_iter=3).fit(x_train, y_train)
        assert caught
        return model
    """,
    "prints": """
        import logging, sys
        from sklearn.ensemble import GradientBoostingClassifier
        logging.basicConfig(level=logging.DEBUG)
        logging.debug("text")
        print("text", file=sys.stderr, flush=True)
        print("text" * 100_000)
        sys.stdout.flush()
        return GradientBoostingClassifier(n_estimators=5, verbose=2).fit(x_train, y_train)
    """,
    "changing its data": """
        from sklearn.preprocessing import scale
        x_train[:] = scale(x_train)
        y_train.sort()
        return LogisticRegression().fit(x_train, y_train)
    """,
    "threadpoolctl": """
        from threadpoolctl import threadpool_limits
        from sklearn.cluster import KMeans
        with threadpool_limits(1):
            centres = KMeans(3, n_init=1).fit(x_train).cluster_centers_
        return GaussianNB().fit(np.vstack([x_train, centres]), np.append(y_train, [0, 1, 2]))
    """,
    "a frame as answer": """
        import pandas as pd
        class Model(GaussianNB):
            def predict_proba(self, x):
                return pd.DataFrame(super().predict_proba(x).astype(np.float32))
        return Model().fit(x_train, y_train)
    """,
    "lists as answer": """
        class Model(GaussianNB):
            def predict_proba(self, x):
                return super().predict_proba(x).tolist()
        return Model().fit(x_train, y_train)
    """,
}


def job(classes: int = 3, seed: int = 0) -> Job:
    """Sixty rows to learn from and sixty to answer for: four whole numbers, all classes."""
    generator = np.random.RandomState(100 + seed)
    x = generator.randint(1, 6, (120, 4)).astype(np.float64)
    torque = np.sign(x[:, 0] * x[:, 1] - x[:, 2] * x[:, 3]).astype(np.int64)
    y = torque + 1 if classes == 3 else (torque > 0).astype(np.int64)
    return Job(x[:60].copy(), y[:60].copy(), x[60:].copy(), classes, seed)


def copied(one: Job) -> Job:
    return Job(one.x_train.copy(), one.y_train.copy(), one.x_test.copy(), one.classes, one.seed)


def program(text: str) -> str:
    """The text as the body of build_model, after a few imports."""
    body = textwrap.indent(textwrap.dedent(text).strip("\n"), "    ")
    return f"{COMMON}\ndef build_model(x_train, y_train):\n{body}\n"


def difference(source: str, jobs: list[Job], answer: Answer) -> str:
    """How the answer differs from what the program says outside; empty if it does not."""
    if answer.probabilities is None:
        return f"{answer.status}: {answer.message}"
    apart = max(
        float(np.abs(inside - outside(source, one.classes, one.seed)).max())
        for inside, one in zip(answer.probabilities, jobs, strict=True)
    )
    return "" if apart <= 1e-12 else f"differs by {apart:g}"


@cache
def outside(source: str, classes: int, seed: int) -> np.ndarray:
    """What a program answers in this process to the `job` of these classes and this seed."""
    quiet = io.StringIO()
    with threadpool_limits(1), redirect_stdout(quiet), redirect_stderr(quiet):
        return np.asarray(probabilities(source, job(classes, seed)), np.float64)


@pytest.fixture(scope="module", params=["bubblewrap", "process"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Both designs, since they hide different parts of the system from a program."""
    try:
        opened = Sandbox(request.param, workers=2, budget=120)
    except SandboxError as error:
        if request.param != "bubblewrap":
            raise
        pytest.skip(str(error))
    with opened:
        yield opened


def compare(sandbox: Sandbox, programs: dict[str, tuple[str, list[Job]]]) -> dict[str, str]:
    """The programs that answer otherwise than outside, and how."""
    waiting: dict[str, Future[Answer]] = {
        name: sandbox.submit(source, jobs) for name, (source, jobs) in programs.items()
    }
    differences = {
        name: difference(*programs[name], future.result()) for name, future in waiting.items()
    }
    return {name: text for name, text in differences.items() if text}


def classifiers() -> dict[str, tuple[str, list[Job]]]:
    """A program for every classifier of scikit-learn that gives probabilities."""
    from sklearn.utils import all_estimators

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [(n, c) for n, c in all_estimators("classifier") if n not in SEVERAL_TARGETS]
    programs = {}
    for name, kind in found:
        if not hasattr(kind, "predict_proba"):
            continue
        module = ".".join(p for p in kind.__module__.split(".") if not p.startswith("_"))
        if module.endswith("gradient_boosting"):
            module = "sklearn.ensemble"
        model = f"{name}({ARGUMENTS.get(name, '')})"
        text = f"from {module} import {name}\nreturn {model}.fit(x_train, y_train)"
        programs[name] = (program(text), [job(2 if name in BINARY else 3, s) for s in (0, 1)])
    return programs


def test_every_classifier_answers_the_same(sandbox: Sandbox) -> None:
    programs = classifiers()
    assert len(programs) > 30
    assert compare(sandbox, programs) == {}


def test_programs_answer_the_same(sandbox: Sandbox) -> None:
    jobs = [job(seed=0), job(seed=1)]
    programs = {name: (program(text), jobs) for name, text in PROGRAMS.items()}
    assert compare(sandbox, programs) == {}


def test_the_comparison_can_fail(sandbox: Sandbox) -> None:
    """A program whose answer depends on where it runs is found out."""
    text = """
        import os
        class Model:
            def predict_proba(self, x):
                return np.tile([os.getpid(), 1, 1], (len(x), 1))
        return Model()
    """
    assert compare(sandbox, {"elsewhere": (program(text), [job()])}).keys() == {"elsewhere"}


def test_answers_repeat(sandbox: Sandbox) -> None:
    """To the bit, on any worker: chance comes from the job's seed alone."""
    source = program(PROGRAMS["chance"])
    jobs = [job(seed=0), job(seed=1)]
    first, *others = [
        future.result() for future in [sandbox.submit(source, jobs) for _ in range(6)]
    ]
    assert first.probabilities is not None
    for other in others:
        assert other.probabilities is not None
        for one, same in zip(first.probabilities, other.probabilities, strict=True):
            assert one.tobytes() == same.tobytes()
    assert (first.probabilities[0] != first.probabilities[1]).any()


def test_data_stays_as_it_was(sandbox: Sandbox) -> None:
    one = job()
    before = copied(one)
    assert sandbox.run(program(PROGRAMS["changing its data"]), [one]).status == "ok"
    assert (one.x_train == before.x_train).all()
    assert (one.y_train == before.y_train).all()


def test_columns_follow_the_sorted_classes(sandbox: Sandbox) -> None:
    text = """
        class Model:
            classes_ = [2, 0, 1]
            def predict_proba(self, x):
                return np.tile([0.2, 0.3, 0.5], (len(x), 1))
        return Model()
    """
    answer = sandbox.run(program(text), [job()])
    assert answer.probabilities is not None
    assert (answer.probabilities[0] == [0.3, 0.5, 0.2]).all()


HALF = "class Model:\n    def predict_proba(self, x): return %s\nreturn Model()"
MISTAKES = {
    "no predict_proba": (
        "from sklearn.svm import LinearSVC\nreturn LinearSVC().fit(x_train, y_train)",
        "error",
        "AttributeError",
    ),
    "nothing returned": ("GaussianNB().fit(x_train, y_train)", "error", "'NoneType'"),
    "not fitted": ("return GaussianNB()", "error", "NotFittedError"),
    "regression": (
        "from sklearn.linear_model import Ridge\nreturn Ridge().fit(x_train, y_train)",
        "error",
        "AttributeError",
    ),
    "too few rows": (HALF % "np.ones((len(x) - 1, 3))", "output", "shape (59, 3)"),
    "too few columns": (HALF % "np.ones((len(x), 2))", "output", "shape (60, 2)"),
    "one column": (HALF % "np.ones(len(x))", "output", "shape (60,)"),
    "not a number": (HALF % "np.full((len(x), 3), np.nan)", "output", "finite"),
    "infinite": (HALF % "np.full((len(x), 3), np.inf)", "output", "finite"),
    "a class too few": (
        "return GaussianNB().fit(x_train[y_train > 0], y_train[y_train > 0])",
        "output",
        "classes [1, 2]",
    ),
    "other labels": ("return GaussianNB().fit(x_train, y_train + 1)", "output", "[1, 2, 3]"),
    "exception": ("x = 1\nreturn x / 0", "error", "ZeroDivisionError: division by zero (line 7)"),
    "bad argument": (
        "return LogisticRegression(C=-1).fit(x_train, y_train)",
        "error",
        "InvalidParameterError",
    ),
    "unknown name": ("return Unknown()", "error", "NameError: name 'Unknown' is not defined"),
    "unknown module": ("import unknown", "error", "No module named 'unknown'"),
    "syntax": ("return (", "error", "SyntaxError"),
    "threads by way of a pipe": (
        "from multiprocessing.pool import ThreadPool\nThreadPool(2)",
        "error",
        "PermissionError",
    ),
    "processes": (
        "import multiprocessing\nmultiprocessing.Pool(2).map(abs, [1])",
        "error",
        "Error",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(sandbox: Sandbox, name: str) -> None:
    text, status, words = MISTAKES[name]
    answer = sandbox.run(program(text), [job(seed=0), job(seed=1)])
    assert (answer.status, answer.probabilities) == (status, None)
    assert words in answer.message
    assert answer.message.isprintable()
    assert len(answer.message.encode()) <= 2_000


def test_a_program_without_build_model(sandbox: Sandbox) -> None:
    answer = sandbox.run("x = 1", [job()])
    assert answer.status == "error"
    assert "build_model" in answer.message
