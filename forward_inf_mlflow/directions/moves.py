"""Moves: what a direction makes of queries, and what a sweep reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from forward_inf_mlflow.task import Forward, Task
from forward_inf_mlflow.tensors import Tensors

#: The trainable parameters of a module by name.
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Move:
    """Two models, the same but for the queries.

    Attributes:
        control: The model without (another copy of) the queries.
        treated: The model with them. One of the two may be the ``base`` of the moves itself.
        weight: How many added copies of the queries lie between the two; a row's change of loss
            is divided by it.
    """

    control: Forward
    treated: Forward
    weight: float = 1.0


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

    def __len__(self) -> int:
        """Return k."""
        ...

    def __iter__(self) -> Iterator[Move]:
        """Make each move when it is asked for, so that one treated model is held at a time."""
        ...


class Direction(Protocol):
    """Turns query groups into moves; a frozen dataclass of settings, without state."""

    def plan(self, module: nn.Module, task: Task, groups: Sequence[Tensors]) -> Moves:
        """Return the moves of these query groups; ``module`` is left as it was."""
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

    @property
    def coefficients(self) -> np.ndarray:
        """Return the identity, ``(m, m)``."""
        return np.eye(len(self.groups))

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Move]:
        return (self.make(group) for group in self.groups)


def trainable(module: nn.Module) -> Parameters:
    """Return the parameters that a step moves, detached and sharing the module's memory."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def at(module: nn.Module, parameters: Parameters) -> Forward:
    """Return the module as a function with ``parameters`` in place of its own; buffers frozen."""

    def forward(inputs: Tensor) -> Tensor:
        output: Tensor = functional_call(module, parameters, (inputs,))
        return output

    return forward


def loss_gradient(
    module: nn.Module, task: Task, parameters: Parameters, rows: Tensors
) -> Parameters:
    """Return the gradient of the rows' mean loss at ``parameters``, one batch after the other."""
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    forward = at(module, leaves)
    for batch in rows:
        with torch.enable_grad():
            # In float64, as losses are read: in float32 the given class's 1 - p of a query that
            # the model knows by heart is 0, which would turn the direction.
            outputs = task.outputs(forward, batch)
            loss = task.query_loss(outputs, batch.targets).sum() / len(rows)
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for name, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                total[name] += grad
    return total


def norm(parameters: Parameters) -> float:
    """Return the Euclidean norm over all parameters together."""
    squares = [float(p.to(torch.float64).square().sum()) for p in parameters.values()]
    return float(sum(squares) ** 0.5)
