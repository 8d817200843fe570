"""Leaked queries: is some training row the same example?

Three kinds, from sure to suspected:

exact      every value is the same.
near       the nearest training row is far nearer than the fifth, compared with how that ratio
           falls for training rows among themselves; images are compared under small shifts too.
influence  the rows differ, but the model's features tell them apart no better than copies, and
           the mirrored influence of the query names the same training row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.measure import Measure, binomial_high, binomial_low

#: How many robust standard deviations below the median the log gap of a copy lies. Look-alikes of
#: clean data reach 5 (benchmarks/RESULTS.md, "Leaks").
THRESHOLD = -6.0
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
MIN_ROWS, NULL_ROWS = 50, 1000
#: Queries whose influence must be known before a row's usual influence is.
MIN_ASKED = 20


@dataclass(frozen=True)
class Leaked:
    """What the detector says of every query, all ``(m,)``.

    Attributes:
        kind: "exact", "near", "influence" or "".
        train_index: The training row it is a copy of, or the nearest one.
        train_flags: ``(n,)`` bool, all training rows that a leaked query is a copy of.
        score: Log gap in robust standard deviations from that of training rows; negative is
            nearer. NaN for exact copies, and where there are too few rows.
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


def leaked(queries: np.ndarray, train: np.ndarray, view: ModelView | None) -> Leaked:
    """Find a training row behind each query.

    Args:
        queries: ``(m, ...)`` the model's inputs; images keep their shape.
        train: ``(n, ...)``.
        view: The model's features and influence, or None to go by values alone.
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
    if len(distinct) < MIN_ROWS:
        notes.append("near copies not searched: too few rows to know which distances are usual")
    elif len(rest):
        search, note = _search(queries[rest], train[distinct])
        near = search.queries()
        score[rest] = z = (near.gap - search.centre) / search.spread
        index[rest] = distinct[near.index]
        for i in np.flatnonzero((z <= THRESHOLD) & (near.gap <= search.most)):
            kind[rest[i]], evidence[rest[i]] = "near", search.evidence(int(i), near)
        notes.append(note)
    if view is not None:
        named = _confirmed(view)
        for q in np.flatnonzero((named >= 0) & (kind == "") & (copies < 0)):
            index[q], kind[q] = named[q], "influence"
            evidence[q] = (
                "the model's features tell them apart no better than copies, and the query's "
                "influence names this row first"
            )
        notes.append("copies in the model's features that its influence confirms")
    count = int((kind != "").sum())
    return Leaked(
        kind=kind,
        train_index=index,
        train_flags=np.isin(keys, keys[index[kind != ""]]),
        score=score,
        evidence=evidence,
        measure=Measure(
            count=count,
            total=m,
            rate_low=binomial_low(count, m),
            rate_high=binomial_high(count, m),
            threshold=THRESHOLD,
            note=f"{'; '.join(notes)}; the bounds are Clopper-Pearson's at 95 %",
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
    """A search for near copies, with what is usual: the gaps of training rows among themselves.

    That null is not taken from the queries, since a test set may leak as a whole. ``most`` is the
    largest log gap that a copy may have, whatever is usual.
    """

    queries: Callable[[], nb.Nearest]
    evidence: Callable[[int, nb.Nearest], str]
    most: float
    centre: float
    spread: float


def _search(queries: np.ndarray, train: np.ndarray) -> tuple[_Search, str]:
    """Return a search fit for the rows' shape, and what it looks for."""
    own = np.linspace(0, len(train) - 1, min(len(train), NULL_ROWS)).astype(np.int64)
    images, others = nb.as_images(queries), nb.as_images(train)
    if images is None or others is None:
        flat, reference = nb.standardized(queries, train)
        usual = nb.nearest_rows(reference[own], reference, own=own).gap

        def values(i: int, near: nb.Nearest) -> str:
            return f"at {np.exp(near.gap[i]):.1%} of the distance of the fifth nearest row"

        def by_values() -> nb.Nearest:
            return nb.nearest_rows(flat, reference)

        note = "near copies by standardised values"
        return _Search(by_values, values, np.log(TABLE_GAP), *_usual(usual)), note

    radius = nb.search_radius(images, others)
    usual = nb.nearest_images(others[own], others, radius=radius, own=own).gap

    def shifted(i: int, near: nb.Nearest) -> str:
        shift = nb.best_shift(images[i], others[near.index[i]], radius=radius)
        moved = f"shifted by {shift[0]:+d} down, {shift[1]:+d} right; " if any(shift) else ""
        return f"{moved}at {np.exp(near.gap[i]):.1%} of the distance of the fifth nearest image"

    def by_pixels() -> nb.Nearest:
        return nb.nearest_images(images, others, radius=radius)

    extent = f"shifts of up to {radius} pixels" if radius else "no shifts: too many pairs of rows"
    return _Search(by_pixels, shifted, 0, *_usual(usual)), f"near copies by pixels, {extent}"


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
    own = np.linspace(0, len(distinct) - 1, min(len(distinct), NULL_ROWS)).astype(np.int64)
    reference = unit_train[distinct]
    centre, spread = _usual(nb.nearest_rows(reference[own], reference, own=own).gap)
    near = nb.nearest_rows(unit_queries, reference)
    hit = (near.gap - centre) / spread <= THRESHOLD
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


def _usual(gaps: np.ndarray) -> tuple[float, float]:
    """Return median and robust standard deviation; an infinite one where there is no spread."""
    centre = float(np.median(gaps))
    spread = 1.4826 * float(np.median(np.abs(gaps - centre)))
    return centre, spread if spread > 0 else np.inf
