"""Memorized rows: whose label does the model know only because it saw the row?

After Feldman and Zhang (2020), mem_i = P(label | trained with i) - P(label | trained without i).

**Ranked** by how little everybody who was taught by the training rows expects of the row's label:
half-models, neighbours and linear models without the row, and the audited model itself. Each ranks
the rows, and a mean rank counts, which is ahead of each of them (benchmarks/RESULTS.md). No truth
is known that could weigh them; who agrees with the others counts more (Parisi, Strino, Nadler,
Kluger, PNAS 2014). Who learned from the queries is not asked: these may know what the training rows
do not teach. And by how surely the audited model knows the label: mem_i is large where it is known
with the row and not expected without, so the mean rank is weighed by the label's odds against the
likeliest other. A model that knows every label by heart weighs all rows alike; of one that
generalises, rows that it has not learned come last.

**Named** by mem_i itself. With: the audited model. Without: the mean over half-models that did not
see the row. Half-models may be worse for other reasons than that they did not see a row: then the
labels of queries, which nobody saw, fall too, and a row is named only where its label falls by more
than those of all but 1 % of the queries. The audited model is one draw, so the number is a rough
one; how large the share of
memorized rows may be, half-models with and without every row say (`memorized_share`). Where many
models were trained as the audited one was, they alone say all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.memorized_share import CONFIDENCE, difference, share_above
from forward_inf_mlflow.halves import HeldOut

#: Feldman and Zhang call a row memorized from this estimate on (their section 3).
THRESHOLD = 0.25
#: Share of the queries whose labels may fall by more than that of a row which is named.
FALSE = 0.01
#: Rankers who agree less than this (Cronbach's alpha), or two halves of the models, name nobody.
RELIABLE = 0.3
#: So often must the rows have been halved, or mem_i is too coarse a number.
MIN_REPEATS = 8


@dataclass(frozen=True)
class Memorized:
    """What the detector says of every training row, all ``(n,)``.

    Attributes:
        score: What rows are ranked by: a mean rank, 0 to 1, times how surely the model prefers the
            label; or mem_i itself where it is known.
        fall: By how much the label's probability falls in models that did not see the row; NaN
            where there are none.
        low, high: The 95 % interval of mem_i in its own unit; NaN where only a rank is known.
        flags: The named rows.
        measure: The summary.
    """

    score: np.ndarray
    fall: np.ndarray
    low: np.ndarray
    high: np.ndarray
    flags: np.ndarray
    measure: Measure


def memorized_classes(
    held_out: HeldOut | None,
    labels: np.ndarray,
    given_probability: np.ndarray,
    ahead: np.ndarray,
    taught: Sequence[Expert],
    usual: np.ndarray | None = None,
) -> Memorized:
    """Rank rows by what everybody expects of their labels; name those that half-models do not know.

    Args:
        held_out: Logits of the half-models; uncalibrated, like the audited model's. None: nobody
            was trained, and nobody is named.
        labels: ``(n,)`` given class indices.
        given_probability: ``(n,)`` what the audited model gives the given label.
        ahead: ``(n,)`` how many nats it puts that label ahead of the likeliest other.
        taught: Who was taught by the training rows, the audited model among them.
        usual: ``(m,)`` by how much the labels of trusted queries fall from the audited model to
            half-models; None where there are none.
    """
    n = len(labels)
    if held_out is not None and held_out.diverged is not None:
        return _nobody(n, held_out.diverged)
    score, reliability = mean_rank(taught, labels)
    score = score * special.expit(ahead)
    if reliability is not None and reliability < RELIABLE:
        found = _nobody(
            n,
            "who was taught by the training rows does not agree on what is hard about them "
            f"(Cronbach's alpha {reliability:.2f}, below {RELIABLE})",
        )
        return replace(found, score=score)
    if held_out is None:
        found = _nobody(n, "no half-models were trained (take the effort 'standard')")
        return replace(found, score=score)
    if held_out.alike and held_out.learned is not None and len(held_out.learned) >= MIN_REPEATS:
        return _in_its_own_unit(held_out.learned, held_out.train_out.argmax(2), labels)
    without = np.zeros(n)
    for repeat in held_out.train_out:
        without += special.softmax(repeat, axis=-1)[np.arange(n), labels] / len(held_out.train_out)
    fall = given_probability - without
    least = THRESHOLD
    if usual is not None and len(usual):
        least = max(least, float(np.sort(usual)[::-1][int(FALSE * len(usual))]))
    flags = (fall >= THRESHOLD) & (fall >= least)
    count, unknown = int(flags.sum()), np.full(n, np.nan)
    low, high, abstained = 0.0, 1.0, None
    if held_out.learned is None:
        abstained = "no model that saw a row can be compared with those that did not"
    else:
        share = share_above(
            held_out.learned == labels, held_out.train_out.argmax(2) == labels, THRESHOLD
        )
        # These half-models need not memorize as the audited model does: what it shows counts too.
        low, high = min(share.low, count / n), max(share.high, count / n)
    return Memorized(
        score,
        fall,
        unknown,
        unknown,
        flags,
        Measure(
            count=count,
            total=n,
            rate_low=low,
            rate_high=high,
            reliability=reliability,
            threshold=None,
            note=(
                f"the label's probability falls by {THRESHOLD} or more in models that did not "
                "see the row (the threshold of Feldman and Zhang, 2020)"
                + (
                    f", and by {least:.2f}, more than all but {FALSE:.0%} of the queries' labels"
                    if least > THRESHOLD
                    else ""
                )
                + "; the interval holds what "
                f"{2 * len(held_out.train_out)} half-models with and without each row allow"
            ),
            abstained=abstained,
        ),
    )


def mean_rank(taught: Sequence[Expert], labels: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Return the weighted mean of each row's ranks by how little experts expect its label, 0 to 1.

    The weights are those of the first principal component of the ranks. Equal opinions share a
    rank, and who says the same of all rows is not heard.

    Args:
        taught: At least one.
        labels: ``(n,)`` class indices.

    Returns:
        ``(n,)``, and how far the rankers agree: the share of the mean's variance that they have in
        common (Cronbach, Psychometrika 1951); None if fewer than two are heard.
    """
    rows, n = np.arange(len(labels)), len(labels)
    said = np.stack([stats.rankdata(-expert.train[rows, labels]) for expert in taught])
    ranks = (said - 0.5) / n
    heard = ranks[ranks.std(1) > 0]
    k = len(heard)
    if k < 2 or n < 2:
        return np.asarray((heard if k else ranks).mean(0)), None
    correlation = np.corrcoef(heard)
    weights = np.maximum(0, _first_component(correlation))
    shared = max(float(correlation.sum()), 1e-9)  # none where rankers contradict each other
    alpha = k / (k - 1) * (1 - k / shared)
    return np.asarray(weights @ heard / weights.sum()), float(np.clip(alpha, 0, 1))


def _first_component(correlation: np.ndarray) -> np.ndarray:
    """Return the direction that most rankers share, its larger side positive."""
    found = np.linalg.eigh(correlation)[1][:, -1]
    return np.asarray(found if found.sum() >= 0 else -found)


def _in_its_own_unit(learned: np.ndarray, out: np.ndarray, labels: np.ndarray) -> Memorized:
    """Return mem_i itself: how much oftener models that saw the row give its label."""
    repeats, n = learned.shape
    right = [said == labels for said in (learned, out)]
    with_it, without = (one.sum(0) for one in right)
    score = (with_it - without) / repeats
    low, high = difference(with_it, without, repeats)
    flags = score >= THRESHOLD
    share, reliability = share_above(right[0], right[1], THRESHOLD), _halves_agree(*right)
    abstained = None
    # Where nobody passes there is nothing to tell apart, and nobody to accuse.
    if flags.any() and (reliability is None or reliability < RELIABLE):
        flags[:] = False
        abstained = (
            "two halves of the models do not agree which rows are memorized (reliability "
            f"{reliability or 0:.2f}, below {RELIABLE}); all together they allow for "
            f"{share.low:.1%} to {share.high:.1%}"
        )
    return Memorized(
        score,
        score,
        low,
        high,
        flags,
        Measure(
            count=int(flags.sum()),
            total=n,
            estimate=share.estimate,
            rate_low=share.low,
            rate_high=share.high,
            reliability=reliability,
            threshold=THRESHOLD,
            note=(
                f"mem_i of Feldman and Zhang (2020) from {2 * repeats} models trained as the "
                f"audited one was, each on half of the rows; named from {THRESHOLD} on, some by "
                "luck: the share is what all rows' counts together show, with an interval of "
                f"{CONFIDENCE:.0%} that holds whatever the rows' chances are"
            ),
            abstained=abstained,
        ),
    )


def _halves_agree(with_it: np.ndarray, without: np.ndarray) -> float | None:
    """Return how reliable mem_i is: two halves' correlation, stepped up to all models; or None.

    Spearman and Brown, British Journal of Psychology 1910. None where a half says the same of all.

    Args:
        with_it: ``(R, n)`` bool, answered right by models that saw the row.
        without: ``(R, n)`` bool, by those that did not.
    """
    change = with_it.astype(np.float64) - without
    halves = [change[start::2].mean(0) for start in range(2)]
    if min(half.std() for half in halves) == 0:
        return None
    shared = max(0.0, float(np.corrcoef(halves)[0, 1]))
    return 2 * shared / (1 + shared)


def memorized_targets(n: int, *, several: bool = False) -> Memorized:
    """Abstain: memorization is defined by a label's probability.

    Args:
        n: Rows.
        several: Whether they have several labels each, rather than none that is probable.
    """
    why = "a row here has several" if several else "regression has none"
    return _nobody(n, f"memorization is defined by the probability of a label; {why}")


def _nobody(n: int, why: str) -> Memorized:
    unknown = np.full(n, np.nan)
    nobody = np.zeros(n, dtype=bool)
    return Memorized(unknown, unknown, unknown, unknown, nobody, Measure.none(n, why))
