from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_friedman1
from sklearn.linear_model import LinearRegression

from forward_inf_mlflow.detect.gross_errors import (
    Predictor,
    half_models,
    mislabeled_targets,
    near_medians,
)
from forward_inf_mlflow.detect.mislabeled import Mislabeled
from forward_inf_mlflow.halves import HeldOut, read_halves


def targets(
    seed: int, *, gross: int, heavy: bool, n: int = 1000, m: int = 300
) -> tuple[HeldOut, np.ndarray, np.ndarray, np.ndarray]:
    """Regression: predictions, targets with honest noise, and some gross errors of 30 spreads."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=n + m) * 10
    noise = rng.standard_t(3, size=n + m) if heavy else rng.normal(size=n + m)
    given = predicted + noise
    wrong = np.zeros(n, dtype=bool)
    wrong[rng.choice(n, gross, replace=False)] = True
    given[:n][wrong] += rng.choice([-30, 30], gross)
    seen = np.float32(predicted)[None, :, None]
    return HeldOut(seen[:, :n], seen[:, n:], "drawn"), given[:n], given[n:], wrong


def test_gross_errors_of_a_target_are_found_and_few_others() -> None:
    false, above = [], []
    for seed in range(20):
        held_out, given, truth, wrong = targets(seed, gross=30, heavy=False)
        found = mislabeled_targets([half_models(held_out)], given, truth, np.ones(300, dtype=bool))
        assert found.flags[wrong].mean() > 0.95
        false.append((found.certain & ~wrong).sum() / max(1, found.certain.sum()))
        assert 0 < found.measure.rate_low <= found.measure.rate <= found.measure.rate_high
        above.append(found.measure.rate_low > wrong.mean())
        np.testing.assert_allclose(found.likelier, held_out.train_out[0, :, 0])
        assert np.isnan(found.held_out_probability).all()
    assert np.mean(false) <= 0.1 + 0.03
    assert np.mean(above) <= 0.15, "the bound allows for doubt"


def test_heavy_tailed_but_honest_residuals_are_not_accused() -> None:
    accused = []
    for seed in range(20):
        held_out, given, truth, _ = targets(seed, gross=0, heavy=True)
        found = mislabeled_targets([half_models(held_out)], given, truth, np.ones(300, dtype=bool))
        accused.append(found.flags.mean())
    assert np.mean(accused) < 0.005


def test_few_query_rows_show_no_usual_residuals() -> None:
    held_out, given, truth, _ = targets(0, gross=30, heavy=False)
    found = mislabeled_targets([half_models(held_out)], given, truth, np.arange(300) < 19)
    assert "19 query rows" in str(found.measure.abstained)
    assert not found.flags.any()
    assert np.isnan(found.score).all()


def test_who_cannot_tell_targets_apart_decides_nothing_but_names_the_grossest() -> None:
    rng = np.random.default_rng(0)
    given, truth = rng.normal(size=1000), rng.normal(size=300)
    given[:60] += 50  # fifty spreads away: no model is needed to see it
    knows_nothing = Predictor("nobody", rng.normal(size=1000), rng.normal(size=300))
    found = mislabeled_targets([knows_nothing], given, truth, np.ones(300, bool))
    assert "AUROC of 0.5" in str(found.measure.abstained)
    assert found.measure.reliability == pytest.approx(0.5, abs=0.05)
    assert found.flags[:60].all()
    assert (found.flags == found.certain).all()
    assert found.flags[60:].mean() < 0.02
    assert set(np.argsort(-found.suspicion)[:60]) == set(range(60))
    assert (found.measure.rate_low, found.measure.rate_high) == (0, 1)


def test_regression_with_residuals_of_nothing_but_zeros_accuses_the_one_that_differs() -> None:
    held_out, _, _, _ = targets(0, gross=0, heavy=False)
    exact, truth = held_out.train_out[0, :, 0].copy(), held_out.queries[0, :, 0]
    exact[7] += 30
    found = mislabeled_targets([half_models(held_out)], exact, truth, np.ones(300, dtype=bool))
    assert np.flatnonzero(found.flags).tolist() == [7]


def judged(seed: int, *, share: float, spreads: float) -> tuple[Mislabeled, np.ndarray]:
    """Least squares on halves of 1,000 rows, some targets so many spreads away: verdict, which."""
    x, y = make_friedman1(1300, noise=1, random_state=seed)
    rng = np.random.default_rng(seed)
    train, queries, given = x[300:], x[:300], y[300:].copy()
    wrong = rng.random(1000) < share
    far = spreads * (1 + rng.random(1000)) * rng.choice([-1, 1], 1000)
    given[wrong] += far[wrong] * y.std()

    class Fit:
        note, alike = "fitted", True

        def __call__(self, index: np.ndarray, _: int) -> tuple[np.ndarray, np.ndarray]:
            model = LinearRegression().fit(train[index], given[index])
            return model.predict(train)[:, None], model.predict(queries)[:, None]

    held_out = read_halves(Fit(), np.zeros(1000), repeats=2, seed=seed)
    near = near_medians(train, queries, given, np.arange(1000))
    assert near is not None
    said = [half_models(held_out), near]
    return mislabeled_targets(said, given, y[:300], np.ones(300, bool)), wrong


@pytest.mark.parametrize(("share", "spreads"), [(0.05, 10), (0.05, 100), (0.2, 10)])
def test_errors_that_ruin_least_squares_are_found_and_the_promise_is_kept(
    share: float, spreads: float
) -> None:
    false, by = [], []
    for seed in range(10):
        found, wrong = judged(seed, share=share, spreads=spreads)
        assert found.measure.abstained is None
        assert found.certain[wrong].mean() == 1
        first = np.argsort(-found.suspicion)[: wrong.sum()]
        assert wrong[first].mean() > 0.99
        false.append((found.certain & ~wrong).sum() / found.certain.sum())
        measure = found.measure
        assert 0 < measure.rate_low <= wrong.mean() <= measure.rate_high
        assert measure.rate == pytest.approx(wrong.mean(), abs=0.05)
        by.append("nearest other rows" in measure.note)
    assert np.mean(false) <= 0.1 + 0.03
    assert np.mean(by) >= 0.7, "least squares are bent"


def test_clean_targets_are_accused_as_rarely_as_promised() -> None:
    found = [judged(seed, share=0, spreads=0)[0] for seed in range(20)]
    assert np.mean([one.certain.any() for one in found]) <= 0.1 + 0.03
    assert np.mean([one.flags.mean() for one in found]) < 0.005
    assert np.mean([one.measure.rate_low > 0 for one in found]) <= 0.01 + 0.03
    assert np.median([one.measure.reliability for one in found]) > 0.7


def test_neighbours_do_not_speak_for_themselves_or_their_copies() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 3)).astype(np.float32)
    rows[1] = rows[0]
    targets = rng.normal(size=60)
    targets[:2] = 1e9
    near = near_medians(rows, rows[:2], targets, np.r_[0, 0, np.arange(2, 60)])
    assert near is not None
    assert np.abs(near.train).max() < 10
    distance = np.square(rows[5] - np.delete(rows, [1, 5], 0)).sum(1)
    expected = np.median(np.delete(targets, [1, 5])[np.argsort(distance)[:15]])
    assert near.train[5] == pytest.approx(expected)
    assert near_medians(rows[:10], rows, targets[:10], np.arange(10)) is None


def test_targets_that_are_mostly_predicted_exactly_accuse_few() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=600) * 3
    off = np.where(rng.random(600) < 0.6, 0, 0.3 * rng.normal(size=600))
    out = np.float32(predicted)[None, :, None]
    truth = np.float32(predicted + off)
    said = half_models(HeldOut(out[:, :300], out[:, 300:], ""))
    found = mislabeled_targets([said], truth[:300], truth[300:], np.ones(300, bool))
    assert found.flags.mean() < 0.05
    assert found.measure.rate_low <= found.measure.rate <= found.measure.rate_high
