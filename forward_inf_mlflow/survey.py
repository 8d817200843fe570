"""Survey: what the planner must know about a model and its rows."""

from __future__ import annotations

import math

import torch

from forward_inf_mlflow.directions.moves import at_rest
from forward_inf_mlflow.memory import batches_that_fit, room
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.penalty import is_linear, penalty_of
from forward_inf_mlflow.models.trees import Boosting, Trees
from forward_inf_mlflow.planner import Job
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.tasks import Regression
from forward_inf_mlflow.tensors import sample

#: Training rows that show how saturated the model is.
_SAMPLE = 1024


@torch.no_grad()
def survey(
    model: AuditedModel,
    problem: Problem,
    *,
    groups: int,
    queries: int,
    weight_decay: float | None = None,
) -> Job:
    """Look at a sample of the training rows.

    Args:
        model: Where the penalty is known from, if it is an estimator.
        problem: Model and rows.
        groups: Query groups to be asked about.
        queries: Query rows in all groups together.
        weight_decay: The objective's penalty, where the user knows better.
    """
    base = at_rest(problem.module)
    rows = sample(problem.train, _SAMPLE, 0)
    losses = batches_that_fit(rows, lambda batch: problem.task.readout(base, batch).loss)
    known = sum(int((loss < -math.log(0.99)).sum()) for loss in losses)
    penalty = weight_decay
    if penalty is None and model.estimator is not None:
        penalty = penalty_of(model.estimator, len(problem.train))
    return Job(
        rows=len(problem.train),
        groups=groups,
        queries=queries,
        parameters=sum(p.numel() for p in base.parameters.values()),
        saturates=problem.task.saturates,
        known=known / len(rows),
        penalty=penalty,
        quadratic=isinstance(problem.task, Regression),
        trees=isinstance(problem.module, Trees),
        stages=problem.module.count if isinstance(problem.module, Boosting) else 0,
        linear=model.estimator is not None and is_linear(model.estimator),
        device=problem.train.device.type,
        memory=room(problem.train.device),
    )
