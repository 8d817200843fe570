"""Gross errors: regression targets that are too far from what models without the row predict.

How far held-out predictions are off, beside how far they are on the queries, whose targets are
trusted. *Certain* and the lower bound come from that order alone, as for classes (`mislabeled`);
likely are the rows that a Student t distribution fitted to the queries' residuals accuses
(Benjamini-Hochberg at ``fdr``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from forward_inf_mlflow.detect.measure import Measure, binomial_high
from forward_inf_mlflow.detect.mislabeled import Beside, Mislabeled, undecided
from forward_inf_mlflow.halves import HeldOut

#: Fewer trusted rows than this do not show how far residuals reach.
MIN_RESIDUALS = 100
#: A median residual below this share of the spread: many are tied, and no bell describes them.
_TIED = 1e-3


def mislabeled_targets(
    held_out: HeldOut,
    targets: np.ndarray,
    query_targets: np.ndarray,
    trusted: np.ndarray,
    *,
    apart: np.ndarray | None = None,
    right: np.ndarray | None = None,
    fdr: float = 0.1,
) -> Mislabeled:
    """Judge regression targets: gross errors, beyond what held-out residuals explain.

    Args as in `mislabeled.mislabeled_classes`, with outputs ``(R, n, 1)`` and numbers for labels.
    """
    n = len(targets)
    predicted = held_out.train_out.reshape(len(held_out.train_out), n).mean(0)
    # Both are means over one half-model a repeat, so their residuals have the same spread.
    query_predicted = held_out.queries.reshape(len(held_out.queries), -1).mean(0)
    residual = targets - predicted
    reference = (query_targets - query_predicted)[trusted]

    def nothing(why: str) -> Mislabeled:
        return replace(undecided(n, why), likelier=predicted)

    if held_out.diverged is not None:
        return nothing(held_out.diverged)
    if len(reference) < MIN_RESIDUALS:
        return nothing(
            f"only {len(reference)} query rows that are not leaked, {MIN_RESIDUALS} are needed to "
            "know which residuals are usual"
        )
    if np.mean(reference**2) >= np.var(query_targets[trusted]):
        return nothing(
            "models trained on half of the rows predict the queries no better than their mean: "
            "their opinion of a target says nothing"
        )

    freedom, centre, scale = stats.t.fit(reference, floc=np.median(reference))
    # The scale is an estimate too: its standard error is at most about 1 / sqrt(m) of it here, and
    # a tail fitted too thin would accuse.
    scale *= 1 + 2 / np.sqrt(len(reference))
    p = 2 * stats.t.sf(np.abs(residual - centre) / scale, freedom)
    adjusted = stats.false_discovery_control(np.clip(p, 0, 1))
    if np.median(np.abs(reference - centre)) < _TIED * reference.std():
        adjusted[:] = 1.0  # most queries are predicted exactly: no such law describes the others
    known = np.zeros(n, dtype=bool) if right is None else right
    aside = known if apart is None else apart | known
    beside = Beside.of(np.abs(residual - centre), np.abs(reference - centre), aside, fdr)
    suspected = int((beside.certain | (adjusted <= fdr)).sum())  # what a person kept lowers no end
    adjusted[known] = 1.0
    flags = beside.certain | (adjusted <= fdr)
    named, sure = int(flags.sum()), int(beside.certain.sum())
    low, share = beside.guilty / n, float((1 - fdr) * named / n)
    high = max(
        binomial_high(suspected, n), _swapped_at_most(residual, reference, predicted, targets)
    )
    return Mislabeled(
        suspicion=np.abs(residual - centre),
        score=1 - adjusted,
        certain=beside.certain,
        flags=flags,
        surely=beside.surely,
        likelier=predicted,
        likelier_probability=np.full(n, np.nan),
        held_out_probability=np.full(n, np.nan),
        measure=Measure(
            count=named,
            total=n,
            certain=sure,
            estimate=max(low, share),
            rate_low=low,
            rate_high=max(high, low, share),
            threshold=1 - fdr,
            note=(
                f"{sure:,} targets are certain at a false discovery rate of {fdr:.0%} beside "
                f"{len(reference):,} query rows, {named - sure:,} more by a Student t with "
                f"{freedom:.1f} degrees of freedom fitted to the queries' residuals; only gross "
                "errors are named; the upper end is the share of targets that may be other "
                f"rows'; {held_out.note}"
            ),
        ),
    )


def _swapped_at_most(
    residual: np.ndarray, reference: np.ndarray, predicted: np.ndarray, targets: np.ndarray
) -> float:
    """Return the upper 95 % bound of the share of targets that are those of other rows.

    Such targets have squared residuals of ``var(targets) + var(predictions)`` and the squared
    distance of the means; usual ones have the queries'. The mean over the training rows lies
    between in proportion.
    """
    swapped = float(targets.var() + predicted.var() + (targets.mean() - predicted.mean()) ** 2)
    mine, usual = np.square(residual), np.square(reference)
    spread = float(np.sqrt(mine.var() / len(mine) + usual.var() / len(usual)))
    room = swapped - float(usual.mean())
    if room <= 0:
        return 1.0
    return float(np.clip((mine.mean() - usual.mean() + 1.645 * spread) / room, 0, 1))
