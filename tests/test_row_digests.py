"""A row's digest: the same wherever it stands and however it is stored, another for another row."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forward_inf_mlflow.data.fingerprint import row_digests
from forward_inf_mlflow.data.reading import Columns, read_rows
from forward_inf_mlflow.data.rows import Rows

X = np.array([[1.0, 2.5], [3.0, np.nan], [1.0, 2.5]])


def town(*names: str | None) -> pd.Series:
    return pd.Series(names, dtype=object)  # gaps are None, as accepted rows have them


FRAME = pd.DataFrame({"a": [1, 2, 1], "town": town("x", None, "x"), "b": [0.5, -0.0, 0.5]})


def whole(features: Any, labels: Any) -> list[str]:
    return list(row_digests(features, np.asarray(labels))[1])


def test_equal_rows_are_equal_wherever_they_stand_and_others_differ() -> None:
    digests = whole(X, [0, 1, 0])
    assert digests[0] == digests[2] != digests[1]
    assert all(len(d) == 40 and set(d) <= set("0123456789abcdef") for d in digests)
    assert whole(X[::-1], [0, 1, 0]) == digests[::-1]
    assert whole(X, [0, 1, 1])[2] != digests[2]
    bare, _ = row_digests(X, np.array([0, 1, 1]))
    assert bare[0] == bare[2], "the features are the same, whatever the label"


@pytest.mark.parametrize("kind", ["int8", "int64", "float32", "float64", "uint16", "bool"])
def test_a_number_is_the_same_in_any_type_that_holds_it(kind: str) -> None:
    numbers = np.array([[0, 1], [1, 1]])
    assert whole(numbers.astype(kind), [0, 1]) == whole(numbers, [0.0, 1.0])


def test_zero_has_one_sign_and_nan_one_kind_and_large_numbers_all_their_digits() -> None:
    other_nan = np.array([0x7FF8000000000001], dtype=np.int64).view(np.float64)[0]
    rows = np.array([[0.0, np.nan], [-0.0, other_nan]])
    assert len(set(whole(rows, [1, 1]))) == 1
    large = np.array([[2**60], [2**60 + 1]])
    assert len(set(whole(large, [1, 1]))) == 2


def test_no_value_passes_for_another_column_or_for_the_label() -> None:
    variants = [
        (FRAME, [0, 0, 0]),
        (FRAME.rename(columns={"town": "city"}), [0, 0, 0]),
        (FRAME.assign(town=town("", None, "x")), [0, 0, 0]),
        (FRAME[["a", "town"]], [0.5, 0, 0]),
        (FRAME.assign(a=FRAME["a"].astype(str)), [0, 0, 0]),
        (FRAME, ["0", "0", "0"]),
    ]
    firsts = [whole(x, y)[0] for x, y in variants]
    assert len(set(firsts)) == len(firsts)
    gap, empty = (whole(FRAME.assign(town=town("x", t, "x")), [0, 0, 0])[1] for t in (None, ""))
    assert gap != empty


def test_the_shape_of_a_row_and_the_size_of_a_block_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = np.arange(48.0).reshape(3, 4, 4)
    digests = whole(images, [0, 1, 2])
    assert digests == whole(images.reshape(3, 16), [0, 1, 2])
    monkeypatch.setattr("forward_inf_mlflow.data.fingerprint._BLOCK", 17)
    assert digests == whole(images, [0, 1, 2])


def test_the_file_format_does_not_count_nor_ids_nor_the_rows_beside_it(tmp_path: Path) -> None:
    frame = FRAME.assign(label=["cat", "dog", "cat"], nr=["7", "8", "9"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    found = []
    for name, wanted in itertools.product(("t.csv", "t.parquet"), ("nr", None)):
        columns = Columns(label="label", id=wanted, features=("a", "town", "b"))
        rows = read_rows(tmp_path / name, uri=name, columns=columns)
        found.append(list(rows.digests))
        assert list(rows.take(np.array([2, 1])).digests) == found[-1][2:0:-1]
    assert all(digests == found[0] for digests in found)


def test_digests_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(X, np.array([0, 1, 0]), np.array(["a", "b", "c"]), None, "x", "")
    first = rows.digests
    monkeypatch.setattr("forward_inf_mlflow.data.rows.row_digests", None)
    assert rows.digests is first
    assert len(rows.feature_digests) == 3
