"""OptimizerSteps: the published recipe, kept for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn

from forward_inf_mlflow.directions.moves import (
    Move,
    Moves,
    Parameters,
    Point,
    Sign,
    at_rest,
    check_settings,
    loss_gradient,
)
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Stream, Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Work


@dataclass(frozen=True, kw_only=True)
class OptimizerSteps:
    """K steps of Adam on the query alone, as Forward-INF's authors publish them.

    Unlike their code, buffers are frozen (batch-norm statistics do not drift into the score) and
    the sign is kept. Influence in nats for these steps as a whole, not per copy of the query.

    Cost per group: about 3 K forward-equivalents on the query, then one sweep ("both": twice that).
    Source: Forward-INF (Ko et al., CVPR 2024), the leakage experiment's settings; both signs
    averaged: DABGO (arXiv 2606.04928).

    Attributes:
        lr: Adam's learning rate.
        steps: K.
        sign: "up" ascends the query's loss, as the authors do, "down" descends it; "both" does
            each from the model as it was and averages the two influences.
    """

    lr: float = 5e-3
    steps: int = 1
    sign: Sign = "up"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ForwardInfError: One is out of its range.
        """
        check_settings(self, ("lr",), steps=0)

    def plan(
        self,
        module: nn.Module,
        task: Task,
        groups: Sequence[Tensors],
        train: Stream,
        work: Work = KEEP_NOTHING,
    ) -> Moves:
        """Return one move per query group and sign."""
        return _Stepped(at_rest(module), task, groups, self)

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these moves."""
        return {"direction": "optimizer", **asdict(self)}


@dataclass(frozen=True)
class _Stepped:
    base: Point
    task: Task
    groups: Sequence[Tensors]
    settings: OptimizerSteps
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def coefficients(self) -> np.ndarray:
        """Return ``(m, m)`` or, for both signs, ``(m, 2 m)`` with halves."""
        if self.settings.sign != "both":
            return np.eye(len(self.groups))
        return np.kron(np.eye(len(self.groups)), np.full((1, 2), 0.5))

    def __len__(self) -> int:
        return len(self.groups) * (2 if self.settings.sign == "both" else 1)

    def __iter__(self) -> Iterator[Move]:
        sign = self.settings.sign
        for group in self.groups:
            if sign != "down":
                yield Move(control=self._stepped(group, up=True), treated=self.base)
            if sign != "up":
                yield Move(control=self.base, treated=self._stepped(group, up=False))

    def _stepped(self, group: Tensors, *, up: bool) -> Point:
        """Return where K steps on one group lead."""
        leaves: Parameters = {n: p.clone() for n, p in self.base.parameters.items()}
        point = Point(self.base.module, leaves)
        optimizer = torch.optim.Adam(leaves.values(), lr=self.settings.lr, maximize=up)
        for _ in range(self.settings.steps):
            gradient = loss_gradient(point, self.task, group)
            for name, leaf in leaves.items():
                leaf.grad = gradient[name]
            optimizer.step()
        for leaf in leaves.values():
            leaf.grad = None
        return point
