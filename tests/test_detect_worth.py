from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.detect.worth import worth


def test_ten_queries_worked_by_hand() -> None:
    # Leaked: 5 of 5 right. Clean: 2 of 5. All: 7 of 10, so that the leaks are worth .3.
    right = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], bool)
    loss = np.array([0.1] * 5 + [1.0] * 5)
    found = worth(right, loss, np.arange(10) < 5)
    assert (found.leaked.accuracy, found.clean.accuracy, found.everything.accuracy) == (1, 0.4, 0.7)
    assert found.clean.loss == pytest.approx(1.0)
    assert found.everything.loss == pytest.approx(0.55)
    assert found.inflation == pytest.approx(0.3)
    assert found.measure.rate == pytest.approx(0.3)
    assert 0 <= found.measure.rate_low < 0.3 < found.measure.rate_high
    assert "30.0 points lower" in str(found.sentence())
    # The loss is t-distributed with nine degrees of freedom: .55 +- 2.262 * .4743 / sqrt(10).
    assert (found.everything.loss_low, found.everything.loss_high) == pytest.approx(
        (0.55 - 0.3393, 0.55 + 0.3393), abs=1e-3
    )
    assert (found.clean.loss_low, found.clean.loss_high) == (1, 1)
    assert "the mean loss on all is 0.55 (0.211 to 0.889)" in str(found.sentence())
    assert "without the leaked ones 1 (1 to 1)" in str(found.sentence())


def test_nothing_leaked_is_worth_nothing_for_sure() -> None:
    found = worth(np.arange(50) < 40, np.ones(50), np.zeros(50, bool))
    assert (found.measure.rate_low, found.measure.rate, found.measure.rate_high) == (0, 0, 0)
    assert found.sentence() is None
    assert found.measure.abstained is None


@pytest.mark.parametrize(("leaked", "why"), [(50, "nothing is left"), (3, "only 3 queries")])
def test_too_little_to_compare_is_said(leaked: int, why: str) -> None:
    found = worth(np.ones(50, bool), np.ones(50), np.arange(50) < leaked)
    assert why in str(found.measure.abstained)


def test_leaks_that_do_not_help_are_worth_nothing() -> None:
    found = worth(np.arange(60) >= 20, np.ones(60), np.arange(60) < 30)
    assert found.measure.rate == 0
    assert "do not help" in str(found.sentence())


def test_the_true_inflation_lies_between_the_bounds() -> None:
    rng, missed = np.random.default_rng(0), 0
    for _ in range(400):
        leaked = rng.random(500) < 0.1
        right = rng.random(500) < np.where(leaked, 0.95, 0.7)
        measure = worth(right, np.ones(500), leaked).measure
        truth = leaked.mean() * 0.25
        missed += not measure.rate_low <= truth <= measure.rate_high
    assert missed / 400 <= 0.05 + 0.03


def test_the_true_mean_loss_lies_within_its_interval_and_one_query_has_none() -> None:
    rng, missed = np.random.default_rng(0), 0
    for _ in range(400):
        clean = worth(np.ones(100, bool), rng.exponential(size=100), np.zeros(100, bool)).clean
        missed += not clean.loss_low <= 1 <= clean.loss_high
    assert missed / 400 <= 0.05 + 0.03
    assert np.isnan(worth(np.ones(6, bool), np.ones(6), np.arange(6) < 5).clean.loss_low)


def test_targets_are_compared_by_their_losses_alone() -> None:
    loss = np.where(np.arange(40) < 10, 0.5, 2.0)
    found = worth(None, loss, np.arange(40) < 10)
    assert found.everything.loss == pytest.approx(1.625)
    assert found.clean.loss == 2.0
    assert np.isnan(found.leaked.accuracy)
    assert found.measure.abstained == "targets and several labels have no accuracy"
    sentence = found.sentence()
    assert sentence is not None
    assert sentence.startswith("the mean loss on all is 1.62")
    assert "without the leaked ones 2 (2 to 2), on the leaked ones 0.5" in sentence
    assert "nan" not in sentence


def test_a_difference_that_does_not_show_is_none() -> None:
    right = np.arange(3000) != 7
    sentence = worth(right, np.ones(3000), np.arange(3000) >= 2990).sentence()
    assert sentence is not None
    assert "do not help it" in sentence, "not 'its accuracy is 100.0% and not 100.0%'"
