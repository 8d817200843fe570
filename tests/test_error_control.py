"""Promised error rates hold whatever the scores are, as long as rows are exchangeable."""

from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.detect.error_control import Envelope, certain, conformal_p
from forward_inf_mlflow.detect.mislabeled import Beside

DRAWS = 600
#: Three standard deviations of a share of .05 or .1 over the draws.
SLACK = {0.05: 0.027, 0.1: 0.037}
sizes = pytest.mark.parametrize(
    ("n", "m"), [(600, 300), (50, 1000), (100, 40), (20, 5), (3, 1), (1, 200)]
)


def draws(n: int, m: int, guilty: int = 0, shift: float = 0.0) -> list[tuple[np.ndarray, ...]]:
    """Scores of tested rows, the first of them guilty, and of trusted ones."""
    found = []
    for seed in range(DRAWS):
        rng = np.random.default_rng([seed, n, m])
        tested = rng.standard_cauchy(n)
        tested[:guilty] += shift
        found.append((tested, rng.standard_cauchy(m)))
    return found


def test_p_values_worked_by_hand() -> None:
    tested, trusted = np.array([3.0, 1.0, 2.0]), np.array([2.0, 0.0])
    assert conformal_p(tested, trusted).tolist() == [1 / 3, 2 / 3, 2 / 3]


@sizes
def test_an_innocent_rows_p_value_is_rarely_small(n: int, m: int) -> None:
    p = np.array([conformal_p(tested, trusted)[0] for tested, trusted in draws(n, m)])
    for level in (0.05, 0.1):
        assert (p <= level).mean() <= level + SLACK[level]


@sizes
def test_where_nothing_is_wrong_anybody_is_accused_as_rarely_as_promised(n: int, m: int) -> None:
    accused = [certain(tested, trusted, 0.1).any() for tested, trusted in draws(n, m)]
    assert np.mean(accused) <= 0.1 + SLACK[0.1]


@sizes
def test_where_nothing_is_wrong_the_lower_bound_is_zero_as_often_as_promised(
    n: int, m: int
) -> None:
    wrong = [Envelope.of(tested, trusted).guilty > 0 for tested, trusted in draws(n, m)]
    assert np.mean(wrong) <= 0.05 + SLACK[0.05]


@pytest.mark.parametrize("guilty", [30, 200])
def test_of_guilty_rows_most_are_found_and_the_promises_are_kept(guilty: int) -> None:
    false, found, low = [], [], []
    for tested, trusted in draws(600, 600, guilty, shift=200.0):
        flags = certain(tested, trusted, 0.1)
        false.append(flags[guilty:].sum() / max(1, flags.sum()))
        found.append(flags[:guilty].mean())
        low.append(Envelope.of(tested, trusted).guilty)
    assert np.mean(false) <= 0.1 + SLACK[0.1]
    assert np.mean(found) > 0.8
    assert np.mean(np.array(low) > guilty) <= 0.05 + SLACK[0.05]
    assert np.mean(low) > 0.6 * guilty


def test_the_envelope_holds_at_all_depths_at_once() -> None:
    broken, depth = 0, np.arange(1, 401)
    for tested, trusted in draws(400, 200, 40, shift=30.0):
        innocent = np.cumsum(np.argsort(-tested, kind="stable") >= 40)
        bound = Envelope.of(tested, trusted).false_at_most(depth)
        broken += bool((innocent > bound).any())
        assert (np.diff(bound) >= 0).all()
        assert (bound <= depth).all()
    assert broken / DRAWS <= 0.05 + SLACK[0.05]


def test_the_bound_is_what_the_best_depth_shows() -> None:
    (tested, trusted), *_ = draws(400, 200, 60, shift=50.0)
    envelope, depth = Envelope.of(tested, trusted), np.arange(1, 401)
    assert envelope.guilty == (depth - envelope.false_at_most(depth)).max()


def test_only_the_order_of_scores_counts() -> None:
    (tested, trusted), *_ = draws(200, 100, 30, shift=50.0)
    for way in (np.arctan, lambda x: 3 * x + 7, lambda x: x**3):
        assert np.array_equal(
            certain(way(tested), way(trusted), 0.2), certain(tested, trusted, 0.2)
        )
        assert Envelope.of(way(tested), way(trusted)).guilty == Envelope.of(tested, trusted).guilty


def test_equal_scores_accuse_nobody() -> None:
    same = np.zeros(500)
    assert not certain(same, same[:100], 0.1).any()
    assert Envelope.of(same, same[:100]).guilty == 0


def test_more_trusted_rows_show_more() -> None:
    low = [
        np.mean([Envelope.of(t, q[:m]).guilty for t, q in draws(600, 2000, 60, shift=100.0)[:50]])
        for m in (50, 300, 2000)
    ]
    assert low[0] < low[1] < low[2] <= 60


def test_a_bound_is_the_same_whenever_it_is_asked_for() -> None:
    (tested, trusted), *_ = draws(300, 150, 30, shift=50.0)
    first = Envelope.of(tested, trusted)
    second = Envelope.of(tested, trusted)
    assert np.array_equal(first.innocent, second.innocent)


def test_the_bound_that_refuses_is_above_nothing_in_one_clean_set_of_a_hundred() -> None:
    broken = [Beside.of(*scores, None, 0.1).guilty > 0 for scores in draws(600, 300)]
    assert np.mean(broken) <= 0.01 + 0.0122, "three standard deviations of 600 draws"
