"""OptimizerSteps: the published recipe, kept for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import nn

from forward_inf_mlflow.directions.moves import (
    Move,
    MoveEach,
    Moves,
    at,
    loss_gradient,
    trainable,
)
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class OptimizerSteps:
    """K steps of Adam on the query alone, as Forward-INF's authors publish them.

    Unlike their code, buffers are frozen (batch-norm statistics do not drift into the score) and
    the sign is kept. Influence in nats for these steps as a whole, not per copy of the query.

    Cost per group: about 3 K forward-equivalents on the query, then one sweep.
    Source: Forward-INF (Ko et al., CVPR 2024), the leakage experiment's settings.

    Attributes:
        lr: Adam's learning rate.
        steps: K.
        sign: "up" ascends the query's loss, as the authors do, "down" descends it.
    """

    lr: float = 5e-3
    steps: int = 1
    sign: Literal["up", "down"] = "up"

    def plan(self, module: nn.Module, task: Task, groups: Sequence[Tensors]) -> Moves:
        """Return one move per query group."""
        theta = trainable(module)
        base = at(module, theta)

        def make(group: Tensors) -> Move:
            """Return the move that K steps on one group make."""
            leaves = {n: p.clone().requires_grad_() for n, p in theta.items()}
            optimizer = torch.optim.Adam(leaves.values(), lr=self.lr, maximize=self.sign == "up")
            for _ in range(self.steps):
                gradient = loss_gradient(module, task, leaves, group)
                for name, leaf in leaves.items():
                    leaf.grad = gradient[name]
                optimizer.step()
            moved = at(module, {n: p.detach() for n, p in leaves.items()})
            if self.sign == "up":
                return Move(control=moved, treated=base)
            return Move(control=base, treated=moved)

        return MoveEach(base, groups, make)

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these moves."""
        return {"direction": "optimizer", **asdict(self)}
