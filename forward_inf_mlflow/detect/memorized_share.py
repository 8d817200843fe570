"""The share of memorized rows, and how far each row's own number can be trusted.

R models with a row and R without it show mem_i = P(correct | in) - P(correct | out) of one row only
roughly, and counting the rows whose rough number passes a threshold counts noise: where no row is
memorized many pass it by luck. What all rows show together is sharper. A row has two unknown
chances p and q of being answered right, with it and without it, and shows two counts. A function
of the counts whose mean is at least 1 wherever p - q reaches the threshold, and at least 0
elsewhere, has a mean over the rows that is at least the share, whatever the rows' chances are; one
that stays below gives the lower end. The sharpest such functions are the dual of a linear programme
(F-localization: Ignatiadis and Wager, JASA 2022), found on one half of the rows and averaged over
the other. The estimate is what the likeliest spread of chances says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

#: How sure every interval is.
CONFIDENCE = 0.95
#: Chances that a row may have; a function is found on the first and made valid on the second.
_COARSE, _FINE = np.linspace(0, 1, 33), np.linspace(0, 1, 129)
#: Steps towards the likeliest spread.
_STEPS = 500


@dataclass(frozen=True)
class Share:
    """Share of the rows whose mem_i reaches a threshold.

    Attributes:
        low, estimate, high: The ends hold together with 95 %.
    """

    low: float
    estimate: float
    high: float


def difference(
    with_it: np.ndarray, without: np.ndarray, repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's 95 % interval of mem_i, ``(n,)`` and ``(n,)``.

    Newcombe's interval of a difference of two shares, made of Wilson's of each (Statistics in
    Medicine 1998, method 10).

    Args:
        with_it: ``(n,)`` by how many models that saw the row it is answered right.
        without: ``(n,)`` by how many that did not.
        repeats: R, of how many each.
    """
    wilson = np.array(
        [
            stats.binomtest(count, repeats).proportion_ci(CONFIDENCE, method="wilson")
            for count in range(repeats + 1)
        ]
    )
    p, q = with_it / repeats, without / repeats
    (p_low, p_high), (q_low, q_high) = wilson[with_it].T, wilson[without].T
    low = p - q - np.hypot(p - p_low, q_high - q)
    high = p - q + np.hypot(p_high - p, q - q_low)
    return low, high


def share_above(with_it: np.ndarray, without: np.ndarray, threshold: float) -> Share:
    """Return the share of rows whose mem_i is at least a threshold.

    Args:
        with_it: ``(R, n)`` bool, whether each model that saw the row answers it right.
        without: ``(R, n)`` bool, the same of those that did not.
        threshold: 0 to 1.
    """
    repeats, n = with_it.shape
    cell = with_it.sum(0) * (repeats + 1) + without.sum(0)
    cells = (repeats + 1) ** 2
    # Models are better or worse as a whole, so that rows are no independent draws: fewer are
    # counted, as the spread of the models' own shares shows.
    rows = n / max(1.0, *(_effect(right) for right in (with_it, without)))
    halves = np.random.default_rng(0).permutation(n) % 2
    low, high = 0.0, 1.0
    if n >= 2:
        ends = []
        for upper in (False, True):
            said = np.empty(n)
            for half in range(2):
                counts = np.bincount(cell[halves != half], minlength=cells)
                function = _bounding(counts, rows / 2, repeats, threshold, upper=upper)
                said[halves == half] = function[cell[halves == half]]
            ends.append((float(said.mean()), float(said.std(ddof=1) / rows**0.5)))
        z = stats.norm.isf((1 - CONFIDENCE) / 2)
        low, high = ends[0][0] - z * ends[0][1], ends[1][0] + z * ends[1][1]
        # A function that says the same of all rows seen has no spread, and yet others may come.
        high = max(high, 1 - ((1 - CONFIDENCE) / 2) ** (1 / max(1.0, rows)))
    low, high = (float(np.clip(end, 0, 1)) for end in (low, high))
    spread = _likeliest(_seen(_COARSE, repeats), np.bincount(cell, minlength=cells) / n)
    estimate = float(spread @ _above(_COARSE, threshold))
    return Share(low, float(np.clip(estimate, low, high)), high)


def _seen(chances: np.ndarray, repeats: int) -> np.ndarray:
    """Return how often each pair of counts is seen under each pair of chances, ``(cells, g^2)``."""
    chance = stats.binom.pmf(np.arange(repeats + 1)[:, None], repeats, chances)
    pairs = np.einsum("ai,bj->abij", chance, chance)
    return np.asarray(pairs.reshape((repeats + 1) ** 2, -1))


def _above(chances: np.ndarray, threshold: float, *, surely: bool = False) -> np.ndarray:
    """Return which pairs of chances differ by the threshold, or surely by more."""
    differ = np.subtract.outer(chances, chances).ravel()
    least = threshold + (1e-9 if surely else -1e-9)
    return np.asarray(differ > least, dtype=np.float64)


def _effect(right: np.ndarray) -> float:
    """Return how much more models' shares of right rows vary than independent rows would make them.

    Args:
        right: ``(R, n)`` bool.
    """
    repeats, _ = right.shape
    share = right.mean(0)
    expected = float((share * (1 - share)).sum()) * repeats / max(1, repeats - 1)
    return float(right.sum(1).var(ddof=1)) / expected if repeats > 1 and expected > 0 else 1.0


def _bounding(
    counts: np.ndarray, rows: float, repeats: int, threshold: float, *, upper: bool
) -> np.ndarray:
    """Return a function of the counts ``(cells,)`` whose mean is never below the share (above).

    The dual of the largest (smallest) share among spreads whose cells lie within a standard error
    of those seen.
    """
    sign = 1.0 if upper else -1.0
    share = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    error = np.sqrt(share / rows)
    seen = _seen(_COARSE, repeats)
    found = optimize.linprog(
        # Spreads, and by how much cells break their bounds, at a price.
        np.r_[-sign * _above(_COARSE, threshold, surely=not upper), np.full(2 * len(share), 5.0)],
        np.block(
            [
                [seen, -np.eye(len(share)), np.zeros((len(share), len(share)))],
                [-seen, np.zeros((len(share), len(share))), -np.eye(len(share))],
            ]
        ),
        np.r_[share + error, error - share],
        np.r_[np.ones(seen.shape[1]), np.zeros(2 * len(share))][None],
        [1.0],
        bounds=(0, None),
        method="highs",
    )
    if not found.success:  # the function that knows nothing
        return np.full(len(share), 1.0 if upper else 0.0)
    duals = found.ineqlin.marginals
    function = -sign * (duals[: len(share)] - duals[len(share) :] + found.eqlin.marginals[0])
    # Valid for the chances between those that it was found for, too.
    wanted = _above(_FINE, threshold, surely=not upper)
    function += sign * max(0.0, float((sign * (wanted - function @ _seen(_FINE, repeats))).max()))
    return np.asarray(function)


def _likeliest(seen: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the spread that makes the counts likeliest, by expectation-maximisation."""
    spread = np.full(seen.shape[1], 1 / seen.shape[1])
    for _ in range(_STEPS):
        spread = spread * (seen.T @ (shares / np.maximum(seen @ spread, 1e-300)))
    return np.asarray(spread / spread.sum())
