"""ForwardInfluence: the whole algorithm on one page.

    queries --direction--> moves (k), coefficients (m, k)
    training rows + moves --sweep--> change of loss and margin (k, n)
    coefficients @ change --> influence (m, n)

Source: "The Mirrored Influence Hypothesis" (Ko et al., CVPR 2024, arXiv 2402.08922): instead of a
gradient per training row, move the model along the queries and see with forward passes how the
training rows' losses change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch import nn

from forward_inf_mlflow.directions import Curvature, Direction, Moves
from forward_inf_mlflow.directions.moves import Point, at_rest
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.memory import batches_that_fit, first_that_fits
from forward_inf_mlflow.models.modes import full_precision
from forward_inf_mlflow.probe import Choice, Method, Which, check_loss, choose
from forward_inf_mlflow.scores import InfluenceScores
from forward_inf_mlflow.summaries import Merged, SourceSums, TopRows
from forward_inf_mlflow.sweep import SHARD_ROWS, Part, Progress, sweep
from forward_inf_mlflow.task import Batch, Task
from forward_inf_mlflow.tensors import Stream, Tensors
from forward_inf_mlflow.version import __version__
from forward_inf_mlflow.work import KEEP_NOTHING, Work

#: Moves that are read in both ways to see whether a finite difference is true.
_PROBED = 4
#: Rows that this is seen on, at least.
_PROBED_ROWS = 64


@dataclass(frozen=True)
class QueryGroups:
    """Queries that are asked about together: their rows and one name per group."""

    rows: Sequence[Tensors]
    ids: np.ndarray

    @classmethod
    def each(cls, queries: Tensors, ids: np.ndarray) -> QueryGroups:
        """Ask about every query alone."""
        return cls([queries.part(i, i + 1) for i in range(len(queries))], ids)

    @classmethod
    def together(cls, queries: Tensors, name: str = "all queries") -> QueryGroups:
        """Ask about the mean over all queries."""
        return cls([queries], np.array([name]))


@dataclass(frozen=True)
class Influence:
    """What came out.

    Attributes:
        scores: ``(m, n)``.
        loss, margin: The rows' own, under the model as it was, ``(n,)`` float64.
        choice: How rows were read, and why.
        facts: What the direction found on the way: damping, rate, reliability.
        forward_passes: How many rows were passed forward, a derivative counting as one.
    """

    scores: InfluenceScores
    loss: np.ndarray
    margin: np.ndarray
    choice: Choice
    facts: Mapping[str, object]
    forward_passes: int


@dataclass(frozen=True)
class Top:
    """The best of what came out.

    Attributes:
        rows: As ``InfluenceScores.top`` returns it.
        by_source: As ``InfluenceScores.by_source``; None if there are no sources.
        loss: The rows' own, under the model as it was, ``(n,)`` float64.
        choice, facts, forward_passes: As of an `Influence`.
    """

    rows: pd.DataFrame
    by_source: pd.DataFrame | None
    loss: np.ndarray
    choice: Choice
    facts: Mapping[str, object]
    forward_passes: int


@dataclass(frozen=True, kw_only=True)
class ForwardInfluence:
    """Influence of training rows on queries by forward passes over the training rows.

    Attributes:
        task: The loss of a row.
        direction: How the queries move the model.
        readout: What is read of a row: its "loss", or its "margin", which still moves where the
            losses of fitted rows no longer do.
        method: "difference" of two models, exact "derivative", or "auto": the difference where a
            probe shows that it agrees with the derivative.
        shard_rows: Rows that are read, and kept, together.
        compiled: Read differences through ``torch.compile``: pays for large models and many rows.
    """

    task: Task
    direction: Direction = field(default_factory=Curvature)
    readout: Which = "loss"
    method: Method = "auto"
    shard_rows: int = SHARD_ROWS
    compiled: bool = False

    def influence(
        self,
        module: nn.Module,
        queries: QueryGroups,
        train: Stream,
        train_ids: np.ndarray,
        *,
        work: Work = KEEP_NOTHING,
        progress: Progress | None = None,
    ) -> Influence:
        """Return the influence of every row on every query group.

        ``module`` is in evaluation mode and is left bit for bit as it was.

        Raises:
            ModelError: The model cannot be moved, or a row's loss is not its own.
            ForwardInfError: The move is lost in rounding, or memory does not hold a row.
        """
        n = len(train)
        _require_ids(train, train_ids)
        moves, choice, parts = self._swept(module, queries, train, work, progress)
        values = np.zeros((len(queries.ids), n), dtype=np.float32)
        loss, margin = np.empty(n), np.empty(n)
        passed = 0
        for part in parts:
            values[:, part.rows] += moves.coefficients[:, part.moves] @ self.changes(part)
            loss[part.rows], margin[part.rows] = part.base
            passed += part.passes
        scores = InfluenceScores(values, queries.ids, train_ids, {**self.describe(), **moves.facts})
        return Influence(scores, loss, margin, choice, moves.facts, passed)

    def top(
        self,
        module: nn.Module,
        queries: QueryGroups,
        train: Stream,
        train_ids: np.ndarray,
        k: int,
        *,
        sources: np.ndarray | None = None,
        work: Work = KEEP_NOTHING,
        progress: Progress | None = None,
    ) -> Top:
        """Return the top k proponents and opponents per query group, and the sums by source.

        As `influence` and its scores give them, but the ``(m, n)`` matrix is never held: only of
        groups whose moves do not fit into memory together are n numbers.

        Args:
            module: In evaluation mode; left bit for bit as it was.
            queries: What is asked about.
            train: The rows.
            train_ids: ``(n,)`` strings.
            k: Rows of each kind.
            sources: ``(n,)`` names of the rows' sources; None for no sums.
            work: Where finished shards are kept.
            progress: Called with the number of rows just read.

        Raises:
            ModelError, ForwardInfError: As `influence`.
        """
        _require_ids(train, train_ids)
        moves, choice, parts = self._swept(module, queries, train, work, progress)
        rows = TopRows(queries.ids, train_ids, k)
        sums = None if sources is None else SourceSums(queries.ids, sources)
        merged = Merged(moves.coefficients, len(train), [rows] if sums is None else [rows, sums])
        loss, passed = np.empty(len(train)), 0
        for part in parts:
            merged.add(part.moves, part.rows, self.changes(part))
            loss[part.rows] = part.base.loss
            passed += part.passes
        merged.finish()
        by_source = None if sums is None else sums.table()
        return Top(rows.table(), by_source, loss, choice, moves.facts, passed)

    def plan_moves(
        self, module: nn.Module, queries: QueryGroups, train: Stream, work: Work = KEEP_NOTHING
    ) -> tuple[Moves, Choice]:
        """Return the moves of the queries, and how rows are read under them.

        Raises:
            ModelError, ForwardInfError: As `influence`.
        """
        if not isinstance(self.task, Task):
            raise DataError(f"task is {self.task!r}: give an object, such as Classification()")
        if not len(train) or not len(queries.ids):
            raise DataError("there are no training rows or no queries: give at least one of each")
        if len(queries.rows) != len(queries.ids):
            raise DataError(f"{len(queries.rows)} query groups have {len(queries.ids)} ids")
        module = full_precision(module)
        some = train.part(0, min(len(train), max(train.batch_size, _PROBED_ROWS)))
        base = at_rest(module)
        first_that_fits(some, lambda batch: check_loss(base, self.task, batch))
        self._require_numbers(base, queries)
        moves = self.direction.plan(module, self.task, queries.rows, train, work)
        choice = choose(
            list(islice(moves, _PROBED)),
            moves.base,
            self.task,
            some,
            method=self.method,
            which=self.readout,
        )
        return moves, choice

    @torch.no_grad()
    def _require_numbers(self, base: Point, queries: QueryGroups) -> None:
        """Refuse queries whose loss is no number: they could move the model anywhere."""

        def fine(batch: Batch) -> bool:
            loss = self.task.query_loss(self.task.outputs(base, batch), batch.targets)
            return bool(torch.isfinite(loss).all())

        for name, rows in zip(queries.ids, queries.rows, strict=True):
            if not all(batches_that_fit(rows, fine)):
                raise DataError(f"the model's loss on query {name} is not a number: leave it out")

    def _swept(
        self,
        module: nn.Module,
        queries: QueryGroups,
        train: Stream,
        work: Work,
        progress: Progress | None,
    ) -> tuple[Moves, Choice, Iterator[Part]]:
        """Return the moves, how rows are read under them, and the parts as they are read."""
        moves, choice = self.plan_moves(module, queries, train, work)
        parts = sweep(
            moves,
            self.task,
            train,
            method=choice.method,
            compiled=self.compiled,
            shard_rows=self.shard_rows,
            work=work,
            progress=progress,
        )
        return moves, choice, parts

    def changes(self, part: Part) -> np.ndarray:
        """Return the readout of a part of a sweep, ``(k, rows)``."""
        return part.loss if self.readout == "loss" else part.margin

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat the scores."""
        return {
            "task": self.task.describe(),
            "readout": self.readout,
            "method": self.method,
            "compiled": self.compiled,
            "shard_rows": self.shard_rows,
            "versions": {"forward_inf_mlflow": __version__, "torch": torch.__version__},
            **self.direction.describe(),
        }


def _require_ids(train: Stream, ids: np.ndarray) -> None:
    if len(ids) != len(train):
        raise DataError(f"{len(train):,} training rows have {len(ids):,} ids: give one for each")
