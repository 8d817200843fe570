"""Sweep: what the training set says under each model, with forward passes only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forward_inf_mlflow.directions.moves import Moves
from forward_inf_mlflow.task import Forward, Readout, Task
from forward_inf_mlflow.tensors import Tensors

#: Called with the number of rows just read.
Progress = Callable[[int], None]


@torch.no_grad()
def read(forward: Forward, task: Task, rows: Tensors, progress: Progress | None = None) -> Readout:
    """Read every row once under one model.

    Returns:
        Loss and margin, each ``(n,)`` float64 on the host.
    """
    parts = []
    for batch in rows:
        readout = task.readout(forward, batch)
        parts.append(Readout(readout.loss.cpu(), readout.margin.cpu()))
        if progress is not None:
            progress(len(batch.targets))
    return Readout(torch.cat([p.loss for p in parts]), torch.cat([p.margin for p in parts]))


@torch.no_grad()
def outputs(forward: Forward, rows: Tensors, progress: Progress | None = None) -> Tensor:
    """Return the model's output for every row, ``(n, ...)`` float32 on the host."""
    parts = []
    for batch in rows:
        parts.append(forward(batch.inputs).to(torch.float32).cpu())
        if progress is not None:
            progress(len(batch.targets))
    return torch.cat(parts)


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        base: The rows' losses and margins under the model as it was, ``(n,)`` float64 each.
        changes: ``(k, n)`` float32: control loss minus treated loss per unit of each move's
            weight, in nats; the difference is taken in float64.
        forward_passes: How many rows were passed forward for it.
    """

    base: Readout
    changes: np.ndarray
    forward_passes: int


def sweep(moves: Moves, task: Task, rows: Tensors, progress: Progress | None = None) -> Swept:
    """Read the rows under the model as it was, once, and under both sides of every move."""
    base = read(moves.base, task, rows, progress)
    changes = np.empty((len(moves), len(rows)), dtype=np.float32)
    reads = 1

    for k, move in enumerate(moves):
        losses = []
        for side in (move.control, move.treated):
            if side is moves.base:
                losses.append(base.loss)
            else:
                losses.append(read(side, task, rows, progress).loss)
                reads += 1
        changes[k] = ((losses[0] - losses[1]) / move.weight).numpy()
    return Swept(base, changes, reads * len(rows))
