"""Leaked queries: is some training row the same example?

Four kinds, from sure to suspected:

exact      every value is the same.
near       the nearest training row is far nearer than the fifth, compared with how that ratio
           falls for training rows among themselves; images are compared under small shifts and
           mirrored too, rows of many columns also by their direction, texts by their n-grams.
encoded    the same by what the audited model makes of the rows (its encodings), where the nearest
           row must also be near as such: crops, recoloured and recompressed copies.
influence  the rows differ, but the model's features tell them apart no better than copies, and
           the mirrored influence of the query names the same training row.

How near is near, and at which false-positive rate, `searches` says; they and the model's features
share the promised rate. How many copies are found, copies say that are planted among the queries
(`planted`): where they are not, "no leaks" would mean nothing, and the detector abstains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.measure import Measure, binomial_high
from forward_inf_mlflow.detect.planted import planted
from forward_inf_mlflow.detect.searches import (
    MIN_ROWS,
    Judged,
    by_encodings,
    by_values,
    conformal_threshold,
    judge,
    sample,
)
from forward_inf_mlflow.work import KEEP_NOTHING, Work

#: Largest share of the clean queries that is accused, and how much of it the model's features may
#: spend where copies to them are looked for.
FPR, BY_FEATURES = 0.01, 0.25
#: Searches that find fewer of the planted copies than this say nothing of how many there are: less
#: than one kind of change of those that are planted.
RELIABLE = 0.3
#: Copies of a row to be expected by chance: from so many on it is never accused; below so many it
#: cannot recur even if its columns hang together.
CHANCE, IMPOSSIBLE = 0.01, 1e-30
#: The same where a few rows all differ, which columns that hang together can do by luck.
CHANCE_OF_FEW = 1e-15
#: Share of a column's values that differ from each other in a table whose rows are no coarse ones.
FINE = 0.9
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
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
    fpr: float = FPR,
    work: Work = KEEP_NOTHING,
) -> Leaked:
    """Find a training row behind each query.

    Args:
        queries: ``(m, ...)`` the model's inputs, images in their shape; or texts ``(m,)``.
        train: ``(n, ...)``, or ``(n,)``.
        view: The model's features and influence, or None to go by nearness alone.
        encodings: What the model makes of queries ``(m, h)`` and training rows ``(n, h)``, rows at
            unit length; None to go by values alone.
        encode: The same of other inputs ``(k, ...)``, for planted copies; None plants none there.
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
    accused = _beyond_chance(queries, train, copies, keys)
    kind[accused], evidence[accused] = "exact", "every value is the same"

    notes = ["exact copies by value"]
    if common := int((copies >= 0).sum() - accused.sum()):
        notes.append(f"{common} more equal a training row, as training rows equal each other")
    # Copies inside the training set are one row here, else a twin hides the gap.
    _, distinct = np.unique(keys, return_index=True)
    rest = np.flatnonzero(copies < 0)
    innocent, innocent_most, reliability = 0.0, 0.0, None
    if len(distinct) < MIN_ROWS:
        notes.append("near copies not searched: too few rows to know which distances are usual")
    elif len(rest):
        known, k = train[distinct], len(rest)
        copied, how = planted(known, encoded=encodings is not None and encode is not None)
        searches = by_values(np.concatenate([queries[rest], copied]), known, work, asked=how)
        if encodings is not None:
            seen = [encodings[0][rest], *([] if encode is None else [encode(copied)])]
            searches.append(by_encodings(np.concatenate(seen), encodings[1][distinct]))
        rate = fpr if view is None else (1 - BY_FEATURES) * fpr
        judged = [judge(search, searches, rate) for search in searches]
        p_value[rest] = np.min([found.p_value[:k] for found in judged], axis=0)
        ratio = np.stack([found.ratio[:k] for found in judged])
        best = ratio.argmax(0)
        score[rest] = -ratio.max(0)
        index[rest] = distinct[
            np.stack([search.asked.index[:k] for search in searches])[best, np.arange(k)]
        ]
        for i in np.flatnonzero(ratio.max(0) >= 1):
            search = searches[best[i]]
            kind[rest[i]], evidence[rest[i]] = search.kind, search.evidence(int(i))
        notes += [search.note for search in searches]
        innocent = sum(found.innocent for found in judged)
        innocent_most = sum(found.innocent_most for found in judged)
        reliability = _found(judged, k, len(copied))
        notes.append(
            "near copies not searched: too few rows to show that the promised rate is kept"
            if reliability is None
            else f"of {len(copied)} planted copies ({how}) {reliability:.0%} are found"
        )
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
            reliability=reliability,
            threshold=-1.0,
            abstained=(
                f"of copies with small changes, planted among the query rows, only "
                f"{reliability:.0%} are found (below {RELIABLE:.0%}): rows of so few or so coarse "
                "columns lie near each other without being copies; give columns that tell rows "
                "apart, or bound no leaks (max_leakage_rate: null in the policy)"
                if reliability is not None and reliability < RELIABLE
                else None
            ),
            note=(
                f"{'; '.join(notes)}; of clean queries at most {fpr:.1%} are accused of anything "
                f"but exact copies; as many as chance may have brought ({by_chance:.0f}), and "
                "copies by influence, do not count for the lower bound"
            ),
        ),
    )


def _found(judged: Sequence[Judged], queries: int, copies: int) -> float | None:
    """Return which share of the planted copies, asked after the queries, any search accuses.

    None where the rows are too few to accuse anybody.
    """
    if not any(one.shown for one in judged):
        return None
    accused = np.zeros(copies, dtype=bool)
    for one in judged:
        asked = one.ratio[queries:]  # nothing where nobody encoded them
        accused[: len(asked)] |= asked >= 1
    return float(accused.mean())


def _beyond_chance(
    queries: np.ndarray, train: np.ndarray, copies: np.ndarray, keys: np.ndarray
) -> np.ndarray:
    """Return which exact matches chance does not explain, ``(m,)`` bool.

    Rows of coarse or repeated values equal each other without being the same example. Training
    rows do so at the rate that queries would, so a match is accused if there are more of them than
    that rate explains. Two shortcuts go by the row alone, as if its columns were independent: one
    that is likely to recur is never accused, one that cannot recur (an image) always. Where all
    training rows differ the row alone decides, too; but a few coarse rows differ by luck, even if
    columns hang together and a query is often like one of them.
    """
    matched = np.flatnonzero(copies >= 0)
    chance = np.array([nb.chance_copies(queries[q], train) for q in matched])
    # Few rows show their rate badly: what is expected is the upper 95 % bound of it. Twins come in
    # pairs, so that half as many are counted.
    twins, n = nb.twins(keys), len(train)
    expected = binomial_high(round(twins * n / 2), max(1, n // 2))
    excess = stats.binom.sf(len(matched) - 1, len(queries), expected) < EXCESS
    alone = np.zeros(len(matched), dtype=bool)
    if not twins:
        alone = np.full(len(matched), expected <= FPR or _fine(train)) | (chance < CHANCE_OF_FEW)
    accused = np.zeros(len(queries), dtype=bool)
    accused[matched] = (chance < CHANCE) & ((chance < IMPOSSIBLE) | excess | alone)
    return accused


def _fine(rows: np.ndarray) -> bool:
    """Return whether in some column hardly two rows are alike; texts are one column."""
    if nb.are_texts(rows):
        return len(np.unique(rows)) >= FINE * len(rows)
    columns = np.sort(rows.reshape(len(rows), -1), axis=0)
    distinct = 1 + (np.diff(columns, axis=0) != 0).sum(0)
    return bool((distinct >= FINE * len(rows)).any())


def feature_copies(
    queries: np.ndarray, train: np.ndarray, *, fpr: float = BY_FEATURES * FPR
) -> np.ndarray:
    """Return for each query the training row that the model's features take it for, or -1.

    Args:
        queries: ``(m, h)`` penultimate features.
        train: ``(n, h)``.
        fpr: Largest share of the clean queries that has one, as training rows among themselves
            show; too few of these show nothing, and then nobody has one.
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
    threshold = conformal_threshold(np.sort(-nb.deviations(usual.gap, usual.gap)), fpr)
    hit = -nb.deviations(near.gap, usual.gap) >= threshold
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
