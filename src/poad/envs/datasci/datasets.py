"""Tables to classify, by name, from a csv file, or from OpenML. They become numbers without gaps.

Everything here is deterministic. A named table always has the same rows in the same order. A csv
file or an OpenML table is used as a whole, in its own order.
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
"""A `pandas.DataFrame`. Pandas is an extra, so it is imported only where it is needed."""
SUBSET_SEED: Final = 13
"""Seeds the choice of rows for tables that are a part of a larger one."""
OPENML_TIMEOUT: Final = 30.0
"""In seconds without data from OpenML."""


@dataclass(frozen=True)
class Table:
    """Rows to classify."""

    name: str
    """The name or path that was passed to `load`."""
    title: str
    """The name in words, for the prompt."""
    x: np.ndarray
    """[rows, columns] float64. The features; they are finite."""
    y: np.ndarray
    """[rows] int64. The classes, from 0."""
    classes: tuple[str, ...]
    """The names of the classes, in sorted order."""

    def __repr__(self) -> str:
        rows, columns = self.x.shape
        return f"Table({self.name!r}, {rows} rows, {columns} features, {len(self.classes)} classes)"


class _Kaggle(NamedTuple):
    """A published table, which the user downloads as a csv file, with the rules of the paper."""

    title: str
    target: str
    dropped: str
    typical: tuple[str, ...]
    """More columns by which the table is recognized."""
    rows: int | None = None
    """The number of complete rows to keep, from the first. None keeps all."""
    encode_all: bool = False
    """True to replace not only words but also numbers by their ranks."""


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
    """Load a table.

    Args:
        dataset: one of `names()`, "openml:<id>", or the path of a csv file.
        target: the column to predict, for csv files and OpenML tables. A csv file needs it, unless
            it is one of the published tables in `KAGGLE`. Those are recognized by their columns and
            read by the rules of the paper. Most OpenML tables have a default target.

    Raises:
        DataError: the table does not exist, cannot be read, or has only one class, the target is
            not a column, OpenML cannot be reached, or an extra is not installed. The message lists
            the alternatives.
    """
    require_extra()
    if not isinstance(dataset, str):
        raise DataError(f"dataset must be a name, openml:<id> or a path, not {dataset!r}.")
    if dataset in _NAMED:
        if target is not None:
            raise DataError(
                f"{dataset} has a fixed target. Leave out target={target!r}, which is for csv "
                "files and OpenML tables."
            )
        return _NAMED[dataset](dataset)
    if dataset.startswith("openml:"):
        return _openml(dataset, target)
    if "." in dataset or os.sep in dataset:
        return _csv(dataset, target)
    if dataset in KAGGLE:
        raise DataError(
            f"{dataset} is not part of poad. Download its csv file and pass the path, for example "
            f"dataset=data/{dataset}.csv."
        )
    raise DataError(
        f"There is no data set {dataset!r}. {did_you_mean(dataset, [*_NAMED, *KAGGLE])}"
        f"Known: {', '.join(names())}, the path of a csv file, or openml:<id>."
    )


def names() -> tuple[str, ...]:
    """List the tables that `load` knows by name."""
    return tuple(_NAMED)


def require_extra() -> None:
    """Raise a DataError if the packages that scoring needs are not installed."""
    wanted = {"sklearn": "scikit-learn", "pandas": "pandas", "scipy": "scipy"}
    missing = [package for module, package in wanted.items() if find_spec(module) is None]
    if missing:
        raise DataError(
            f"Data-science coding needs {' and '.join(missing)}. "
            f"Install what is missing with: pip install {' '.join(missing)}"
        )


def cache_folder() -> Path:
    """Return the folder for downloads: `poad` in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "poad"


def _balance(name: str) -> Table:
    """Compute which side of a beam goes down, for all weights and distances from 1 to 5."""
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
        raise DataError(f"{dataset} {what}. The current directory is {Path.cwd()}.")
    try:
        frame = pandas.read_csv(path, low_memory=False)
    except (OSError, ValueError) as error:  # all errors of pandas derive from these
        raise DataError(f"{dataset} cannot be read as a csv file: {error}") from error
    frame.columns = [str(column) for column in frame.columns]
    for rule in KAGGLE.values():
        wanted = {rule.target, rule.dropped, *rule.typical}
        if wanted <= set(frame.columns) and target in (None, rule.target):
            frame = _complete(dataset, frame.drop(columns=rule.dropped)).iloc[: rule.rows]
            return _table(dataset, rule.title, frame, rule.target, rule.encode_all)
    if target is None:
        raise DataError(
            f"{dataset} needs a column to predict; pass target=... "
            f"Its columns: {', '.join(frame.columns)}."
        )
    title = _words(path.name.partition(".")[0])
    return _table(dataset, title, _complete(dataset, frame), str(target))


def _openml(dataset: str, target: str | None) -> Table:
    from sklearn.datasets import fetch_openml

    number = dataset.removeprefix("openml:")
    if not (number.isascii() and number.isdigit()):
        raise DataError(f"{dataset!r} is not an OpenML number; use a form like openml:15.")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(OPENML_TIMEOUT)
    try:
        with warnings.catch_warnings():  # the error below reports the same problems
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
                f"{dataset} has no single default target; pass target=... "
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
        return DataError(
            f"{dataset}: OpenML answered {error.code} ({error.reason}). Try again later."
        )
    if isinstance(error, OSError):
        return DataError(
            f"{dataset} comes from OpenML, which cannot be reached: {error}. The first use needs a "
            f"network; then the table is kept in {cache_folder()}. Without a network, use "
            f"{', '.join(n for n, get in _NAMED.items() if get is not _openml_subset)}, "
            "or a csv file."
        )
    return DataError(f"{dataset} cannot be used: {error}")


def _complete(dataset: str, frame: Frame) -> Frame:
    """Drop rows with missing or infinite values."""
    missing: Frame = np.logical_or(frame.isna(), frame.isin([np.inf, -np.inf]))
    complete = frame.loc[~missing.any(axis=1)]
    if complete.empty:
        share = missing.mean()
        emptiest = f"; {share.idxmax()!r} is empty in {share.max():.0%}" if len(frame) else ""
        raise DataError(
            f"{dataset} has no row without missing values among its {len(frame)}{emptiest}."
        )
    return complete


def _table(dataset: str, title: str, frame: Frame, target: str, encode_all: bool = False) -> Table:
    """Turn columns into numbers. Words become ranks; with `encode_all` numbers do as well."""
    from pandas.api.types import is_numeric_dtype

    if target not in frame.columns:
        raise DataError(
            f"{dataset} has no column {target!r}. {did_you_mean(target, frame.columns)}"
            f"Its columns: {', '.join(frame.columns)}."
        )
    y, classes = _ranks(frame[target].to_numpy(dtype=object))
    if len(classes) < 2:
        raise DataError(
            f"{dataset}: {target!r} is {classes[0]!r} in every complete row; it must have at least "
            "two classes."
        )
    columns = [
        frame[name].to_numpy(np.float64)
        if is_numeric_dtype(frame[name].dtype) and not encode_all
        else _ranks(frame[name].to_numpy(dtype=object))[0]
        for name in frame.columns
        if name != target
    ]
    if not columns:
        raise DataError(f"{dataset} has no column besides {target!r}, so there are no features.")
    return Table(dataset, title, np.column_stack(columns).astype(np.float64), y, tuple(classes))


def _ranks(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return each value's index among the sorted distinct values, and these values as strings."""
    try:
        distinct, ranks = np.unique(values, return_inverse=True)
    except TypeError:  # the column mixes numbers and words
        distinct, ranks = np.unique(values.astype(str), return_inverse=True)
    return ranks.astype(np.int64), [str(value) for value in distinct]


def _words(name: str) -> str:
    return " ".join(name.replace("-", " ").replace("_", " ").split()).lower()
