"""Memorized rows without labels: named beside queries that the model never saw, or nobody is."""

from __future__ import annotations

import numpy as np

from forward_inf_mlflow.detect.membership import membership
from forward_inf_mlflow.detect.memorized_rows import memorized_rows, saved_share
from forward_inf_mlflow.halves import HeldOut

N, M = 400, 300
HEART = np.arange(30)


def losses(memorized: np.ndarray, *, gain: float = 0.1) -> tuple[HeldOut, np.ndarray, np.ndarray]:
    """Return losses of half-models, and of a model that knows some rows by heart."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(5, 30, N + M)
    apart = [hard * rng.normal(1, 0.05, N + M) for _ in range(2)]
    mine = hard * (1 - gain) * rng.normal(1, 0.05, N + M)
    mine[memorized] *= 0.2
    halves = np.stack(apart)[..., None]
    return HeldOut(halves[:, :N], halves[:, N:], "x"), mine[:N], mine[N:]


def test_rows_known_by_heart_are_named_and_bounded() -> None:
    found = memorized_rows(*losses(HEART), np.ones(M, bool))
    assert found.flags[HEART].all()
    assert found.flags.sum() <= 36
    assert found.measure.rate_low > 0.05
    assert found.measure.rate_low <= 30 / N <= found.measure.rate_high
    assert found.measure.applies


def test_a_model_that_is_better_at_everything_memorized_nothing() -> None:
    held_out, loss, query_loss = losses(HEART[:0], gain=0.5)
    assert saved_share(loss, held_out.train_out[..., 0].mean(0)).min() > 0.25
    found = memorized_rows(held_out, loss, query_loss, np.ones(M, bool))
    assert found.measure.count <= 12  # about one in a hundred, by luck
    assert found.measure.rate < 0.02
    assert found.measure.rate_low == 0


def test_nobody_is_named_where_nobody_could_tell() -> None:
    held_out, loss, query_loss = losses(HEART)
    few = np.arange(M) < 5
    assert "only 5 query rows" in str(
        memorized_rows(held_out, loss, query_loss, few).measure.abstained
    )
    assert "no half-models" in str(memorized_rows(None, loss, query_loss, ~few).measure.abstained)


def test_an_attack_needs_no_labels() -> None:
    held_out, loss, query_loss = losses(np.arange(N))
    found = membership(loss, query_loss, held_out, None, None, np.zeros(M, bool))
    assert found is not None
    assert found.attack == "ratio"
    assert found.rate > 0.6


def test_the_estimate_lies_within_its_interval() -> None:
    # Nine rows of 600 are known by heart beyond doubt; a few queries are saved much on too.
    rng = np.random.default_rng(0)
    out, loss, asked = np.ones(600), np.full(600, 0.95), np.full(300, 0.95)
    loss += rng.uniform(0, 0.04, 600)
    loss[:9] = 0.4
    asked += rng.uniform(0, 0.04, 300)
    asked[:2] = 0.7
    models = HeldOut(out[None, :, None], np.ones((1, 300, 1)), "")
    measure = memorized_rows(models, loss, asked, np.ones(300, bool)).measure
    assert measure.count == 9
    assert measure.rate_low <= measure.rate <= measure.rate_high
