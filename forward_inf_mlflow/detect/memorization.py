"""Memorized rows: whose label does the model know only because it saw the row?

After Feldman and Zhang (2020), mem_i = P(label | trained with i) - P(label | trained without i).
With: the audited model. Without: the mean over half-models that did not see the row. The audited
model is one draw, so the number is a rough one; its ranking is what counts, and that is better when
neighbours and the model itself are heard too (`experts`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.halves import HeldOut

#: Feldman and Zhang call a row memorized from this estimate on (their section 3).
THRESHOLD = 0.25
#: So often must the rows have been halved, or mem_i is too coarse a number.
MIN_REPEATS = 8


@dataclass(frozen=True)
class Memorized:
    """What the detector says of every training row: ``score`` and ``flags``, both ``(n,)``."""

    score: np.ndarray
    flags: np.ndarray
    measure: Measure


def memorized_classes(
    held_out: HeldOut | None,
    labels: np.ndarray,
    given_probability: np.ndarray,
    suspicion: np.ndarray,
) -> Memorized:
    """Compare the audited model's probability of the given label with what others give it.

    Rows are ranked by what it falls to with everybody who has an opinion; they are named by what it
    falls to in half-models alone, which is mem_i itself.

    Args:
        held_out: Logits of the half-models; uncalibrated, like the audited model's. None: nobody
            was trained, and nobody is named.
        labels: ``(n,)`` given class indices.
        given_probability: ``(n,)`` what the audited model gives the given label.
        suspicion: ``(n,)`` minus the logarithm of what all experts together give it; NaN if they
            could not be joined.
    """
    n = len(labels)
    if held_out is None:
        found = _nobody(n, "no half-models were trained (take the effort 'standard')")
        return replace(found, score=given_probability - np.exp(-suspicion))
    if held_out.diverged is not None:
        return _nobody(n, held_out.diverged)
    if held_out.alike and held_out.learned is not None and len(held_out.learned) >= MIN_REPEATS:
        return _in_its_own_unit(held_out.learned, held_out.train_out.argmax(2), labels)
    without = np.zeros(n)
    for repeat in held_out.train_out:
        without += special.softmax(repeat, axis=-1)[np.arange(n), labels] / len(held_out.train_out)
    fall = given_probability - without
    score = np.where(np.isfinite(suspicion), given_probability - np.exp(-suspicion), fall)
    flags = fall >= THRESHOLD
    count = int(flags.sum())
    return Memorized(
        score,
        flags,
        Measure(
            count=count,
            total=n,
            # The rows are all there are, so the share is exact as a count of what was seen; that
            # one model is one draw is why the default policy does not bound it.
            rate_low=count / n,
            rate_high=count / n,
            threshold=None,
            note=(
                f"the label's probability falls by {THRESHOLD} or more in models that did not "
                "see the row (the threshold of Feldman and Zhang, 2020)"
            ),
        ),
    )


def _in_its_own_unit(learned: np.ndarray, out: np.ndarray, labels: np.ndarray) -> Memorized:
    """Return mem_i itself: how much oftener models that saw the row give its label."""
    repeats, n = learned.shape
    with_it, without = ((said == labels).sum(0) for said in (learned, out))
    score = (with_it - without) / repeats
    spread = np.zeros(n)
    for count in (with_it, without):
        share = (count + 1) / (repeats + 2)  # Agresti and Caffo, 2000
        spread += share * (1 - share) / (repeats + 2)
    half = 1.645 * np.sqrt(spread)
    flags = score >= THRESHOLD
    count = int(flags.sum())
    return Memorized(
        score,
        flags,
        Measure(
            count=count,
            total=n,
            rate_low=float((score - half >= THRESHOLD).mean()),
            rate_high=float((score + half >= THRESHOLD).mean()),
            threshold=THRESHOLD,
            note=(
                f"mem_i of Feldman and Zhang (2020) from {2 * repeats} models trained as the "
                f"audited one was, each on half of the rows; named from {THRESHOLD} on; between "
                "the bounds lie rows for which so many models do not settle it"
            ),
        ),
    )


def memorized_targets(n: int) -> Memorized:
    """Abstain: memorization is defined by a label's probability."""
    return _nobody(n, "memorization is defined by the probability of a label; regression has none")


def _nobody(n: int, why: str) -> Memorized:
    return Memorized(np.full(n, np.nan), np.zeros(n, dtype=bool), Measure.none(n, why))
