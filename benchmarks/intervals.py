"""Intervals of figures over a few cases (seeds): cases and their rows are drawn anew, in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

#: From ``(n,)`` truth and ``(n,)`` scores, the larger the more so, to a number.
Figure = Callable[[np.ndarray, np.ndarray], float]
DRAWS = 400


def ahead(
    ours: str,
    truths: Sequence[np.ndarray],
    scores: Sequence[Mapping[str, np.ndarray]],
    figure: Figure,
) -> dict[str, tuple[float, float, float]]:
    """Return how far one method is ahead of each other: low, mean and high of 95 %.

    Args:
        ours: The method's name.
        truths: ``(n,)`` of each case.
        scores: Of each case ``(n,)`` by method.
        figure: What is compared: its mean over the cases.
    """
    rng = np.random.default_rng(0)
    names = [name for name in scores[0] if name != ours]

    def apart(some: Sequence[np.ndarray], cases: Sequence[int]) -> np.ndarray:
        found = []
        for rows, case in zip(some, cases, strict=True):
            truth, said = truths[case][rows], scores[case]
            mine = figure(truth, said[ours][rows])
            found.append([mine - figure(truth, said[name][rows]) for name in names])
        return np.mean(found, axis=0)

    drawn = []
    for _ in range(DRAWS):
        cases = rng.integers(len(truths), size=len(truths)).tolist()
        drawn.append(
            apart([rng.integers(n, size=n) for n in (len(truths[c]) for c in cases)], cases)
        )
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    middle = apart([np.arange(len(truth)) for truth in truths], range(len(truths)))
    return {name: (float(low[i]), float(middle[i]), float(high[i])) for i, name in enumerate(names)}
