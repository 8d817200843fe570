"""Planner: which direction, which readout, and what they will cost; numbers in, a plan out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from forward_inf_mlflow.directions import (
    Curvature,
    Direction,
    GradientStep,
    LeafValues,
    OptimizerSteps,
    Refit,
    Replay,
)
from forward_inf_mlflow.directions.curvature import DENSE
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.probe import Which
from forward_inf_mlflow.task import Task

#: A model is saturated where so many of its training rows have a probability above .99.
SATURATED = 0.5
#: Multiplications that the inner products of a curvature's gradients may take: about half a minute.
_SOON = {"cpu": 2**40, "cuda": 2**46}
#: Passes of one row beyond which a sweep is long.
_LONG = 10**8
#: Queries that are swept over all rows where there are candidates, to see what these miss.
CHECKED = 4


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done.

    Attributes:
        rows: Training rows, n.
        groups: Query groups, m.
        queries: Rows of all groups together.
        parameters: Trainable ones, P.
        saturates: Whether the task's loss does.
        known: Share of sampled training rows whose target the model gives a probability above .99.
        penalty: Weight decay of the training objective, in nats per row; None if nobody knows.
        linear: Whether the outputs are linear in the parameters, so that the objective is convex.
        trees: Whether the model is an ensemble of trees: then only its leaves' values can move.
        stages: Trees that are estimated one after the other with each query; 0 for a forest.
        quadratic: Whether the loss is quadratic in the outputs: then no penalty at all is fine too.
        device: "cpu" or "cuda", where the work is done.
        memory: Bytes there that a direction's vectors may take.
    """

    rows: int
    groups: int
    queries: int
    parameters: int
    saturates: bool
    known: float
    penalty: float | None = None
    linear: bool = False
    quadratic: bool = False
    trees: bool = False
    stages: int = 0
    device: str = "cpu"
    memory: int = 2**30


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        direction: How queries move the model.
        readout: What is read of a training row.
        why: One sentence.
        costs: Predicted forward-equivalents of one row: "direction", "sweep" and "total".
        candidates: Rows of each kind that each query is swept over; None for all rows.
    """

    direction: Direction
    readout: Which
    why: str
    costs: Mapping[str, int]
    candidates: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as ``audit.json`` keeps it."""
        return {
            **self.direction.describe(),
            "readout": self.readout,
            "why": self.why,
            **({"candidates": self.candidates} if self.candidates else {}),
            "forward_equivalents": dict(self.costs),
        }


@dataclass(frozen=True)
class RefitPlan:
    """What will be done with a model that no query can move.

    Attributes:
        refit: How often the trainer fits it anew.
        readout: What is read of a training row.
        why: One sentence.
        costs: As of a `Plan`, without the fits themselves.
        fits: How many these are, at most.
    """

    refit: Refit
    readout: Which
    why: str
    costs: Mapping[str, int]
    fits: int

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as ``audit.json`` keeps it."""
        return {
            **self.refit.describe(),
            "readout": self.readout,
            "why": self.why,
            "forward_equivalents": dict(self.costs),
        }


def plan(
    job: Job,
    *,
    direction: Direction | None = None,
    readout: Which | None = None,
    gradients: int = Curvature.gradients,
    candidates: int | None = None,
    seed: int = 0,
) -> Plan:
    """Choose what nobody has chosen.

    The direction is the inverse curvature, as long as it fits into memory: on every model that was
    measured it comes before a plain step, and it needs no learning rate. Where outputs are linear
    in few parameters and the penalty is known, it is undamped.

    Args:
        job: What is to be done.
        direction: What the user chose.
        readout: What the user chose.
        gradients: How many gradients the curvature may be drawn from; see `Curvature`.
        candidates: Rows of each kind that each query is swept over; None sweeps all. See
            `screened`.
        seed: Of what the direction draws.

    Raises:
        ForwardInfError: The user chose what this model cannot do.
    """
    reasons = []
    if job.trees:
        _require_leaves(direction, candidates)
        direction = LeafValues()
        reasons.append(_STAGED if job.stages else _COUNTED)
    elif direction is None:
        direction = Curvature(
            penalty=job.penalty or 0.0,
            gradients=gradients,
            seed=seed,
            memory=job.memory,
            multiplications=_SOON.get(job.device, _SOON["cpu"]),
        )
        known = job.penalty is not None if job.quadratic else bool(job.penalty)
        if job.linear and known and job.parameters <= DENSE:
            direction = replace(direction, damping=0.0)
            reasons.append("the objective is convex and its penalty known, so no damping is added")
        elif not direction.fits(job.parameters):
            direction = GradientStep()
            reasons.append(
                "a plain step, which is weaker, because no curvature of "
                f"{job.parameters / 1e6:,.0f} million parameters fits into {_there(job)}"
            )
    elif isinstance(direction, Curvature | Replay) and not direction.penalty:
        direction = replace(direction, penalty=job.penalty or 0.0)
    if isinstance(direction, Curvature):
        solver, moves = direction.outlook(job.parameters, job.rows, job.groups)
        reasons.insert(0, _SOLVERS[solver].format(there=_there(job)))
        if moves != job.groups:
            reasons.append(f"{job.groups:,} query groups share {moves:,} moves along eigenvectors")
    else:
        moves = _moves(direction, job.groups)
        if not reasons:
            reasons.append("the direction was asked for")
    if readout is None:
        full = job.saturates and job.known >= SATURATED
        readout = "margin" if full else "loss"
        if full:
            reasons.append(
                f"margins are read, because {job.known:.0%} of the training rows' losses are "
                "saturated"
            )
    made = direction_cost(direction, job)
    swept = (moves + 1) * job.rows
    if candidates is not None and moves < job.groups:
        candidates = None
        reasons.append("these are read of all rows, so that no candidates are needed")
    if candidates is not None:
        checked = min(CHECKED, job.groups)
        swept = 2 * (checked * job.rows + (moves - checked) * min(2 * candidates, job.rows))
        reasons.append(
            f"each query is swept over its {candidates:,} likeliest proponents and opponents, "
            f"{checked} of them over all rows to see what that misses"
        )
    elif moves == job.groups and swept > _LONG:
        reasons.append("a sweep over candidates alone would be much shorter (--candidates 1000)")
    costs = {"direction": made, "sweep": swept, "total": made + swept}
    return Plan(direction, readout, "; ".join(reasons), costs, candidates)


def suited(found: Plan, task: Task, *, asked: bool) -> Plan:
    """Return a plan with the task's own damping, and with the cost of what a reading takes there.

    Args:
        found: From `plan`.
        task: Whose readings may take several passes.
        asked: Whether the user chose the direction, which then stays as it is.
    """
    direction = found.direction
    if isinstance(direction, Curvature) and task.damping is not None and not asked:
        direction = replace(direction, multiple=task.damping)
    costs = {name: count * task.passes for name, count in found.costs.items()}
    why = found.why
    if task.passes > 1:
        why += f"; each reading is the mean over {task.passes} times of noise"
    return replace(found, direction=direction, why=why, costs=costs)


def plan_refits(
    refit: Refit,
    *,
    rows: int,
    queries: int,
    singles: int,
    parts: int,
    direction: Direction | None = None,
    readout: Which | None = None,
) -> RefitPlan:
    """Plan for a model that no query can move, with the cost in fits.

    Args:
        refit: How often, and how far seeds must agree.
        rows: Training rows.
        queries: Query rows.
        singles: Rows that are asked about one by one.
        parts: Parts of the queries that the model's answers are asked with.
        direction: What the user chose.
        readout: What the user chose.

    Raises:
        ForwardInfError: The user chose a direction.
    """
    if direction is not None:
        name = direction.describe()["direction"]
        raise ForwardInfError(
            f"this model cannot be moved by '{name}', but is fitted anew by the trainer: leave "
            "--direction out"
        )
    fits = refit.fits(singles, parts)
    swept = fits * (rows + queries)
    costs = {"direction": 0, "sweep": swept, "total": swept}
    why = (
        "the trainer fits the model anew with the queries and without, because no query can move "
        f"it; over {refit.least_seeds} seeds, or up to {refit.most_seeds} until they agree"
    )
    return RefitPlan(refit, readout or "loss", why, costs, fits)


_COUNTED = "the query is counted into the leaves that it falls into, because the trees stay"
_STAGED = "each stage's leaves are estimated anew with the query, because the trees stay"


def _require_leaves(direction: Direction | None, candidates: int | None) -> None:
    """Refuse what follows gradients, or reads a last layer, which trees do not have."""
    if direction is not None:
        name = direction.describe()["direction"]
        raise ForwardInfError(
            f"trees are not moved by '{name}' but by their leaves' values: leave --direction out"
        )
    if candidates is not None:
        raise ForwardInfError(
            "trees have no last layer to find candidates by: leave --candidates out"
        )


_SOLVERS = {
    "dense": "curvature as a whole matrix, because there are few parameters",
    "fisher": "curvature from drawn gradients of some rows, because they fit into {there}",
    "sketch": "curvature by its leading eigenvectors, because there are many parameters",
    "cg": "curvature by conjugate gradients, as asked for",
}


def _there(job: Job) -> str:
    """Return what may be held, in words."""
    size = f"{job.memory / 2**30:,.0f} GiB" if job.memory >= 2**30 else f"{job.memory >> 20} MiB"
    return f"{size} of the {'card' if job.device == 'cuda' else 'host'}'s memory"


def _moves(direction: Direction, groups: int) -> int:
    """Return how many moves a direction makes of query groups, at most."""
    if isinstance(direction, Replay):
        return groups * direction.most_seeds
    both = isinstance(direction, GradientStep | OptimizerSteps) and direction.sign == "both"
    return groups * (2 if both else 1)


def direction_cost(direction: Direction, job: Job) -> int:
    """Return the forward-equivalents that making the moves takes, at most."""
    if isinstance(direction, LeafValues):
        return job.queries + (job.rows * (job.groups + 1) if job.stages else 0)
    gradients = 3 * job.queries
    if isinstance(direction, OptimizerSteps):
        return gradients * direction.steps * (2 if direction.sign == "both" else 1)
    if isinstance(direction, Replay):
        steps = direction.most_steps * direction.most_seeds
        return 3 * steps * (direction.batch * (job.groups + 1) + job.queries)
    if isinstance(direction, Curvature):
        return gradients + direction.cost(job.parameters, job.rows, job.groups)
    return gradients
