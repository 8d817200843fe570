"""Another rule: labels of a kind that the queries' labels are not."""

from __future__ import annotations

import numpy as np
import pytest

from forward_inf_mlflow.detect.another_rule import another_rule
from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.mislabeled import mislabeled_classes

K, N, M = 4, 1500, 600


def drawn(seed: int, *, rule: float = 0.0, flips: float = 0.0, shift: bool = False) -> tuple:
    """Return what rows are taken for, their labels, and the same of queries.

    Who takes them learned from the queries' labels and is right on eight rows in ten. A rule calls
    rows of class 0 by the name of class 1, flips call any row by any name.
    """
    rng = np.random.default_rng(seed)
    share = [0.4, 0.3, 0.2, 0.1] if shift else [0.25] * K
    truth, asked = rng.choice(K, N, p=share), rng.choice(K, M)

    def taken(of: np.ndarray) -> np.ndarray:
        wrong = rng.random(len(of)) < 0.2
        return np.where(wrong, rng.integers(K, size=len(of)), of)

    found = taken(truth), taken(asked)
    labels = np.where((truth == 0) & (rng.random(N) < rule), 1, truth)
    labels = np.where(rng.random(N) < flips, rng.integers(K, size=N), labels)
    return found[0], labels, found[1], asked


@pytest.mark.parametrize("shift", [False, True], ids=["same shares", "other shares of labels"])
def test_labels_of_the_same_rule_are_seldom_taken_for_another(shift: bool) -> None:
    found = [another_rule(*drawn(seed, shift=shift)) for seed in range(60)]
    p = np.array([one[0] for one in found])
    assert 0.2 < np.median(p) < 0.8
    assert (p < 0.01).sum() <= 3
    assert np.mean([one[1] for one in found]) < 0.02


def test_errors_by_a_rule_are_told_and_not_overstated() -> None:
    for seed in range(10):
        p, share = another_rule(*drawn(seed, rule=0.6))  # 15 % of all rows
        assert p <= 0.001
        assert 0.05 < share < 0.15


def test_a_label_that_only_one_side_has_says_nothing() -> None:
    taken, labels = np.zeros(50, int), np.zeros(50, int)
    assert another_rule(taken, labels, taken, labels + 1) == (1.0, 0.0)


def judged(seed: int, **spoiled: float) -> Measure:
    """Judge rows by a model that learned the rule, and by one that knows the queries alone."""
    taken, labels, asked_taken, asked = drawn(seed, **spoiled)
    rng = np.random.default_rng([seed, 1])

    def said(classes: np.ndarray, sure: float) -> np.ndarray:
        logs = np.full((len(classes), K), np.log((1 - sure) / (K - 1)))
        logs[np.arange(len(classes)), classes] = np.log(sure)
        return logs

    # Half-models answer as the labels go, whatever gave them, with errors of their own.
    own, theirs = (
        np.where(rng.random(len(of)) < 0.1, rng.integers(K, size=len(of)), of)
        for of in (labels, asked)
    )
    experts = [
        Expert("half-models", said(own, 0.8), said(theirs, 0.8)),
        Expert("queries near by", said(taken, 0.7), said(asked_taken, 0.7), blind=True),
    ]
    return mislabeled_classes(experts, labels, asked, np.ones(M, bool)).measure


def test_a_version_whose_labels_follow_another_rule_does_not_pass() -> None:
    found = [judged(seed, rule=0.5) for seed in range(8)]
    assert all(one.abstained for one in found)
    assert any("follow another rule" in str(one.abstained) for one in found)
    assert not any(judged(seed).abstained for seed in range(8))
