from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from forward_inf_mlflow import sweep
from forward_inf_mlflow.directions import Curvature, GradientStep, Replay
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.scores import InfluenceScores
from forward_inf_mlflow.summaries import Merged, SourceSums, TopRows
from forward_inf_mlflow.tasks import Classification
from forward_inf_mlflow.tensors import Tensors

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


def test_a_row_without_a_number_is_named_by_neither_list() -> None:
    values = np.float32([[np.nan, -2.0, 3.0, 0.5], [np.nan] * 4])
    table = scores(values).top(4)
    assert table["train_id"].tolist() == ["c", "d", "b", "b", "d", "c"]
    assert table["rank"].tolist() == [1, 2, 3, 1, 2, 3]
    assert set(table["query_id"]) == {"q0"}


def test_a_source_sums_its_rows_and_its_interval_is_that_of_a_sum_of_a_sample() -> None:
    # Source y of q0: rows -2 and .5, mean -.75, sd 1.7678, so 1.96 * 1.7678 * sqrt(2) = 4.9.
    table = scores().by_source(np.array(["x", "y", "x", "y"]))
    assert list(table) == ["query_id", "source", "rows", "influence", "low", "high"]
    assert table["query_id"].tolist() == ["q0", "q0", "q1", "q1"]
    assert table["source"].tolist() == ["x", "y", "y", "x"]
    assert table["rows"].tolist() == [2, 2, 2, 2]
    assert table["influence"].tolist() == [3.5, -1.5, 3.0, -1.0]
    np.testing.assert_allclose(table["high"] - table["influence"], [4.9, 4.9, 1.96, 1.96])
    np.testing.assert_allclose(table["influence"] - table["low"], [4.9, 4.9, 1.96, 1.96])


def test_sources_of_equal_influence_stand_in_the_order_of_their_names() -> None:
    table = scores(np.ones((2, 4), np.float32)).by_source(np.array(["z", "a", "m", "b"]))
    assert table["source"].tolist() == ["a", "b", "m", "z"] * 2


def test_one_row_has_no_interval_and_a_row_without_a_number_is_not_counted() -> None:
    values = np.float32([[1.0, np.nan, 2.0, np.nan], [1.0, 1.0, 2.0, np.nan]])
    table = (
        scores(values).by_source(np.array(["x", "x", "y", "z"])).set_index(["query_id", "source"])
    )
    assert table.loc[("q0", "x"), ["rows", "influence"]].tolist() == [1, 1.0]
    assert table.loc[("q1", "x"), ["rows", "influence"]].tolist() == [2, 2.0]
    assert table.loc[("q0", "z"), ["rows", "influence"]].tolist() == [0, 0.0]
    assert table["low"].isna().tolist() == table["high"].isna().tolist()
    assert table["low"].isna().sum() == 5


def test_sources_that_are_not_one_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="3 sources for 4 training rows"):
        scores().by_source(np.array(["x", "y", "z"]))


def test_blocks_of_queries_and_rows_sum_up_to_what_the_whole_gives() -> None:
    rng = np.random.default_rng(1)
    # Few distinct values: ties within and across blocks; and some without a number.
    values = rng.integers(-3, 4, size=(5, 40)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    queries, train = np.arange(5).astype(str), np.arange(40).astype(str)
    sources = rng.choice(["x", "y", "z"], 40)
    top, sums = TopRows(queries, train, 7), SourceSums(queries, sources)
    for groups in (np.array([0, 3]), np.array([1, 2, 4])):
        for start in range(0, 40, 9):
            for summary in (top, sums):
                summary.add(groups, start, values[groups, start : start + 9])
    whole = InfluenceScores(values, queries, train)
    pd.testing.assert_frame_equal(top.table(), whole.top(7))
    pd.testing.assert_frame_equal(sums.table(), whole.by_source(sources))
    for row in whole.top(7).itertuples():
        finite = np.flatnonzero(np.isfinite(values[int(row.query_id)]))
        sign = -1 if row.kind == "proponent" else 1
        best = sorted(finite, key=lambda i: (sign * values[int(row.query_id), i], i))
        assert int(row.train_id) == best[row.rank - 1]


D, K = 4, 3
DIRECTIONS = {
    "own moves": GradientStep(relative_size=1e-4),
    "several moves a group": Replay(most_steps=2, most_seeds=2, reliable=2.0, rows=20),
    "moves shared by all": Curvature(solver="sketch", rank=1, damping=0.1),
}


def rows(n: int, seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    x, y = torch.as_tensor(rng.normal(size=(n, D))), torch.as_tensor(rng.integers(K, size=n))
    return Tensors(x, y, torch.device("cpu"), batch_size=4)


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("own moves", "together"),
        ("own moves", "one at a time"),
        ("several moves a group", "one at a time"),
        ("moves shared by all", "together"),
    ],
)
def test_the_engine_streams_to_the_same_top_rows_and_sums_as_its_whole_matrix_gives(
    name: str, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if held == "one at a time":
        monkeypatch.setattr(sweep, "room", lambda device: 1)
    torch.manual_seed(0)
    m = 10 if name == "moves shared by all" else 2
    module, train, queries = nn.Linear(D, K).double(), rows(30, 1), rows(m, 2)
    train.inputs[5] = torch.nan
    groups = QueryGroups.each(queries, np.arange(m).astype(str))
    ids, sources = np.arange(30).astype(str), np.array(list("xyz") * 10)
    engine = ForwardInfluence(task=Classification(), direction=DIRECTIONS[name], shard_rows=8)
    whole = engine.influence(module, groups, train, ids)
    found = engine.top(module, groups, train, ids, 6, sources=sources)
    pd.testing.assert_frame_equal(found.rows, whole.scores.top(6))
    assert "5" not in set(found.rows["train_id"])
    assert found.by_source is not None
    pd.testing.assert_frame_equal(found.by_source, whole.scores.by_source(sources))
    np.testing.assert_array_equal(found.loss, whole.loss)
    assert found.forward_passes == whole.forward_passes


def test_groups_with_moves_of_their_own_are_never_held_beyond_a_shard() -> None:
    class Widest:
        def __init__(self) -> None:
            self.width, self.pairs = 0, 0

        def add(self, groups: np.ndarray, start: int, values: np.ndarray) -> None:
            assert values.shape[0] == len(groups)
            self.width = max(self.width, values.shape[1])
            self.pairs += values.size

        def table(self) -> pd.DataFrame:
            return pd.DataFrame()

    def widest(coefficients: np.ndarray) -> Widest:
        seen = Widest()
        merged = Merged(coefficients, 40, [seen])
        for first in range(0, coefficients.shape[1], 2):
            for start in range(0, 40, 10):
                merged.add(slice(first, first + 2), slice(start, start + 10), np.ones((2, 10)))
        merged.finish()
        assert seen.pairs == len(coefficients) * 40, "every pair comes exactly once"
        return seen

    assert widest(np.eye(6)).width == 10
    assert widest(np.tile(np.eye(3), 2)).width == 40
    nothing_pulls = np.zeros((2, 4))
    assert widest(nothing_pulls).width == 10
