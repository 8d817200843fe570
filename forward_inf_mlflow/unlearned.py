"""Unlearned: what a leak does for its query, by the mirrored step.

The model is moved along the gradient of each leaked training row, and the query that it was leaked
to is read: to first order that is how the query's logit margin changes when the row is taken out.
"""

from __future__ import annotations

import numpy as np

from forward_inf_mlflow.detect.leakage import Leaked
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.sweep import sweep
from forward_inf_mlflow.work import Within, Work


def margin_changes(
    engine: ForwardInfluence, problem: Problem, leaks: Leaked, most: int, work: Work
) -> np.ndarray:
    """Return the change of every leaked query's margin without its training row, ``(m,)``.

    Args:
        engine: How the model is moved and read.
        problem: Model and rows.
        leaks: Which query is a copy of which training row.
        most: How many leaks are asked about: the first ones; the others are NaN, as are the
            queries that did not leak.
        work: Where finished pieces are kept.
    """
    found = np.full(len(problem.queries), np.nan)
    leaked = np.flatnonzero(leaks.flags)[:most]
    if not len(leaked):
        return found
    rows, which = np.unique(leaks.train_index[leaked], return_inverse=True)
    within = Within(work, "unlearned")
    groups = QueryGroups(
        [problem.train.take(rows[[i]]) for i in range(len(rows))], rows.astype(str)
    )
    try:
        moves, choice = engine.plan_moves(problem.module, groups, problem.train, within)
    except ForwardInfError:  # the rows' losses are all but zero: lost in rounding
        return found
    queries = problem.queries.take(leaked)
    values = np.zeros((len(rows), len(leaked)))
    for part in sweep(moves, engine.task, queries, method=choice.method, work=within):
        values[:, part.rows] += moves.coefficients[:, part.moves] @ part.margin
    found[leaked] = -values[which.reshape(-1), np.arange(len(leaked))]
    return found
