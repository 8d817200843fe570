from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.detect.membership import Membership, membership
from forward_inf_mlflow.halves import HeldOut

N, M = 2000, 500


def losses(seed: int, memorised: bool) -> tuple[np.ndarray, np.ndarray, HeldOut]:
    """Return losses of rows and queries, and half-models that know how hard each row is."""
    rng = np.random.default_rng(seed)
    hard = rng.exponential(size=N + M)
    loss = hard + 0.05 * rng.normal(size=N + M)
    if memorised:
        loss[:N] *= 0.2
    probability = np.exp(-hard)
    logits = np.log(np.stack([1 - probability + 1e-9, probability], axis=1))[None]
    return loss[:N], loss[N:], HeldOut(logits[:, :N], logits[:, N:], "")


def attack(seed: int, memorised: bool, halves: bool) -> float:
    loss, other, held_out = losses(seed, memorised)
    ones = np.ones(N, int), np.ones(M, int)
    found = membership(loss, other, held_out if halves else None, *ones, np.zeros(M, bool))
    assert found is not None
    assert found.low <= found.rate <= found.high
    return found.rate


def test_a_model_that_knows_no_row_by_heart_gives_nothing_away() -> None:
    rates = [attack(seed, memorised=False, halves=True) for seed in range(20)]
    assert np.mean(rates) < 0.03


def test_half_models_make_the_attack_stronger_where_rows_are_hard_by_nature() -> None:
    alone = np.mean([attack(seed, memorised=True, halves=False) for seed in range(5)])
    beside = np.mean([attack(seed, memorised=True, halves=True) for seed in range(5)])
    assert beside > alone + 0.2
    assert beside > 0.5


def test_too_few_others_say_nothing_and_leaked_ones_are_none() -> None:
    loss, other, held_out = losses(0, memorised=True)
    leaked = np.arange(M) < M - 299
    ones = np.ones(N, int), np.ones(M, int)
    assert membership(loss, other, held_out, *ones, leaked) is None


def test_it_is_called_a_lower_bound() -> None:
    loss, other, held_out = losses(0, memorised=True)
    found = membership(loss, other, held_out, np.ones(N, int), np.ones(M, int), np.zeros(M, bool))
    assert found is not None
    assert found.attack == "ratio"
    assert "lower bound" in found.sentence()
    assert f"{found.rate:.1%}" in found.sentence()


def test_the_share_worked_by_hand() -> None:
    # 300 others with losses 1 to 300: the three least may be named, so that 4 is the threshold.
    others, rows = np.arange(1, 301.0), np.array([0.5, 3.5, 4.5, 9.0])
    found = membership(
        rows, others, None, np.zeros(4, int), np.zeros(300, int), np.zeros(300, bool)
    )
    assert found is not None
    assert (found.attack, found.rate) == ("loss", pytest.approx(0.5))


def test_what_chance_may_show_is_not_said_to_be_sure() -> None:
    said = Membership("loss", 0.086, 0.0, 0.4, 320).sentence()
    assert "is not shown to tell" in said
    assert "0.0%" not in said
    sure = Membership("ratio", 0.3, 0.2, 0.4, 320).sentence()
    assert "30.0% of the training rows (20.0% or more, with 95 % confidence)" in sure
