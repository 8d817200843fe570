"""Texts by their n-grams: which training text holds what a text holds, reworded, cut or re-cased.

Two texts are as near as the rarer n-grams (words and pairs of them) that they share, over those of
the one that has fewer: a piece cut out of a text shares all that it has. Beside cosines of the same
n-grams, which find as many copies, it accuses half as many clean queries (benchmarks/RESULTS.md,
"Copies of texts").
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from forward_inf_mlflow.detect import neighbours as nb

#: Places that n-grams are hashed to.
_PLACES = 2**22
#: Characters of a text that are looked at.
_CHARACTERS = 20_000
#: N-grams in a larger share of the texts tell nothing apart, and cost most; of fewer texts than
#: this none is left out.
_COMMON, _FEW = 0.2, 50
#: Words longer than this on average are none: a script without blanks.
_LONG_WORD = 15
#: Distances that are held at once.
_HELD = 16_000_000


class Grams:
    """The n-grams of texts, weighed by how rare they are among the training texts."""

    def __init__(self, train: np.ndarray) -> None:
        """Learn from the training texts ``(n,)`` which n-grams are rare."""
        from sklearn.feature_extraction.text import HashingVectorizer

        some = "\n".join(text[:1000] for text in train[:: max(1, len(train) // 100)])
        words = len(some.split()) * _LONG_WORD >= len(some)
        self._hashed = HashingVectorizer(
            n_features=_PLACES,
            analyzer="word" if words else "char",
            ngram_range=(1, 2) if words else (2, 3),
            token_pattern=r"(?u)\w+",  # noqa: S106  no secret
            alternate_sign=False,
            binary=True,
            norm=None,
            dtype=np.float32,
        )
        counts = self._counts(train)
        n, seen = counts.shape[0], np.asarray(counts.sum(0)).ravel()
        rarity = np.log((n + 1) / (seen + 1)) + 1
        if n >= _FEW:
            rarity[seen > _COMMON * n] = 0
        self._rarity = sparse.diags_array(rarity.astype(np.float32), format="csr")
        self.train = self._weighed(counts)
        self._across = self.train.T.tocsr()
        self._mass = _mass(self.train)
        #: Multiplications that comparing every training text with every other takes.
        self.work = float(np.square(np.where(rarity > 0, seen, 0.0)).sum())

    def of(self, texts: np.ndarray) -> sparse.csr_array:
        """Return the weighed n-grams of texts ``(k,)``, ``(k, places)``."""
        return self._weighed(self._counts(texts))

    def nearest(self, grams: sparse.csr_array, own: np.ndarray | None = None) -> nb.Nearest:
        """Find the nearest training text of each; ``own`` as in `neighbours.nearest_rows`."""
        step, parts = max(1, _HELD // len(self._mass)), []
        mass = _mass(grams)
        for start in range(0, grams.shape[0], step):
            rows = slice(start, start + step)
            shared = (grams[rows] @ self._across).toarray()
            shared /= np.minimum(mass[rows, None], self._mass)
            distance = np.sqrt(np.maximum(1 - shared, 0))
            if own is not None:
                distance[np.arange(len(distance)), own[rows]] = np.inf
            parts.append(nb.first_and_fifth(distance))
        index, first, fifth = (np.concatenate(part) for part in zip(*parts, strict=True))
        return nb.told(index, first, fifth)

    def alike(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return what pairs of training texts share, over what the longer one has, ``(k,)``."""
        shared = np.asarray(self.train[rows].multiply(self.train[others]).sum(1)).ravel()
        return np.asarray(shared / np.maximum(self._mass[rows], self._mass[others]))

    def _counts(self, texts: np.ndarray) -> sparse.csr_array:
        return sparse.csr_array(self._hashed.transform([text[:_CHARACTERS] for text in texts]))

    def _weighed(self, counts: sparse.csr_array) -> sparse.csr_array:
        found = sparse.csr_array(counts @ self._rarity)
        found.eliminate_zeros()
        return found


def _mass(grams: sparse.csr_array) -> np.ndarray:
    """Return what all n-grams of a text weigh, ``(k,)``; never zero."""
    return np.asarray(np.maximum(np.asarray(grams.multiply(grams).sum(1)).ravel(), 1e-6))
