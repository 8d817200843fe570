"""Many queries, each swept over its candidates: the same numbers, and an honest recall."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from engine import Setting, assert_close, names, setting
from torch import nn

from forward_inf_mlflow.directions import Curvature, Direction, GradientStep, Replay
from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups, Top
from forward_inf_mlflow.planner import CHECKED
from forward_inf_mlflow.screened import screened_top
from forward_inf_mlflow.shards import WorkFolder
from forward_inf_mlflow.work import KEEP_NOTHING, Work

N, M, K = 60, 9, 3
DIRECTIONS: dict[str, Direction] = {
    "gradient": GradientStep(),
    "curvature": Curvature(),
    "replay, several moves a query": Replay(most_steps=5, most_seeds=2, batch=8, reliable=1.0),
    "sketch, moves shared by all": Curvature(solver="sketch", rank=1),
}
each = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=list(DIRECTIONS))
cached = cache(lambda: setting("classification", N, M))


def groups(found: Setting) -> QueryGroups:
    return QueryGroups.each(found.queries, names(M))


def screened(found: Setting, direction: Direction, count: int, work: Work = KEEP_NOTHING) -> Top:
    engine = ForwardInfluence(task=found.task, direction=direction)
    return screened_top(
        engine, found.module, groups(found), found.rows, names(N), K, count=count, work=work
    )


def exact(found: Setting, direction: Direction) -> Top:
    engine = ForwardInfluence(task=found.task, direction=direction)
    return engine.top(found.module, groups(found), found.rows, names(N), K)


@each
def test_with_every_row_a_candidate_it_is_the_exact_answer(direction: Direction) -> None:
    found = cached()
    some, whole = screened(found, direction, N), exact(found, direction)
    keys = ["query_id", "kind", "rank", "train_id"]
    assert some.rows[keys].equals(whole.rows[keys])
    assert_close(some.rows["influence"].to_numpy(), whole.rows["influence"].to_numpy())
    np.testing.assert_allclose(some.loss, whole.loss, rtol=1e-9)
    assert some.facts["recall"] == 1


@each
def test_the_influence_of_a_candidate_is_exact(direction: Direction) -> None:
    found = cached()
    some = screened(found, direction, 6)
    engine = ForwardInfluence(task=found.task, direction=direction)
    scores = engine.influence(found.module, groups(found), found.rows, names(N)).scores.values
    rows = some.rows
    expected = scores[rows["query_id"].astype(int), rows["train_id"].astype(int)]
    assert_close(rows["influence"].to_numpy(), expected)
    assert len(rows) == M * 2 * K


def test_recall_is_what_the_candidates_hold_of_the_checked_queries_top() -> None:
    found, direction = cached(), Curvature()
    few, many = (screened(found, direction, count) for count in (K, 20))
    assert 0 < few.facts["recall"] < many.facts["recall"] <= 1
    assert few.facts["recall_queries"] == CHECKED
    assert few.facts["candidates"] == K


def test_only_the_checked_queries_are_swept_over_all_rows() -> None:
    found = cached()
    passed = screened(found, GradientStep(), 4).forward_passes
    assert passed <= 2 * (CHECKED * N + (M - CHECKED) * 8)
    assert passed < exact(found, GradientStep()).forward_passes


def test_an_interrupted_answer_goes_on(tmp_path: Path) -> None:
    found, direction = cached(), Curvature()
    whole = screened(found, direction, 6, WorkFolder.open(tmp_path, {}, fresh=True))
    again = WorkFolder.open(tmp_path, {}, fresh=False)
    assert screened(found, direction, 6, again).rows.equals(whole.rows)
    assert again.done > M


def test_what_cannot_be_screened_is_said_in_one_line() -> None:
    found = cached()
    with pytest.raises(DataError, match="cannot hold the top 3: take more"):
        screened(found, GradientStep(), 2)
    engine = ForwardInfluence(task=found.task)
    together = QueryGroups.together(found.queries)
    with pytest.raises(DataError, match="one by one"):
        screened_top(engine, found.module, together, found.rows, names(N), K, count=9)
    headless = nn.Sequential(nn.Conv1d(4, 3, 1), nn.Flatten()).double().eval()
    rows, queries = (replace(t, inputs=t.inputs[:, :, None]) for t in (found.rows, found.queries))
    with pytest.raises(ModelError, match="sweep all rows"):
        screened(Setting(found.task, headless, rows, queries), GradientStep(), 9)


@pytest.mark.skipif(not (which("g++") or which("clang++")), reason="there is no C++ compiler")
def test_compiled_passes_give_the_same_scores() -> None:
    found = cached()
    asked = (found.module, groups(found), found.rows, names(N))
    plain, compiled = (
        ForwardInfluence(task=found.task, direction=Curvature(), compiled=on).influence(*asked)
        for on in (False, True)
    )
    assert compiled.scores.provenance["compiled"]
    assert_close(compiled.scores.values, plain.scores.values)
