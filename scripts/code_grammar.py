"""A grammar of program bodies for `poad/DataScience-v0`, which ignores their scores.

A body imports what it needs, assigns a scikit-learn classifier to `model` and fits it. Forms,
estimators, transformers and their settings are drawn uniformly. `FAULTS` can break a body in
several ways. The data set in a prompt is drawn independently, so it carries no information about
the program that follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

# --- parts ---


@dataclass(frozen=True)
class Part:
    """An estimator or a transformer with its possible arguments."""

    module: str
    name: str
    always: tuple[tuple[str, tuple[str, ...]], ...]
    """Keywords that are always set. Without them the part fails or takes long."""
    sometimes: tuple[tuple[str, tuple[str, ...]], ...]
    """Keywords, up to two of which are set."""


def _parts(table: str) -> tuple[Part, ...]:
    """Parse lines of `module name keyword=value|value ...`. A star marks keywords to always set."""
    parts = []
    for line in table.strip().splitlines():
        module, name, *settings = line.split()
        split = [setting.split("=") for setting in settings]
        pairs = [(key, tuple(values.split("|"))) for key, values in split]
        always = tuple((key[1:], values) for key, values in pairs if key.startswith("*"))
        sometimes = tuple((key, values) for key, values in pairs if not key.startswith("*"))
        parts.append(Part(f"sklearn.{module}", name, always, sometimes))
    return tuple(parts)


ESTIMATORS = _parts("""
linear_model LogisticRegression C=0.01|0.1|1.0|10.0|100.0 max_iter=200|500 class_weight="balanced"
linear_model SGDClassifier *loss="log_loss"|"modified_huber" alpha=0.001|0.01|0.1 average=True
neighbors KNeighborsClassifier n_neighbors=3|5|7|9|15 weights="uniform"|"distance" p=1|2
neighbors NearestCentroid priors="uniform"|"empirical"
tree DecisionTreeClassifier max_depth=2|3|4|5|8 min_samples_leaf=2|3|5|10 criterion="gini"|"entropy"
tree ExtraTreeClassifier max_depth=2|3|4|5|8 min_samples_leaf=2|3|5|10 random_state=0|1|2|42
naive_bayes GaussianNB var_smoothing=0.001|0.01|0.1
naive_bayes BernoulliNB alpha=0.1|0.5|2.0 binarize=0.0|0.5|1.0
naive_bayes MultinomialNB alpha=0.1|0.5|2.0 fit_prior=False
naive_bayes ComplementNB alpha=0.1|0.5|2.0 norm=True
ensemble RandomForestClassifier *n_estimators=10|20|50 max_depth=3|5|8 max_features="sqrt"|0.5
ensemble ExtraTreesClassifier *n_estimators=10|20|50 max_depth=3|5|8 min_samples_leaf=2|3|5
ensemble GradientBoostingClassifier *n_estimators=10|20|50 learning_rate=0.05|0.1|0.3 max_depth=2|4
ensemble HistGradientBoostingClassifier *max_iter=10|20|50 learning_rate=0.05|0.1|0.3
ensemble AdaBoostClassifier *n_estimators=10|20|50 learning_rate=0.1|0.5|1.0 random_state=0|1|2|42
discriminant_analysis LinearDiscriminantAnalysis solver="svd"|"lsqr" tol=0.001|0.01
discriminant_analysis QuadraticDiscriminantAnalysis *solver="eigen" *shrinkage=0.1|0.3|0.5
neural_network MLPClassifier *hidden_layer_sizes=8|16|32|64 max_iter=100|200|300 alpha=0.001|0.1
semi_supervised LabelSpreading *kernel="knn" n_neighbors=5|7|9 alpha=0.1|0.2|0.5
gaussian_process GaussianProcessClassifier *optimizer=None random_state=0|1|2|42
""")

SCALERS = _parts("""
preprocessing StandardScaler
preprocessing MinMaxScaler
preprocessing MaxAbsScaler
preprocessing RobustScaler with_centering=False
preprocessing Normalizer norm="l1"|"l2"|"max"
preprocessing QuantileTransformer *n_quantiles=5|10|20 output_distribution="normal"
""")

FEATURES = _parts("""
preprocessing PolynomialFeatures *degree=2 include_bias=False interaction_only=True
preprocessing SplineTransformer *n_knots=3|4|5 degree=1|2|3
preprocessing KBinsDiscretizer *n_bins=2|3|4|5 *encode="onehot-dense" strategy="uniform"|"kmeans"
decomposition PCA n_components=2|3|0.8|0.9 whiten=True
decomposition TruncatedSVD n_components=2|3
feature_selection SelectKBest *k=2|3|4
feature_selection SelectPercentile percentile=25|50|75
kernel_approximation RBFSampler *n_components=20|50 gamma=0.01|0.1|1.0
""")

NOT_NEGATIVE = ("MultinomialNB", "ComplementNB")
"""Estimators that need a scaler to [0, 1] before them, as they reject negative numbers."""
WITHOUT_PROBABILITIES = _parts("""
linear_model RidgeClassifier alpha=0.1|1.0|10.0
linear_model Perceptron alpha=0.001|0.01|0.1
""")

JOINTS = _parts("""
pipeline make_pipeline
ensemble VotingClassifier
ensemble StackingClassifier
ensemble BaggingClassifier *n_estimators=3|5|8 max_samples=0.5|0.8 max_features=0.5|0.8
calibration CalibratedClassifierCV *cv=2 method="sigmoid"|"isotonic"
""")
"""Parts that consist of other parts."""

_ALL = ESTIMATORS + SCALERS + FEATURES + WITHOUT_PROBABILITIES + JOINTS
_KNOWN = {part.name: part for part in _ALL}

# --- bodies ---


@dataclass(frozen=True)
class Body:
    """The code between the first line of the function and `return model`."""

    imports: tuple[tuple[str, str], ...]
    """Pairs of module and name, in the order of use."""
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The code, with every line indented by four spaces."""
        names: dict[str, list[str]] = {}
        for module, name in self.imports:
            names.setdefault(module, []).append(name)
        imports = [f"from {module} import {', '.join(found)}" for module, found in names.items()]
        return "\n".join(f"    {line}" for line in [*imports, *self.lines])

    @classmethod
    def of(cls, lines: tuple[str, ...]) -> Body:
        """Make a body of lines, with the imports that they need."""
        used = dict.fromkeys(re.findall(r"\w+", "\n".join(lines)))
        return cls(tuple((_KNOWN[n].module, n) for n in used if n in _KNOWN), lines)


def draw_body(rng: Random) -> Body:
    """Draw a body that runs: first its form, then its parts, all uniformly.

    Bodies longer than `MAX_CHARACTERS` characters, about 90 tokens, are drawn again.
    """
    lines, code = rng.choice(FORMS)(rng)
    if rng.random() < 0.5:
        body = Body.of((*lines, f"model = {code}.fit(x_train, y_train)"))
    else:
        body = Body.of((*lines, f"model = {code}", "model.fit(x_train, y_train)"))
    return body if len(body.text) <= MAX_CHARACTERS else draw_body(rng)


MAX_CHARACTERS = 450

Form = Callable[[Random], tuple[tuple[str, ...], str]]
"""Draws the lines that come first, and the code that builds the classifier."""


def _plain(rng: Random) -> tuple[tuple[str, ...], str]:
    return (), _estimator(rng)


def _pipeline(rng: Random) -> tuple[tuple[str, ...], str]:
    kinds = rng.choice([(SCALERS,), (FEATURES,), (SCALERS, FEATURES), (FEATURES, SCALERS)])
    steps = [_call(rng, rng.choice(kind)) for kind in kinds]
    return (), f"make_pipeline({', '.join([*steps, _estimator(rng)])})"


def _voting(rng: Random) -> tuple[tuple[str, ...], str]:
    lines, members = _members(rng, rng.choice([2, 3]))
    return lines, f'VotingClassifier({members}, voting="soft")'


def _stacking(rng: Random) -> tuple[tuple[str, ...], str]:
    lines, members = _members(rng, 2)
    last = rng.choice(["", ", LogisticRegression()", ", GaussianNB()"])
    return lines, f"StackingClassifier({members}{last}, cv={rng.choice([2, 3])})"


def _wrapped(rng: Random) -> tuple[tuple[str, ...], str]:
    joint = rng.choice(["BaggingClassifier", "CalibratedClassifierCV"])
    if joint == "CalibratedClassifierCV" and rng.random() < 0.5:
        return (), _call(rng, _KNOWN[joint], _call(rng, rng.choice(WITHOUT_PROBABILITIES)))
    return (), _call(rng, _KNOWN[joint], _member(rng))


FORMS: tuple[Form, ...] = (_plain, _pipeline, _voting, _stacking, _wrapped)


def _members(rng: Random, number: int) -> tuple[tuple[str, ...], str]:
    """Draw several classifiers, either in place or each assigned on a line of its own."""
    codes = {name: _member(rng) for name in "abc"[:number]}
    if rng.random() < 0.5:
        return (), _listed(codes)
    lines = tuple(f"{name} = {code}" for name, code in codes.items())
    return lines, _listed({name: name for name in codes})


def _listed(members: dict[str, str]) -> str:
    pairs = [f'("{name}", {code})' for name, code in members.items()]
    return f"[{', '.join(pairs)}]"


def _member(rng: Random) -> str:
    """Draw an estimator, with or without a scaler before it."""
    code = _estimator(rng)
    if code.startswith("make_pipeline(") or rng.random() < 0.5:
        return code
    return f"make_pipeline({_call(rng, rng.choice(SCALERS))}, {code})"


def _estimator(rng: Random) -> str:
    part = rng.choice(ESTIMATORS)
    code = _call(rng, part)
    return f"make_pipeline(MinMaxScaler(), {code})" if part.name in NOT_NEGATIVE else code


def _call(rng: Random, part: Part, first: str = "") -> str:
    """Write a part with random settings, in the order of the table."""
    number = rng.randint(0, min(2, len(part.sometimes)))
    chosen = sorted(rng.sample(range(len(part.sometimes)), number))
    settings = [*part.always, *(part.sometimes[i] for i in chosen)]
    written = [f"{key}={rng.choice(values)}" for key, values in settings]
    return f"{part.name}({', '.join([first, *written] if first else written)})"


# --- faults ---

Fault = Callable[[Random, Body], str | None]
"""Returns a body with one fault, or None if there is no place for the fault."""


def plant_fault(rng: Random, body: Body) -> tuple[str, str]:
    """Break a body by a random kind of fault that fits. Returns the kind and the text."""
    for kind in rng.sample(list(FAULTS), len(FAULTS)):
        broken = FAULTS[kind](rng, body)
        if broken is not None:
            return kind, broken
    raise AssertionError(f"no fault fits {body.text!r}")


def _misspelt_name(rng: Random, body: Body) -> str | None:
    names = [name for _, name in body.imports] + ["x_train", "y_train", "sklearn"]
    return _changed(rng, body.text, rf"\b({'|'.join(names)})\b", lambda name: _misspelt(rng, name))


def _misspelt_keyword(rng: Random, body: Body) -> str | None:
    return _changed(rng, body.text, r"\w{3,}(?==\S)", lambda name: _misspelt(rng, name))


def _impossible_value(rng: Random, body: Body) -> str | None:
    return _changed(
        rng, body.text, r"(?<==)(?<!random_state=)[^\s,()]+", lambda _: rng.choice(('"high"', "-5"))
    )


def _missing_import(rng: Random, body: Body) -> str | None:
    left = rng.choice(body.imports)
    return replace(body, imports=tuple(pair for pair in body.imports if pair != left)).text


def _wrong_module(rng: Random, body: Body) -> str | None:
    wrong = rng.choice(("sklearn.models", "sklearn.classifiers", "sklearn.svm", "sklearn.metrics"))
    at = rng.randrange(len(body.imports))
    moved = (wrong, body.imports[at][1])
    return replace(body, imports=(*body.imports[:at], moved, *body.imports[at + 1 :])).text


def _unfitted(rng: Random, body: Body) -> str | None:
    return re.sub(r"(\n    model)?\.fit\(x_train, y_train\)", "", body.text)


def _wrong_fit(rng: Random, body: Body) -> str | None:
    wrong = ("fit(x_train)", "fit(x_train, y_test)", "fit(X, y)", "train(x_train, y_train)")
    return body.text.replace("fit(x_train, y_train)", rng.choice(wrong))


def _unassigned(rng: Random, body: Body) -> str | None:
    return re.sub(r"\bmodel\b", rng.choice(("clf", "pipeline", "result")), body.text)


def _class_itself(rng: Random, body: Body) -> str | None:
    return _changed(rng, body.text, r"(?<=[A-Za-z])\(\)", lambda _: "")


def _no_probabilities(rng: Random, body: Body) -> str | None:
    if 'voting="soft"' in body.text:
        return body.text.replace("soft", "hard")
    names = "|".join(part.name for part in ESTIMATORS)
    code = _call(rng, rng.choice(WITHOUT_PROBABILITIES))
    alone = rf"(model = (?:make_pipeline\(.*, )?)(?:{names})\([^()]*\)"
    lines = tuple(re.sub(alone, rf"\1{code}", line) for line in body.lines)
    return None if lines == body.lines else Body.of(lines).text


def _bracket(rng: Random, body: Body) -> str | None:
    return _changed(rng, body.text, r"[][()]", lambda found: rng.choice(("", 2 * found)))


def _punctuation(rng: Random, body: Body) -> str | None:
    return _changed(rng, body.text, r'[,"]', lambda _: "")


def _indentation(rng: Random, body: Body) -> str | None:
    width = rng.choice((2, 3, 5, 6, 8))
    return _changed(rng, body.text, r"\n {4}", lambda _: "\n" + " " * width)


FAULTS: dict[str, Fault] = {
    "misspelt name": _misspelt_name,
    "misspelt keyword": _misspelt_keyword,
    "impossible value": _impossible_value,
    "missing import": _missing_import,
    "wrong module": _wrong_module,
    "not fitted": _unfitted,
    "wrong call of fit": _wrong_fit,
    "not called model": _unassigned,
    "class instead of instance": _class_itself,
    "no predict_proba": _no_probabilities,
    "unbalanced bracket": _bracket,
    "missing comma or quote": _punctuation,
    "bad indentation": _indentation,
}


def _changed(rng: Random, text: str, pattern: str, change: Callable[[str], str]) -> str | None:
    """Change a random match of a pattern; None if there is none."""
    places = list(re.finditer(pattern, text))
    if not places:
        return None
    place = rng.choice(places)
    return text[: place.start()] + change(place.group()) + text[place.end() :]


def _misspelt(rng: Random, word: str) -> str:
    """Leave out a letter, double it, or swap it with its neighbor."""
    at = rng.randrange(1, len(word) - 1)
    a, b = word[at], word[at + 1]
    slips = [a, a + a + b] + ([b + a] if a != b else [])
    return word[:at] + rng.choice(slips) + word[at + 2 :]


# --- data sets ---

SUBJECTS = tuple(
    subject.strip()
    for line in """
    balance scale|breast cancer|breast w|wine|iris|digits|airlines|pharyngitis|health insurance
    spaceship titanic|kidney stone|sensor faults|loan default|plant growth|soil samples|bird songs
    river levels|bank customers|stars|seeds|glass|blood donors|road traffic|letters|coins|fruit
    machine wear|mushrooms|survey|house sales|weather|tumour cells|sleep stages|heart disease
    """.strip().splitlines()
    for subject in line.split("|")
)


def draw_data(rng: Random) -> tuple[str, int, int, int]:
    """Draw the name, rows, features and classes of a data set, all independently."""
    rows = int(10 ** rng.uniform(1.7, 3.7))
    features = int(10 ** rng.uniform(0.31, 2.0))
    return rng.choice(SUBJECTS), rows, features, rng.choice((2, 3, 4, 5, 7, 10))
