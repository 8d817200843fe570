"""Screened: many queries, each swept over the few rows that its last layer points to.

The last layer's closed form names candidates, proponents and opponents, for all queries at once
(`screen`); each query's own move is then read on its candidates only. How many of the rows that a
whole sweep puts first are among them is measured on a few queries and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import nn

from forward_inf_mlflow.directions.moves import Move
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups, Top
from forward_inf_mlflow.planner import CHECKED
from forward_inf_mlflow.screen import candidates, last_layer, recall
from forward_inf_mlflow.summaries import TopRows
from forward_inf_mlflow.sweep import Progress, sweep
from forward_inf_mlflow.task import Forward
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Within, Work


def screened_top(
    engine: ForwardInfluence,
    module: nn.Module,
    queries: QueryGroups,
    train: Tensors,
    train_ids: np.ndarray,
    k: int,
    *,
    count: int,
    work: Work = KEEP_NOTHING,
    progress: Progress | None = None,
) -> Top:
    """Return the top k proponents and opponents per query, as far as the candidates hold them.

    Cost: as ``engine.top`` for the checked queries; for each other two passes over its candidates.

    Args:
        engine: How influence is computed.
        module: In evaluation mode; left bit for bit as it was.
        queries: One row each.
        train: The rows.
        train_ids: ``(n,)`` strings.
        k: Rows of each kind.
        count: Candidates of each kind per query.
        work: Where finished pieces are kept.
        progress: Called with the number of rows just read.

    Returns:
        What ``engine.top`` does, without sums by source. Its facts also hold "candidates" (a query
        and kind), "recall" (the share of the true top k among them) and "recall_queries".

    Raises:
        ModelError: The model has no last layer that answers for its rows; or as ``engine.top``.
        DataError: A query group has several rows, or ``count`` is below ``k``.
    """
    if any(len(rows) != 1 for rows in queries.rows):
        raise DataError("candidates are found for single queries: ask about them one by one")
    if count < k:
        raise DataError(f"{count} candidates cannot hold the top {k}: take more (--candidates)")
    moves, choice = engine.plan_moves(module, queries, train, work)
    found = _candidates(engine, module, queries, train, count)
    checked = np.unique(np.linspace(0, len(queries.ids) - 1, CHECKED).astype(int))
    looked_at = [
        np.arange(len(train)) if group in checked else np.unique(rows)
        for group, rows in enumerate(found)
    ]
    values = [np.zeros(len(rows), np.float32) for rows in looked_at]
    loss, passed = np.full(len(train), np.nan), 0
    for number, move in enumerate(moves):
        groups = np.flatnonzero(moves.coefficients[:, number])
        if not len(groups):
            continue
        rows = np.unique(np.concatenate([looked_at[group] for group in groups]))
        for part in sweep(
            _One(moves.base, move),
            engine.task,
            train.take(rows),
            method=choice.method,
            compiled=engine.compiled,
            shard_rows=engine.shard_rows,
            work=Within(work, f"candidates/{number:05}"),
            progress=progress,
        ):
            read = rows[part.rows]
            changes = engine.changes(part)[0]
            for group in groups.tolist():
                mine = np.isin(read, looked_at[group], assume_unique=True)
                where = np.searchsorted(looked_at[group], read[mine])
                values[group][where] += moves.coefficients[group, number] * changes[mine]
            loss[read] = part.base.loss
            passed += part.passes
    tables = []
    for group, rows in enumerate(looked_at):
        best = TopRows(queries.ids[[group]], train_ids[rows], k)
        best.add(np.array([0]), 0, values[group][None])
        tables.append(best.table())
    table = pd.concat(tables).sort_values("kind", ascending=False, kind="stable", ignore_index=True)
    facts = {
        **moves.facts,
        "candidates": count,
        "recall": recall(torch.as_tensor(found[checked]), _first_and_last(values, checked, k)),
        "recall_queries": len(checked),
    }
    return Top(table, None, loss, choice, facts, passed)


def _candidates(
    engine: ForwardInfluence, module: nn.Module, queries: QueryGroups, train: Tensors, count: int
) -> np.ndarray:
    """Return the rows that speak most for and most against each query, ``(m, 2 count)``."""
    h, r = last_layer(module, engine.task, train)
    asked = [last_layer(module, engine.task, rows, queries=True) for rows in queries.rows]
    query_h, query_r = (torch.cat(parts) for parts in zip(*asked, strict=True))
    # A loss changes most where the residual is large; a margin does so on rows known by heart too.
    cosine = engine.readout == "margin"
    both = [
        candidates(query_h, sign * query_r, h, r, count=count, cosine=cosine) for sign in (1, -1)
    ]
    return torch.cat(both, 1).numpy()


def _first_and_last(values: Sequence[np.ndarray], groups: np.ndarray, k: int) -> torch.Tensor:
    """Return the k first and the k last of all rows, ``(groups, 2 k)``."""
    order = np.stack([np.argsort(-values[group], kind="stable") for group in groups.tolist()])
    return torch.as_tensor(np.concatenate([order[:, :k], order[:, -k:]], 1))


@dataclass(frozen=True)
class _One:
    """A single move as moves."""

    base: Forward
    move: Move
    coefficients: np.ndarray = field(default_factory=lambda: np.eye(1))
    facts: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Move]:
        return iter([self.move])
