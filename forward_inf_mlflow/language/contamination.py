"""Contamination: which items of a benchmark stand in the training texts, word for word or nearly.

An item is held against every training text in two ways. By words: the whole item stands there
(exact), or a share of its n-grams does. By influence: how near the nearest training text's tokens
come to the item's in the model's last layer (see `screen`), which also finds an item that was put
into other words. Either is also asked of items that the model cannot have seen; what it finds there
is its rate of false positives, and influence is judged by nothing else.

The words are counted without torch; the influence comes from the caller.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: How an item is found, surest first.
WAYS = ("exact", "ngram", "influence")


@dataclass(frozen=True)
class Overlap:
    """What an item's words have in common with the training texts.

    Attributes:
        exact: Whether all its words stand in one text in a row.
        share: The share of its n-grams that stand in some text.
        row: Position of the text that has the most of them; None where none has any.
        words: How many words it has; of fewer than n the whole item is its one n-gram.
    """

    exact: bool
    share: float
    row: int | None
    words: int


def overlaps(items: Sequence[str], train: Sequence[str], n: int) -> list[Overlap]:
    """Hold items against training texts, by words without case and punctuation.

    Cost: one pass over the texts; what is held are the items' n-grams.

    Args:
        items: Texts of the benchmark.
        train: The training texts.
        n: Words of an n-gram.
    """
    words = [_words(item) for item in items]
    wanted: dict[tuple[str, ...], list[int]] = {}
    grams = [set(_grams(w, min(n, len(w)))) if w else set() for w in words]
    for i, mine in enumerate(grams):
        for gram in mine:
            wanted.setdefault(gram, []).append(i)
    sizes = sorted({len(gram) for gram in wanted})
    found: list[set[tuple[str, ...]]] = [set() for _ in items]
    exact, best = [False] * len(items), [(0, -1)] * len(items)
    for row, text in enumerate(train):
        said = _words(text)
        here: dict[int, int] = {}
        for size in sizes:
            for gram in set(_grams(said, size)) & wanted.keys():
                for i in wanted[gram]:
                    found[i].add(gram)
                    here[i] = here.get(i, 0) + 1
        for i, count in here.items():
            if count > best[i][0]:
                best[i] = (count, row)
            if count == len(grams[i]) and not exact[i]:
                exact[i] = f" {' '.join(words[i])} " in f" {' '.join(said)} "
                best[i] = (count + exact[i], row)  # an exact text stands before any other
    return [
        Overlap(
            exact=exact[i],
            share=len(found[i]) / len(grams[i]) if grams[i] else 0.0,
            row=None if best[i][1] < 0 else best[i][1],
            words=len(words[i]),
        )
        for i in range(len(items))
    ]


def chances(values: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Return how likely an unseen item has so large a value, ``(m,)``.

    These are conformal p-values: whatever the values are, of items like the unseen ones a share of
    at most a has one of a or less.
    """
    above = (unseen[None, :] >= values[:, None]).sum(1)
    return np.asarray((1 + above) / (1 + len(unseen)))


def crossed(unseen: np.ndarray, most: float, seed: int) -> np.ndarray:
    """Say of each unseen item whether it would be accused by the others, half against half."""
    half = np.random.default_rng(seed).permutation(len(unseen)) < len(unseen) // 2
    accused = np.zeros(len(unseen), bool)
    for side in (half, ~half):
        accused[side] = chances(unseen[side], unseen[~side]) <= most
    return accused


def way(overlap: Overlap, least: float, chance: float | None, most: float) -> str | None:
    """Return how an item is found in the training texts; None where it is not."""
    if overlap.exact:
        return "exact"
    if overlap.words and overlap.share >= least:
        return "ngram"
    if chance is not None and chance <= most:
        return "influence"
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
