"""Sweep: what the training set says under each move, streamed, with forward passes only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from forward_inf_mlflow.directions.moves import Move, Moves, Point
from forward_inf_mlflow.memory import batches_that_fit, room
from forward_inf_mlflow.readers import Read, Reader, by_derivative, by_difference
from forward_inf_mlflow.task import Batch, Forward, Readout, Task
from forward_inf_mlflow.tensors import Stream, Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Arrays, Work

#: Called with the number of rows just read.
Progress = Callable[[int], None]
#: Rows of a shard, about: whole batches, so that a row is always read among the same others.
SHARD_ROWS = 8192


@dataclass(frozen=True)
class Part:
    """Some rows under some moves.

    Attributes:
        rows, moves: Which.
        base: The rows' losses and margins under the model as it was, float64.
        loss: ``(k, rows)`` float32 influence per added copy, read from losses; nats.
        margin: The same, read from margins.
        outputs: ``(k, rows, ...)`` float32 change of the answers, where that was asked.
        passes: Rows passed forward for it; a derivative counts as one pass.
    """

    rows: slice
    moves: slice
    base: Readout
    loss: np.ndarray
    margin: np.ndarray
    outputs: np.ndarray | None
    passes: int


def sweep(
    moves: Moves,
    task: Task,
    rows: Stream,
    *,
    method: Literal["difference", "derivative"] = "difference",
    with_outputs: bool = False,
    compiled: bool = False,
    shard_rows: int = SHARD_ROWS,
    work: Work = KEEP_NOTHING,
    progress: Progress | None = None,
) -> Iterator[Part]:
    """Read every row under the model as it was and under every move, a shard at a time.

    Moves are read in blocks that fit into memory together; for each block the rows are read once
    more under the model as it was. Every shard of a block is a piece of ``work``. ``compiled``
    passes are faster and round otherwise; derivatives are not compiled.

    Raises:
        ForwardInfError: A single row does not fit into memory.
    """
    reader = by_derivative if method == "derivative" else partial(by_difference, compiled=compiled)
    width = _block(moves)
    size = max(1, shard_rows // rows.batch_size) * rows.batch_size
    made = iter(moves)
    for first in range(0, len(moves), width):
        block = list(islice(made, width))
        read = reader(block, moves.base, task, with_outputs=with_outputs)
        reads = passes(block, moves.base, method)
        for start in range(0, len(rows), size):
            stop = min(start + size, len(rows))
            shard = partial(_read, read, rows, start, stop)
            kept = work.once(f"shards/{method}/{first:05}+{len(block)}/{start:09}-{stop:09}", shard)
            if progress is not None:
                progress((stop - start) * reads)
            yield Part(
                slice(start, stop),
                slice(first, first + len(block)),
                Readout(torch.as_tensor(kept["base_loss"]), torch.as_tensor(kept["base_margin"])),
                kept["loss"],
                kept["margin"],
                kept.get("outputs"),
                reads * (stop - start),
            )


@torch.no_grad()
def read(forward: Forward, task: Task, rows: Tensors) -> Readout:
    """Read every row once under one model.

    Returns:
        Loss and margin, each ``(n,)`` float64 on the host.
    """

    def of_batch(batch: Batch) -> Readout:
        readout = task.readout(forward, batch)
        return Readout(readout.loss.cpu(), readout.margin.cpu())

    parts = list(batches_that_fit(rows, of_batch))
    return Readout(torch.cat([p.loss for p in parts]), torch.cat([p.margin for p in parts]))


@torch.no_grad()
def outputs(forward: Forward, rows: Tensors) -> Tensor:
    """Return the model's output for every row, ``(n, ...)`` float32 on the host."""
    parts = batches_that_fit(rows, lambda batch: forward(batch.inputs).to(torch.float32).cpu())
    return torch.cat(list(parts))


def passes(moves: Sequence[Move], base: Forward, method: str) -> int:
    """Return how often each row is read for some moves, the model as it was included."""
    if method == "derivative":
        return 1 + len(moves)
    return len({id(base)} | {id(end) for move in moves for end in (move.control, move.treated)})


def _block(moves: Moves) -> int:
    """Return how many moves are held at once."""
    if not isinstance(moves.base, Point):
        return len(moves)
    parameters = moves.base.parameters.values()
    held = 2 * sum(p.numel() * p.element_size() for p in parameters)
    device = next(iter(parameters)).device
    return max(1, min(len(moves), room(device) // held))


def _read(read: Reader, stream: Stream, first: int, last: int) -> Arrays:
    """Read one shard; batches that do not fit into memory are halved."""
    rows = stream.part(first, last)
    parts = list(batches_that_fit(rows, lambda batch: _on_host(read(batch))))
    found = {
        "base_loss": torch.cat([p.base.loss for p in parts]).numpy(),
        "base_margin": torch.cat([p.base.margin for p in parts]).numpy(),
        "loss": torch.cat([p.loss for p in parts], 1).numpy(),
        "margin": torch.cat([p.margin for p in parts], 1).numpy(),
    }
    changed = [p.outputs for p in parts if p.outputs is not None]
    return found | ({"outputs": torch.cat(changed, 1).numpy()} if changed else {})


def _on_host(read: Read) -> Read:
    return Read(
        Readout(read.base.loss.cpu(), read.base.margin.cpu()),
        read.loss.to("cpu", torch.float32),
        read.margin.to("cpu", torch.float32),
        None if read.outputs is None else read.outputs.to("cpu", torch.float32),
    )
