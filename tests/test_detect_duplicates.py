from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.detect import duplicates as module
from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.duplicates import duplicates


def rows(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 12)).astype(np.float32), rng.integers(3, size=n)


def unit(x: np.ndarray) -> np.ndarray:
    return np.float32(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_exact_copies_name_each_other_and_disagreement_is_an_error_for_sure() -> None:
    x, y = rows()
    x[10], x[20], x[21] = x[3], x[5], x[5]
    y[[3, 10]], y[[5, 20, 21]] = [0, 0], [0, 0, 1]
    found = duplicates(x, y)
    assert np.flatnonzero(found.twin >= 0).tolist() == [3, 5, 10, 20, 21]
    assert (found.twin[3], found.twin[10]) == (10, 3)
    assert np.flatnonzero(found.conflict).tolist() == [5, 20, 21]
    assert {int(found.twin[5]), int(found.twin[20])} == {21}
    assert found.exact.sum() == 5
    assert found.wrong_at_least == 1
    assert "at least 1 of these are wrong" in str(found.sentence())


def test_rows_without_copies_say_nothing() -> None:
    found = duplicates(*rows())
    assert found.sentence() is None
    assert found.wrong_at_least == 0
    assert not found.conflict.any()


def test_near_copies_are_found_by_encodings_and_others_are_not() -> None:
    x, y = rows(2000)
    seen = np.random.default_rng(1).normal(size=(2000, 40))
    seen[:40] = seen[1000:1040] + 0.01 * np.random.default_rng(2).normal(size=(40, 40))
    y[:40] = (y[1000:1040] + np.arange(40) % 2) % 3
    found = duplicates(x, y, unit(seen))
    assert (found.twin[:40] == np.arange(1000, 1040)).mean() > 0.95
    assert (found.twin[40:1000] >= 0).mean() < 0.005
    assert not found.exact.any()
    assert (found.conflict[:40] == (np.arange(40) % 2 == 1)).mean() > 0.95


@pytest.mark.parametrize("columns", [2, 10, 40, 256])
def test_rows_that_are_no_copies_are_not_called_so(columns: int) -> None:
    rng = np.random.default_rng(columns)
    for _ in range(5):
        encodings = rng.normal(size=(400, columns))
        encodings[:2, 0] += 0.6 * columns**0.5  # two rows of a rare kind
        found = duplicates(rng.normal(size=(400, 3)), rng.integers(2, size=400), unit(encodings))
        assert (found.twin < 0).all()


def test_near_copies_prove_no_label_wrong() -> None:
    x, y = rows(2000)
    seen = np.random.default_rng(1).normal(size=(2000, 40))
    seen[:40] = seen[1000:1040] + 0.01
    y[:40] = (y[1000:1040] + 1) % 3
    found = duplicates(x, y, unit(seen))
    assert found.conflict[:40].any()
    assert found.wrong_at_least == 0


def test_nothing_but_copies_is_answered() -> None:
    x, y = np.ones((30, 4), np.float32), np.arange(30) % 2
    found = duplicates(x, y)
    assert found.exact.all()
    assert found.conflict.all()
    assert 1 <= found.wrong_at_least <= 15


def test_targets_that_differ_between_copies_conflict() -> None:
    x, _ = rows(50)
    x[1] = x[0]
    found = duplicates(x, np.linspace(0, 1, 50))
    assert np.flatnonzero(found.conflict).tolist() == [0, 1]


def test_groups_join_all_copies_of_an_example() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 5)).astype(np.float32)
    rows[[7, 9, 30]] = rows[2]
    found = duplicates(rows, rng.integers(3, size=40))
    groups = found.groups
    assert len(set(groups[[2, 7, 9, 30]])) == 1
    assert len(np.unique(groups)) == 37


def test_very_many_rows_are_compared_through_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("voyager")
    rng = np.random.default_rng(0)
    encodings = nb.unit(rng.normal(size=(500, 40)))
    encodings[:5] = nb.unit(encodings[100:105] + 1e-3 * rng.normal(size=(5, 40)))
    rows, labels = rng.normal(size=(500, 3)).astype(np.float32), np.arange(500)
    exact = duplicates(rows, labels, encodings)
    monkeypatch.setattr(module, "LARGE", 0)
    by_index = duplicates(rows, labels, encodings)
    assert by_index.twin.tolist() == exact.twin.tolist()
    assert by_index.twin[:5].tolist() == [100, 101, 102, 103, 104]
    monkeypatch.setattr(nb, "nearest_by_index", lambda rows: None)
    monkeypatch.setattr(module, "_BUDGET", 0)
    without = duplicates(rows, labels, encodings)
    assert (without.twin == -1).all()
    assert "forward-inf-mlflow[large]" in without.note


def test_the_index_finds_the_neighbours_of_the_obvious_loop() -> None:
    pytest.importorskip("voyager")
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(800, 8)).astype(np.float32)
    rows[5] = rows[6]  # the row itself is not the first that the index names
    found = nb.nearest_by_index(rows)
    exact = nb.nearest_rows(rows, rows, own=np.arange(800))
    assert found is not None
    assert (found.index == exact.index).mean() > 0.99
    assert found.index[5] == 6
    assert np.median(np.abs(found.gap - exact.gap)) < 1e-4
