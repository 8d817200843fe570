"""What a person kept is not named, lowers no upper bound, and takes nothing from other rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_detect_leakage import M, N, table
from test_detect_memorization import expecting, held_out, known
from test_detect_mislabeled import SEEDS, classes, naive

from forward_inf_mlflow.detect.gross_errors import half_models, mislabeled_targets
from forward_inf_mlflow.detect.kept import leaks_without, memorized_without
from forward_inf_mlflow.detect.leakage import leaked
from forward_inf_mlflow.detect.memorization import memorized_classes
from forward_inf_mlflow.detect.mislabeled import Mislabeled, mislabeled_classes, posterior_wrong
from forward_inf_mlflow.halves import HeldOut


def judged(
    models: HeldOut, labels: np.ndarray, truth: np.ndarray, right: np.ndarray | None = None
) -> Mislabeled:
    trusted = np.ones(len(truth), dtype=bool)
    return mislabeled_classes(naive(models), labels, truth, trusted, right=right)


def test_nobody_kept_changes_no_bit() -> None:
    models, labels, truth, _ = classes(0, flips=0.08)
    a, b = judged(models, labels, truth), judged(models, labels, truth, np.zeros(1500, bool))
    assert a.measure == b.measure
    for name in ("suspicion", "score", "certain", "flags", "surely", "likelier"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_kept_rows_are_not_named_and_the_bound_is_that_of_the_others() -> None:
    for seed in SEEDS:
        models, labels, truth, wrong = classes(seed, flips=0.1, spread=6)
        before = judged(models, labels, truth)
        right = before.flags & ~wrong  # a person looks at all named rows and keeps the innocent
        right |= np.isin(np.arange(1500), np.flatnonzero(before.certain)[::4])  # and errs, too
        found = judged(models, labels, truth, right)
        assert not (found.flags & right).any()
        assert (found.score[right] == 0).all()
        assert found.measure.count == found.flags.sum() <= before.flags.sum() - right.sum()
        assert found.measure.certain == found.certain.sum()
        support = judged(
            HeldOut(models.train_out[:, ~right], models.queries, "drawn"), labels[~right], truth
        )
        # No smaller than what the others support by themselves, but for a rank or two.
        guilty = support.measure.rate_low * len(labels[~right])
        assert found.measure.rate_low * 1500 == pytest.approx(guilty, abs=3)
        assert 0 < found.measure.rate_low < before.measure.rate_low
        assert found.measure.rate_low <= (wrong & ~right).mean()
        assert found.measure.rate_high == pytest.approx(before.measure.rate_high)
        assert found.measure.rate_low <= found.measure.rate <= found.measure.rate_high


def test_keeping_every_suspicious_row_of_clean_data_makes_nobody_guilty() -> None:
    for seed in SEEDS:
        models, labels, truth, _ = classes(seed, flips=0)
        first = judged(models, labels, truth)
        right = first.suspicion >= np.quantile(first.suspicion, 0.97)
        found = judged(models, labels, truth, right)
        assert found.measure.rate_low == 0
        assert not found.certain.any()


def test_a_label_known_to_be_right_counts_as_right_in_the_noise_rate() -> None:
    given = np.r_[np.full(90, 0.95), np.full(10, 0.02)]
    posterior, eta = posterior_wrong(given, 3)
    right = np.arange(100) >= 95
    told, less = posterior_wrong(given, 3, right)
    assert (told[right] == 0).all()
    assert 0 < less < eta
    assert (told[~right] <= posterior[~right] + 1e-9).all()


def test_targets_that_were_kept_are_not_named() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=1400) * 5
    targets = predicted + rng.normal(size=1400) * 0.2
    targets[:30] += 20
    seen = HeldOut(predicted[None, :1000, None], predicted[None, 1000:, None], "drawn")
    models, trusted = [half_models(seen)], np.ones(400, dtype=bool)
    before = mislabeled_targets(models, targets[:1000], targets[1000:], trusted)
    right = np.arange(1000) < 10
    found = mislabeled_targets(models, targets[:1000], targets[1000:], trusted, right=right)
    assert before.flags[:30].all()
    assert not found.flags[:10].any()
    assert found.flags[10:30].all()
    assert found.measure.count <= before.measure.count - 10
    assert found.measure.rate_low < before.measure.rate_low
    assert found.measure.rate_high == before.measure.rate_high
    assert (found.score[right] == 0).all()


def test_kept_leaks_leave_the_others_and_their_bound() -> None:
    queries, train = table(M, 1), table(N)
    queries[:9] = train[:9]
    before = leaked(queries, train, None)
    found = leaks_without(before, np.arange(N) < 4)
    assert np.flatnonzero(found.flags).tolist() == [4, 5, 6, 7, 8]
    assert np.flatnonzero(found.train_flags).tolist() == [4, 5, 6, 7, 8]
    assert found.measure.count == 5
    assert found.measure.rate_low == pytest.approx(5 / M)
    assert found.measure.rate == pytest.approx(before.measure.rate - 4 / M)
    assert found.measure.rate_high == before.measure.rate_high
    assert "without 4 whose training row a person kept" in found.measure.note
    assert leaks_without(before, np.arange(N) > 100) is before


def test_a_bound_that_chance_had_taken_already_is_not_taken_twice() -> None:
    queries, train = table(M, 1), table(N)
    queries[:3] = train[:3]
    before = leaked(queries, train, None)
    near = before.kind.copy()
    near[3:5] = "near"  # two that chance may have brought: they raise no bound
    measure = replace(before.measure, count=5, rate_low=3 / M)
    index = before.train_index.copy()
    index[:5] = np.arange(5)
    both = replace(before, kind=near, measure=measure, train_index=index)
    found = leaks_without(both, np.isin(np.arange(N), [3, 4]))
    assert found.measure.rate_low == pytest.approx(3 / M), "exact copies always count"


def test_kept_memorized_rows_are_not_named_and_the_model_knows_them_all_the_same() -> None:
    models = held_out([0.5, 0.5, 0.9])
    taught = [expecting(0.2, 0.6, 0.9), expecting(0.5, 0.4, 0.6)]
    labels = np.array([1, 1, 1])
    before = memorized_classes(models, labels, np.array([0.9, 0.9, 0.9]), known(3), taught)
    found = memorized_without(before, np.array([True, False, False]))
    assert found.flags.tolist() == [False, True, False]
    assert found.measure.count == 1
    rates = [(m.rate_low, m.rate, m.rate_high) for m in (found.measure, before.measure)]
    assert rates[0] == rates[1]
