"""Task: the loss of a row. What a user with an unusual model writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: A model with its parameters fixed: inputs ``(B, ...)`` to outputs ``(B, ...)``.
Forward = Callable[[Tensor], Tensor]


class Batch(NamedTuple):
    """Some rows on the model's device: inputs ``(B, ...)`` and targets ``(B, ...)``."""

    inputs: Tensor
    targets: Tensor


class Readout(NamedTuple):
    """What the model says of some rows, both ``(B,)`` float64.

    ``loss`` in nats (classification) or half squared units (regression); ``margin`` is the given
    target's advantage in the model's own output, larger is better.
    """

    loss: Tensor
    margin: Tensor


class Task(ABC):
    """How good a model's output is for a row.

    Losses are never reduced over rows: influence is about single rows. ``loss`` and ``margin``
    must treat each row alone, so that a row's value does not depend on its batch.
    """

    #: Short name, written into the audit.
    name: str

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row, ``(B,)``, differentiable in ``outputs``."""

    @abstractmethod
    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how far each row is on the right side, ``(B,)``; it does not saturate."""

    @abstractmethod
    def skill(self, outputs: Tensor, targets: Tensor) -> float:
        """Return how much better than guessing the outputs are: 0 is a guess, 1 is perfect."""

    def readout(self, forward: Forward, batch: Batch) -> Readout:
        """Read one batch. Losses are float64: an influence is a small difference of two of them."""
        outputs = forward(batch.inputs).to(torch.float64)
        return Readout(self.loss(outputs, batch.targets), self.margin(outputs, batch.targets))
