"""What a person saw of a few rows: bounds that hold whatever the audit thought of them."""

from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.detect.verified import STRATA, Verified, draw, strata

N = 1000


def population(seed: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Strata of rows and which are wrong; suspicion helps, but not much."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(N) < rate
    score = rng.random(N) + 0.7 * wrong
    named = score > 1.1
    return strata(score, named & (score > 1.3), named), wrong


def test_strata_worked_by_hand() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.6, np.nan, 0.5, 0.1])
    certain, named = np.array([1, 0, 0, 0, 0, 0, 0]) > 0, np.array([1, 1, 0, 0, 0, 0, 0]) > 0
    assert strata(score, certain, named).tolist() == [
        "certain", "likely", "next", "next", "rest", "rest", "rest",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [10, 50, 400, 5000])
def test_a_draw_holds_so_many_rows_once_and_a_share_of_each_stratum(count: int) -> None:
    stratum, _ = population(0, 0.1)
    rows = draw(stratum, count, 3)
    assert len(rows) == len(set(rows.tolist())) == min(count, N)
    assert np.array_equal(rows, draw(stratum, count, 3))
    assert not np.array_equal(rows, draw(stratum, count, 4))
    for name, share in STRATA.items():
        size = (stratum == name).sum()
        assert (stratum[rows] == name).sum() >= min(size, int(share * count))


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1, 0.4])
@pytest.mark.parametrize("count", [50, 200])
def test_the_bounds_hold_and_the_estimate_is_unbiased(count: int, rate: float) -> None:
    above, below, off = [], [], []
    for seed in range(300):
        stratum, wrong = population(seed, rate)
        rows = draw(stratum, count, seed)
        found = Verified.of(stratum, rows, wrong[rows].astype(float)).rate
        above.append(found.low > wrong.mean())
        below.append(found.high < wrong.mean())
        off.append(found.estimate - wrong.mean())
    assert np.mean(above) <= 0.05 + 0.038
    assert np.mean(below) <= 0.05 + 0.038
    assert abs(np.mean(off)) < 3 * np.std(off) / 300**0.5 + 1e-9


def test_the_precision_is_that_of_the_named_rows() -> None:
    below, above = [], []
    for seed in range(300):
        stratum, wrong = population(seed, 0.1)
        named = np.isin(stratum, ("certain", "likely"))
        rows = draw(stratum, 60, seed)
        found = Verified.of(stratum, rows, wrong[rows].astype(float)).precision
        assert found is not None
        above.append(found.low > wrong[named].mean())
        below.append(found.high < wrong[named].mean())
    assert np.mean(above) <= 0.05 + 0.038
    assert np.mean(below) <= 0.05 + 0.038


def test_who_looks_at_everything_knows() -> None:
    stratum, wrong = population(1, 0.1)
    rows = draw(stratum, N, 0)
    found = Verified.of(stratum, rows, wrong[rows].astype(float)).rate
    assert found.low == pytest.approx(wrong.mean())
    assert found.high == pytest.approx(wrong.mean())


def test_what_nobody_can_tell_widens_the_bounds_on_both_sides() -> None:
    stratum, wrong = population(1, 0.2)
    rows = draw(stratum, 100, 0)
    said = wrong[rows].astype(float)
    unsure = said.copy()
    unsure[::5] = np.nan
    sure, vague = (Verified.of(stratum, rows, x) for x in (said, unsure))
    assert (sure.unsure, vague.unsure) == (0, 20)
    assert vague.rate.low < sure.rate.low < sure.rate.high < vague.rate.high


def test_nothing_named_has_no_precision() -> None:
    none = np.zeros(N, dtype=bool)
    stratum = strata(np.random.default_rng(0).random(N), none, none)
    rows = draw(stratum, 50, 0)
    assert Verified.of(stratum, rows, np.zeros(50)).precision is None
