"""Error control: what rows beside trusted ones surely show, whatever their scores mean.

Tested rows and trusted rows have scores, larger for more suspicious, by one rule that does not know
which is which. **The only assumption**: a tested row with nothing wrong is exchangeable with the
trusted rows, so that every order of their scores is equally likely. It fails where the trusted rows
are easier or harder than the tested ones: easier ones make innocent rows look guilty, harder ones
hide guilty rows.

- `certain`: a set whose expected share of false accusations is at most ``fdr``. Conformal
  p-values and Benjamini-Hochberg (Bates, Candes, Lei, Romano, Sesia, Annals of Statistics 2023).
- `Envelope`: how many innocent rows there are at most among the first d, for every d at once, and
  so how many guilty ones there are at least. From the joint law of conformal p-values (Gazin,
  Blanchard, Roquain, AISTATS 2024), simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

#: Draws of the joint law, and how fine the depths are at which it is looked at.
_DRAWS, _STEPS = 10_000, 30


def conformal_p(tested: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """Return for each tested row how rarely a trusted row is as suspicious, ``(n,)``.

    ``(1 + trusted rows with at least this score) / (m + 1)``: of an innocent row it is at most u
    with a chance of at most u.

    Args:
        tested: ``(n,)`` scores.
        trusted: ``(m,)`` scores.
    """
    at_least = len(trusted) - np.searchsorted(np.sort(trusted), tested, side="left")
    p: np.ndarray = (1 + at_least) / (len(trusted) + 1)
    return p


def certain(tested: np.ndarray, trusted: np.ndarray, fdr: float) -> np.ndarray:
    """Return the rows that are accused at a false discovery rate of ``fdr``, ``(n,)`` bool.

    m trusted rows can accuse nobody unless more than about ``n / (m fdr)`` rows can be accused at
    once. Where nothing is wrong, anybody is accused with a chance of at most ``fdr``.
    """
    if not len(tested):
        return np.zeros(0, dtype=bool)
    adjusted = stats.false_discovery_control(conformal_p(tested, trusted))
    accused: np.ndarray = adjusted <= fdr
    return accused


@dataclass(frozen=True)
class Envelope:
    """How many of the most suspicious rows are innocent at most, at every depth at once.

    Attributes:
        rows: ``(levels,)`` rows above the first, second ... trusted row that was looked at.
        innocent: ``(levels,)`` how many of these are innocent at most.
    """

    rows: np.ndarray
    innocent: np.ndarray

    @classmethod
    def of(cls, tested: np.ndarray, trusted: np.ndarray, confidence: float = 0.95) -> Envelope:
        """Compare tested with trusted rows; all bounds together hold with this confidence."""
        levels, innocent = _most_innocent(len(tested), len(trusted), confidence)
        above = np.sort(trusted)[::-1][levels]
        rows = len(tested) - np.searchsorted(np.sort(tested), above, side="right")
        return cls(rows, innocent)

    def false_at_most(self, depth: np.ndarray) -> np.ndarray:
        """Return how many of the first ``depth`` rows are innocent at most, for each depth."""
        beyond = np.maximum(0, depth[..., None] - self.rows)
        bound: np.ndarray = np.minimum(depth, (self.innocent + beyond).min(-1))
        return bound

    @property
    def guilty(self) -> int:
        """Return how many rows are guilty at least."""
        return max(0, int((self.rows - self.innocent).max()))


@lru_cache(maxsize=64)
def _most_innocent(n: int, m: int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return levels, and how many of n innocent rows lie above each at most, all at once.

    Level j lies at the trusted row with j others above it. The scores of n innocent and m trusted
    rows are in random order: the place of that row is the (j + 1)-th least of m uniform numbers,
    and of the innocent rows a binomial number lies before it.
    """
    last = max(1, m // 2)
    levels = np.unique(np.geomspace(1, last, _STEPS).astype(int)) - 1
    rng = np.random.default_rng(0)
    before = np.zeros((len(levels), _DRAWS), dtype=np.int64)
    place, count, seen = np.zeros(_DRAWS), np.zeros(_DRAWS, dtype=np.int64), 0
    for level, j in enumerate(levels):
        step = rng.beta(j + 1 - seen, m - j, size=_DRAWS)
        count = count + rng.binomial(n - count, step)
        place, seen = place + (1 - place) * step, j + 1
        before[level] = count
    # The same chance at each level, as large as leaves all of them together the confidence.
    ordered = np.sort(before, axis=1)
    beyond = np.stack([
        _DRAWS - np.searchsorted(row, counts, side="left")
        for row, counts in zip(ordered, before, strict=True)
    ])  # fmt: skip
    allowed = int(np.quantile(beyond.min(0), 1 - confidence, method="lower"))
    return levels, ordered[:, max(0, _DRAWS - max(1, allowed))]
