"""An index of very many rows: their nearest neighbours without comparing each with each.

A graph that skips most pairs (HNSW: Malkov and Yashunin, IEEE TPAMI 2020), in voyager's
implementation, which the extra ``[large]`` brings. It misses a few neighbours
(benchmarks/RESULTS.md), and as several threads build it, not always the same ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Numbers in all of a distance matrix's sums from which an index is asked.
LARGE = 2e12
#: Links of a row, and candidates that are looked at for each row, at least.
_LINKS, _WIDTH = 12, 32


class Index:
    """Rows that can be asked for neighbours; see :meth:`of`."""

    def __init__(self, graph: Any, place: np.ndarray) -> None:
        self._graph, self._place = graph, place

    @classmethod
    def of(cls, rows: np.ndarray) -> Index | None:
        """Return the index of rows ``(n, d)`` float32; None where voyager is not installed."""
        try:
            import voyager
        except ImportError:
            return None
        n, d = rows.shape
        graph = voyager.Index(voyager.Space.Euclidean, d, M=_LINKS, random_seed=0, max_elements=n)
        names = np.array(graph.add_items(rows))
        place = np.empty(int(names.max()) + 1, dtype=np.int64)
        place[names] = np.arange(n)
        return cls(graph, place)

    def nearest(
        self, queries: np.ndarray, ranks: int, *, own: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of the nearest rows and their squared distances, ``(m, ranks)``.

        Args:
            queries: ``(m, d)`` float32.
            ranks: How many neighbours, nearest first.
            own: ``(m,)`` a row that does not count for each query, -1 for none.
        """
        k = ranks if own is None else ranks + 1
        found, distance = self._graph.query(queries, k=k, query_ef=max(_WIDTH, 2 * k))
        found = self._place[found]
        if own is None:
            return found, distance
        left_out = found == own[:, None]
        # A query whose own row is not among them: of a row itself the nearest is a twin of it
        # that is as near; of others the last is one too many.
        missed = ~left_out.any(1)
        left_out[missed & (own >= 0), 0] = True
        left_out[missed & (own < 0), -1] = True
        return tuple(x[~left_out].reshape(len(queries), ranks) for x in (found, distance))
