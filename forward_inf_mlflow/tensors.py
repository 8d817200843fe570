"""Tensors: rows as the model takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from forward_inf_mlflow.task import Batch

#: Parts that a sample of a stream is made of.
_PARTS = 32


class Stream(Protocol):
    """Training rows that need not fit into memory; reading their parts in order is fastest."""

    @property
    def batch_size(self) -> int:
        """Return the rows of a batch."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def part(self, start: int, stop: int) -> Tensors:
        """Return the rows from ``start`` up to ``stop``."""
        ...


@dataclass(frozen=True)
class Tensors:
    """Rows ready for the model: inputs ``(n, ...)`` and targets ``(n, ...)``, on the host.

    Attributes:
        device: Where each batch goes when it is read.
        batch_size: Rows a batch; it changes speed and memory, never a result beyond rounding.
    """

    inputs: Tensor
    targets: Tensor
    device: torch.device
    batch_size: int

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.batch_size):
            yield self.batch(slice(start, start + self.batch_size))

    def part(self, start: int, stop: int) -> Tensors:
        """Return the rows from ``start`` up to ``stop``, sharing their memory."""
        return replace(self, inputs=self.inputs[start:stop], targets=self.targets[start:stop])

    def take(self, index: np.ndarray) -> Tensors:
        """Return the rows at ``index``, in that order."""
        chosen = torch.as_tensor(index)
        return replace(self, inputs=self.inputs[chosen], targets=self.targets[chosen])

    def batch(self, index: slice | Tensor) -> Batch:
        """Return some rows as one batch on the device."""
        return Batch(self._on_device(self.inputs[index]), self._on_device(self.targets[index]))

    def _on_device(self, rows: Tensor) -> Tensor:
        # Group norm has no forward mode for rows in another order of memory, and on the CPU its
        # backward pass may crash the process.
        rows = rows.contiguous()
        if self.device.type == "cuda" and rows.device.type == "cpu":
            rows = rows.pin_memory()  # else the host would wait for the copy
        return rows.to(self.device, non_blocking=True)


def sample(rows: Stream, most: int, seed: int) -> Tensors:
    """Return at most ``most`` rows, in the stream's order.

    Rows in memory are drawn at random one by one; of those that are read from elsewhere, 32 parts
    evenly spread, so that they are read in order once.
    """
    n = len(rows)
    if n <= most:
        return rows.part(0, n)
    if isinstance(rows, Tensors):
        return rows.take(np.sort(np.random.default_rng(seed).choice(n, most, replace=False)))
    width = max(1, most // _PARTS)
    starts = np.linspace(0, n - width, most // width).astype(int)
    parts = [rows.part(start, start + width) for start in starts.tolist()]
    return replace(
        parts[0],
        inputs=torch.cat([p.inputs for p in parts]),
        targets=torch.cat([p.targets for p in parts]),
    )
