"""Leaked queries: is some training row the same example?

Four kinds, from sure to suspected:

exact      every value is the same.
near       the nearest training row is far nearer than the fifth, compared with how that ratio
           falls for training rows among themselves; images are compared under small shifts and
           mirrored too, rows of many columns also by their direction.
encoded    the same by what the audited model makes of the rows (its encodings), where the nearest
           row must also be near as such: crops, recoloured and recompressed copies.
influence  the rows differ, but the model's features tell them apart no better than copies, and
           the mirrored influence of the query names the same training row.

How near is near, and at which false-positive rate, `searches` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.measure import Measure, binomial_high
from forward_inf_mlflow.detect.searches import (
    LEAST,
    MIN_ROWS,
    by_encodings,
    by_values,
    judge,
    sample,
)
from forward_inf_mlflow.work import KEEP_NOTHING, Work

#: Largest share of the clean queries that is accused.
FPR = 0.01
#: Copies of a row to be expected by chance: from so many on it is never accused; below so many it
#: cannot recur even if its columns hang together.
CHANCE, IMPOSSIBLE = 0.01, 1e-30
#: How unlikely the number of exact matches must be under the rate of twins in the training set.
EXCESS = 0.001
#: Queries whose influence must be known before a row's usual influence is.
MIN_ASKED = 20


@dataclass(frozen=True)
class Leaked:
    """What the detector says of every query, all ``(m,)``.

    Attributes:
        kind: "exact", "near", "encoded", "influence" or "".
        train_index: The training row it is a copy of, or the nearest one.
        train_flags: ``(n,)`` bool, all training rows that a leaked query is a copy of.
        score: Minus the nearness of the nearest row over the threshold, in the search where that is
            largest: -1 and below is accused. NaN for exact copies, and where rows are too few.
        p_value: How likely a row that is no copy lies so near: conformal, against training rows
            among themselves, adjusted for the number of searches. NaN as for ``score``, and for the
            kind "influence", which no such row tests.
        evidence: A sentence for every leaked query, else "".
        measure: The summary.
    """

    kind: np.ndarray
    train_index: np.ndarray
    train_flags: np.ndarray
    score: np.ndarray
    p_value: np.ndarray
    evidence: np.ndarray
    measure: Measure

    @property
    def flags(self) -> np.ndarray:
        """Return the leaked queries, ``(m,)`` bool."""
        return np.asarray(self.kind != "")


@dataclass(frozen=True)
class ModelView:
    """How the audited model sees the rows, for leaks that the values do not show.

    Attributes:
        suspects: ``(m,)`` from :func:`feature_copies`.
        asked: ``(p,)`` positions of the queries whose influence was computed.
        influence: ``(p, n)`` their mirrored influence.
    """

    suspects: np.ndarray
    asked: np.ndarray
    influence: np.ndarray


def leaked(
    queries: np.ndarray,
    train: np.ndarray,
    view: ModelView | None,
    *,
    encodings: tuple[np.ndarray, np.ndarray] | None = None,
    fpr: float = FPR,
    work: Work = KEEP_NOTHING,
) -> Leaked:
    """Find a training row behind each query.

    Args:
        queries: ``(m, ...)`` the model's inputs; images keep their shape.
        train: ``(n, ...)``.
        view: The model's features and influence, or None to go by nearness alone.
        encodings: What the model makes of queries ``(m, h)`` and training rows ``(n, h)``, rows at
            unit length; None to go by values alone.
        fpr: Largest share of the clean queries that may be accused.
        work: Where finished searches by value are kept.
    """
    m = len(queries)
    kind = np.full(m, "", dtype=object)
    evidence = np.full(m, "", dtype=object)
    score, p_value = np.full(m, np.nan), np.full(m, np.nan)
    keys = nb.row_keys(train)
    copies = nb.exact_copies(queries, train)
    index = copies.copy()
    accused = _beyond_chance(queries, train, copies, nb.twins(keys))
    kind[accused], evidence[accused] = "exact", "every value is the same"

    notes = ["exact copies by value"]
    if common := int((copies >= 0).sum() - accused.sum()):
        notes.append(f"{common} more equal a training row, as training rows equal each other")
    # Copies inside the training set are one row here, else a twin hides the gap.
    _, distinct = np.unique(keys, return_index=True)
    rest = np.flatnonzero(copies < 0)
    innocent, innocent_most = 0.0, 0.0
    if len(distinct) < MIN_ROWS:
        notes.append("near copies not searched: too few rows to know which distances are usual")
    elif len(rest):
        searches = by_values(queries[rest], train[distinct], work)
        if encodings is not None:
            searches.append(by_encodings(encodings[0][rest], encodings[1][distinct]))
        judged = [judge(search, searches, fpr) for search in searches]
        p_value[rest] = np.min([found.p_value for found in judged], axis=0)
        ratio = np.stack([found.ratio for found in judged])
        best = ratio.argmax(0)
        score[rest] = -ratio.max(0)
        index[rest] = distinct[
            np.stack([search.asked.index for search in searches])[best, np.arange(len(rest))]
        ]
        for i in np.flatnonzero(ratio.max(0) >= 1):
            search = searches[best[i]]
            kind[rest[i]], evidence[rest[i]] = search.kind, search.evidence(int(i))
        notes += [search.note for search in searches]
        innocent = sum(found.innocent for found in judged)
        innocent_most = sum(found.innocent_most for found in judged)
    if view is not None:
        named = _confirmed(view)
        for q in np.flatnonzero((named >= 0) & (kind == "") & (copies < 0)):
            index[q], kind[q], p_value[q] = named[q], "influence", np.nan
            evidence[q] = (
                "the model's features tell them apart no better than copies, and the query's "
                "influence names this row first"
            )
        notes.append("copies in the model's features that its influence confirms")
    count, sure = int((kind != "").sum()), int((kind == "exact").sum())
    searched = int(np.isin(kind, ("near", "encoded")).sum())
    by_chance = stats.binom.ppf(0.95, len(rest), min(1.0, innocent_most))
    return Leaked(
        kind=kind,
        train_index=index,
        train_flags=np.isin(keys, keys[index[kind != ""]]),
        score=score,
        p_value=p_value,
        evidence=evidence,
        measure=Measure(
            count=count,
            total=m,
            estimate=(count - min(searched, innocent * len(rest))) / m,
            rate_low=(sure + max(0.0, searched - by_chance)) / m,
            rate_high=binomial_high(count, m),
            threshold=-1.0,
            note=(
                f"{'; '.join(notes)}; the searches for near copies accuse at most {fpr:.1%} of "
                f"clean queries; as many as chance may have brought ({by_chance:.0f}), and copies "
                "by influence, do not count for the lower bound"
            ),
        ),
    )


def _beyond_chance(
    queries: np.ndarray, train: np.ndarray, copies: np.ndarray, twins: float
) -> np.ndarray:
    """Return which exact matches chance does not explain, ``(m,)`` bool.

    Rows of coarse or repeated values equal each other without being the same example. Training
    rows do so at the rate that queries would, so a match is accused if there are more of them than
    that rate explains. Two shortcuts go by the row alone, as if its columns were independent: one
    that is likely to recur is never accused, one that cannot recur (an image) always.
    """
    matched = np.flatnonzero(copies >= 0)
    chance = np.array([nb.chance_copies(queries[q], train) for q in matched])
    expected = max(twins, 0.5 / (len(train) + 1))  # Jeffreys' estimate where there are none
    excess = stats.binom.sf(len(matched) - 1, len(queries), expected) < EXCESS
    alone = twins == 0
    accused = np.zeros(len(queries), dtype=bool)
    accused[matched] = (chance < CHANCE) & ((chance < IMPOSSIBLE) | excess | alone)
    return accused


def feature_copies(queries: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return for each query the training row that the model's features take it for, or -1.

    Args:
        queries: ``(m, h)`` penultimate features.
        train: ``(n, h)``.
    """
    found = np.full(len(queries), -1)
    unit_queries, unit_train = nb.unit(queries), nb.unit(train)
    # Rows with the very same features are one row here, else a twin hides the gap.
    _, distinct = np.unique(nb.row_keys(unit_train), return_index=True)
    if len(distinct) < MIN_ROWS:
        return found
    reference = unit_train[distinct]
    own = sample(reference)
    usual = nb.nearest_rows(reference[own], reference, own=own)
    near = nb.nearest_rows(unit_queries, reference)
    hit = nb.deviations(near.gap, usual.gap) <= -LEAST
    found[hit] = distinct[near.index[hit]]
    return found


def _confirmed(view: ModelView) -> np.ndarray:
    """Return the training row that features and influence agree on, ``(m,)``, or -1."""
    named = np.full(len(view.suspects), -1)
    if len(view.asked) < MIN_ASKED:
        return named
    # A row with large gradients tops every query's list; over its own usual size it does not.
    usual = np.sqrt(np.square(view.influence, dtype=np.float64).mean(0))
    first = (view.influence / np.maximum(usual, np.finfo(np.float64).tiny)).argmax(1)
    agree = view.suspects[view.asked] == first
    named[view.asked[agree]] = first[agree]
    return named
