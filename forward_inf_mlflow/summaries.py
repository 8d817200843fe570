"""Summaries: what is kept of influences that stream by, a block of queries and rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

#: Query groups whose influences on a shard are held at once.
_TOGETHER = 256


class Summary(Protocol):
    """Something that is kept of an ``(m, n)`` matrix without ever holding it."""

    def add(self, groups: np.ndarray, start: int, values: np.ndarray) -> None:
        """Take note of a block; every pair of query group and row must come exactly once.

        Args:
            groups: ``(g,)`` positions of query groups.
            start: Position of the block's first training row; a group's blocks come in row order.
            values: ``(g, r)`` influences; those that are no finite number are left out.
        """
        ...

    def table(self) -> pd.DataFrame:
        """Return what was kept."""
        ...


class TopRows:
    """The k most helpful and the k most harmful rows per query group; memory is (m, k)."""

    def __init__(self, query_ids: np.ndarray, train_ids: np.ndarray, k: int) -> None:
        self._query_ids, self._train_ids = query_ids, train_ids
        m, k = len(query_ids), min(k, len(train_ids))
        # Keys rise from the best: minus the influence for proponents, itself for opponents.
        self._kept = {
            kind: (np.full((m, k), np.nan, np.float32), np.zeros((m, k), np.int64))
            for kind in ("proponent", "opponent")
        }

    def add(self, groups: np.ndarray, start: int, values: np.ndarray) -> None:
        """Merge a block; see `Summary`."""
        values = np.where(np.isfinite(values), values, np.nan).astype(np.float32)
        new = np.broadcast_to(start + np.arange(values.shape[1]), values.shape)
        for kind, (keys, rows) in self._kept.items():
            signed = -values if kind == "proponent" else values
            candidates = np.concatenate([keys[groups], signed], axis=1)
            where = np.concatenate([rows[groups], new], axis=1)
            # Stable, and earlier rows stand first: ties stay in row order. NaN comes last.
            best = np.argsort(candidates, axis=1, kind="stable")[:, : keys.shape[1]]
            keys[groups] = np.take_along_axis(candidates, best, axis=1)
            rows[groups] = np.take_along_axis(where, best, axis=1)

    def table(self) -> pd.DataFrame:
        """Return both lists.

        Columns: query_id, kind ("proponent" or "opponent"), rank (from 1), train_id, influence.
        """
        parts = []
        for kind, (keys, rows) in self._kept.items():
            m, width = keys.shape
            part = pd.DataFrame(
                {
                    "query_id": np.repeat(self._query_ids, width),
                    "kind": kind,
                    "rank": np.tile(np.arange(1, width + 1), m),
                    "train_id": self._train_ids[rows.ravel()],
                    "influence": (-keys if kind == "proponent" else keys).ravel(),
                }
            )
            parts.append(part[~np.isnan(keys.ravel())])
        return pd.concat(parts, ignore_index=True)


class SourceSums:
    """Influence summed over the rows of every source, per query group; memory is (m, sources)."""

    def __init__(self, query_ids: np.ndarray, sources: np.ndarray) -> None:
        """Take the ``(n,)`` names of the training rows' sources."""
        self._query_ids = query_ids
        self._names, self._codes = np.unique(sources, return_inverse=True)
        self._moments = np.zeros((3, len(query_ids), len(self._names)))

    def add(self, groups: np.ndarray, start: int, values: np.ndarray) -> None:
        """Add a block; see `Summary`."""
        codes = self._codes[start : start + values.shape[1]]
        order = np.argsort(codes, kind="stable")
        present, first = np.unique(codes[order], return_index=True)
        ordered = values[:, order].astype(np.float64)
        fine = np.isfinite(ordered)
        ordered[~fine] = 0.0
        for moment, addends in zip(self._moments, (fine, ordered, ordered**2), strict=True):
            sums = np.add.reduceat(addends, first, axis=1, dtype=np.float64)
            moment[np.ix_(groups, present)] += sums

    def table(self) -> pd.DataFrame:
        """Return one line per query group and source; a group's largest sum first, ties by name.

        Columns: query_id, source, rows (those with a number), influence (the sum over them), and
        low and high, its 95 % interval if the source's rows are a sample of what the source could
        have given: ``sum +- 1.96 sd sqrt(rows)``, NaN for fewer than two rows.
        """
        n, total, squares = self._moments
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.maximum((squares - total**2 / n) / (n - 1), 0.0)
            half = np.where(n > 1, 1.96 * np.sqrt(variance * n), np.nan)
        order = np.argsort(-total, axis=1, kind="stable")

        def sorted_(values: np.ndarray) -> np.ndarray:
            flat: np.ndarray = np.take_along_axis(values, order, axis=1).ravel()
            return flat

        return pd.DataFrame(
            {
                "query_id": np.repeat(self._query_ids, len(self._names)),
                "source": self._names[order.ravel()],
                "rows": sorted_(n).astype(np.int64),
                "influence": sorted_(total),
                "low": sorted_(total - half),
                "high": sorted_(total + half),
            }
        )


class Merged:
    """Puts influences together from what a sweep reads, and hands them on to summaries.

    A group is handed on a shard at a time if all moves that it needs are read together. Of others,
    whose moves come in several blocks, the rows are held until `finish`: n numbers for each such
    group, or for each move where these are fewer.
    """

    def __init__(self, coefficients: np.ndarray, n: int, summaries: Sequence[Summary]) -> None:
        """Take the ``(m, k)`` coefficients of groups and moves, and the number of rows."""
        self._coefficients, self._n, self._summaries = coefficients, n, summaries
        needed = coefficients != 0
        # The first and the last move that a group needs; the first of all if it needs none.
        self._first = needed.argmax(axis=1)
        backwards = needed[:, ::-1].argmax(axis=1)
        self._last = np.where(needed.any(axis=1), needed.shape[1] - 1 - backwards, 0)
        self._held: dict[int, np.ndarray] = {}
        self._moves: np.ndarray | None = None
        self._waiting = np.zeros(len(coefficients), dtype=bool)

    def add(self, moves: slice, rows: slice, changes: np.ndarray) -> None:
        """Take what was read of some rows under some moves, ``(moves, rows)``."""
        coefficients = self._coefficients[:, moves]
        whole = (self._first >= moves.start) & (self._last < moves.stop)
        partly = ~whole & (self._first < moves.stop) & (self._last >= moves.start)
        for groups in _some(np.flatnonzero(whole)):
            self._hand_on(groups, rows.start, coefficients[groups] @ changes)
        if partly.sum() > self._coefficients.shape[1]:
            if self._moves is None:
                self._moves = np.zeros((self._coefficients.shape[1], self._n), np.float32)
            self._moves[moves, rows] = changes
            self._waiting |= partly
            return
        for group in np.flatnonzero(partly).tolist():
            held = self._held.setdefault(group, np.zeros(self._n, np.float32))
            held[rows] += coefficients[group] @ changes

    def finish(self) -> None:
        """Hand on what was held."""
        for group, values in self._held.items():
            self._hand_on(np.array([group]), 0, values[None])
        self._held.clear()
        if self._moves is not None:
            for groups in _some(np.flatnonzero(self._waiting)):
                self._hand_on(groups, 0, self._coefficients[groups] @ self._moves)
            self._moves = None

    def _hand_on(self, groups: np.ndarray, start: int, values: np.ndarray) -> None:
        for summary in self._summaries:
            summary.add(groups, start, values.astype(np.float32))


def _some(groups: np.ndarray) -> list[np.ndarray]:
    return [groups[i : i + _TOGETHER] for i in range(0, len(groups), _TOGETHER)]
