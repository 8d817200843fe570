from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.scores import InfluenceScores

VALUES = np.float32([[0.5, -2.0, 3.0, 0.5], [0.0, 1.0, -1.0, 2.0]])


def scores(values: np.ndarray = VALUES) -> InfluenceScores:
    return InfluenceScores(values, np.array(["q0", "q1"]), np.array(["a", "b", "c", "d"]))


def test_proponents_fall_and_opponents_rise_with_ties_in_row_order() -> None:
    assert scores().proponents(3).tolist() == [[2, 0, 3], [3, 1, 0]]
    assert scores().opponents(3).tolist() == [[1, 0, 3], [2, 0, 1]]


@pytest.mark.parametrize("k", [0, 1, 4, 99])
def test_no_more_rows_are_named_than_there_are(k: int) -> None:
    assert scores().proponents(k).shape == (2, min(k, 4))
    assert len(scores().top(k)) == 2 * 2 * min(k, 4)


def test_the_table_names_ids_ranks_and_the_influence_itself() -> None:
    table = scores().top(1)
    assert table.values.tolist() == [
        ["q0", "proponent", 1, "c", 3.0],
        ["q1", "proponent", 1, "d", 2.0],
        ["q0", "opponent", 1, "b", -2.0],
        ["q1", "opponent", 1, "c", -1.0],
    ]
    assert list(table) == ["query_id", "kind", "rank", "train_id", "influence"]


def test_every_number_of_the_table_is_the_one_of_its_query_and_row() -> None:
    values = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    found = scores(values)
    for row in found.top(3).itertuples():
        q, t = list(found.query_ids).index(row.query_id), list(found.train_ids).index(row.train_id)
        assert values[q, t] == row.influence


@pytest.mark.parametrize("shape", [(2, 3), (4, 2), (8,)])
def test_values_without_an_id_for_each_axis_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 query ids and 4 train ids"):
        scores(np.zeros(shape, dtype=np.float32))
