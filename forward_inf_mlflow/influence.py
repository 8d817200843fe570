"""ForwardInfluence: the whole algorithm on one page.

    queries --direction--> moves (k), coefficients (m, k)
    training rows + moves --sweep--> change of loss (k, n)
    coefficients @ change of loss --> influence (m, n)

Source: "The Mirrored Influence Hypothesis" (Ko et al., CVPR 2024, arXiv 2402.08922): instead of a
gradient per training row, move the model along the queries and see with forward passes how the
training rows' losses change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from forward_inf_mlflow.directions import Direction, GradientStep
from forward_inf_mlflow.scores import InfluenceScores
from forward_inf_mlflow.sweep import Progress, Swept, sweep
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Tensors


@dataclass(frozen=True)
class QueryGroups:
    """Queries that are asked about together: their rows and one name per group."""

    rows: Sequence[Tensors]
    ids: np.ndarray

    @classmethod
    def each(cls, queries: Tensors, ids: np.ndarray) -> QueryGroups:
        """Ask about every query alone."""
        return cls([queries.take(np.array([i])) for i in range(len(queries))], ids)

    @classmethod
    def together(cls, queries: Tensors, name: str = "all queries") -> QueryGroups:
        """Ask about the mean over all queries."""
        return cls([queries], np.array([name]))


@dataclass(frozen=True, kw_only=True)
class ForwardInfluence:
    """Influence of training rows on queries by forward passes over the training rows.

    Attributes:
        task: The loss of a row.
        direction: How the queries move the model.
    """

    task: Task
    direction: Direction = field(default_factory=GradientStep)

    def influence(
        self,
        module: nn.Module,
        queries: QueryGroups,
        train: Tensors,
        train_ids: np.ndarray,
        progress: Progress | None = None,
    ) -> tuple[InfluenceScores, Swept]:
        """Return the scores ``(m, n)`` and the sweep that they were read from.

        ``module`` is in evaluation mode and is left bit for bit as it was.
        """
        moves = self.direction.plan(module, self.task, queries.rows)
        swept = sweep(moves, self.task, train, progress)
        values = np.asarray(moves.coefficients @ swept.changes, dtype=np.float32)
        provenance = {"task": self.task.name, **self.direction.describe()}
        return InfluenceScores(values, queries.ids, train_ids, provenance), swept
