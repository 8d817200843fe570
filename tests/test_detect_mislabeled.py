from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from forward_inf_mlflow.detect import mislabeled
from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.detect.mislabeled import (
    Mislabeled,
    disagreement,
    mislabeled_classes,
    posterior_wrong,
)
from forward_inf_mlflow.detect.opinions import of_logits
from forward_inf_mlflow.halves import HeldOut, read_halves

SEEDS = range(5)


def drawn_labels(probability: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw each row's label from its own probabilities."""
    return (probability.cumsum(1) < rng.random((len(probability), 1))).sum(1)


def classes(
    seed: int, *, flips: float, n: int = 1500, m: int = 400, k: int = 5, spread: float = 4.0
) -> tuple[HeldOut, np.ndarray, np.ndarray, np.ndarray]:
    """Half-models that know the true probabilities; labels drawn from them, then some flipped.

    Returns:
        The half-models, the training labels, the query labels, and which rows were flipped.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n + m, k)) * spread
    labels = drawn_labels(special.softmax(logits, axis=1), rng)
    wrong = rng.random(n) < flips
    given = labels[:n].copy()
    given[wrong] = (given[wrong] + rng.integers(1, k, wrong.sum())) % k
    seen = np.float32(logits)[None]
    held_out = HeldOut(seen[:, :n], seen[:, n:], "drawn")
    return held_out, given, labels[n:], wrong


def judged(
    held_out: HeldOut, labels: np.ndarray, query_labels: np.ndarray, fdr: float = 0.1
) -> Mislabeled:
    trusted = np.ones(len(query_labels), dtype=bool)
    return mislabeled_classes(naive(held_out), labels, query_labels, trusted, fdr=fdr)


def naive(held_out: HeldOut) -> list[Expert]:
    return [of_logits("half-models", held_out.train_out, held_out.queries)]


@pytest.mark.parametrize("fdr", [0.05, 0.2])
@pytest.mark.parametrize("k", [2, 10], ids=["two classes", "ten classes"])
def test_planted_flips_are_found_and_false_accusations_stay_within_the_promised_share(
    fdr: float, k: int
) -> None:
    found, false = [], []
    for seed in range(40):
        held_out, labels, truth, wrong = classes(seed, flips=0.08, k=k, spread=6)
        result = judged(held_out, labels, truth, fdr)
        assert result.flags[result.certain].all()
        found.append(result.flags[wrong].mean())
        false.append((result.certain & ~wrong).sum() / max(1, result.certain.sum()))
    assert np.mean(found) > 0.5
    assert np.mean(false) <= fdr + 3 * np.std(false) / 40**0.5


def test_without_wrong_labels_certainty_is_as_rare_as_promised_and_few_are_named() -> None:
    certain, named, over, estimates = [], [], [], []
    for seed in range(100):
        held_out, labels, truth, _ = classes(seed, flips=0, n=600, m=200)
        found = judged(held_out, labels, truth)
        certain.append(found.certain.any())
        named.append(found.flags.mean())
        over.append(found.measure.rate_low > 0)
        estimates.append(found.measure.rate)
    assert np.mean(np.array(estimates) > 0.03) <= 0.02
    assert np.mean(certain) <= 0.1 + 0.09
    assert np.mean(over) <= 0.05 + 0.065
    assert np.mean(named) < 0.002


def test_overconfident_models_are_calibrated_before_they_accuse() -> None:
    # Logits five times too large make every surprise look certain.
    for seed in SEEDS:
        held_out, labels, truth, _ = classes(seed, flips=0, spread=1.5)
        boasting = HeldOut(5 * held_out.train_out, 5 * held_out.queries, "")
        assert judged(boasting, labels, truth).flags.mean() < 0.01


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("k", [2, 10])
def test_the_noise_rate_is_recovered(noise: float, k: int) -> None:
    rng = np.random.default_rng(0)
    probability = special.softmax(rng.normal(size=(20_000, k)) * 4, axis=1)
    labels = drawn_labels(probability, rng)
    wrong = rng.random(len(labels)) < noise
    labels[wrong] = (labels[wrong] + rng.integers(1, k, wrong.sum())) % k
    posterior, eta = posterior_wrong(probability[np.arange(len(labels)), labels], k)
    assert eta == pytest.approx(noise, abs=0.01)
    assert posterior.mean() == pytest.approx(noise, abs=0.01)
    assert posterior[wrong].mean() > 3 * posterior[~wrong].mean()


def test_labels_without_noise_leave_nothing_to_explain() -> None:
    rng = np.random.default_rng(0)
    probability = special.softmax(rng.normal(size=(20_000, 4)) * 4, axis=1)
    labels = drawn_labels(probability, rng)
    _, eta = posterior_wrong(probability[np.arange(len(labels)), labels], 4)
    assert eta < 0.01


@pytest.mark.parametrize("flips", [0.0, 0.05, 0.2, 0.4])
def test_the_true_rate_lies_between_the_bounds_and_near_the_estimate(flips: float) -> None:
    above, below, off = [], [], []
    for seed in range(60):
        held_out, labels, truth, wrong = classes(seed, flips=flips, n=600, m=300, spread=6)
        measure = judged(held_out, labels, truth).measure
        assert measure.rate_low <= measure.rate <= measure.rate_high
        assert measure.abstained is None
        above.append(measure.rate_low > wrong.mean())
        below.append(measure.rate_high < wrong.mean())
        off.append(measure.rate - wrong.mean())
    assert np.mean(above) <= 0.05 + 0.085
    assert np.mean(below) <= 0.05 + 0.085
    assert abs(np.mean(off)) < 0.012


def test_errors_by_a_rule_are_no_guess_but_a_reason() -> None:
    # Most of class 0 is labelled 1, as models that learn from such labels would have it too.
    said = 0
    for seed in range(10):
        held_out, labels, truth, _ = classes(seed, flips=0, spread=6)
        rng = np.random.default_rng(seed)
        shifted = (labels + (rng.random(len(labels)) < 0.4)) % 5
        both = np.roll(held_out.train_out, 1, axis=2)
        confused = np.logaddexp(held_out.train_out, both)
        found = judged(HeldOut(confused, held_out.queries, ""), shifted, truth)
        said += "wrong by a rule" in str(found.measure.abstained)
        assert found.measure.abstained is None or found.measure.rate_low == 0
    assert said >= 8


def test_down_to_each_row_at_least_the_stated_share_is_wrong() -> None:
    broken = 0
    for seed in range(60):
        held_out, labels, truth, wrong = classes(seed, flips=0.1, n=600, m=300, spread=6)
        found = judged(held_out, labels, truth)
        order = np.argsort(found.held_out_probability, kind="stable")
        share = np.cumsum(wrong[order]) / np.arange(1, 601)
        broken += bool((share < found.surely[order] - 1e-9).any())
        assert found.surely[order][49] > 0.3
    assert broken / 60 <= 0.05 + 0.085


def test_an_accused_row_has_a_likelier_label_that_is_not_its_own() -> None:
    held_out, labels, truth, _ = classes(0, flips=0.1)
    found = judged(held_out, labels, truth)
    assert (found.likelier[found.flags] != labels[found.flags]).all()
    assert found.measure.threshold is None, "two rules name rows"
    assert found.measure.count == found.flags.sum()
    assert found.measure.certain == found.certain.sum()
    given = found.held_out_probability
    assert given[found.flags].max() <= given[~found.flags].min()


def test_leaked_queries_do_not_calibrate() -> None:
    # Leaked queries carry wrong labels here; trusting them would hide every flip.
    held_out, labels, truth, wrong = classes(0, flips=0.1)
    spoiled = truth.copy()
    trusted = np.arange(len(truth)) >= 200
    spoiled[~trusted] = (spoiled[~trusted] + 1) % 5
    found = mislabeled_classes(naive(held_out), labels, spoiled, trusted)
    assert found.flags[wrong].mean() > 0.5
    clean = HeldOut(held_out.train_out, held_out.queries[:, 200:], "drawn")
    np.testing.assert_array_equal(found.score, judged(clean, labels, truth[200:]).score)


def abstentions() -> dict[str, Mislabeled]:
    held_out, labels, truth, _ = classes(0, flips=0.1, n=200, m=60)
    few = np.arange(60) < 19
    guessing = replace(held_out, queries=np.zeros_like(held_out.queries))
    return {
        "19 query rows": mislabeled_classes(naive(held_out), labels, truth, few),
        "such an opinion of a label says nothing": judged(guessing, labels, truth),
    }


@pytest.mark.parametrize("why", list(abstentions()))
def test_a_detector_that_cannot_know_abstains_and_accuses_nobody(why: str) -> None:
    found = abstentions()[why]
    assert found.measure.abstained is not None
    assert why in found.measure.abstained
    assert not found.flags.any()
    assert not found.certain.any()
    assert np.isnan(found.score).all()
    assert (found.measure.rate_low, found.measure.rate_high) == (0, 1)
    assert (found.measure.count, found.measure.total) == (0, 200)
    assert set(found.likelier) <= set(range(5))


def test_models_that_always_guess_the_common_class_are_not_believed() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(300) < 0.1).astype(int)
    always = np.tile(np.float32([5, 0]), (1, 300, 1))
    found = judged(HeldOut(always, always, ""), truth, truth)
    assert found.measure.abstained is not None


def test_weak_models_know_little_and_say_so() -> None:
    held_out, labels, query_labels, wrong = classes(0, flips=0.3, m=100, spread=1.5)
    measure = judged(held_out, labels, query_labels).measure
    assert measure.rate_low < 0.5 * wrong.mean() < wrong.mean() < measure.rate_high


def test_training_rows_of_another_kind_than_the_queries_are_said_so() -> None:
    # Clean labels, but a third of the training rows are blurred: the models are unsure of them.
    rng = np.random.default_rng(1)
    held_out, labels, query_labels, _ = classes(0, flips=0.0, spread=6)
    blurred = held_out.train_out.copy()
    blurred[:, :500] = rng.normal(size=blurred[:, :500].shape)
    result = judged(HeldOut(blurred, held_out.queries, ""), labels, query_labels)
    assert "of another kind than the queries" in str(result.measure.abstained)


def test_the_noise_from_two_accuracies_lies_between_its_bounds() -> None:
    rng, noise, right = np.random.default_rng(0), 0.2, 0.9
    found = []
    for _ in range(400):
        queries = rng.binomial(500, right)
        agree = rng.binomial(2000, (1 - noise) * right + noise * (1 - right) / 9)
        found.append(
            [disagreement(queries, 500, agree, 2000, 10, deviations=z) for z in (-1.645, 0, 1.645)]
        )
    low, estimate, high = np.array(found).T
    assert np.mean(low > noise) <= 0.05 + 0.035
    assert np.mean(high < noise) <= 0.05 + 0.035
    assert np.mean(estimate) == pytest.approx(noise, abs=0.005)


def test_models_no_better_than_chance_bound_no_noise() -> None:
    assert disagreement(10, 100, 50, 100, 10, deviations=-1.645) == 0
    assert disagreement(10, 100, 50, 100, 10, deviations=1.645) == 1


def test_rows_that_stand_apart_are_never_certain_and_lower_no_bound() -> None:
    held_out, labels, truth, wrong = classes(0, flips=0.1, spread=6)
    odd = np.zeros(len(labels), dtype=bool)
    odd[-200:] = True
    blurred = held_out.train_out.copy()
    blurred[:, odd] = np.random.default_rng(0).normal(size=blurred[:, odd].shape)
    spoiled = HeldOut(blurred, held_out.queries, "")
    trusted = np.ones(len(truth), dtype=bool)
    among = mislabeled_classes(naive(spoiled), labels, truth, trusted)
    beside = mislabeled_classes(naive(spoiled), labels, truth, trusted, apart=odd)
    assert among.certain[odd].any()
    assert not beside.certain[odd].any()
    assert beside.certain[wrong & ~odd].mean() > 0.5
    few = HeldOut(held_out.train_out[:, ~odd], held_out.queries, "")
    without = mislabeled_classes(naive(few), labels[~odd], truth, trusted)
    bound = beside.measure.rate_low * len(labels)
    assert bound == pytest.approx(without.measure.rate_low * (~odd).sum(), rel=0.1)


class Uneven:
    """Half-models on clean labels of which every second one is bad."""

    note, alike = "uneven", False

    def __init__(self, rng: np.random.Generator, n: int, m: int) -> None:
        self.rng, self.calls = rng, 0
        self.truth = rng.integers(5, size=n + m)
        self.n = n

    def __call__(self, index: np.ndarray, seed: int, /) -> tuple[np.ndarray, np.ndarray]:
        self.calls += 1
        sure = 6.0 if self.calls % 2 else 2.0
        logits = np.eye(5)[self.truth] * sure + self.rng.normal(size=(len(self.truth), 5))
        return np.float32(logits[: self.n]), np.float32(logits[self.n :])


def test_labels_that_are_learned_as_if_they_were_right_are_no_guess_but_a_reason() -> None:
    # People call half of class 0 by the name of class 1, and models learn it from them.
    said, clean = 0, 0
    for seed in range(20):
        held_out, labels, truth, _ = classes(seed, flips=0, spread=6)
        clean += judged(held_out, labels, truth).measure.abstained is not None
        renamed = np.where((labels == 0) & (held_out.train_out[0, :, 2] > 0), 1, labels)
        learned = held_out.train_out + 20 * np.eye(5, dtype=np.float32)[renamed]
        asked = held_out.queries.copy()
        asked[:, truth == 0, 1] += 20 * (asked[0, truth == 0, 2] > 0)
        found = judged(HeldOut(learned, asked, ""), renamed, truth)
        said += "wrong by a rule" in str(found.measure.abstained)
    assert said == 20
    assert clean == 0


def test_a_bad_half_model_makes_no_row_guilty() -> None:
    over, certain = [], []
    for seed in range(150):
        fit = Uneven(np.random.default_rng(seed), 300, 150)
        labels, truth = fit.truth[:300], fit.truth[300:]
        held_out = read_halves(fit, labels, repeats=3, seed=seed)
        found = judged(held_out, labels, truth)
        over.append(found.measure.rate_low > 0)
        certain.append(found.certain.any())
    assert np.mean(over) <= 0.05 + 0.054
    assert np.mean(certain) <= 0.1 + 0.074


def test_reliability_is_how_well_random_labels_are_told_from_right_ones() -> None:
    held_out, labels, truth, _ = classes(0, flips=0.1, spread=6)
    sharp = judged(held_out, labels, truth).measure.reliability
    held_out, labels, truth, _ = classes(0, flips=0.1, spread=2)
    blunt = judged(held_out, labels, truth).measure.reliability
    assert sharp is not None
    assert blunt is not None
    assert 0.6 < blunt < sharp - 0.02
    assert sharp > 0.97


@pytest.mark.parametrize("said", [[[-1, -2, -3]], [[-3, -2, -1]], [[-2, -2, -2]]])
def test_reliability_worked_by_hand(said: list[list[float]]) -> None:
    right = {-1: 1.0, -3: 0.0, -2: 0.5}[int(said[0][0])]
    assert mislabeled._told_from_random(np.array(said), np.array([0])) == right
