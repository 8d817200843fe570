"""Kept: verdicts without the rows that a person looked at and let stand.

What a person says of a row is no evidence about the others. So counts and lower bounds, which only
what was found can raise, lose the kept rows; upper bounds stay where they are. (Labels that were
found right also count in `mislabeled` itself.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forward_inf_mlflow.detect.leakage import Leaked
from forward_inf_mlflow.detect.memorization import Memorized


def leaks_without(found: Leaked, kept: np.ndarray) -> Leaked:
    """Return the verdict without the queries whose training row is kept as no leak, ``(n,)``."""
    freed = found.flags & kept[found.train_index]
    count = int(freed.sum())
    if not count:
        return found
    kind, evidence = (np.where(freed, "", some) for some in (found.kind, found.evidence))
    before, total = found.measure, found.measure.total
    # What chance may have brought is still taken from the others, and exact copies always count.
    low = max(float((kind == "exact").sum() / total), before.rate_low - count / total)
    return replace(
        found,
        kind=kind,
        evidence=evidence,
        train_flags=found.train_flags & ~kept,
        measure=replace(
            before,
            count=before.count - count,
            estimate=max(low, before.rate - count / total),
            rate_low=low,
            note=f"{before.note}; without {count:,} whose training row a person kept",
        ),
    )


def memorized_without(found: Memorized, kept: np.ndarray) -> Memorized:
    """Return the verdict without naming the kept rows ``(n,)``; the model knows them all the same.

    The rate and its bounds stay: a row that may be memorized is memorized.
    """
    freed = found.flags & kept
    count = int(freed.sum())
    if not count:
        return found
    before = found.measure
    return replace(
        found,
        flags=found.flags & ~kept,
        measure=replace(
            before,
            count=before.count - count,
            estimate=before.rate,
            note=f"{before.note}; {count:,} more are not named because a person kept them",
        ),
    )
