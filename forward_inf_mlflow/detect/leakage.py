"""Leaked queries: is some training row the same example?

Three kinds, from sure to suspected:

exact      every value is the same.
near       the nearest training row is far nearer than the fifth, compared with how that ratio
           falls for the other queries; images are compared under small shifts too.
influence  the rows differ, but the model's features tell them apart no better than copies, and
           the mirrored influence of the query names the same training row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.measure import Measure, binomial_low

#: How many robust standard deviations below the median the log gap of a copy lies. Look-alikes of
#: clean data reach 5 (benchmarks/RESULTS.md, "Leaks").
THRESHOLD = -6.0
#: Exact matches are not accused when this many or more would be there by chance.
CHANCE = 0.01
#: Fewer queries than this do not show which gaps are usual.
MIN_QUERIES = 20


@dataclass(frozen=True)
class Leaked:
    """What the detector says of every query, all ``(m,)``.

    Attributes:
        kind: "exact", "near", "influence" or "".
        train_index: The training row it is a copy of, or the nearest one.
        score: Log gap in robust standard deviations from the median; negative is nearer. NaN
            where there are too few queries.
        evidence: A sentence for every leaked query, else "".
        measure: The summary.
    """

    kind: np.ndarray
    train_index: np.ndarray
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
    copies = nb.exact_copies(queries, train)
    index = copies.copy()
    common = 0
    for q in np.flatnonzero(copies >= 0):
        if nb.chance_copies(queries[q], train) >= CHANCE:
            common += 1
        else:
            kind[q], evidence[q] = "exact", "every value is the same"

    notes = ["exact copies by value"]
    if common:
        notes.append(f"{common} more with values so common that chance explains them")
    # Copies inside the training set are one row here, else a twin hides the gap.
    _, distinct = np.unique(nb.row_keys(train), return_index=True)
    rest = np.flatnonzero(copies < 0)
    if len(rest) < MIN_QUERIES or len(distinct) <= nb.RANK:
        notes.append("near copies not searched: too few rows to know which distances are usual")
    else:
        near, how, note = _near(queries[rest], train[distinct])
        score[rest] = z = _robust_z(near.gap)
        index[rest] = distinct[near.index]
        for i in np.flatnonzero(z <= THRESHOLD):
            kind[rest[i]], evidence[rest[i]] = "near", how(int(i))
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
        score=score,
        evidence=evidence,
        measure=Measure(
            count=count,
            total=m,
            rate_low=binomial_low(count, m),
            threshold=THRESHOLD,
            note=f"{'; '.join(notes)}; the bound is Clopper-Pearson's at 95 %",
        ),
    )


def _near(queries: np.ndarray, train: np.ndarray) -> tuple[nb.Nearest, Callable[[int], str], str]:
    """Return the nearest rows, a function from position to evidence, and what was searched."""
    images, others = nb.as_images(queries), nb.as_images(train)
    if images is None or others is None:
        near = nb.nearest_rows(*nb.standardized(queries, train))

        def values(i: int) -> str:
            return f"at {np.exp(near.gap[i]):.1%} of the distance of the fifth nearest row"

        return near, values, "near copies by standardised values"

    radius = nb.search_radius(images, others)
    near = nb.nearest_images(images, others, radius=radius)

    def shifted(i: int) -> str:
        shift = nb.best_shift(images[i], others[near.index[i]], radius=radius)
        moved = f"shifted by {shift[0]:+d} down, {shift[1]:+d} right; " if any(shift) else ""
        return f"{moved}at {np.exp(near.gap[i]):.1%} of the distance of the fifth nearest image"

    extent = f"shifts of up to {radius} pixels" if radius else "no shifts: too many pairs of rows"
    return near, shifted, f"near copies by pixels, {extent}"


def feature_copies(queries: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return for each query the training row that the model's features take it for, or -1.

    Args:
        queries: ``(m, h)`` penultimate features.
        train: ``(n, h)``.
    """
    found = np.full(len(queries), -1)
    if len(queries) < MIN_QUERIES or len(train) <= nb.RANK:
        return found
    unit_queries, unit_train = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        for x in (queries, train)
    )
    # Rows with the very same features are one row here, else a twin hides the gap.
    _, distinct = np.unique(nb.row_keys(unit_train), return_index=True)
    if len(distinct) <= nb.RANK:
        return found
    near = nb.nearest_rows(unit_queries, unit_train[distinct])
    hit = _robust_z(near.gap) <= THRESHOLD
    found[hit] = distinct[near.index[hit]]
    return found


def _confirmed(view: ModelView) -> np.ndarray:
    """Return the training row that features and influence agree on, ``(m,)``, or -1."""
    named = np.full(len(view.suspects), -1)
    if len(view.asked) < MIN_QUERIES:
        return named
    # A row with large gradients tops every query's list; over its own usual size it does not.
    usual = np.sqrt(np.square(view.influence, dtype=np.float64).mean(0))
    first = (view.influence / np.maximum(usual, np.finfo(np.float64).tiny)).argmax(1)
    agree = view.suspects[view.asked] == first
    named[view.asked[agree]] = first[agree]
    return named


def _robust_z(values: np.ndarray) -> np.ndarray:
    """Return distances from the median in robust standard deviations; all 0 without spread."""
    centre = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - centre))
    return (values - centre) / spread if spread > 0 else np.zeros(len(values))
