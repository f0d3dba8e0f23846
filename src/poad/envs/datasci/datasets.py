"""Tables to classify: by name, from a csv file, or from OpenML. Each becomes numbers without gaps.

Everything here is deterministic. What poad calls by a name is always the same rows in the same
order; a csv file or an OpenML table of yours is taken whole, in its own order.
"""

import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from poad.errors import DataError, did_you_mean

Frame: TypeAlias = Any
"""A `pandas.DataFrame`; pandas is an extra, so it is imported where it is needed."""
SUBSET_SEED: Final = 13
"""Seeds the choice of rows where poad takes some of a larger table."""
PATIENCE: Final = 30.0
"""Seconds that OpenML may stay silent."""


@dataclass(frozen=True)
class Table:
    """Rows to classify."""

    name: str
    """What it was asked for by."""
    title: str
    """The name in words, for the prompt."""
    x: np.ndarray
    """Features, float64 [rows, columns], finite."""
    y: np.ndarray
    """Classes, int64 [rows], counted from 0."""
    classes: tuple[str, ...]
    """What each class is called, in sorted order."""

    def __repr__(self) -> str:
        rows, columns = self.x.shape
        return f"Table({self.name!r}, {rows} rows, {columns} features, {len(self.classes)} classes)"


class _Kaggle(NamedTuple):
    """A published table that is read as the paper read it; it comes as a csv of the user's."""

    title: str
    target: str
    dropped: str
    telling: tuple[str, ...]
    """Columns that tell it from other tables, besides the two above."""
    rows: int | None = None
    """How many complete rows to keep, from the first."""
    encode_all: bool = False
    """Whether numbers are replaced by their ranks, too."""


KAGGLE: Final = {
    "pharyngitis": _Kaggle("pharyngitis", "radt", "number", ("swollenadp", "tonsillarswelling")),
    "health-insurance": _Kaggle(
        "health insurance",
        "Response",
        "ID",
        ("Reco_Insurance_Type", "Reco_Policy_Cat"),
        rows=2000,
        encode_all=True,
    ),
    "spaceship-titanic": _Kaggle(
        "spaceship titanic",
        "Transported",
        "PassengerId",
        ("CryoSleep", "VRDeck"),
        rows=2000,
        encode_all=True,
    ),
    "kidney-stone": _Kaggle("kidney stone", "target", "id", ("gravity", "osmo", "urea", "calc")),
}


def load(dataset: str, target: str | None = None) -> Table:
    """Get a table by one of `names()`, by "openml:<id>", or by the path of a csv file.

    Args:
        dataset: the name, id or path.
        target: the column to predict, of a csv or OpenML table. A csv needs it, unless it is one of
            the published tables in `KAGGLE`, which are known by their columns and then read by the
            rules of the paper. An OpenML table mostly names its own.

    Raises:
        DataError: it is not there, cannot be read, or has nothing to tell apart; and without a
            network, an unknown target, or a missing extra. The message names what there is.
    """
    require_extra()
    if not isinstance(dataset, str):
        raise DataError(f"dataset must be a name, openml:<id> or a path, not {dataset!r}")
    if dataset in _NAMED:
        if target is not None:
            raise DataError(
                f"{dataset} always predicts the same column; target={target!r} is for csv files "
                "and OpenML tables."
            )
        return _NAMED[dataset](dataset)
    if dataset.startswith("openml:"):
        return _openml(dataset, target)
    if "." in dataset or os.sep in dataset:
        return _csv(dataset, target)
    if dataset in KAGGLE:
        raise DataError(
            f"{dataset} is not part of poad: download its csv file and give its path, as in "
            f"dataset=data/{dataset}.csv."
        )
    raise DataError(
        f"there is no data set {dataset!r}. {did_you_mean(dataset, [*_NAMED, *KAGGLE], 3)}"
        f"Known: {', '.join(names())}. Besides, the path of a csv file, or openml:<id>."
    )


def names() -> tuple[str, ...]:
    """List what `load` knows by name."""
    return tuple(_NAMED)


def require_extra() -> None:
    """Make sure that what scoring needs is installed, or say how to install it."""
    wanted = {"sklearn": "scikit-learn", "pandas": "pandas", "scipy": "scipy"}
    missing = [package for module, package in wanted.items() if find_spec(module) is None]
    if missing:
        raise DataError(
            f"data-science coding needs {' and '.join(missing)}: pip install 'poad[datasci]'"
        )


def cache_folder() -> Path:
    """Where downloads are kept: `poad` in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "poad"


def _balance(name: str) -> Table:
    """Which side of a beam goes down, for all weights and distances from 1 to 5 on both sides."""
    x = np.array(list(product(range(1, 6), repeat=4)), dtype=np.float64)
    tilt = np.sign(x[:, 0] * x[:, 1] - x[:, 2] * x[:, 3]).astype(np.int64)
    table = Table(name, "balance scale", x, tilt % 3, ("balanced", "left", "right"))
    return _subset(table, 125) if name == "balance-scale-125" else table


def _bundled(name: str) -> Table:
    from sklearn import datasets

    word = name.replace("-", "_")
    bunch: Any = getattr(datasets, f"load_{word}")()
    x, y = np.asarray(bunch.data, dtype=np.float64), np.asarray(bunch.target, dtype=np.int64)
    return Table(name, _words(name), x, y, tuple(str(label) for label in bunch.target_names))


def _openml_subset(name: str) -> Table:
    number, rows = {"breast-w": (15, 69), "airlines": (1169, 2000)}[name]
    whole = _openml(f"openml:{number}", None)
    return _subset(Table(name, _words(name), whole.x, whole.y, whole.classes), rows)


_NAMED: Final[dict[str, Callable[[str], Table]]] = {
    "balance-scale": _balance,
    "balance-scale-125": _balance,
    "breast-cancer": _bundled,
    "wine": _bundled,
    "iris": _bundled,
    "digits": _bundled,
    "breast-w": _openml_subset,
    "airlines": _openml_subset,
}


def _subset(table: Table, rows: int) -> Table:
    chosen = np.random.RandomState(SUBSET_SEED).permutation(len(table.y))[:rows]
    return Table(table.name, table.title, table.x[chosen], table.y[chosen], table.classes)


def _csv(dataset: str, target: str | None) -> Table:
    import pandas

    path = Path(dataset).expanduser()
    if not path.is_file():
        what = "is a directory, not a csv file" if path.is_dir() else "does not exist"
        raise DataError(f"{dataset} {what} (looked for in {Path.cwd()}).")
    try:
        frame = pandas.read_csv(path, low_memory=False)
    except (OSError, ValueError) as error:  # all of pandas' own complaints are among them
        raise DataError(f"{dataset} cannot be read as a csv file: {error}") from error
    frame.columns = [str(column) for column in frame.columns]
    for rule in KAGGLE.values():
        wanted = {rule.target, rule.dropped, *rule.telling}
        if wanted <= set(frame.columns) and target in (None, rule.target):
            frame = _complete(dataset, frame.drop(columns=rule.dropped)).iloc[: rule.rows]
            return _table(dataset, rule.title, frame, rule.target, rule.encode_all)
    if target is None:
        raise DataError(
            f"{dataset}: say which column to predict, target=... "
            f"Its columns: {', '.join(frame.columns)}."
        )
    title = _words(path.name.partition(".")[0])
    return _table(dataset, title, _complete(dataset, frame), str(target))


def _openml(dataset: str, target: str | None) -> Table:
    from sklearn.datasets import fetch_openml

    number = dataset.removeprefix("openml:")
    if not (number.isascii() and number.isdigit()):
        raise DataError(f"{dataset!r}: OpenML's tables are asked for by number, as in openml:15.")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with warnings.catch_warnings():  # what is worth saying about these two, the error says
            warnings.filterwarnings("ignore", "A network error occurred|Invalid cache")
            bunch: Any = fetch_openml(
                data_id=int(number),
                target_column="default-target" if target is None else None,
                data_home=cache_folder(),
                as_frame=True,
                parser="auto",
            )
    except (OSError, ValueError) as error:
        raise _openml_error(dataset, error) from error
    finally:
        socket.setdefaulttimeout(before)
    frame: Frame = bunch.frame
    frame.columns = [str(column) for column in frame.columns]
    if target is None:
        if len(bunch.target_names) != 1:
            raise DataError(
                f"{dataset} does not name one column to predict: say target=... "
                f"Its columns: {', '.join(frame.columns)}."
            )
        target = str(bunch.target_names[0])
    title = _words(str(bunch.details["name"]))
    return _table(dataset, title, _complete(dataset, frame), str(target))


def _openml_error(dataset: str, error: Exception) -> DataError:
    from urllib.error import HTTPError

    if type(error).__name__ == "OpenMLError":
        return DataError(f"OpenML has no table with the number in {dataset!r}.")
    if isinstance(error, HTTPError):
        error.close()
        return DataError(f"{dataset}: OpenML answered {error.code} ({error.reason}); try later.")
    if isinstance(error, OSError):
        return DataError(
            f"{dataset} comes from OpenML, which cannot be reached: {error}. It needs a network "
            f"once and is then kept in {cache_folder()}. Without one there are "
            f"{', '.join(n for n, get in _NAMED.items() if get is not _openml_subset)}, "
            "and csv files."
        )
    return DataError(f"{dataset} cannot be used: {error}")


def _complete(dataset: str, frame: Frame) -> Frame:
    """Drop rows in which anything is missing or infinite."""
    missing: Frame = np.logical_or(frame.isna(), frame.isin([np.inf, -np.inf]))
    complete = frame.loc[~missing.any(axis=1)]
    if complete.empty:
        share = missing.mean()
        emptiest = f"; {share.idxmax()!r} is empty in {share.max():.0%}" if len(frame) else ""
        raise DataError(f"{dataset} has no row without a gap among its {len(frame)}{emptiest}.")
    return complete


def _table(dataset: str, title: str, frame: Frame, target: str, encode_all: bool = False) -> Table:
    """Turn columns into numbers: words, or with `encode_all` everything, into sorted ranks."""
    from pandas.api.types import is_numeric_dtype

    if target not in frame.columns:
        raise DataError(
            f"{dataset} has no column {target!r}. {did_you_mean(target, frame.columns, 3)}"
            f"Its columns: {', '.join(frame.columns)}."
        )
    y, classes = _ranks(frame[target].to_numpy(dtype=object))
    if len(classes) < 2:
        raise DataError(
            f"{dataset}: {target!r} is {classes[0]!r} in every complete row, so there is nothing "
            "to tell apart."
        )
    columns = [
        frame[name].to_numpy(np.float64)
        if is_numeric_dtype(frame[name].dtype) and not encode_all
        else _ranks(frame[name].to_numpy(dtype=object))[0]
        for name in frame.columns
        if name != target
    ]
    if not columns:
        raise DataError(f"{dataset} has no column besides {target!r} to predict it from.")
    return Table(dataset, title, np.column_stack(columns).astype(np.float64), y, tuple(classes))


def _ranks(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Give each value's place among the sorted distinct values, and those values."""
    try:
        distinct, ranks = np.unique(values, return_inverse=True)
    except TypeError:  # numbers and words in one column
        distinct, ranks = np.unique(values.astype(str), return_inverse=True)
    return ranks.astype(np.int64), [str(value) for value in distinct]


def _words(name: str) -> str:
    return " ".join(name.replace("-", " ").replace("_", " ").split()).lower()
