"""Singles: the rows that an audit asks about one by one, within one budget.

Before anything is judged, queries that may be copies are asked about, which tells leaks, and those
with the largest loss. Once rows are judged, what they were accused of is asked about too: the leaks
that nobody suspected, and mislabeled training rows with the label that they were given. Who speaks
for such a label, and who against, helps whoever must mend it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forward_inf_mlflow.detect.mislabeled import Mislabeled
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.progress import Progress, stage
from forward_inf_mlflow.scores import InfluenceScores
from forward_inf_mlflow.work import Within, Work


@dataclass(frozen=True)
class Asked:
    """Influence on single rows.

    Attributes:
        queries: On queries, ``(p, n)``.
        rows: On mislabeled training rows with the label that they were given, ``(r, n)``; NaN on
            the row itself, which says nothing.
    """

    queries: InfluenceScores
    rows: InfluenceScores

    def after(self, queries: InfluenceScores) -> Asked:
        """Return it with the queries that were asked about before."""
        values = np.concatenate([queries.values, self.queries.values])
        ids = np.concatenate([queries.query_ids, self.queries.query_ids])
        joined = InfluenceScores(values, ids, queries.train_ids, queries.provenance)
        return Asked(joined, self.rows)


def whom_to_ask(suspects: np.ndarray, loss: np.ndarray, most: int) -> np.ndarray:
    """Return the queries to ask about before anything is judged, sorted positions.

    Suspected copies, then those with the largest loss, which show a row's usual influence. Three
    quarters of what the copies leave are kept for what the verdicts bring up, see
    `whom_else_to_ask`.

    Args:
        suspects: ``(m,)`` the training row that each query may be a copy of, or -1.
        loss: ``(m,)`` the queries' losses.
        most: How many rows may be asked about in all.
    """
    copies = min(most, int((suspects >= 0).sum()))
    order = np.lexsort((-loss, suspects < 0))
    return np.sort(order[: copies + -(-(most - copies) // 4)])


@dataclass(frozen=True)
class Rest:
    """Whom else to ask: positions of training rows and of queries."""

    rows: np.ndarray
    queries: np.ndarray


def whom_else_to_ask(
    asked: np.ndarray,
    leaked: np.ndarray,
    query_loss: np.ndarray,
    wrong: Mislabeled,
    loss: np.ndarray,
    most: int,
) -> Rest:
    """Return the rows to ask about once the verdicts are known.

    Leaked queries that nobody suspected, then the most suspicious mislabeled rows, up to what is
    left and up to half of what the leaks leave of ``most``, then queries with the largest loss.

    Args:
        asked: Positions of the queries that were asked about already.
        leaked: ``(m,)`` bool.
        query_loss: ``(m,)``.
        wrong: The verdict on the training rows.
        loss: ``(n,)`` the training rows' losses, by which equally suspicious ones are ordered.
        most: How many rows may be asked about in all.
    """
    left = most - len(asked)
    order = np.lexsort((-query_loss, ~leaked))
    order = order[~np.isin(order, asked)]
    unseen = order[leaked[order]][:left]
    half = (most - min(most, int(leaked.sum()))) // 2
    flagged = np.flatnonzero(wrong.flags)
    flagged = flagged[np.lexsort((-loss[flagged], -wrong.suspicion[flagged]))]
    rows = flagged[: min(half, left - len(unseen))]
    return Rest(np.sort(rows), np.sort(order[: left - len(rows)]))


def ask(
    engine: ForwardInfluence, problem: Problem, rest: Rest, work: Work, progress: Progress
) -> tuple[Asked, int]:
    """Return the influence on some training rows and queries, and how many rows were passed.

    Where moves along the training rows drown in rounding, the queries are asked about alone.
    """
    rows, queries = rest.rows, rest.queries
    n, ids = len(problem.train), problem.train_rows.ids
    if not len(rows) + len(queries):
        nobody = InfluenceScores(np.empty((0, n), np.float32), ids[:0], ids)
        return Asked(nobody, nobody), 0
    own = QueryGroups.each(problem.train.take(rows), ids[rows])
    others = QueryGroups.each(problem.queries.take(queries), problem.query_rows.ids[queries])
    names = np.concatenate([own.ids, others.ids])
    try:
        found = engine.influence(
            problem.module,
            QueryGroups([*own.rows, *others.rows], names),
            problem.train,
            ids,
            work=Within(work, "judged" if len(rows) else "judged-queries"),
            progress=stage(progress, "influence on the judged rows", (1 + len(names)) * n),
        )
    except ForwardInfError:
        if not len(rows):
            raise
        return ask(engine, problem, Rest(rows[:0], queries), work, progress)
    values, told = found.scores.values, found.scores.provenance
    values[np.arange(len(rows)), rows] = np.nan  # a row speaks for itself
    return (
        Asked(
            InfluenceScores(values[len(rows) :], others.ids, ids, told),
            InfluenceScores(values[: len(rows)], own.ids, ids, told),
        ),
        found.forward_passes,
    )
