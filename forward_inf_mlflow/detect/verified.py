"""Verified: what a few rows that a person looked at say of all rows, without any assumption.

Rows are drawn at random within strata of suspicion, so that few answers say much: about the named
rows, about those just below them, and about the rest. A stratum's share of wrong labels lies in the
Clopper-Pearson interval of its answers; the bounds of the whole add these up, each at a level that
makes all of them hold together (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from forward_inf_mlflow.detect.measure import binomial_high, binomial_low

#: The strata, the most suspicious first, and the share of the sample that each gets.
STRATA = {"certain": 0.2, "likely": 0.2, "next": 0.2, "rest": 0.4}
#: Rows of the stratum "next" are as many as are named, but at least this share of all.
_NEXT = 0.05
_NAMED = ("certain", "likely")


def strata(score: np.ndarray, certain: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Return each row's stratum, ``(n,)`` text.

    Args:
        score: ``(n,)`` suspicion; rows without one count as the least suspicious.
        certain: ``(n,)`` bool.
        named: ``(n,)`` bool, the certain ones included.
    """
    found = np.where(named, np.where(certain, "certain", "likely"), "rest").astype("<U7")
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")
    below = order[~named[order]]
    count = max(int(named.sum()), int(np.ceil(_NEXT * len(score))))
    found[below[:count]] = "next"
    return found


def draw(stratum: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return positions of rows to look at, in random order: ``count``, or all if there are fewer.

    What a stratum is too small for goes to the others.
    """
    rng = np.random.default_rng(seed)
    rows = {name: rng.permutation(np.flatnonzero(stratum == name)) for name in STRATA}
    taken = {name: min(len(rows[name]), int(share * count)) for name, share in STRATA.items()}
    for name in reversed(STRATA):  # the rest first: it is what the least is known of
        room = min(len(rows[name]) - taken[name], count - sum(taken.values()))
        taken[name] += max(0, room)
    chosen = np.concatenate([rows[name][: taken[name]] for name in STRATA])
    return rng.permutation(chosen)


@dataclass(frozen=True)
class Share:
    """A share of wrong labels: estimate, and one-sided 95 % bounds on either side."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Verified:
    """What the answers say.

    Attributes:
        looked: Rows that were looked at, by stratum.
        wrong: How many of them are wrong.
        unsure: How many nobody could tell.
        rate: Of all rows.
        precision: Of the named rows; None if none of them was looked at.
    """

    looked: Mapping[str, int]
    wrong: Mapping[str, int]
    unsure: int
    rate: Share
    precision: Share | None

    @classmethod
    def of(cls, stratum: np.ndarray, rows: np.ndarray, wrong: np.ndarray) -> Verified:
        """Add the answers up.

        Args:
            stratum: ``(n,)`` of all rows.
            rows: ``(k,)`` positions that were looked at.
            wrong: ``(k,)`` 1 if the label is wrong, 0 if it is right, NaN if nobody can tell: that
                counts as right for the lower bound and as wrong for the upper one.
        """
        where = stratum[rows]
        present = [name for name in STRATA if (stratum == name).any()]
        answers = {name: wrong[where == name] for name in present}
        size = {name: int((stratum == name).sum()) for name in present}
        return cls(
            looked={name: len(answers[name]) for name in present},
            wrong={name: int(np.nansum(answers[name])) for name in present},
            unsure=int(np.isnan(wrong).sum()),
            rate=_together(present, size, answers) or Share(0.0, 0.0, 1.0),
            precision=_together([name for name in present if name in _NAMED], size, answers),
        )


def _together(
    names: list[str], size: Mapping[str, int], answers: Mapping[str, np.ndarray]
) -> Share | None:
    """Return the share of wrong labels in some strata together."""
    asked = [name for name in names if len(answers[name])]
    if not asked:
        return None
    total = sum(size[name] for name in names)
    open_ = [name for name in names if len(answers[name]) < size[name]]
    level = 1 - 0.05 / max(1, len(open_))
    estimate = low = high = 0.0
    for name in names:
        given, weight = answers[name], size[name] / total
        told = given[~np.isnan(given)]
        least, most = int(np.nansum(given)), int(np.isnan(given).sum() + np.nansum(given))
        whole = len(given) == size[name]
        estimate += weight * (float(told.mean()) if len(told) else 0.0)
        if whole:
            low, high = low + weight * least / len(given), high + weight * most / len(given)
        else:
            low += weight * binomial_low(least, len(given), confidence=level)
            high += weight * binomial_high(most, len(given), confidence=level)
    return Share(estimate, low, high)
