"""Multi-label classification: binary cross-entropy of each label, summed over a row's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forward_inf_mlflow.task import Task


class MultiLabel(Task):
    """Several labels a row, each set or not.

    Outputs: logits ``(B, k)``. Targets: 0 or 1, ``(B, k)``.

    Loss: the sum of the labels' binary cross-entropies in nats, which is minus the logarithm of the
    probability of all of them together. Margin: the sum of the given labels' log-odds.
    """

    name = "multilabel"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the labels' cross-entropies, ``(B,)``."""
        return nn.functional.binary_cross_entropy_with_logits(
            outputs, targets.to(outputs), reduction="none"
        ).sum(1)

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the probabilities less labels drawn from them."""
        p = outputs.sigmoid()
        return p - torch.bernoulli(p.cpu(), generator=generator).to(p)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the given labels' log-odds, ``(B,)``."""
        return ((2 * targets.to(outputs) - 1) * outputs).sum(1)

    def skill(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the share of right labels on the way from always guessing the commoner to 1."""
        right = float(((outputs > 0) == (targets > 0.5)).double().mean())
        share = (targets > 0.5).double().mean(0)
        guess = float(torch.maximum(share, 1 - share).mean())
        return (right - guess) / (1 - guess) if guess < 1 else 0.0
