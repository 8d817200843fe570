"""Moved: what the audited model would say if it had learned the trusted queries too.

The mirrored question, asked for answers instead of losses: the model is moved towards three
quarters of the queries (`directions`), and a sweep reads how its answers to every training row and
to the other quarter change. Training labels that are wrong by a rule are in the model, in half-
models and in neighbours alike; the queries contradict them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.directions import Moves
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.probe import Choice
from forward_inf_mlflow.sweep import sweep
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import Within, Work

#: Parts of the queries, each asked of the model that was moved by the others; the fewest queries.
FOLDS, MIN_QUERIES = 4, 40
#: Numbers that the answers of all rows may hold.
_HELD = 2**28


def moved_expert(
    engine: ForwardInfluence,
    problem: Problem,
    trusted: np.ndarray,
    seed: int,
    work: Work,
    progress: Callable[[int], None] | None = None,
) -> Expert | None:
    """Return how the queries change the model's answers, in units of their usual change.

    Every training row is asked of one of the moved models, as every query is, so that a right
    training row and a query are changed alike.

    Args:
        engine: How the model is moved and read.
        problem: Model and rows, with classes.
        trusted: ``(m,)`` bool, queries that count.
        seed: Of the parts.
        work: Where finished pieces are kept.
        progress: Called with the number of rows just read.

    Returns:
        None where there are too few queries, too many answers to hold, or moves that are lost in
        rounding (the queries' losses are all but zero): then they teach nothing either.
    """
    n, m = len(problem.train), len(problem.queries)
    assert problem.classes is not None, "answers are logits of classes here"
    if trusted.sum() < MIN_QUERIES or FOLDS * (n + m) * len(problem.classes) > _HELD:
        return None
    parts = Parts.drawn(trusted, n, seed)
    groups = [problem.queries.take(others) for others in parts.others(trusted)]
    within = Within(work, "moved")
    names = np.array([f"all but part {part}" for part in range(FOLDS)])
    try:
        moves, choice = engine.plan_moves(
            problem.module, QueryGroups(groups, names), problem.train, within
        )
    except ForwardInfError:
        return None
    train = _changes(engine, moves, choice, problem.train, Within(within, "train"), progress)
    queries = _changes(engine, moves, choice, problem.queries, Within(within, "queries"), progress)
    return parts.expert("the model moved by the queries", train, queries)


@dataclass(frozen=True)
class Parts:
    """Which part each query is in, and which moved model each training row is asked of.

    Attributes:
        fold: ``(m,)`` the part, -1 for a query that does not count.
        side: ``(n,)`` the part that the model was not moved by.
    """

    fold: np.ndarray
    side: np.ndarray

    @classmethod
    def drawn(cls, trusted: np.ndarray, n: int, seed: int) -> Parts:
        """Draw the parts of the trusted queries ``(m,)`` bool, and of ``n`` training rows."""
        rng = np.random.default_rng([seed, 31])
        fold = np.full(len(trusted), -1)
        fold[trusted] = rng.permutation(int(trusted.sum())) % FOLDS
        return cls(fold, rng.integers(FOLDS, size=n))

    def others(self, trusted: np.ndarray) -> list[np.ndarray]:
        """Return for each part the positions of the trusted queries outside of it."""
        return [np.flatnonzero(trusted & (self.fold != part)) for part in range(FOLDS)]

    def expert(self, name: str, train: np.ndarray, queries: np.ndarray) -> Expert | None:
        """Return the changes of the answers in units of their usual change; None if there is none.

        Args:
            name: Who says so.
            train: ``(FOLDS, n, K)`` how each part's others change the training rows' answers.
            queries: ``(FOLDS, m, K)`` the same of the queries.
        """
        usual = float(queries.std())
        if not usual > 0 or not np.isfinite(usual):
            return None
        return Expert(
            name,
            train[self.side, np.arange(len(self.side))] / usual,
            queries[np.maximum(self.fold, 0), np.arange(len(self.fold))] / usual,
        )


def _changes(
    engine: ForwardInfluence,
    moves: Moves,
    choice: Choice,
    rows: Tensors,
    work: Work,
    progress: Callable[[int], None] | None,
) -> np.ndarray:
    """Return the change of the answers under each group, ``(groups, rows, K)``."""
    found: np.ndarray | None = None
    for part in sweep(
        moves,
        engine.task,
        rows,
        method=choice.method,
        with_outputs=True,
        compiled=engine.compiled,
        work=work,
        progress=progress,
    ):
        assert part.outputs is not None, "the sweep was asked for them"
        if found is None:
            shape = len(moves.coefficients), len(rows), part.outputs.shape[2]
            found = np.zeros(shape, np.float32)
        found[:, part.rows] += np.einsum(
            "gk,krc->grc", moves.coefficients[:, part.moves].astype(np.float32), part.outputs
        )
    assert found is not None, "there are rows"
    return found


def moved_cost(problem: Problem) -> int:
    """Return the forward passes that reading the moved model takes, its moves left out."""
    if problem.classes is None or len(problem.queries) < MIN_QUERIES:
        return 0
    return (FOLDS + 1) * (len(problem.train) + len(problem.queries))
