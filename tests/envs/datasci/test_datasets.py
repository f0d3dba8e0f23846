"""Tables: by name, from csv files, from OpenML, and what is said when they cannot be had."""

import sys
from itertools import product
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
from openml_stub import OpenML, Published, serving

from poad.envs.datasci import datasets
from poad.envs.datasci.datasets import KAGGLE, Table, load, names
from poad.errors import DataError

CSV = """\
row,size,colour,open,label
1,2.5,red,True,yes
2,1.5,blue,False,no
3,,blue,True,no
4,3.5,green,True,yes
5,inf,red,False,yes
6,0.5,red,,no
7,9.5,blue,False,no
"""
SHARED = Path(__file__).parents[4] / "shared" / "data" / "kaggle"
PUBLISHED = {
    "pharyngitis": (512, 18, [281, 231]),
    "health_insurance": (2000, 12, [1546, 454]),
    "spaceship_titanic": (2000, 12, [1071, 929]),
    "kidney_stone": (414, 6, [230, 184]),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from, or left in, the cache of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "poad"


def written(folder: Path, content: str, name: str = "my_own-table.csv") -> str:
    (folder / name).write_text(content)
    return str(folder / name)


def test_the_balance_scale_has_every_beam_in_order():
    table = load("balance-scale")
    assert table.x.tolist() == [list(row) for row in product(range(1, 6), repeat=4)]
    left, right = table.x[:, 0] * table.x[:, 1], table.x[:, 2] * table.x[:, 3]
    told = np.array(table.classes)[table.y]
    assert (
        told == np.where(left == right, "balanced", np.where(left > right, "left", "right"))
    ).all()
    assert np.bincount(table.y).tolist() == [49, 288, 288]
    assert table.title == "balance scale"


def test_the_small_balance_scale_always_has_the_same_rows():
    table, whole = load("balance-scale-125"), load("balance-scale")
    rows = np.random.RandomState(13).permutation(625)[:125]
    assert (table.x == whole.x[rows]).all()
    assert (table.y == whole.y[rows]).all()
    assert table.title == whole.title
    assert np.bincount(table.y).tolist() == [12, 57, 56]


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("breast-cancer", (569, 30), 2),
        ("wine", (178, 13), 3),
        ("iris", (150, 4), 3),
        ("digits", (1797, 64), 10),
    ],
)
def test_bundled_tables(name: str, shape: tuple[int, int], classes: int):
    table = load(name)
    assert table.x.shape == shape
    assert len(table.classes) == classes
    assert set(table.y.tolist()) == set(range(classes))
    assert (table.x.dtype, table.y.dtype) == (np.float64, np.int64)
    assert table.title == name.replace("-", " ")
    assert f"{shape[0]} rows, {shape[1]} features, {classes} classes" in repr(table)


def test_a_csv_keeps_complete_rows_its_numbers_and_the_ranks_of_its_words(tmp_path: Path):
    table = load(written(tmp_path, CSV), target="label")
    assert table.title == "my own table"
    assert table.classes == ("no", "yes")
    assert table.y.tolist() == [1, 0, 1, 0]
    assert table.x.tolist() == [[1, 2.5, 2, 1], [2, 1.5, 0, 0], [4, 3.5, 1, 1], [7, 9.5, 0, 0]]
    assert (table.x.dtype, table.y.dtype) == (np.float64, np.int64)


def test_any_column_can_be_the_target_and_classes_are_sorted_by_their_type(tmp_path: Path):
    path = written(tmp_path, "a,b\n10,x\n9,y\n9,1\n")
    assert load(path, target="a").classes == ("9", "10")
    assert load(path, target="b").classes == ("1", "x", "y")


@pytest.mark.parametrize("name", KAGGLE)
def test_a_published_table_is_recognized_by_its_columns_and_read_by_its_rule(
    name: str, tmp_path: Path
):
    rule = KAGGLE[name]
    n = 2600
    columns = {column: np.arange(n) * 1.5 for column in (rule.dropped, *rule.typical)}
    columns[rule.typical[0]][3] = np.nan
    frame = pd.DataFrame(columns | {rule.target: np.arange(n) % 2})
    frame.to_csv(tmp_path / "train.csv", index=False)
    table = load(str(tmp_path / "train.csv"))
    kept = [row for row in range(n) if row != 3][: rule.rows]
    values = np.arange(len(kept)) if rule.encode_all else np.array(kept) * 1.5
    assert table.x.tolist() == [[value] * len(rule.typical) for value in values]
    assert table.y.tolist() == [row % 2 for row in kept]
    assert table.title == name.replace("-", " ")
    assert load(str(tmp_path / "train.csv"), target=rule.target).x.shape == table.x.shape
    other = load(str(tmp_path / "train.csv"), target=rule.typical[0])  # a task of one's own
    assert other.x.shape == (n - 1, len(rule.typical) + 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_tables_themselves(name: str):
    path = SHARED / f"{name}.csv"
    if not path.exists():
        pytest.skip("the published tables come with no licence, so they are not part of poad")
    table = load(str(path))
    rows, features, counts = PUBLISHED[name]
    assert table.x.shape == (rows, features)
    assert np.bincount(table.y).tolist() == counts
    assert np.isfinite(table.x).all()


def refusal(dataset: str, target: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load(dataset, target)
    return str(caught.value)


def test_the_error_for_an_unknown_name_suggests_close_ones_and_lists_all():
    said = refusal("balance-scal")
    assert (
        "no data set 'balance-scal'. Did you mean 'balance-scale' or 'balance-scale-125'?" in said
    )
    assert all(name in said for name in names())
    assert "the path of a csv file, or openml:<id>" in said


@pytest.mark.parametrize("name", KAGGLE)
def test_the_error_for_the_name_of_a_published_table_asks_for_its_file(name: str):
    assert f"{name} is not part of poad. Download its csv file and pass the path" in refusal(name)


def test_a_named_table_has_a_fixed_target():
    assert "Leave out target='colour', which is for csv files" in refusal("iris", "colour")


def test_a_missing_file_and_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert (
        refusal("nothing.csv")
        == f"nothing.csv does not exist. The current directory is {tmp_path}."
    )
    assert "is a directory, not a csv file" in refusal(str(tmp_path))


@pytest.mark.parametrize("content", ["", "a,b\n1\n1,2,3,4\n", "\x00\xff"])
def test_a_file_that_is_no_csv(tmp_path: Path, content: str):
    (tmp_path / "broken.csv").write_bytes(content.encode("latin-1"))
    assert "cannot be read as a csv file" in refusal(str(tmp_path / "broken.csv"), "a")


def test_a_target_that_is_missing_or_unknown_names_the_columns(tmp_path: Path):
    path = written(tmp_path, CSV)
    assert "needs a column to predict; pass target=..." in refusal(path)
    assert "no column 'labl'. Did you mean 'label'?" in refusal(path, "labl")
    for target in (None, "labl"):
        assert "columns: row, size, colour, open, label." in refusal(path, target)


def test_a_target_with_one_class_or_without_features_is_an_error(tmp_path: Path):
    path = written(tmp_path, "a,b\n1,no\n2,no\n,yes\n")
    assert "'b' is 'no' in every complete row" in refusal(path, "b")
    path = written(tmp_path, "b\nno\nyes\n")
    assert "no column besides 'b', so there are no features" in refusal(path, "b")


def test_no_complete_row_names_the_emptiest_column(tmp_path: Path):
    path = written(tmp_path, "a,b,c\n1,,\n,,2\n3,4,\n5,,\n")
    assert "no row without missing values among its 4; 'b' is empty in 75%" in refusal(path, "a")
    path = written(tmp_path, "a,b,c\n")
    assert "no row without missing values among its 0." in refusal(path, "a")


def test_a_dataset_that_is_not_a_string_is_an_error():
    with pytest.raises(DataError, match="a name, openml:<id> or a path, not 15"):
        load(15)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("module", ["sklearn", "pandas"])
def test_the_error_for_a_missing_extra_says_how_to_install_it(
    module: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    said = refusal("balance-scale")
    assert "pip install" in said
    assert ("scikit-learn" in said, "pandas" in said) == (module == "sklearn", module == "pandas")


def balance() -> Published:
    whole = load("balance-scale")
    letters = [whole.classes[y][0].upper() for y in whole.y]
    lines = [",".join(str(int(v)) for v in row) for row in whole.x]
    return Published(
        "balance-scale",
        [
            *(
                (f"'{side}-{what}'", "REAL")
                for side in ("left", "right")
                for what in ("weight", "distance")
            ),
            ("class", "{L,B,R}"),
        ],
        [f"{line},{letter}" for line, letter in zip(lines, letters, strict=True)],
        "class",
    )


def cells() -> Published:
    """In the shape of the Wisconsin table: whole numbers, some gaps, two classes in words."""
    rows = [
        f"{i % 10},{'?' if i % 43 == 0 else i % 7},{('benign', 'malignant')[i % 3 == 0]}"
        for i in range(699)
    ]
    kinds = [("Thickness", "INTEGER"), ("Nuclei", "INTEGER"), ("Class", "{benign,malignant}")]
    return Published("breast-w", kinds, rows, "Class")


@pytest.fixture
def openml(monkeypatch: pytest.MonkeyPatch):
    stub = OpenML({11: balance(), 15: cells()})
    with serving(stub, monkeypatch):
        yield stub


def same(one: Table, other: Table) -> bool:
    return bool((one.x == other.x).all() and (one.y == other.y).all())


def test_a_table_of_openml_is_used_as_a_whole(openml: OpenML):
    table = load("openml:11")
    whole = load("balance-scale")
    assert table.classes == ("B", "L", "R")
    assert table.title == whole.title
    assert same(table, whole)


def test_another_column_of_it_can_be_the_target(openml: OpenML):
    table = load("openml:11", target="right-distance")
    assert table.classes == ("1.0", "2.0", "3.0", "4.0", "5.0") or table.classes == tuple("12345")
    assert table.x.shape == (625, 4)


def test_a_named_subset_is_always_the_same_complete_rows(openml: OpenML):
    whole, table = load("openml:15"), load("breast-w")
    assert len(whole.y) == 699 - len(range(0, 699, 43))
    rows = np.random.RandomState(13).permutation(len(whole.y))[:69]
    assert (table.x == whole.x[rows]).all()
    assert (table.y == whole.y[rows]).all()
    assert (table.name, table.title, table.classes) == ("breast-w", "breast w", whole.classes)


def test_downloads_are_kept_so_that_the_network_is_needed_once(openml: OpenML, cache: Path):
    first = load("openml:11")
    asked = list(openml.asked)
    assert any(path.endswith(".arff") for path in asked)
    openml.broken = 500
    assert same(load("openml:11"), first)
    assert openml.asked == asked
    assert any(path.name == "balance-scale.arff.gz" for path in cache.rglob("*"))


def test_an_unknown_number_or_column_of_openml(openml: OpenML):
    assert refusal("openml:12") == "OpenML has no table with the number in 'openml:12'."
    assert "a form like openml:15" in refusal("openml:balance-scale")
    said = refusal("openml:11", "clas")
    assert "no column 'clas'. Did you mean 'class'?" in said
    assert "left-weight, left-distance" in said


def test_a_table_without_a_default_target_or_that_is_sparse_is_an_error(openml: OpenML):
    openml.tables[11].target = None
    assert "openml:11 has no single default target; pass target=..." in refusal("openml:11")
    openml.tables[15].fields["format"] = "Sparse_ARFF"
    assert "openml:15 cannot be used: Sparse ARFF datasets cannot be loaded" in refusal("openml:15")


def test_a_download_with_a_wrong_checksum_is_an_error(openml: OpenML):
    openml.tables[11].fields["md5_checksum"] = "0" * 32
    said = refusal("openml:11")
    assert said.startswith("openml:11 cannot be used: ")
    assert "md5 checksum" in said


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn sleeps between its tries to reach OpenML; the tests do not."""
    from sklearn.datasets import _openml

    monkeypatch.setattr(_openml.time, "sleep", lambda _: None)


@pytest.mark.usefixtures("hurried")
def test_an_error_of_openml_is_reported(openml: OpenML):
    openml.broken = 503
    assert "breast-w" in names()
    assert "openml:15: OpenML answered 503" in refusal("breast-w")


@pytest.mark.usefixtures("hurried")
def test_without_a_network_the_error_lists_tables_that_need_none(
    monkeypatch: pytest.MonkeyPatch, cache: Path
):
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", unreachable)
    said = refusal("airlines")
    assert "comes from OpenML, which cannot be reached" in said
    assert "Temporary failure in name resolution" in said
    assert str(cache) in said
    assert "balance-scale-125" in said
    assert "airlines," not in said


def test_the_timeout_for_openml_applies_to_openml_alone(
    openml: OpenML, monkeypatch: pytest.MonkeyPatch
):
    import socket

    seen: list[float | None] = []
    answer = openml.answer

    def watched(path: str) -> tuple[int, bytes]:
        seen.append(socket.getdefaulttimeout())
        return answer(path)

    monkeypatch.setattr(openml, "answer", watched)
    load("openml:11")
    assert set(seen) == {datasets.OPENML_TIMEOUT}
    assert socket.getdefaulttimeout() is None
