"""Planning: what an audit would do with the same arguments, and what it would cost."""

from __future__ import annotations

from typing import Any, Literal

from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.examine import plan_influence
from forward_inf_mlflow.half_models import halves_cost, timed, trainings
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.moved import moved_cost
from forward_inf_mlflow.planner import Plan, RefitPlan
from forward_inf_mlflow.posing import pose
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.settings import Effort, Settings
from forward_inf_mlflow.training_function import load_trainer
from forward_inf_mlflow.work import KEEP_NOTHING, Work
from forward_inf_mlflow.workplace import named_direction


def plan_audit(
    model_uri: str,
    *,
    effort: Effort = "standard",
    fdr: float = 0.1,
    trainer: str | None = None,
    influence_queries: int = 100,
    direction: Literal["auto", "gradient", "optimizer", "replay", "curvature"] = "auto",
    readout: Literal["auto", "loss", "margin"] = "auto",
    weight_decay: float | None = None,
    compiled: bool = False,
    **where: Any,
) -> dict[str, Any]:
    """Return what `auditing.audit` would do with the same arguments, and its cost; log nothing.

    Costs are predicted forward-equivalents of one row: "direction", "sweep", "halves", "total";
    with a trainer, one fit is made, from which "training_seconds" of all are predicted.

    Raises:
        ForwardInfError: The audit could not be made; the message says what to do.
    """
    most = {name: where.get(name) for name in ("batch_size", "max_rows", "steps")}
    require_positive(influence_queries=influence_queries, **most)
    seed = where.get("seed", 0)
    settings = settings_of(
        seed=seed,
        effort=effort,
        fdr=fdr,
        trainer=trainer,
        influence_queries=influence_queries,
        direction=direction,
        readout=readout,
        weight_decay=weight_decay,
        compiled=compiled,
    )
    if trainer is not None:
        load_trainer(trainer)
    posed = pose(model_uri, fixed=trainer is not None, **where)
    problem = posed.problem
    planned = plan_influence(posed.model, problem, settings)
    return {
        "model": posed.version.uri,
        "task": problem.task.name,
        **planned_costs(planned, posed.model, problem, settings, KEEP_NOTHING),
        "rows": len(problem.train),
        "queries": len(problem.queries),
    }


def planned_costs(
    planned: Plan | RefitPlan,
    model: AuditedModel,
    problem: Problem,
    settings: Settings,
    work: Work,
) -> dict[str, Any]:
    """Return the plan with what the half-models cost, and how long a trainer's fits will take.

    One of these is made and timed, and kept.
    """
    halves = halves_cost(model, problem, settings)
    answers = 0 if model.fixed else moved_cost(problem)
    more = planned.fits if isinstance(planned, RefitPlan) else 0
    total = planned.costs["total"] + answers + halves
    costs = {**planned.costs, "answers": answers, "halves": halves, "total": total}
    return {
        **planned.as_dict(),
        "forward_equivalents": costs,
        "trainings": trainings(model, settings) + more,
        "training_seconds": timed(problem, settings, more, work),
    }


def settings_of(
    *,
    seed: int,
    direction: Literal["auto", "gradient", "optimizer", "replay", "curvature"],
    readout: Literal["auto", "loss", "margin"],
    weight_decay: float | None,
    **others: Any,
) -> Settings:
    """Return what changes an audit's numbers, from the arguments of `auditing.audit`.

    Raises:
        ForwardInfError: There is no such readout or direction.
    """
    if readout not in ("auto", "loss", "margin"):
        raise ForwardInfError(f"there is no readout '{readout}': use auto, loss or margin")
    return Settings(
        seed=seed,
        direction=named_direction(direction, weight_decay, seed),
        readout=None if readout == "auto" else readout,
        weight_decay=weight_decay,
        **others,
    )


def require_positive(**numbers: int | None) -> None:
    """Raise a `ForwardInfError` that names the first number below 1."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ForwardInfError(f"{name.replace('_', ' ')} is {value}: it must be at least 1")
