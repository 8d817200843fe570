"""Expected: how many of the most suspicious rows are wrong, at any depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from forward_inf_mlflow.report.sections import Section, floats

#: Depths that the table names.
_DEPTHS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
#: Where the slider stops, at most.
_STOPS = 200


@dataclass(frozen=True)
class Expected:
    """What to expect of the first rows in the order of their suspicion.

    Attributes:
        stops: ``(rows, about, surely)`` at rising depths: how many of the first rows are wrong,
            about and at least. About is None where the rows' scores are no probabilities.
        start: Which stop is nearest to the number of named rows.
    """

    stops: list[tuple[int, float | None, float]]
    start: int

    @classmethod
    def of(cls, scores: pd.DataFrame, named: float | None, *, probable: bool) -> Expected:
        """Count; no stops where the scores do not say."""
        needed = ("mislabeled_score", "mislabeled_suspicion", "mislabeled_surely")
        if not set(needed) <= set(scores.columns):
            return cls([], 0)
        score, suspicion, surely = (floats(scores[name]) for name in needed)
        if np.isnan(suspicion).all():
            return cls([], 0)
        order = np.argsort(-np.nan_to_num(suspicion, nan=-np.inf), kind="stable")
        n = len(order)
        stops = np.unique(np.geomspace(1, n, min(n, _STOPS)).astype(int))
        wanted = [k for k in (*_DEPTHS, int(named or 0)) if 1 <= k <= n]
        depths = np.union1d(stops, wanted).astype(int)
        score, surely = (np.clip(np.nan_to_num(share), 0, 1) for share in (score, surely))
        about = np.cumsum(score[order])[depths - 1]
        # What is wrong among fewer rows is wrong among more.
        least = np.maximum.accumulate(surely[order][depths - 1] * depths)
        found = [
            (int(k), round(float(a), 1) if probable else None, round(float(w), 1))
            for k, a, w in zip(depths, about, least, strict=True)
        ]
        return cls(found, int(np.abs(depths - (named or 0)).argmin()))

    @property
    def table(self) -> list[Section]:
        """Return the stops that a table names."""
        names = ("rows", "about", "surely")
        return [Section(zip(names, one, strict=True)) for one in self.stops if one[0] in _DEPTHS]
