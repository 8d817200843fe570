"""Duplicates inside the training set, and those whose labels contradict each other.

Of two rows that are the same example and have different labels at least one is wrong, where a row
decides its label (rows of few, coarse columns may not): no model is needed to say so. Exact
duplicates have every value in common. Near duplicates are looked for as leaks are (`leakage`), each
row among the others, and count only where the rows are *mutually* nearest, since a row in the
middle of many is the nearest of some that are no copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.index import LARGE
from forward_inf_mlflow.detect.ngrams import Grams

#: Robust standard deviations beyond the median from which two rows are the same example.
LEAST = 6.0
#: Encodings of fewer columns than this say too little: their directions lie close by chance. And a
#: copy lies within this share of the fifth row's distance.
_WIDE, _GAP = 32, 0.5
#: Numbers in all of a distance matrix's sums, at most, where there is no index.
_BUDGET = 2e13
#: The same in sums over the n-grams that texts share: minutes.
_BUDGET_OF_TEXTS = 2e11
_LARGE = " (pip install 'forward-inf-mlflow[large]')"


@dataclass(frozen=True)
class Duplicates:
    """What was found, all ``(n,)``.

    Attributes:
        twin: Position of a row that is the same example, or -1.
        exact: Whether every value is the same.
        conflict: Whether a twin has another label.
        note: What was looked for, one sentence.
    """

    twin: np.ndarray
    exact: np.ndarray
    conflict: np.ndarray
    note: str

    @property
    def groups(self) -> np.ndarray:
        """Return the number of the example that each row is, the same for copies, ``(n,)``."""
        n, rows = len(self.twin), np.flatnonzero(self.twin >= 0)
        pairs = coo_array((np.ones(len(rows)), (rows, self.twin[rows])), shape=(n, n))
        return np.asarray(connected_components(pairs, directed=False)[1], dtype=np.int64)

    @property
    def wrong_at_least(self) -> int:
        """Return how many labels are wrong at least: in each pair of equal rows that disagree, one.

        Near copies do not count: they may be none.
        """
        twins = [(int(i), int(self.twin[i])) for i in np.flatnonzero(self.conflict & self.exact)]
        pairs = {(min(pair), max(pair)) for pair in twins}
        used: set[int] = set()
        count = 0
        for a, b in sorted(pairs):
            if a not in used and b not in used:  # a row in two pairs is counted once
                used |= {a, b}
                count += 1
        return count

    def sentence(self) -> str | None:
        """Return it in words; None where there are no duplicates."""
        count = int((self.twin >= 0).sum())
        if not count:
            return None
        text = f"{count:,} training rows are copies of another ({int(self.exact.sum()):,} exact)"
        if self.conflict.any():
            text += (
                f"; {int(self.conflict.sum()):,} of them have a copy with another label: where a "
                f"row decides its label, at least {self.wrong_at_least:,} of these are wrong"
            )
        return text


def duplicates(
    rows: np.ndarray, labels: np.ndarray, encodings: np.ndarray | None = None
) -> Duplicates:
    """Find copies among training rows.

    Args:
        rows: ``(n, ...)`` inputs, or texts ``(n,)``, whose near copies are found by n-grams.
        labels: ``(n,)`` class indices or targets.
        encodings: ``(n, h)`` what the model makes of them, rows at unit length; None to find exact
            copies alone. (Values alone call rows of coarse tables copies that are none.)
    """
    keys = nb.row_keys(rows)
    n = len(keys)
    twin = np.full(n, -1)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    twin[order[1:][same]] = order[:-1][same]
    first = same & ~np.concatenate([[False], same[:-1]])
    twin[order[:-1][first]] = order[1:][first]
    exact = twin >= 0
    # Exact copies contradict each other if any two of a group do, not only a row and its twin.
    spread = _labels_differ(keys, labels)
    conflict = exact & spread[keys]
    for i in map(int, np.flatnonzero(conflict & (labels == labels[np.maximum(twin, 0)]))):
        others = np.flatnonzero((keys == keys[i]) & (labels != labels[i]))
        twin[i] = int(others[0])
    note = "exact copies by value"
    _, distinct = np.unique(keys, return_index=True)
    texts = nb.are_texts(rows)
    if not texts and (encodings is None or encodings.shape[1] < _WIDE):
        return Duplicates(twin, exact, conflict, note)
    if len(distinct) > 50:
        seen = rows if encodings is None else encodings
        near = _nearest_texts(rows[distinct]) if texts else _nearest(seen[distinct])
        if near is None:
            note += (
                f"; near copies were not searched: {n:,} rows are too many to compare each with "
                f"each{'' if texts else _LARGE}"
            )
            return Duplicates(twin, exact, conflict, note)
        for a, b in _mutual(near):
            one, other = int(distinct[a]), int(distinct[b])
            if twin[one] < 0 and twin[other] < 0:
                twin[one], twin[other] = other, one
                conflict[[one, other]] = labels[one] != labels[other]
        how = "n-grams" if texts else "the model's encodings"
        note += f", near copies by {how}"
    return Duplicates(twin, exact, conflict, note)


def _labels_differ(keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each key whether its rows have more than one label."""
    pairs = np.unique(np.stack([keys, np.unique(labels, return_inverse=True)[1]]), axis=1)
    return np.asarray(np.bincount(pairs[0], minlength=keys.max() + 1) > 1)


def _nearest(encodings: np.ndarray) -> nb.Nearest | None:
    """Return each row's nearest other row; None where there are too many for what is installed."""
    work = float(len(encodings)) ** 2 * encodings.shape[1]
    if work > LARGE and (found := nb.nearest_by_index(encodings)) is not None:
        return found
    own = np.arange(len(encodings))
    return None if work > _BUDGET else nb.nearest_rows(encodings, encodings, own=own)


def _nearest_texts(texts: np.ndarray) -> nb.Nearest | None:
    """Return each text's nearest other text; None where there are too many."""
    grams = Grams(texts)
    if grams.work > _BUDGET_OF_TEXTS:
        return None
    return grams.nearest(grams.train, np.arange(len(texts)))


def _mutual(near: nb.Nearest) -> list[tuple[int, int]]:
    """Return pairs of rows that are each other's nearest and far nearer than is usual."""
    own = np.arange(len(near.index))
    gap, distance = (nb.deviations(values, values) for values in (near.gap, near.distance))
    nearness = -(gap + distance)
    mutual = near.index[near.index] == own
    # A row and its copy are both far nearer to each other than to any third.
    return [
        (int(i), int(near.index[i]))
        for i in np.flatnonzero(mutual & (nearness >= 2 * LEAST) & (near.gap <= np.log(_GAP)))
        if i < near.index[i] and nearness[near.index[i]] >= 2 * LEAST
    ]
