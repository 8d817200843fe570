"""Leaked queries: is some training row the same example?

Four kinds, from sure to suspected:

exact      every value is the same.
near       the nearest training row is far nearer than the fifth, compared with how that ratio
           falls for training rows among themselves; images are compared under small shifts too.
encoded    the same by what the audited model makes of the rows (its encodings), where the nearest
           row must also be near as such: crops, recoloured and recompressed copies.
influence  the rows differ, but the model's features tell them apart no better than copies, and
           the mirrored influence of the query names the same training row.

**The false-positive rate.** A search accuses what at most its share of the promised rate reaches
among training rows, each asked for its nearest *other* row: rows known to be others, as far as the
training set holds no copies. Rows that both searches take for copies of the same other row show
nothing; nor do the queries, since a test set may leak as a whole. The assumption: a clean query is
no nearer to the training rows than these are to each other. Where one search is made, copies inside
the training set raise its threshold: it then finds fewer leaks, not more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.measure import Measure, binomial_high

#: How many robust standard deviations beyond the median a copy lies at least, whatever the promised
#: rate allows: look-alikes of clean data reach 5 (benchmarks/RESULTS.md, "Leaks").
LEAST = 6.0
#: Largest share of the clean queries that is accused.
FPR = 0.01
#: In tables a copy must also lie within this share of the fifth row's distance: rows that share
#: most of their coarse columns lie near each other without being one.
TABLE_GAP = 0.1
#: Copies of a row to be expected by chance: from so many on it is never accused; below so many it
#: cannot recur even if its columns hang together.
CHANCE, IMPOSSIBLE = 0.01, 1e-30
#: How unlikely the number of exact matches must be under the rate of twins in the training set.
EXCESS = 0.001
#: Fewer distinct training rows than this do not show which gaps are usual; more than NULL_ROWS
#: show nothing new.
MIN_ROWS, NULL_ROWS = 50, 2000
#: Queries whose influence must be known before a row's usual influence is.
MIN_ASKED = 20


@dataclass(frozen=True)
class Leaked:
    """What the detector says of every query, all ``(m,)``.

    Attributes:
        kind: "exact", "near", "encoded", "influence" or "".
        train_index: The training row it is a copy of, or the nearest one.
        train_flags: ``(n,)`` bool, all training rows that a leaked query is a copy of.
        score: Minus the nearness of the nearest row over the threshold, by the model's encodings
            where it has some, else by values: -1 and below is accused. (Others may be by values.)
            NaN for exact copies, and where rows are too few.
        evidence: A sentence for every leaked query, else "".
        measure: The summary.
    """

    kind: np.ndarray
    train_index: np.ndarray
    train_flags: np.ndarray
    score: np.ndarray
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
) -> Leaked:
    """Find a training row behind each query.

    Args:
        queries: ``(m, ...)`` the model's inputs; images keep their shape.
        train: ``(n, ...)``.
        view: The model's features and influence, or None to go by nearness alone.
        encodings: What the model makes of queries ``(m, h)`` and training rows ``(n, h)``, rows at
            unit length; None to go by values alone.
        fpr: Largest share of the clean queries that may be accused.
    """
    m = len(queries)
    kind = np.full(m, "", dtype=object)
    evidence = np.full(m, "", dtype=object)
    score = np.full(m, np.nan)
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
        searches = [_by_values(queries[rest], train[distinct])]
        if encodings is not None:
            searches.append(_by_encodings(encodings[0][rest], encodings[1][distinct]))
        judged = [_judge(search, searches, fpr) for search in searches]
        ratio = np.stack([found.ratio for found in judged])
        best = ratio.argmax(0)
        score[rest] = -ratio[-1]  # what the model makes of rows ranks best, where it is known
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
            index[q], kind[q] = named[q], "influence"
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


@dataclass(frozen=True)
class _Search:
    """A search for near copies.

    Attributes:
        kind: What its finds are called.
        asked: The queries' nearest rows.
        usual: Those of training rows among themselves.
        absolute: Whether the nearest row must be near as such, not only beside the fifth.
        most: The largest log gap that a copy may have, whatever is usual.
        evidence: A sentence for a query.
        note: What is compared.
    """

    kind: str
    asked: nb.Nearest
    usual: nb.Nearest
    absolute: bool
    most: float
    evidence: Callable[[int], str]
    note: str

    def nearness(self, near: nb.Nearest) -> np.ndarray:
        """Return how many robust standard deviations nearer than usual the nearest rows are."""
        found = -nb.deviations(near.gap, self.usual.gap)
        if self.absolute:
            found = found - nb.deviations(near.distance, self.usual.distance)
        return found


@dataclass(frozen=True)
class _Judged:
    """Nearness over the threshold, and the share of clean queries that reach it, and at most do."""

    ratio: np.ndarray
    innocent: float
    innocent_most: float


def _judge(search: _Search, searches: list[_Search], fpr: float) -> _Judged:
    """Set a search's threshold by training rows that are no copies of each other."""
    others = np.ones(len(search.usual.index), dtype=bool)
    if len(searches) > 1:  # copies that both searches find are no others
        same = searches[0].usual.index == searches[1].usual.index
        for one in searches:
            same &= one.nearness(one.usual) >= LEAST
        others = ~same
    if not others.any():  # every row has a twin that both searches know: nothing is usual
        others[:] = True
    usual = np.sort(search.nearness(search.usual)[others])[::-1]
    # Conformal: so many of the usual ones may lie at or above a query that is accused.
    allowed = int(fpr / len(searches) * (len(usual) + 1)) - 1
    threshold = max(LEAST, float(np.nextafter(usual[max(0, allowed)], np.inf)))
    reached = int((usual >= threshold).sum())
    ratio = search.nearness(search.asked) / threshold
    ratio[search.asked.gap > search.most] = np.minimum(ratio[search.asked.gap > search.most], 0.99)
    return _Judged(ratio, reached / len(usual), binomial_high(reached, len(usual)))


def _own(train: np.ndarray) -> np.ndarray:
    """Return the training rows that show what is usual, evenly spread."""
    return np.linspace(0, len(train) - 1, min(len(train), NULL_ROWS)).astype(np.int64)


def _by_values(queries: np.ndarray, train: np.ndarray) -> _Search:
    """Return a search fit for the rows' shape."""
    own = _own(train)
    images, others = nb.as_images(queries), nb.as_images(train)
    if images is None or others is None:
        flat, reference = nb.standardized(queries, train)
        near = nb.nearest_rows(flat, reference)

        def values(i: int) -> str:
            return f"at {np.exp(near.gap[i]):.1%} of the distance of the fifth nearest row"

        usual = nb.nearest_rows(reference[own], reference, own=own)
        note = "near copies by standardised values"
        return _Search("near", near, usual, False, float(np.log(TABLE_GAP)), values, note)

    radius = nb.search_radius(images, others)
    found = nb.nearest_images(images, others, radius=radius)

    def shifted(i: int) -> str:
        shift = nb.best_shift(images[i], others[found.index[i]], radius=radius)
        moved = f"shifted by {shift[0]:+d} down, {shift[1]:+d} right; " if any(shift) else ""
        return f"{moved}at {np.exp(found.gap[i]):.1%} of the distance of the fifth nearest image"

    usual = nb.nearest_images(others[own], others, radius=radius, own=own)
    extent = f"shifts of up to {radius} pixels" if radius else "no shifts: too many pairs of rows"
    return _Search("near", found, usual, False, 0.0, shifted, f"near copies by pixels, {extent}")


def _by_encodings(queries: np.ndarray, train: np.ndarray) -> _Search:
    """Return a search by what the model makes of the rows."""
    own, near = _own(train), nb.nearest_rows(queries, train)

    def seen(i: int) -> str:
        return (
            f"in the model's encodings at {np.exp(near.gap[i]):.1%} of the distance of the fifth "
            "nearest row"
        )

    usual = nb.nearest_rows(train[own], train, own=own)
    return _Search("encoded", near, usual, True, 0.0, seen, "near copies by the model's encodings")


def feature_copies(queries: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return for each query the training row that the model's features take it for, or -1.

    Args:
        queries: ``(m, h)`` penultimate features.
        train: ``(n, h)``.
    """
    found = np.full(len(queries), -1)
    unit_queries, unit_train = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        for x in (queries, train)
    )
    # Rows with the very same features are one row here, else a twin hides the gap.
    _, distinct = np.unique(nb.row_keys(unit_train), return_index=True)
    if len(distinct) < MIN_ROWS:
        return found
    reference = unit_train[distinct]
    own = _own(reference)
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
