"""Evaluate: closed forms, what scores are worth at both ends, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from forward_inf_mlflow import evaluate
from forward_inf_mlflow.errors import DataError


def halves(subsets: int, rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(rows) < rows // 2 for _ in range(subsets)])


def additive(queries: int = 4, rows: int = 30, subsets: int = 40, seed: int = 1):
    """Return scores and masks, and the losses of a world in which the scores are the truth."""
    scores = np.random.default_rng(seed).normal(size=(queries, rows))
    masks = halves(subsets, rows)
    return scores, masks, 5 - masks @ scores.T


def test_lds_is_one_where_losses_are_minus_the_sum_of_influences() -> None:
    scores, masks, losses = additive()
    np.testing.assert_allclose(evaluate.lds(scores, masks, losses), 1)


def test_lds_is_minus_one_where_proponents_and_opponents_are_swapped() -> None:
    scores, masks, losses = additive()
    np.testing.assert_allclose(evaluate.lds(-scores, masks, losses), -1)


def test_lds_worked_by_hand() -> None:
    # Sums of influences 3, 1, 2 rank 3, 1, 2; minus losses -.1, -.3, -.2 rank 3, 1, 2 and then,
    # for the second query, 3, 2, 1: rho = 1 - 6 * (0 + 1 + 1) / (3 * 8) = .5.
    scores = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    losses = np.array([[0.1, 0.1], [0.3, 0.2], [0.2, 0.3]])
    np.testing.assert_allclose(evaluate.lds(scores, np.eye(3, dtype=bool), losses), [1, 0.5])


def test_lds_does_not_depend_on_unit_or_offset_of_the_scores() -> None:
    scores, masks, losses = additive()
    losses = losses + np.random.default_rng(2).normal(size=losses.shape) * 3
    expected = evaluate.lds(scores, masks, losses)
    assert (expected < 0.999).all()
    np.testing.assert_allclose(evaluate.lds(scores * 1e-4 + 2.0, masks, losses), expected)


def test_lds_of_several_retrainings_is_that_of_their_mean_loss() -> None:
    scores, masks, losses = additive()
    apart = np.random.default_rng(3).normal(size=losses.shape)
    several = np.stack([losses + apart, losses - apart], axis=1)
    np.testing.assert_allclose(evaluate.lds(scores, masks, several), 1)


def test_lds_of_scores_that_order_nothing_is_zero() -> None:
    scores, masks, losses = additive()
    np.testing.assert_array_equal(evaluate.lds(scores * 0, masks, losses), 0)


def test_the_ceiling_is_one_without_noise_and_near_zero_with_nothing_else() -> None:
    losses = additive(queries=30, subsets=100)[2]
    noise = np.random.default_rng(4).normal(size=(100, 2, 30))
    np.testing.assert_allclose(evaluate.reliability(np.stack([losses, losses], 1)), 1)
    assert evaluate.reliability(noise).mean() < 0.3


def test_the_ceiling_of_two_retrainings_is_the_root_of_the_stepped_up_split_half() -> None:
    losses = np.random.default_rng(5).normal(size=(50, 2, 1)) + np.arange(50)[:, None, None] / 20
    r = spearmanr(losses[:, 0, 0], losses[:, 1, 0]).statistic
    np.testing.assert_allclose(evaluate.reliability(losses), np.sqrt(2 * r / (1 + r)))


@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_the_ceiling_is_what_a_perfect_predictor_reaches(repeats: int) -> None:
    scores, masks, losses = additive(queries=20, rows=100, subsets=600)
    rng = np.random.default_rng(6)
    noisy = losses[:, None] + rng.normal(size=(600, repeats, 20)) * losses.std()
    reached = evaluate.lds(scores, masks, noisy).mean()
    assert reached < 0.92
    assert evaluate.reliability(noisy).mean() == pytest.approx(reached, abs=0.02)


def test_leave_top_k_out_is_the_mean_rise_over_seeds_and_queries() -> None:
    with_them = np.array([[1.0, 2.0], [3.0, 4.0]])
    without = with_them + np.array([[0.5, 1.0], [0.7, 1.8]])
    found = evaluate.leave_top_k_out(with_them, without)
    assert found.mean == pytest.approx((0.6 + 1.4) / 2)
    assert (found.low, found.high) == pytest.approx((0.6, 1.4))


def test_the_interval_over_queries_holds_the_mean_and_narrows_with_queries() -> None:
    values = np.random.default_rng(7).normal(0.4, 0.2, size=400)
    few, many = evaluate.mean_over_queries(values[:25]), evaluate.mean_over_queries(values)
    assert few.low < few.mean < few.high
    # The normal interval of a mean, 1.96 standard errors to each side.
    half = 1.96 * values.std() / 20
    assert (many.high - many.low) / 2 == pytest.approx(half, rel=0.05)
    assert many == evaluate.mean_over_queries(values)


def test_the_interval_of_equal_values_is_a_point() -> None:
    assert evaluate.mean_over_queries(np.full(5, 0.25)) == (0.25, 0.25, 0.25)


def test_spearman_is_scipys_with_ties() -> None:
    a, b = np.random.default_rng(8).integers(0, 5, size=(2, 6, 40))
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(evaluate.spearman(a, b), expected)


def test_cosine_of_known_angles() -> None:
    a = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    b = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    np.testing.assert_allclose(evaluate.cosine(a, b), [1, 0, 0, -1], atol=1e-12)


def test_what_cannot_be_judged_is_refused_in_one_line() -> None:
    scores, masks, losses = additive()
    spoiled = scores.copy()
    spoiled[0, :2] = np.nan
    for call, says in (
        (lambda: evaluate.lds(spoiled, masks, losses), "2 of the scores are not finite"),
        (lambda: evaluate.lds(scores, masks, losses[:-1]), "do not fit"),
        (lambda: evaluate.lds(scores, masks[:, :-1], losses), "do not fit"),
        (lambda: evaluate.lds(scores[0], masks, losses), "scores have 1 axes"),
        (lambda: evaluate.reliability(losses[:, None]), "two retrainings"),
        (lambda: evaluate.leave_top_k_out(losses[:2], losses[:3]), "same seeds"),
        (lambda: evaluate.mean_over_queries(np.ones(1)), "ask more queries"),
        (lambda: evaluate.cosine(scores, scores[:1]), "cannot be compared"),
    ):
        with pytest.raises(DataError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)
