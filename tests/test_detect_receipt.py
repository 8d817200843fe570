from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.detect.receipt import Receipt, receipt

STRATA = np.repeat([0, 1], 50)
BAD = np.arange(100) % 10 == 0


def made(effect: float, noise: float, seed: int = 0, flagged: np.ndarray = BAD) -> Receipt | None:
    """A training whose accuracy falls with every bad row that it sees."""

    def train(rows: np.ndarray, number: int) -> np.ndarray:
        draw = np.random.default_rng([seed, number, len(rows)])
        share = 0.9 - effect * BAD[rows].sum() + noise * draw.normal()
        return np.float64(np.random.default_rng([seed, 7]).random(2000) < share)

    return receipt(train, flagged, STRATA, metric="accuracy", seeds=5, seed=0)


def test_rows_that_harm_are_proven_to_and_random_ones_are_not() -> None:
    found = made(0.01, 0.001)
    assert found is not None
    assert (found.rows, found.seeds) == (10, 5)
    assert found.gain == pytest.approx(0.1, abs=0.01)
    assert found.low > 0
    assert abs(found.random) < found.gain / 2
    assert "+10." in found.sentence() or "+9." in found.sentence()
    assert "at random" in found.sentence()


def test_the_interval_covers_no_effect_as_often_as_it_says() -> None:
    found = [made(0.0, 0.01, seed) for seed in range(200)]
    covered = np.mean([f is not None and f.low <= 0 <= f.high for f in found])
    assert covered >= 0.95 - 0.05


@pytest.mark.parametrize("flagged", [np.zeros(100, bool), np.arange(100) < 40])
def test_nothing_or_most_of_a_class_is_not_left_out(flagged: np.ndarray) -> None:
    assert made(0.01, 0.001, flagged=flagged) is None


def test_as_many_rows_of_each_class_are_drawn_at_random() -> None:
    seen: list[np.ndarray] = []

    def train(rows: np.ndarray, number: int) -> np.ndarray:
        seen.append(rows)
        return np.full(50, float(number))

    flagged = np.arange(100) < 10  # all of class 0
    receipt(train, flagged, STRATA, metric="accuracy", seeds=2, seed=0)
    assert [len(rows) for rows in seen] == [100, 90, 90] * 2
    for rows in (seen[2], seen[5]):
        assert (STRATA[rows] == 0).sum() == 40
    assert not np.array_equal(seen[2], seen[5])


def test_a_trainer_that_ignores_its_seed_has_an_interval_over_the_queries() -> None:
    def train(rows: np.ndarray, number: int) -> np.ndarray:
        share = 0.9 - 0.01 * BAD[rows].sum()
        return np.float64(np.random.default_rng(1).permutation(200) < 200 * share)

    found = receipt(train, BAD, STRATA, metric="accuracy", seeds=3, seed=0)
    assert found is not None
    assert found.gain == pytest.approx(0.1)
    assert found.low < 0.07 < 0.13 < found.high


def test_a_squared_error_falls() -> None:
    text = Receipt("mean squared error", 3, 5, 2.0, 0.5, 0.4, 0.6, 0.0).sentence()
    assert "the mean squared error on the query rows falls by 0.5 (0.4 to 0.6)" in text
