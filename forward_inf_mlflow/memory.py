"""Memory: how much a computation may hold, and batches that are halved until they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.machine import total_memory
from forward_inf_mlflow.task import Batch
from forward_inf_mlflow.tensors import Tensors

T = TypeVar("T")

#: The share of a device's memory that a direction's vectors, or a sweep's moved models, may take.
_SHARE = 8


def room(device: torch.device) -> int:
    """Return the bytes that may be held on a device, a power of two: an eighth of its memory.

    Of all of it, not of what is free: what is computed in blocks must be the same when it is
    resumed.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = total_memory()
    return int(2 ** ((total // _SHARE).bit_length() - 1))


def batches_that_fit(rows: Tensors, read: Callable[[Batch], T]) -> Iterator[T]:
    """Yield what is read of the rows, batch after batch.

    A batch that does not fit into memory is halved, and those after it are as small.

    Raises:
        ForwardInfError: A single row does not fit.
    """
    start, size = 0, rows.batch_size
    while start < len(rows):
        size = min(size, len(rows) - start)
        try:
            found = read(rows.batch(slice(start, start + size)))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise ForwardInfError(
                    "one row at a time does not fit into memory: use a device with more of it "
                    "(--device)"
                ) from error
            size //= 2
        else:
            yield found
            start += size
            continue
        # Not in the handler: the error holds the frames, and with them what did not fit.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def first_that_fits(rows: Tensors, read: Callable[[Batch], T]) -> T:
    """Return what is read of the first batch, or of as many of its rows as fit into memory.

    Raises:
        ForwardInfError: A single row does not fit.
    """
    return next(batches_that_fit(rows.part(0, rows.batch_size), read))


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an allocation failed; on the host torch raises a plain RuntimeError."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )
