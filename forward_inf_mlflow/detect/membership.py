"""Membership inference: how well can a stranger tell training rows from others by the model?

An attack accuses a row of having been trained on. What is reported is the share of training rows
that it names while it names at most 1 % of others (Carlini et al., S&P 2022), by the better of two
attacks: the model's own loss, and that beside what half-models without the row say of it (the
likelihood ratio of RMIA; Zarifzadeh, Liu, Shokri, ICML 2024). It is a *lower* bound on what leaks
about the rows: better attacks are known, and better ones will be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from forward_inf_mlflow.detect.measure import binomial_interval, binomial_low
from forward_inf_mlflow.halves import HeldOut

#: Share of rows not trained on that may be named, and the fewest such rows that can show it.
FALSE, MIN_OTHERS = 0.01, 300
#: Chance that the lower bound is too high.
DOUBT = 0.05


@dataclass(frozen=True)
class Membership:
    """What the attack reaches.

    Attributes:
        attack: "loss" or "ratio".
        rate: Share of training rows named at the threshold that 1 % of the other rows reach.
        low: Lower 95 % bound of what an attack reaches: at a threshold that surely at most 1 % of
            others reach, for the better of the attacks (both allowed for).
        high: Upper end of Clopper and Pearson's interval at the first threshold.
        others: Rows not trained on.
    """

    attack: str
    rate: float
    low: float
    high: float
    others: int

    def sentence(self) -> str:
        """Return it in words."""
        if self.low <= FALSE:
            return (
                f"an attack by the model's {self.attack} is not shown to tell training rows from "
                f"others: it names {self.rate:.1%} of them while it names {FALSE:.0%} of "
                f"{self.others:,} query rows, which so few query rows may show by chance"
            )
        return (
            f"an attack by the model's {self.attack} names {self.rate:.1%} of the training rows "
            f"({self.low:.1%} or more, with 95 % confidence) while it names {FALSE:.0%} of "
            f"{self.others:,} query rows: a lower bound on what the model gives away about its rows"
        )


def membership(
    loss: np.ndarray,
    query_loss: np.ndarray,
    held_out: HeldOut | None,
    labels: np.ndarray | None,
    query_labels: np.ndarray | None,
    leaked: np.ndarray,
) -> Membership | None:
    """Attack the audited model.

    Args:
        loss: ``(n,)`` the training rows' losses under it, nats.
        query_loss: ``(m,)`` the queries'.
        held_out: Half-models, for the ratio; None for the loss alone.
        labels: ``(n,)`` class indices; None where half-models say losses instead of logits.
        query_labels: ``(m,)``, or None.
        leaked: ``(m,)`` bool, queries that were trained on after all.

    Returns:
        None where there are too few rows that were not trained on.
    """
    if (~leaked).sum() < MIN_OTHERS:
        return None
    attacks = {"loss": (-loss, -query_loss[~leaked])}
    if held_out is not None and held_out.diverged is None:
        attacks["ratio"] = (
            -loss - _usual(held_out.train_out, labels),
            (-query_loss - _usual(held_out.queries, query_labels))[~leaked],
        )
    found = []
    for name, (members, others) in attacks.items():
        allowed = int(FALSE * len(others))
        threshold = np.sort(others)[::-1][allowed]
        named = int((members > threshold).sum())
        # Half of the doubt is the threshold's, half the count's; and each attack has its share.
        doubt = DOUBT / 2 / len(attacks)
        sure = _surely_allowed(len(others), doubt)
        strict = np.inf if sure < 0 else np.sort(others)[::-1][sure]
        low = binomial_low(int((members > strict).sum()), len(members), confidence=1 - doubt)
        high = binomial_interval(named, len(members))[1]
        found.append(Membership(name, named / len(members), low, high, len(others)))
    return max(found, key=lambda one: (one.low, one.rate))


def _surely_allowed(others: int, doubt: float) -> int:
    """Return how many of the others may lie above a threshold that 1 % of all surely do not; -1."""
    counts = np.arange(int(FALSE * others) + 1)
    fine = stats.beta.ppf(1 - doubt, counts + 1, others - counts) <= FALSE
    return int(fine.sum()) - 1


def _usual(logits: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Return the logarithm of the mean probability that models without the row give its label.

    Of rows without labels minus the mean loss, ``(R, n, 1)``.
    """
    if labels is None:
        return np.asarray(-logits[..., 0].astype(np.float64).mean(0))
    rows = np.arange(len(labels))
    mean = np.zeros(len(labels))
    for one in logits:
        mean += special.softmax(one.astype(np.float64), axis=1)[rows, labels] / len(logits)
    return np.asarray(np.log(mean + 1e-12))
