"""Regression: half the squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from forward_inf_mlflow.task import Task


class Regression(Task):
    """One number per row. Outputs: ``(B,)`` or ``(B, 1)``. Targets: ``(B,)``.

    Loss: half the squared error, in squared units of the target; it does not saturate.
    """

    name = "regression"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``(output - target)^2 / 2``, ``(B,)``."""
        return (outputs.reshape(targets.shape) - targets).square() / 2

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return normal noise: the loss is that of a target with variance one."""
        return torch.randn(outputs.shape, generator=generator).to(outputs)

    def skill(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the explained share of the targets' variance, R squared."""
        error = float((outputs.reshape(targets.shape) - targets).double().square().mean())
        spread = float(targets.double().var(correction=0))
        return 1 - error / spread if spread > 0 else 0.0
