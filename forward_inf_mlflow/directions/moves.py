"""Moves: what a direction makes of queries, and what a sweep reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.memory import batches_that_fit
from forward_inf_mlflow.task import Batch, Forward, Task
from forward_inf_mlflow.tensors import Stream, Tensors, sample
from forward_inf_mlflow.work import KEEP_NOTHING, Work

#: The trainable parameters of a module by name.
Parameters = dict[str, Tensor]
#: Which way a finite difference steps: learn the queries, unlearn them, or both.
Sign = Literal["down", "up", "both"]


@dataclass(frozen=True, eq=False)
class Point:
    """A torch module at some parameters, as a function; its buffers stay as they are."""

    module: nn.Module
    parameters: Parameters

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the module's outputs at these parameters."""
        output: Tensor = functional_call(self.module, self.parameters, inputs)
        return output

    def moved(self, along: Parameters, by: float) -> Point:
        """Return the point ``parameters + by * along``."""
        theta = self.parameters
        return Point(self.module, {n: torch.add(p, along[n], alpha=by) for n, p in theta.items()})


@dataclass(frozen=True, eq=False)
class Tangent:
    """The limit of a small move: where it starts, and how parameters change per added copy."""

    at: Point
    along: Parameters


@dataclass(frozen=True)
class Move:
    """Two models, the same but for the queries.

    Attributes:
        control: The model without (another copy of) the queries.
        treated: The model with them. One of the two may be the ``base`` of the moves itself.
        weight: How many added copies of the queries lie between the two; a row's change of loss
            is divided by it.
        tangent: The direction that the two differ by, where the models are points in parameter
            space; its exact derivative can be read instead of a difference.
    """

    control: Forward
    treated: Forward
    weight: float = 1.0
    tangent: Tangent | None = None


class Moves(Protocol):
    """Some moves, made one at a time, and how query groups are put together from them."""

    @property
    def base(self) -> Forward:
        """Return the model as it was; a sweep reads it once for all moves."""
        ...

    @property
    def coefficients(self) -> np.ndarray:
        """Return ``(m, k)``: influence on the m groups = coefficients @ sweep of the k moves."""
        ...

    @property
    def facts(self) -> Mapping[str, object]:
        """Return what was found while the moves were planned: damping, rate, reliability ..."""
        ...

    def __len__(self) -> int:
        """Return k."""
        ...

    def __iter__(self) -> Iterator[Move]:
        """Make each move when it is asked for, so that few treated models are held at a time."""
        ...


class Direction(Protocol):
    """Turns query groups into moves; a frozen dataclass of settings, without state."""

    def plan(
        self,
        module: nn.Module,
        task: Task,
        groups: Sequence[Tensors],
        train: Stream,
        work: Work = KEEP_NOTHING,
    ) -> Moves:
        """Return the moves of these query groups; ``module`` is left as it was.

        What is costly to make is kept in ``work``, so that an interrupted sweep goes on.
        """
        ...

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these moves."""
        ...


@dataclass(frozen=True)
class MoveEach:
    """Moves of directions that treat every query group alone: one move each, coefficient 1."""

    base: Forward
    groups: Sequence[Tensors]
    make: Callable[[Tensors], Move]
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def coefficients(self) -> np.ndarray:
        """Return the identity, ``(m, m)``."""
        return np.eye(len(self.groups))

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Move]:
        return (self.make(group) for group in self.groups)


@dataclass(frozen=True)
class MoveAlong:
    """Moves along tangents that are held already, and their coefficients."""

    base: Point
    tangents: Sequence[Tangent]
    coefficients: np.ndarray
    relative_size: float
    sign: Sign = "up"
    facts: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tangents)

    def __iter__(self) -> Iterator[Move]:
        return (small_step(t, self.relative_size, self.sign) for t in self.tangents)


def small_step(tangent: Tangent, relative_size: float, sign: Sign) -> Move:
    """Return a move along a tangent whose length does not depend on the tangent's own.

    Args:
        tangent: The direction, per added copy of the query.
        relative_size: Length of the step over the norm of the parameters.
        sign: "down" learns the query, "up" unlearns it, "both" takes the central difference.
    """
    at, along = tangent.at, tangent.along
    size = norm(along)
    if not math.isfinite(size):
        raise ForwardInfError(
            "the gradient of a query, or the curvature it is divided by, is not a number, although "
            "its loss is: leave the query out, or take another direction"
        )
    if size == 0:
        return Move(at, at, tangent=tangent)  # nothing pulls: influence is zero
    length = relative_size * (norm(at.parameters) or 1.0)
    # First of length one: a tiny pull times many copies would leave float32 on the way.
    unit = {name: (v.to(torch.float64) / size).to(v.dtype) for name, v in along.items()}
    copies = length / size
    if sign == "up":
        return Move(at.moved(unit, -length), at, copies, tangent)
    if sign == "down":
        return Move(at, at.moved(unit, length), copies, tangent)
    return Move(at.moved(unit, -length), at.moved(unit, length), 2 * copies, tangent)


def trainable(module: nn.Module) -> Parameters:
    """Return the parameters that a step moves, detached and sharing the module's memory."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def at_rest(module: nn.Module) -> Point:
    """Return the module as it is, as the point that moves start from.

    Raises:
        ModelError: No parameter of the module can be moved.
    """
    theta = trainable(module)
    if not theta:
        raise ModelError(
            "the model has no trainable parameters, so no query can move it: log it with "
            "requires_grad=True on the parameters that were trained"
        )
    return Point(module, theta)


@torch.no_grad()
def usable(base: Point, task: Task, train: Stream, most: int, seed: int) -> tuple[Tensors, float]:
    """Return training rows whose loss is a number: one that is not would spoil every sum.

    Args:
        base: The model as it was.
        task: The loss of a row.
        train: All training rows.
        most: Look at so many at most, drawn at random.
        seed: Of the draw.

    Returns:
        The rows that stand for all, and how many of all are usable, judged from them.

    Raises:
        DataError: There is none.
    """
    rows = sample(train, most, seed)
    read = batches_that_fit(rows, lambda b: torch.isfinite(task.readout(base, b).loss).cpu())
    fine = torch.cat(list(read))
    if not fine.any():
        raise DataError("no training row's loss is a number: log a model that is trained")
    if fine.all():
        return rows, float(len(train))
    kept = fine.nonzero()[:, 0].numpy()
    return rows.take(kept), len(train) * len(kept) / len(rows)


def loss_gradient(at: Point, task: Task, rows: Tensors, *, asked: bool = True) -> Parameters:
    """Return the gradient of the rows' mean loss at a point, one batch after the other.

    ``asked``: the rows are queries; otherwise they are training rows.
    """
    of = task.query_loss if asked else task.loss
    leaves = {name: p.detach().requires_grad_() for name, p in at.parameters.items()}
    total = {name: torch.zeros_like(p) for name, p in leaves.items()}
    forward = Point(at.module, leaves)

    @torch.enable_grad()
    def of_batch(batch: Batch) -> Sequence[Tensor | None]:
        # Outputs in float64, as losses are read: in float32 the given class's 1 - p of a query
        # that the model knows by heart is 0, which would turn the direction.
        loss = of(task.outputs(forward, batch), batch.targets).sum() / len(rows)
        found: Sequence[Tensor | None] = torch.autograd.grad(
            loss, list(leaves.values()), allow_unused=True
        )
        return found

    for grads in batches_that_fit(rows, of_batch):
        for name, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                total[name] += grad
    return {name: grad.detach() for name, grad in total.items()}


def math_attention() -> AbstractContextManager[None]:
    """Return a context in which attention is plain products: the fused one has no forward mode."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


@contextmanager
def whole_float32() -> Iterator[None]:
    """Multiply float32 numbers as such on a card too.

    By default its convolutions, and by choice its products, take them for 10-bit numbers (TF32),
    which round away what a small step changes.
    """
    matmul = torch.backends.cuda.matmul.allow_tf32
    cudnn = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = cudnn


def norm(parameters: Parameters) -> float:
    """Return the Euclidean norm over all parameters together."""
    squares = [float(p.to(torch.float64).square().sum()) for p in parameters.values()]
    return float(sum(squares) ** 0.5)


def check_settings(settings: object, above_zero: Sequence[str] = (), **least: float) -> None:
    """Refuse settings of a direction that cannot be used.

    Args:
        settings: The direction; a setting that is None follows a rule and is not checked.
        above_zero: Names of numbers that must be above 0.
        least: Names of numbers, and the least that each may be.

    Raises:
        ForwardInfError: One is out of its range.
    """
    for name in (*above_zero, *least):
        value = getattr(settings, name)
        if value is None:
            continue
        if name in above_zero and not 0 < value < math.inf:
            raise ForwardInfError(f"{name} must be a number above 0, not {value}")
        if not least.get(name, -math.inf) <= value < math.inf:
            raise ForwardInfError(f"{name} must be a number, at least {least[name]}, not {value}")
    sign = getattr(settings, "sign", "up")
    if sign not in get_args(Sign):
        raise ForwardInfError(f"sign must be one of {', '.join(get_args(Sign))}, not {sign}")
