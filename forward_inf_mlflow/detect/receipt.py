"""Receipt: what the flagged rows cause, from training with and without them.

Influence and half-models say which rows are suspicious; only training without them says what they
do. The same seeds on both sides; the interval allows for other seeds (Student's t over their
differences) and for other query rows (normal, over the queries' mean differences). It takes the
flags as given, although the queries' labels helped to find them: a gain is seen through the eyes of
these queries. Beside it stands training without as many rows drawn at random from each class, since
fewer rows alone cost something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Receipt:
    """How the queries' metric changes when the flagged rows are left out.

    Attributes:
        metric: "accuracy", or "mean squared error" (its fall).
        rows: How many rows were left out.
        seeds: Trainings on either side.
        before: The metric with all rows, mean over seeds.
        gain, low, high: Mean change without the flagged rows, and its 95 % interval.
        random: Mean change without as many rows at random.
    """

    metric: str
    rows: int
    seeds: int
    before: float
    gain: float
    low: float
    high: float
    random: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``audit.json`` keeps it."""
        return {**asdict(self), "sentence": self.sentence()}

    def sentence(self) -> str:
        """Return it in words."""
        if self.metric == "accuracy":
            change = (
                f"{100 * self.gain:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f}) "
                f"from {self.before:.1%}; without as many rows at random "
                f"{100 * self.random:+.1f} points"
            )
        else:
            return self._of_error()
        return (
            f"receipt: trained {self.seeds} times with and without the {self.rows:,} mislabeled "
            f"rows, the {self.metric} on the query rows changes by {change}: "
            f"{self._conclusion}"
        )

    @property
    def _conclusion(self) -> str:
        if self.low <= 0 <= self.high:
            return "no effect beyond chance"
        return "better without them" if self.gain > 0 else "worse without them"

    def _of_error(self) -> str:
        return (
            f"receipt: trained {self.seeds} times with and without the {self.rows:,} mislabeled "
            f"rows, the {self.metric} on the query rows falls by {self.gain:.3g} "
            f"({self.low:.3g} to {self.high:.3g}) from {self.before:.3g}; without as many rows at "
            f"random by {self.random:.3g}: {self._conclusion}"
        )


def receipt(
    train: Callable[[np.ndarray, int], np.ndarray],
    flagged: np.ndarray,
    strata: np.ndarray,
    *,
    metric: str,
    seeds: int,
    seed: int,
) -> Receipt | None:
    """Train with and without flagged rows.

    Args:
        train: Positions of rows and a seed to each query's part in the metric, ``(m,)``, larger is
            better: 1 for a right answer, or minus the squared error.
        flagged: ``(n,)`` bool.
        strata: ``(n,)`` classes; random rows are taken from each as often as flagged ones.
        metric: What it is called.
        seeds: How many trainings on either side.
        seed: The first.

    Returns:
        None where nothing is flagged, or less than half of the rows of some class would be left.
    """
    if not flagged.any():
        return None
    rows = np.arange(len(flagged))
    for name in np.unique(strata):
        if flagged[strata == name].mean() > 0.5:
            return None
    whole, without, random = [], [], []
    for number in range(seed, seed + seeds):
        draw = np.random.default_rng([number, 29])
        some = flagged.copy()
        for name in np.unique(strata):
            members = np.flatnonzero(strata == name)
            some[members] = draw.permutation(flagged[members])
        whole.append(train(rows, number))
        without.append(train(rows[~flagged], number))
        random.append(train(rows[~some], number))
    gains = np.stack(without) - np.stack(whole)  # (seeds, m)
    by_seed, by_query = gains.mean(1), gains.mean(0)
    seeds_half = stats.t.ppf(0.975, seeds - 1) * by_seed.std(ddof=1) / seeds**0.5
    queries_half = 1.96 * by_query.std(ddof=1) / len(by_query) ** 0.5
    half, gain = float(np.hypot(seeds_half, queries_half)), float(gains.mean())
    before = float(np.mean(whole))
    return Receipt(
        metric=metric,
        rows=int(flagged.sum()),
        seeds=seeds,
        before=abs(before),
        gain=gain,
        low=gain - half,
        high=gain + half,
        random=float(np.mean(random) - before),
    )
