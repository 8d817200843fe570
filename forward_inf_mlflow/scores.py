"""InfluenceScores: what came out, with what made it. Numbers and ids only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from forward_inf_mlflow.summaries import SourceSums, Summary, TopRows


@dataclass(frozen=True)
class InfluenceScores:
    """Influence of training rows on query groups.

    Attributes:
        values: ``(m, n)`` float32, query groups first, nats per added copy of the query.
            Positive: a proponent, the row helps the model on the query.
        query_ids: ``(m,)`` strings.
        train_ids: ``(n,)`` strings.
        provenance: The settings and versions that repeat the scores.
    """

    values: np.ndarray
    query_ids: np.ndarray
    train_ids: np.ndarray
    provenance: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.query_ids), len(self.train_ids)):
            raise ValueError(
                f"values have shape {self.values.shape}, but there are {len(self.query_ids)} "
                f"query ids and {len(self.train_ids)} train ids"
            )

    def proponents(self, k: int) -> np.ndarray:
        """Return the positions of the k most helpful rows per query, ``(m, min(k, n))``."""
        return self._order(-self.values, k)

    def opponents(self, k: int) -> np.ndarray:
        """Return the positions of the k most harmful rows per query, ``(m, min(k, n))``."""
        return self._order(self.values, k)

    def top(self, k: int) -> pd.DataFrame:
        """Return the top k proponents and opponents as a table; rows without a number are in none.

        Columns: query_id, kind ("proponent" or "opponent"), rank (from 1), train_id, influence.
        """
        return self._summed_up(TopRows(self.query_ids, self.train_ids, k))

    def by_source(self, sources: np.ndarray) -> pd.DataFrame:
        """Return the influence of every data source on every query: the sum over its rows.

        Columns: query_id, source, rows, influence, and its 95 % interval, low and high, which
        takes the source's rows for a sample: ``sum +- 1.96 sd sqrt(rows)``. Queries in order, and
        within each the largest sum first.

        Args:
            sources: ``(n,)`` names.
        """
        if len(sources) != len(self.train_ids):
            raise ValueError(f"{len(sources)} sources for {len(self.train_ids)} training rows")
        return self._summed_up(SourceSums(self.query_ids, sources))

    def _summed_up(self, summary: Summary) -> pd.DataFrame:
        summary.add(np.arange(len(self.query_ids)), 0, self.values)
        return summary.table()

    @staticmethod
    def _order(keys: np.ndarray, k: int) -> np.ndarray:
        """Return the positions of the k smallest keys per row, ties in row order, NaN last."""
        return np.argsort(keys, axis=1, kind="stable")[:, :k]
