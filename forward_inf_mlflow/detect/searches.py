"""Searches for near copies: how much nearer than usual is a query's nearest training row?

**The false-positive rate.** A search accuses what at most its share of the promised rate reaches
among training rows, each asked for its nearest *other* row: rows known to be others, as far as the
training set holds no copies. Rows that all searches take for copies of the same other row show
nothing, nor do texts that share half of what the longer has with another; nor do the queries, since
a test set may leak as a whole. Where the rows are too few to show that rate (fewer than a hundred
for each search), nobody is accused. The assumption: a clean query is no nearer to the training rows
than these are to each other. Where one search is made, other copies inside the training set raise
its threshold: it then finds fewer leaks, not more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.measure import binomial_high
from forward_inf_mlflow.detect.ngrams import Grams
from forward_inf_mlflow.work import KEEP_NOTHING, Work

#: How many robust standard deviations beyond the median a copy lies at least, whatever the promised
#: rate allows: look-alikes of clean data reach 5 (benchmarks/RESULTS.md, "Leaks").
LEAST = 6.0
#: In tables a copy must also lie within this share of the fifth row's distance: rows that share
#: most of their coarse columns lie near each other without being one.
TABLE_GAP = 0.1
#: From so many columns on the direction of a row says which one it is (words of a text).
WIDE = 64
#: Two training texts that share so much of what the longer one has are copies, and show nothing.
SAME_TEXT = 0.5
#: Where more of them are, to share half is usual (forms that are filled in), and they show it.
MOST_SAME = 0.1
#: Fewer distinct training rows than this do not show which gaps are usual; more than NULL_ROWS
#: show nothing new.
MIN_ROWS, NULL_ROWS = 50, 2000


@dataclass(frozen=True)
class Search:
    """A search for near copies.

    Attributes:
        kind: What its finds are called.
        asked: The queries' nearest rows.
        usual: Those of training rows among themselves.
        absolute: Whether the nearest row must be near as such, not only beside the fifth.
        most: The largest log gap that a copy may have, whatever is usual.
        evidence: A sentence for a query.
        note: What is compared.
        same: Which of the training rows that show what is usual are copies of another as such, and
            show nothing; None where that is not known.
    """

    kind: str
    asked: nb.Nearest
    usual: nb.Nearest
    absolute: bool
    most: float
    evidence: Callable[[int], str]
    note: str
    same: np.ndarray | None = None

    def nearness(self, near: nb.Nearest) -> np.ndarray:
        """Return how many robust standard deviations nearer than usual the nearest rows are."""
        found = -nb.deviations(near.gap, self.usual.gap)
        if self.absolute:
            found = found - nb.deviations(near.distance, self.usual.distance)
        return found


@dataclass(frozen=True)
class Judged:
    """What a search says of every query ``(m,)``, and of clean ones in general.

    Attributes:
        ratio: Nearness over the threshold; 1 and above is accused.
        p_value: Share of rows that are no copies and yet lie so near, adjusted for the searches.
        innocent, innocent_most: Share of clean queries that is accused, and its upper bound.
        shown: Whether the rows are enough to accuse anybody.
    """

    ratio: np.ndarray
    p_value: np.ndarray
    innocent: float
    innocent_most: float
    shown: bool


def judge(search: Search, searches: Sequence[Search], fpr: float) -> Judged:
    """Set a search's threshold by training rows that are no copies of each other.

    Args:
        search: One of the searches.
        searches: All of them, which share the rate.
        fpr: Largest share of the clean queries that all may accuse together.
    """
    others = np.ones(len(search.usual.index), dtype=bool)
    if len(searches) > 1:  # copies that all searches find are no others
        first = searches[0].usual.index
        same = np.all([one.usual.index == first for one in searches], axis=0)
        for one in searches:
            same &= (one.nearness(one.usual) >= LEAST) & (one.usual.gap <= one.most)
        others = ~same
    if search.same is not None and search.same.mean() <= MOST_SAME:
        others &= ~search.same
    if not others.any():  # every row has a twin that all searches know: nothing is usual
        others[:] = True
    usual = np.sort(search.nearness(search.usual)[others])
    nearness = search.nearness(search.asked)
    threshold = conformal_threshold(usual, fpr / len(searches))
    shown = threshold < np.inf
    if not shown:  # nobody is accused, but the nearest still come first
        most = max(LEAST, float(usual[-1]), float(nearness.max(initial=0)))
        threshold = float(np.nextafter(most, np.inf))
    reached = int((usual >= threshold).sum())
    ratio = nearness / threshold
    far = search.asked.gap > search.most
    ratio[far] = np.minimum(ratio[far], 0.99)
    as_near = len(usual) - np.searchsorted(usual, nearness, side="left")
    p_value = np.minimum(1, len(searches) * (as_near + 1) / (len(usual) + 1))
    p_value[far] = 1
    return Judged(ratio, p_value, reached / len(usual), binomial_high(reached, len(usual)), shown)


def conformal_threshold(usual: np.ndarray, fpr: float) -> float:
    """Return the nearness from which a query is accused: a share ``fpr`` of clean ones reaches it.

    Args:
        usual: ``(k,)`` nearness of training rows to each other, ascending.
        fpr: Share of clean queries. Infinity where so few rows cannot show that it is kept.
    """
    # So many of the usual ones may lie at or above a query that is accused.
    allowed = int(fpr * (len(usual) + 1)) - 1
    return max(LEAST, float(np.nextafter(usual[::-1][allowed], np.inf))) if allowed >= 0 else np.inf


def sample(train: np.ndarray) -> np.ndarray:
    """Return the training rows that show what is usual, evenly spread: their positions."""
    return np.linspace(0, len(train) - 1, min(len(train), NULL_ROWS)).astype(np.int64)


def by_values(
    queries: np.ndarray, train: np.ndarray, work: Work = KEEP_NOTHING, asked: str = "queries"
) -> list[Search]:
    """Return the searches fit for the rows' shape.

    Args:
        queries: ``(m, ...)`` inputs, or texts ``(m,)``.
        train: ``(n, ...)``, or ``(n,)``, no two of them equal.
        work: Where finished searches are kept: no model has a part in them.
        asked: What stands among the queries, in the name of what is kept.
    """
    if nb.are_texts(train):
        return [_by_ngrams(queries, train, work, asked)]
    images, others = nb.as_images(queries), nb.as_images(train)
    if images is not None and others is not None:
        return [_by_pixels(images, others, work, asked)]
    flat, reference = nb.standardized(queries, train)
    own = sample(reference)
    near = _once(work, f"table/{asked}", lambda: nb.nearest_rows(flat, reference))

    def values(i: int) -> str:
        return f"at {np.exp(near.gap[i]):.1%} of the distance of the fifth nearest row"

    usual = _once(work, "table/usual", lambda: nb.nearest_rows(reference[own], reference, own=own))
    most = float(np.log(TABLE_GAP))
    note = "near copies by standardised values"
    found = [Search("near", near, usual, False, most, values, note)]
    if reference.shape[1] >= WIDE:
        found.append(_by_direction(queries, train, work, asked))
    return found


def _once(work: Work, name: str, search: Callable[[], nb.Nearest]) -> nb.Nearest:
    return nb.Nearest(**work.once(f"values/{name}", lambda: vars(search())))


def _by_ngrams(queries: np.ndarray, train: np.ndarray, work: Work, asked: str) -> Search:
    """Return a search by the n-grams that texts share."""
    grams, own = Grams(train), sample(train)
    near = _once(work, f"ngrams/{asked}", lambda: grams.nearest(grams.of(queries)))
    usual = _once(work, "ngrams/usual", lambda: grams.nearest(grams.train[own], own))

    def shared(i: int) -> str:
        return (
            f"of the rarer n-grams of the shorter text {1 - np.exp(2 * near.distance[i]):.0%} "
            "stand in the other"
        )

    same = grams.alike(own, usual.index) >= SAME_TEXT
    note = "near copies by n-grams of the texts"
    return Search("near", near, usual, False, 0.0, shared, note, same)


def _by_direction(queries: np.ndarray, train: np.ndarray, work: Work, asked: str) -> Search:
    """Return a search by the rows' direction, whatever their length."""
    flat, reference = (nb.unit(x.reshape(len(x), -1)) for x in (queries, train))
    own = sample(reference)
    near = _once(work, f"direction/{asked}", lambda: nb.nearest_rows(flat, reference))

    def values(i: int) -> str:
        return f"in direction at {np.exp(near.gap[i]):.1%} of the distance of the fifth nearest row"

    usual = _once(
        work, "direction/usual", lambda: nb.nearest_rows(reference[own], reference, own=own)
    )
    return Search("near", near, usual, True, 0.0, values, "near copies by the rows' direction")


def _by_pixels(images: np.ndarray, others: np.ndarray, work: Work, asked: str) -> Search:
    """Return a search under small shifts, mirrored and not."""
    radius = nb.search_radius(images, others)
    found = _once(work, f"pixels/{asked}", lambda: nb.nearest_images(images, others, radius=radius))
    own = sample(others)

    def shifted(i: int) -> str:
        mirror, shift = nb.best_view(images[i], others[found.index[i]], radius=radius)
        moved = "mirrored; " if mirror else ""
        moved += f"shifted by {shift[0]:+d} down, {shift[1]:+d} right; " if any(shift) else ""
        return f"{moved}at {np.exp(found.gap[i]):.1%} of the distance of the fifth nearest image"

    usual = _once(
        work,
        "pixels/usual",
        lambda: nb.nearest_images(others[own], others, radius=radius, own=own),
    )
    extent = f"shifts of up to {radius} pixels" if radius else "no shifts: too many pairs of rows"
    note = f"near copies by pixels, mirrored or not, {extent}"
    return Search("near", found, usual, False, 0.0, shifted, note)


def by_encodings(queries: np.ndarray, train: np.ndarray) -> Search:
    """Return a search by what the model makes of the rows, ``(m, h)`` and ``(n, h)``."""
    own, near = sample(train), nb.nearest_rows(queries, train)

    def seen(i: int) -> str:
        return (
            f"in the model's encodings at {np.exp(near.gap[i]):.1%} of the distance of the fifth "
            "nearest row"
        )

    usual = nb.nearest_rows(train[own], train, own=own)
    return Search("encoded", near, usual, True, 0.0, seen, "near copies by the model's encodings")
