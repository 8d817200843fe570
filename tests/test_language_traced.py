"""Candidates behind a completion: what the screen says of them, and what each token is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine import assert_close, influence, setting, with_batches_of
from scipy.stats import rankdata
from torch import nn

from forward_inf_mlflow.directions import Curvature, GradientStep
from forward_inf_mlflow.influence import ForwardInfluence
from forward_inf_mlflow.language.traced import Traced, trace_one
from forward_inf_mlflow.probe import Method, Which
from forward_inf_mlflow.screen import candidates, last_layer, likeness, nearest, scores
from forward_inf_mlflow.shards import WorkFolder
from forward_inf_mlflow.tasks.causal_lm import IGNORED
from forward_inf_mlflow.work import KEEP_NOTHING, Work

FOUND = setting("causal_lm")


def traced(count: int = 24, work: Work = KEEP_NOTHING, **options: object) -> Traced:
    engine = ForwardInfluence(task=FOUND.task, direction=Curvature(), readout="margin")
    for name, value in options.items():
        object.__setattr__(engine, name, value)
    query = FOUND.queries.part(0, 1)
    return trace_one(engine, FOUND.module, query, FOUND.rows, count=count, work=work)


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_the_screen_ranks_as_candidates_do_whatever_the_batch(batch_size: int) -> None:
    h, r = last_layer(FOUND.module, FOUND.task, FOUND.rows)
    query_h, query_r = last_layer(FOUND.module, FOUND.task, FOUND.queries, queries=True)
    expected = candidates(query_h, query_r, h, r, count=24).numpy()
    train = with_batches_of(FOUND.rows, batch_size)
    found = scores(FOUND.module, FOUND.task, FOUND.queries, train).numpy()
    assert (np.argsort(-found, axis=1, kind="stable") == expected).all()


@pytest.mark.parametrize("readout", ["margin", "loss"])
@pytest.mark.parametrize("method", ["difference", "derivative"])
def test_tokens_add_up_to_the_influence_of_the_whole_text(readout: Which, method: Method) -> None:
    found = traced(direction=GradientStep(), readout=readout, method=method)
    whole = influence(FOUND, GradientStep(), method=method, readout=readout).scores.values[0]
    assert_close(found.influence, whole[found.rows], 1e-4)
    assert_close(found.tokens.sum(1), found.influence)
    uncounted = FOUND.rows.targets[found.rows].numpy() == IGNORED
    assert uncounted.any()
    assert (found.tokens[uncounted] == 0).all()


def test_candidates_stand_in_the_order_of_all_ranks() -> None:
    found = traced()
    ranks = [rankdata(-values) for values in (found.screen, found.features, found.influence)]
    assert_close(found.score, np.mean(ranks, axis=0))
    assert (np.diff(found.score) >= 0).all()


def test_only_the_screens_first_are_read() -> None:
    every, few = traced(), traced(count=5)
    first = set(every.rows[np.argsort(-every.screen, kind="stable")][:5].tolist())
    assert set(few.rows.tolist()) == first
    assert few.forward_passes == 2 * 24 + 2 * 5


def test_a_trace_that_was_interrupted_goes_on_bit_by_bit(tmp_path: Path) -> None:
    first = traced(work=WorkFolder.open(tmp_path, {"a": 1}, fresh=False))
    work = WorkFolder.open(tmp_path, {"a": 1}, fresh=False)
    again = traced(work=work)
    assert work.done > 1
    assert (first.tokens == again.tokens).all()
    assert (first.rows == again.rows).all()


def test_hidden_states_are_compared_at_the_tokens_that_count() -> None:
    h, _ = last_layer(FOUND.module, FOUND.task, FOUND.rows)
    query_h, _ = last_layer(FOUND.module, FOUND.task, FOUND.queries, queries=True)
    h, query_h = (nn.functional.normalize(states.double(), dim=-1) for states in (h, query_h))
    both, alone = likeness(FOUND.module, FOUND.task, FOUND.queries, FOUND.rows)
    assert (both == scores(FOUND.module, FOUND.task, FOUND.queries, FOUND.rows)).all()
    for i, wanted in enumerate(FOUND.queries.targets != IGNORED):
        for j, counted in enumerate(FOUND.rows.targets != IGNORED):
            cosines = query_h[i][wanted] @ h[j][counted].T
            assert float(alone[i, j]) == pytest.approx(float(cosines.amax(1).sum()), abs=1e-5)


def test_the_nearest_row_is_the_one_that_the_screen_puts_first() -> None:
    every = scores(FOUND.module, FOUND.task, FOUND.queries, FOUND.rows)
    value, row = nearest(
        FOUND.module, FOUND.task, with_batches_of(FOUND.queries, 2), with_batches_of(FOUND.rows, 5)
    )
    asks = (FOUND.queries.targets != IGNORED).sum(1)
    assert (row == every.argmax(1)).all()
    assert_close(value, every.amax(1) / asks, 1e-5)
