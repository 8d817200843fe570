"""Regression: half the squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from forward_inf_mlflow.task import Task


class Regression(Task):
    """One number per row, or several. Outputs: ``(B,)``, ``(B, 1)`` or ``(B, k)``.

    Targets: ``(B,)``, or ``(B, k)``. Loss: half the squared error, in squared units of the target,
    summed over several; it does not saturate.
    """

    name = "regression"
    unit = "half squared units"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``(output - target)^2 / 2``, summed over several targets, ``(B,)``."""
        squares = (outputs.reshape(targets.shape) - targets).square() / 2
        return squares.sum(1) if squares.ndim > 1 else squares

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return normal noise: the loss is that of a target with variance one."""
        return torch.randn(outputs.shape, generator=generator).to(outputs)

    def skill(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the explained share of the targets' variance, R squared; the mean over several."""
        error = (outputs.reshape(targets.shape) - targets).double().square().mean(0)
        spread = targets.double().var(0, correction=0)
        explained = torch.where(spread > 0, 1 - error / spread.clamp_min(1e-300), 0.0)
        return float(explained.mean())
