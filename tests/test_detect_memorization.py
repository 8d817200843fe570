from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.detect.memorization import (
    Memorized,
    mean_rank,
    memorized_classes,
    memorized_targets,
)
from forward_inf_mlflow.detect.memorized_share import share_above
from forward_inf_mlflow.halves import HeldOut


def held_out(*probability: list[float]) -> HeldOut:
    """Two-class half-models, one list of P(class 1) a repeat."""
    p = np.array(probability)
    logits = np.log(np.stack([1 - p, p], axis=-1))
    return HeldOut(logits, logits, "")


def expecting(*probability: float) -> Expert:
    """Who gives class 1 these probabilities."""
    logs = np.log(np.stack([1 - np.array(probability), probability], axis=-1))
    return Expert("somebody", logs, logs)


def known(n: int) -> np.ndarray:
    """Return how far ahead of all others labels are that a model knows by heart."""
    return np.full(n, 50.0)


def of(probability: np.ndarray | list[float]) -> list[Expert]:
    return [expecting(*map(float, probability))]


def test_everybody_ranks_rows_alike_and_half_models_name_them() -> None:
    models, labels = held_out([0.5, 0.5, 0.9]), np.array([1, 1, 1])
    taught = [expecting(0.2, 0.6, 0.9), expecting(0.5, 0.4, 0.6), expecting(0.3, 0.3, 0.3)]
    found = memorized_classes(models, labels, np.array([0.9, 0.9, 0.9]), known(3), taught)
    # Ranks, the least expected highest: 3 2 1, then 2 3 1; the third says the same of all.
    np.testing.assert_allclose(found.score, np.array([2.5, 2.5, 1]) / 3 - 1 / 6)
    np.testing.assert_allclose(found.fall, [0.4, 0.4, 0.0], atol=1e-12)
    assert found.flags.tolist() == [True, True, False]


def test_who_says_the_same_of_all_rows_changes_no_order() -> None:
    rng = np.random.default_rng(0)
    somebody, labels = expecting(*rng.uniform(0.01, 0.99, 50)), np.ones(50, int)
    alone, with_him = (
        mean_rank(taught, labels)[0] for taught in ([somebody], [somebody, expecting(*[0.5] * 50)])
    )
    assert np.argsort(alone).tolist() == np.argsort(with_him).tolist()


def test_the_mean_of_noisy_opinions_is_ahead_of_each() -> None:
    rng = np.random.default_rng(1)
    hard, labels = rng.normal(size=500), np.ones(500, int)
    taught = [expecting(*1 / (1 + np.exp(hard + rng.normal(size=500)))) for _ in range(4)]
    each = [np.corrcoef(mean_rank([one], labels)[0], hard)[0, 1] for one in taught]
    assert np.corrcoef(mean_rank(taught, labels)[0], hard)[0, 1] > max(each) + 0.05


def test_who_agrees_with_nobody_counts_little_and_who_contradicts_them_not_at_all() -> None:
    rng = np.random.default_rng(2)
    hard, labels = rng.normal(size=500), np.ones(500, int)
    good = [expecting(*1 / (1 + np.exp(hard + rng.normal(size=500)))) for _ in range(3)]
    noise = expecting(*rng.uniform(0.01, 0.99, 500))
    against = expecting(*1 / (1 + np.exp(-2 * hard)))
    best = np.corrcoef(mean_rank(good, labels)[0], hard)[0, 1]
    for others in ([noise], [against]):
        assert np.corrcoef(mean_rank([*others, *good], labels)[0], hard)[0, 1] > best - 0.01


def test_without_half_models_rows_are_ranked_and_nobody_is_named() -> None:
    found = memorized_classes(
        None, np.array([1, 1]), np.array([0.9, 0.9]), known(2), of([0.2, 0.8])
    )
    assert found.score[0] > found.score[1]
    assert np.isnan(found.fall).all()
    assert not found.flags.any()
    assert "effort 'standard'" in str(found.measure.abstained)


def test_three_rows_worked_by_hand() -> None:
    # Means without the row: .5, .85, .2. With it: .9, .9, .3. Labels 1, 1, 0.
    models = held_out([0.4, 0.8, 0.7], [0.6, 0.9, 0.9])
    found = memorized_classes(
        models, np.array([1, 1, 0]), np.array([0.9, 0.9, 0.3]), known(3), of([0.9, 0.9, 0.7])
    )
    np.testing.assert_allclose(found.fall, [0.4, 0.05, 0.1], atol=1e-12)
    assert found.flags.tolist() == [True, False, False]
    assert (found.measure.count, found.measure.total) == (1, 3)
    assert found.measure.rate == 1 / 3
    # Nobody knows what models that saw the rows say: how large the share may be is open.
    assert (found.measure.rate_low, found.measure.rate_high) == (0, 1)
    assert "cannot" not in str(found.measure.abstained)
    assert "can be compared" in str(found.measure.abstained)


def test_half_models_bound_the_share_of_memorized_rows() -> None:
    # Half of 400 rows are known only to models that saw them, the others to all.
    labels, hard = np.ones(400, int), np.arange(400) < 200
    out = np.tile(np.where(hard, 0, 1), (2, 1))
    logits = 10.0 * np.eye(2)[out]
    models = HeldOut(logits, logits, "", np.tile(labels, (2, 1)))
    found = memorized_classes(models, labels, np.full(400, 0.99), known(400), of([0.5] * 400))
    assert found.flags.tolist() == hard.tolist()
    measure = found.measure
    assert measure.abstained is None
    assert 0.15 < measure.rate_low < measure.rate == 0.5 < measure.rate_high < 1
    assert np.isnan(found.low).all()


def test_a_row_that_other_models_know_as_well_is_never_memorized() -> None:
    p = np.random.default_rng(0).uniform(0.01, 0.99, 500)
    found = memorized_classes(held_out(list(p)), np.ones(500, dtype=int), p, known(500), of(p))
    np.testing.assert_allclose(found.fall, 0, atol=1e-9)
    assert found.measure.count == 0


def test_the_threshold_itself_counts() -> None:
    found = memorized_classes(
        held_out([0.5]), np.array([1]), np.array([0.75]), known(1), of([0.75])
    )
    assert found.flags.tolist() == [True]


def test_falls_lie_between_minus_one_and_one_and_ranks_between_none_and_one() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 200, 4)) * 50
    models = HeldOut(logits, logits, "")
    labels, taught = rng.integers(4, size=200), [Expert("they", logits[0], logits[0])]
    found = memorized_classes(models, labels, rng.random(200), known(200), taught)
    assert (np.abs(found.fall) <= 1).all()
    assert ((found.score > 0) & (found.score < 1)).all()


def test_models_that_answer_no_numbers_give_no_verdict() -> None:
    logits = np.full((1, 3, 2), np.nan)
    models = HeldOut(logits, logits, "")
    found = memorized_classes(models, np.zeros(3, dtype=int), np.ones(3), known(3), of([0.5] * 3))
    assert found.measure.abstained is not None
    assert not found.flags.any()


def test_regression_gives_no_verdict_and_says_why() -> None:
    found = memorized_targets(4)
    assert "regression has none" in str(found.measure.abstained)
    assert np.isnan(found.score).all()
    assert not found.flags.any()
    assert (found.measure.count, found.measure.total) == (0, 4)


def test_eight_pairs_trained_alike_give_mem_i_in_its_own_unit() -> None:
    # Row 0: known by all that saw it, by none that did not. Row 1: known by all. Row 2: by 5 and 2.
    labels = np.array([1, 1, 0])
    learned = np.tile(labels, (8, 1))
    learned[5:, 2] = 1
    out = np.tile(np.array([0, 1, 1]), (8, 1))
    out[:2, 2] = 0
    logits = 10.0 * np.eye(2)[out]
    models = HeldOut(logits, logits, "", learned, True)
    found = memorized_classes(models, labels, np.ones(3), known(3), of([0.5] * 3))
    np.testing.assert_allclose(found.score, [1, 0, 3 / 8])
    assert found.flags.tolist() == [True, False, True]
    # Wilson's interval of 8 of 8 is .676 to 1, of 0 of 8 it is 0 to .324: Newcombe's from those.
    np.testing.assert_allclose(found.low[:2], [1 - np.hypot(0.3244, 0.3244), -0.3244], atol=1e-3)
    np.testing.assert_allclose(found.high[:2], [1, 0.3244], atol=1e-3)
    assert (found.low <= found.score).all()
    assert (found.score <= found.high).all()
    assert (found.measure.rate_low, found.measure.count) == (0, 2)
    assert found.measure.rate_high > 0.9, "three rows show little of a share"
    assert found.measure.reliability is not None
    assert found.measure.reliability > 0.8
    assert "16 models" in found.measure.note
    few = HeldOut(logits[:7], logits[:7], "", learned[:7], True)
    assert (
        "mem_i"
        not in memorized_classes(few, labels, np.ones(3), known(3), of([0.5] * 3)).measure.note
    )


def test_rankers_that_do_not_agree_name_nobody_but_rank() -> None:
    rng = np.random.default_rng(0)
    taught = [expecting(*rng.uniform(0.01, 0.99, 400)) for _ in range(4)]
    models = held_out(list(np.full(400, 0.1)))
    found = memorized_classes(models, np.ones(400, int), np.full(400, 0.9), known(400), taught)
    assert "does not agree" in str(found.measure.abstained)
    assert not found.flags.any()
    assert np.isfinite(found.score).all()


def test_rankers_that_contradict_each_other_agree_on_nothing() -> None:
    p = np.random.default_rng(0).uniform(0.01, 0.99, 50)
    assert mean_rank([expecting(*p), expecting(*(1 - p))], np.ones(50, int))[1] == 0


def test_agreement_is_cronbachs_alpha() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=2000)
    taught = [expecting(*1 / (1 + np.exp(hard + rng.normal(size=2000)))) for _ in range(4)]
    # Correlations of a half: alpha is 4 * .5 / (1 + 3 * .5), for ranks a little less.
    assert mean_rank(taught, np.ones(2000, int))[1] == pytest.approx(0.8, abs=0.03)
    assert mean_rank(taught[:1], np.ones(2000, int))[1] is None


def eight_pairs(p: np.ndarray, q: np.ndarray, seed: int) -> Memorized:
    """Eight models with each row and eight without, right with these chances."""
    rng, n = np.random.default_rng(seed), len(p)
    learned, out = (np.where(rng.random((8, n)) < chance, 1, 0) for chance in (p, q))
    logits = 10.0 * np.eye(2)[out]
    models = HeldOut(logits, logits, "", learned, True)
    labels = np.ones(n, int)
    return memorized_classes(models, labels, np.ones(n), known(n), of(np.linspace(0.1, 0.9, n)))


def test_luck_is_not_counted_as_memorization_and_names_nobody() -> None:
    q = np.random.default_rng(0).uniform(0.3, 0.7, 1000)
    found = eight_pairs(q, q, 0)
    assert (found.score >= 0.25).mean() > 0.15, "so many pass by luck"
    assert found.measure.rate_low == 0
    assert found.measure.rate < 0.05
    assert "do not agree which rows" in str(found.measure.abstained)
    assert not found.flags.any()
    assert (found.low <= 0).mean() > 0.9, "each row's own interval knows it"


def test_a_row_s_interval_holds_its_mem_i_and_the_share_s_the_share() -> None:
    held, missed, estimates = [], 0, []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        hard = rng.random(1000) < 0.15
        q = np.where(hard, rng.beta(1, 3, 1000), rng.beta(20, 1, 1000))
        p = np.where(hard, 0.97, q)
        found = eight_pairs(p, q, seed)
        held.append(((found.low <= p - q) & (p - q <= found.high)).mean())
        truth, measure = (p - q >= 0.25).mean(), found.measure
        missed += not measure.rate_low <= truth <= measure.rate_high
        estimates.append(measure.rate - truth)
        assert measure.rate_high - measure.rate_low < 0.4
    assert np.mean(held) >= 0.95
    assert not missed
    assert abs(np.mean(estimates)) < 0.02


def test_models_that_are_better_or_worse_as_a_whole_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    labels, q = np.ones(1000, int), rng.uniform(0.2, 0.9, 1000)
    width = []
    for wobble in (0.0, 0.3):
        shift = wobble * rng.choice([-1, 1], (2, 8, 1))
        with_it, without = (rng.random((8, 1000)) < q + one for one in shift)
        found = share_above(with_it == labels, without == labels, 0.25)
        width.append(found.high - found.low)
    assert width[1] > 1.3 * width[0]


def test_what_the_model_does_not_know_for_sure_is_ranked_below_what_it_knows() -> None:
    ahead = np.array([50.0, 0.0, -50.0, 50.0])
    found = memorized_classes(
        None, np.ones(4, dtype=int), np.full(4, 0.9), ahead, of([0.2, 0.2, 0.2, 0.9])
    )
    ranks = found.score / found.score[0]
    np.testing.assert_allclose(ranks[:3], [1.0, 0.5, 0.0], atol=1e-12)
    assert 0 < ranks[3] < 1, "it is known for sure, and by everybody"


def test_half_models_that_know_less_of_everything_make_nobody_memorized() -> None:
    # All rows fall by .4, as half-models are worse; a fifth fall by .7, because nobody saw them.
    labels, odd = np.ones(100, int), np.arange(100) < 20
    models = held_out(np.where(odd, 0.2, 0.5))
    rest = (models, labels, np.full(100, 0.9), known(100), of([0.5] * 100))
    usual = np.random.default_rng(0).uniform(0.35, 0.45, 200)
    assert memorized_classes(*rest).flags.all()
    found = memorized_classes(*rest, usual)
    assert found.flags.tolist() == odd.tolist()
    assert "more than all but 1% of the queries' labels" in found.measure.note
    # Queries whose labels hardly fall change nothing.
    assert memorized_classes(*rest, usual - 0.35).flags.all()
