"""Several labels a row: each is judged by itself, and a row by the most suspicious of its labels.

What is promised is promised of rows. A row's suspicion is the largest of its labels', on one scale
for all (log-odds against a label; residuals in units of what is usual), for training rows and
queries alike, so that their order is as good as random where no label is wrong. Which label of a
row it is, is the one that it is most suspicious for, or all that are likelier wrong than right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forward_inf_mlflow.detect.experts import Expert, pool
from forward_inf_mlflow.detect.gross_errors import Predictor, mislabeled_targets, nearest
from forward_inf_mlflow.detect.measure import Measure, binomial_high
from forward_inf_mlflow.detect.mislabeled import (
    MIN_QUERIES,
    Beside,
    Mislabeled,
    mislabeled_classes,
    undecided,
)

#: Rows with a label, and without it, below which it is not judged.
MIN_EITHER = 10


@dataclass(frozen=True)
class Column:
    """One of a row's labels, and what is said of it.

    Attributes:
        name: What it is called.
        verdict: As of a row with this label alone.
        suspicion: ``(n,)`` on the scale that all labels of a row share.
        queries: ``(m,)`` the same of the queries.
        wrong: ``(n,)`` bool, named by itself.
        other: ``(n,)`` what it should rather be.
    """

    name: str
    verdict: Mislabeled
    suspicion: np.ndarray
    queries: np.ndarray
    wrong: np.ndarray
    other: np.ndarray


def flag_column(
    name: str,
    naive: Sequence[Expert],
    labels: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
    *,
    apart: np.ndarray,
    right: np.ndarray,
) -> Column | str:
    """Judge one label that is set or not; return why it cannot be judged, a clause, if so.

    Args:
        name: Of the label.
        naive: Who did not learn the training rows' labels.
        labels: ``(n,)`` 0 or 1.
        query_labels: ``(m,)`` 0 or 1.
        trusted: ``(m,)`` bool.
        apart, right: ``(n,)`` bool, see `mislabeled.mislabeled_classes`.
    """
    if min(np.bincount(labels, minlength=2)) < MIN_EITHER:
        return f"fewer than {MIN_EITHER} rows have it, or lack it"
    if not naive or trusted.sum() < MIN_QUERIES:
        return "nobody can be asked, or too few queries can calibrate what is said"
    joined = pool(naive, query_labels, trusted)
    verdict = mislabeled_classes(
        naive, labels, query_labels, trusted, apart=apart, right=right, joined=joined
    )
    if np.isnan(verdict.score).all():
        return str(verdict.measure.abstained)
    train, queries = (
        said[np.arange(len(said)), 1 - given] - said[np.arange(len(said)), given]
        for said, given in ((joined.train, labels), (joined.queries, query_labels))
    )
    return Column(name, verdict, train, queries, verdict.score > 0.5, 1 - labels)


def target_column(
    name: str,
    predictors: Sequence[Predictor],
    targets: np.ndarray,
    query_targets: np.ndarray,
    trusted: np.ndarray,
    *,
    apart: np.ndarray,
    right: np.ndarray,
    fdr: float,
) -> Column | str:
    """Judge one target; otherwise as `flag_column`.

    Args:
        name: Of the target.
        predictors: Who never saw a row's target.
        targets: ``(n,)``.
        query_targets: ``(m,)``.
        trusted: ``(m,)`` bool.
        apart, right: ``(n,)`` bool.
        fdr: Of this target's errors.
    """
    verdict = mislabeled_targets(
        predictors, targets, query_targets, trusted, apart=apart, right=right, fdr=fdr
    )
    if np.isnan(verdict.score).all():
        return str(verdict.measure.abstained)
    best = nearest(predictors, targets, len(query_targets))
    rest, asked = targets - best.train, query_targets - best.queries
    centre = float(np.median(asked[trusted]))
    usual = float(np.median(np.abs(asked[trusted] - centre))) or 1.0
    train, queries = (np.abs(some - centre) / usual for some in (rest, asked))
    named = (1 - verdict.score <= fdr) & (verdict.measure.abstained is None)
    return Column(name, verdict, train, queries, named, best.train)


def together(
    columns: Sequence[Column | str],
    names: Sequence[str],
    given: np.ndarray,
    trusted: np.ndarray,
    *,
    apart: np.ndarray,
    right: np.ndarray,
    fdr: float,
    note: str,
) -> Mislabeled:
    """Return the verdict on rows.

    Args:
        columns: Of each label its verdict, or why it has none.
        names: ``(k,)`` of the labels.
        given: ``(n, k)`` the labels.
        trusted: ``(m,)`` bool.
        apart, right: ``(n,)`` bool, see `mislabeled.mislabeled_classes`.
        fdr: Largest expected share of innocent rows among the certain ones.
        note: How the experts came to be, one clause.

    Returns:
        ``likelier`` is ``(n, k)``: the labels as they should rather be.
    """
    n = len(given)
    judged = [(j, one) for j, one in enumerate(columns) if isinstance(one, Column)]
    left = [f"'{name}' is not judged: {why}" for name, why in zip(names, columns, strict=True)
            if isinstance(why, str)]  # fmt: skip
    if not judged:
        return _unknown(undecided(n, f"no label of the rows can be judged ({left[0]})"), given)
    suspicion, queries = (
        np.stack([getattr(one, side) for _, one in judged], 1) for side in ("suspicion", "queries")
    )
    worst = suspicion.argmax(1)
    beside = Beside.of(suspicion.max(1), queries.max(1)[trusted], apart | right, fdr)
    wrong = np.stack([one.wrong for _, one in judged], 1) & ~right[:, None]
    flags = (beside.certain & ~right) | wrong.any(1)
    blamed = wrong.copy()  # a row that is certain by its rank alone: its most suspicious label
    alone = np.flatnonzero(flags & ~wrong.any(1))
    blamed[alone, worst[alone]] = True
    likelier = given.astype(np.float64).copy()
    for at, (j, one) in enumerate(judged):
        likelier[blamed[:, at], j] = one.other[blamed[:, at]]

    rows, measures = np.arange(n), [one.verdict.measure for _, one in judged]
    score, probability = (
        np.stack([getattr(one.verdict, what) for _, one in judged], 1)
        for what in ("score", "held_out_probability")
    )
    doubts = [(one.name, one.verdict.measure.abstained) for _, one in judged
              if one.verdict.measure.abstained is not None]  # fmt: skip
    low = beside.guilty / n if not doubts else 0.0
    estimate = max(low, 1 - float(np.prod([1 - measure.rate for measure in measures])))
    high = min(1.0, sum(measure.rate_high for measure in measures))
    reliabilities = [m.reliability for m in measures if m.reliability is not None]
    counts = ", ".join(
        f"'{one.name}' {int(blamed[:, at].sum()):,}" for at, (_, one) in enumerate(judged)
    )
    sure = int((beside.certain & ~right).sum())
    return Mislabeled(
        suspicion=suspicion.max(1),
        score=score.max(1),
        certain=beside.certain & ~right,
        flags=flags,
        surely=beside.surely,
        likelier=likelier,
        likelier_probability=1 - probability[rows, worst],
        held_out_probability=probability[rows, worst],
        measure=Measure(
            count=int(flags.sum()),
            total=n,
            certain=sure,
            reliability=min(reliabilities, default=None),
            estimate=estimate,
            rate_low=low,
            rate_high=max(high, estimate, binomial_high(0, n)),
            threshold=None,
            note="; ".join(
                filter(
                    None,
                    [
                        "each label of a row is judged by itself, and a row by the most suspicious "
                        f"of them; blamed are {counts}",
                        f"{sure:,} rows are certain at a false discovery rate of {fdr:.0%}",
                        "the upper end is the sum of the labels' own",
                        *left,
                        note,
                    ],
                )
            ),
            abstained=f"of the label '{doubts[0][0]}': {doubts[0][1]}" if doubts else None,
        ),
    )


def _unknown(verdict: Mislabeled, given: np.ndarray) -> Mislabeled:
    """Return a verdict that says nothing, with the labels as they are."""
    return replace(verdict, likelier=given)
