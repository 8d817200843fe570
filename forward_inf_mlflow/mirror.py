"""Mirror: who answers the mirrored question, whatever kind of model it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.detect.leakage import Leaked
from forward_inf_mlflow.influence import ForwardInfluence, Influence, QueryGroups
from forward_inf_mlflow.moved import FOLDS, moved_expert
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.progress import Progress, stage
from forward_inf_mlflow.settings import Settings
from forward_inf_mlflow.singles import Asked, Rest, ask
from forward_inf_mlflow.unlearned import margin_changes
from forward_inf_mlflow.work import Work

#: What the queries are called together.
ALL = "all queries"


class Mirror(Protocol):
    """Changes the model by queries, or by training rows, and reads what becomes of all rows."""

    @property
    def most(self) -> int:
        """Return how many rows may be asked about one by one."""
        ...

    def influence(self, asked: np.ndarray) -> Influence:
        """Return the influence on all queries together, and on those at ``asked`` one by one."""
        ...

    def moved(self, trusted: np.ndarray) -> Expert | None:
        """Return what the model says once the trusted queries ``(m,)`` have changed it, or None."""
        ...

    def margin_changes(self, leaks: Leaked) -> np.ndarray:
        """Return how leaked queries' margins change without their rows, ``(m,)``, NaN elsewhere."""
        ...

    def ask(self, rest: Rest) -> tuple[Asked, int]:
        """Return the influence on rows that the verdicts bring up, and how many rows were read."""
        ...


@dataclass(frozen=True)
class ByMoves:
    """Moves the model along the queries, and sweeps the rows with forward passes."""

    engine: ForwardInfluence
    problem: Problem
    settings: Settings
    progress: Progress
    work: Work

    @property
    def most(self) -> int:
        """Return as many as the user allows."""
        return self.settings.influence_queries

    def influence(self, asked: np.ndarray) -> Influence:
        """Sweep all rows under one move for all queries, and one for each of some."""
        problem, n = self.problem, len(self.problem.train)
        each = QueryGroups.each(problem.queries.take(asked), problem.query_rows.ids[asked])
        return self.engine.influence(
            problem.module,
            QueryGroups([problem.queries, *each.rows], np.array([ALL, *each.ids])),
            problem.train,
            problem.train_rows.ids,
            work=self.work,
            progress=stage(self.progress, "influence of the training rows", (2 + len(asked)) * n),
        )

    def moved(self, trusted: np.ndarray) -> Expert | None:
        """Move the model along three quarters of the queries at a time."""
        rows = len(self.problem.train) + len(self.problem.queries)
        advance = stage(self.progress, "answers of the moved model", (FOLDS + 1) * rows)
        seed = self.settings.seed
        return moved_expert(self.engine, self.problem, trusted, seed, self.work, advance)

    def margin_changes(self, leaks: Leaked) -> np.ndarray:
        """Move the model along each leaked training row."""
        return margin_changes(self.engine, self.problem, leaks, self.most, self.work)

    def ask(self, rest: Rest) -> tuple[Asked, int]:
        """Sweep all rows under a move for each of the rest."""
        return ask(self.engine, self.problem, rest, self.work, self.progress)
