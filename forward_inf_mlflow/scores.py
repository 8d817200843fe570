"""InfluenceScores: what came out, with what made it. Numbers and ids only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd


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
        """Return the top k proponents and opponents as a table.

        Columns: query_id, kind ("proponent" or "opponent"), rank (from 1), train_id, influence.
        """
        parts = []
        for kind, order in (("proponent", self.proponents(k)), ("opponent", self.opponents(k))):
            m, width = order.shape
            parts.append(
                pd.DataFrame(
                    {
                        "query_id": np.repeat(self.query_ids, width),
                        "kind": kind,
                        "rank": np.tile(np.arange(1, width + 1), m),
                        "train_id": self.train_ids[order.ravel()],
                        "influence": np.take_along_axis(self.values, order, axis=1).ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    @staticmethod
    def _order(keys: np.ndarray, k: int) -> np.ndarray:
        """Return the positions of the k smallest keys per row, ties in row order."""
        return np.argsort(keys, axis=1, kind="stable")[:, :k]
