"""Task: the loss of a row. What a user with an unusual model writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: A model with its parameters fixed: inputs ``(B, ...)``, and whatever else the task hands over,
#: to outputs ``(B, ...)``.
Forward = Callable[..., Tensor]


class Batch(NamedTuple):
    """Some rows on the model's device: inputs ``(B, ...)`` and targets ``(B, ...)``."""

    inputs: Tensor
    targets: Tensor


class Readout(NamedTuple):
    """What the model says of some rows, both ``(B,)`` float64.

    ``loss`` in nats (classification, language), half squared units (regression) or a weighted mean
    squared error (denoising); ``margin`` in the same unit, larger is better, does not saturate.
    """

    loss: Tensor
    margin: Tensor


class Task(ABC):
    """How good a model's output is for a row.

    Losses are never reduced over rows: influence is about single rows. Each method must treat each
    row alone, so that a row's value does not depend on its batch.
    """

    #: Short name, written into the audit.
    name: str
    #: Whether the margin is the better thing to read of a model that knows its rows by heart.
    saturates: bool = False
    #: Whether the targets are labels, which somebody gave and which can be wrong. Where not (next
    #: tokens, noise), an audit looks for leaked and memorized rows, and for no wrong labels.
    labelled: bool = True
    #: What losses are counted in.
    unit: str = "nats"
    #: What is added to the curvature of such a model, in mean eigenvalues; None for the default.
    damping: float | None = None

    @property
    def passes(self) -> int:
        """Return how many forward passes one reading of a row takes."""
        return 1

    def describe(self) -> dict[str, object]:
        """Return what repeats this task: its name, and its fields if it is a dataclass."""
        return {"name": self.name, **(asdict(self) if is_dataclass(self) else {})}

    def outputs(self, forward: Forward, batch: Batch) -> Tensor:
        """Return what the model answers for each row, ``(B, ...)``.

        In float64: an influence is a small difference of two losses.
        """
        return forward(batch.inputs).to(torch.float64)

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row, ``(B,)``, convex and differentiable in ``outputs``."""

    def training_loss(self, forward: Forward, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the loss of each row ``(B,)`` as a model is trained on it.

        What is random there is drawn anew each time, from a ``generator`` on the host; by default
        nothing is.
        """
        return self.loss(self.outputs(forward, batch), batch.targets)

    def query_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each query, ``(B,)``: what is asked; the rows' own by default."""
        return self.loss(outputs, targets)

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return random residuals like ``outputs`` whose covariance is the loss's curvature there.

        That is the gradient of the loss by the outputs, had the targets been drawn from the model's
        own prediction; each row's are independent. ``generator`` is on the host. None where nobody
        says: curvature then takes the slower way of products.
        """
        return None

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how far each row is on the right side, ``(B,)``; minus the loss by default."""
        return -self.loss(outputs, targets)

    def skill(self, outputs: Tensor, targets: Tensor) -> float:
        """Return how much better than guessing the outputs are: 0 is a guess, 1 is perfect."""
        raise NotImplementedError(f"{type(self).__name__} does not say what guessing is worth")

    def readout(self, forward: Forward, batch: Batch) -> Readout:
        """Read one batch."""
        return self.readout_of(self.outputs(forward, batch), batch)

    def readout_of(self, outputs: Tensor, batch: Batch) -> Readout:
        """Read what the model answered for one batch."""
        return Readout(
            self.loss(outputs, batch.targets).to(torch.float64),
            self.margin(outputs, batch.targets).to(torch.float64),
        )
