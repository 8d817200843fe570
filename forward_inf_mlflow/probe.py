"""Probe: whether rows can be read at all, and which way of reading them is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from forward_inf_mlflow.directions.moves import Move, Point
from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.memory import batches_that_fit, is_out_of_memory
from forward_inf_mlflow.readers import Read, Reader, by_derivative, by_difference
from forward_inf_mlflow.task import Batch, Forward, Readout, Task
from forward_inf_mlflow.tensors import Tensors

Method = Literal["auto", "difference", "derivative"]
Which = Literal["loss", "margin"]

#: Characters of what torch says.
_SAID = 120
#: A finite difference is taken where it agrees with the exact derivative at least so much.
AGREEMENT = 0.99
#: A change must be so many times larger than the rounding of what it is the difference of.
_ABOVE_ROUNDING = 20
#: A row's loss may differ by this share between batch sizes, by rounding.
_ALIKE = 1e-3


@dataclass(frozen=True)
class Choice:
    """How rows are read.

    Attributes:
        method: "difference" or "derivative".
        agreement: The lowest concordance of both over the probed moves; NaN if not compared.
        note: Why, one sentence; None where there is nothing to say.
    """

    method: Literal["difference", "derivative"]
    agreement: float = float("nan")
    note: str | None = None


def check_loss(base: Forward, task: Task, batch: Batch) -> None:
    """Refuse a loss that is not one number per row, or that depends on the rows beside it.

    Raises:
        ModelError: It does; the message says what to do.
    """
    rows = len(batch.targets)
    with torch.no_grad():
        try:
            whole = task.loss(task.outputs(base, batch), batch.targets)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if is_out_of_memory(error):
                raise  # fewer rows may fit
            raise ModelError(
                f"the task {task.name} cannot read the model's answers to the first rows "
                f"({' '.join(str(error).split())[:160]}): look at inputs, targets and the task"
            ) from error
        if whole.shape != (rows,):
            raise ModelError(
                f"the loss of {rows} rows has shape {tuple(whole.shape)}, not ({rows},): a task's "
                "loss must not be reduced over rows (reduction='none')"
            )
        if rows < 2:
            return
        half = rows // 2
        parts = [
            task.readout(base, Batch(batch.inputs[part], batch.targets[part])).loss
            for part in (slice(0, half), slice(half, rows))
        ]
        together = task.readout(base, batch).loss  # as rows are read, whatever they are taught by
    apart = torch.cat(parts)
    scale = together.abs().nanmean() + 1e-6
    if bool(((apart - together).abs() > _ALIKE * (together.abs() + scale)).any()):
        raise ModelError(
            "a row's loss depends on the rows beside it (batch statistics?): put the model into "
            "evaluation mode, or log one whose layers treat each row alone"
        )


def choose(
    moves: Sequence[Move],
    base: Forward,
    task: Task,
    rows: Tensors,
    *,
    method: Method = "auto",
    which: Which = "loss",
) -> Choice:
    """Decide how to read moves, by reading a few of them on some rows in both ways.

    Raises:
        ForwardInfError: Only a finite difference can be read, and it drowns in rounding.
    """
    difference, exact = by_difference(moves, base, task), None
    if method != "difference" and all(move.tangent is not None for move in moves):
        exact, why = _try(by_derivative(moves, base, task), rows)
        if exact is not None and method == "derivative":
            return Choice("derivative")
    else:
        why = "these moves have no derivative"
    if method == "derivative":
        raise ForwardInfError(
            f"exact derivatives cannot be read here ({why}): leave the method out"
        )

    read = _read(difference, rows)
    if exact is not None:
        agreement = _agreement(getattr(read, which), getattr(exact, which))
        if agreement >= AGREEMENT:
            return Choice("difference", agreement)
        return Choice(
            "derivative",
            agreement,
            "exact derivatives are read, because a finite difference agrees with them only to "
            f"{agreement:.2f}",
        )
    if _drowned(read, moves, which):
        raise ForwardInfError(
            "the step is lost in rounding: take a longer one (relative_size), or load the model "
            "in float32"
        )
    note = None
    if method == "auto" and why and all(move.tangent is not None for move in moves):
        note = f"finite differences are read, because this model has no forward mode ({why})"
    return Choice("difference", note=note)


def _read(reader: Reader, rows: Tensors) -> Read:
    parts = list(batches_that_fit(rows, reader))
    base = Readout(*(torch.cat(values) for values in zip(*(p.base for p in parts), strict=True)))
    loss, margin = (torch.cat([getattr(p, kind) for p in parts], 1) for kind in ("loss", "margin"))
    return Read(base, loss, margin)


def _try(reader: Reader, rows: Tensors) -> tuple[Read | None, str]:
    """Read by derivatives; where an operator has none, return what it said in one line."""
    try:
        return _read(reader, rows), ""
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        return None, said if len(said) <= _SAID else f"{said[:_SAID].rsplit(' ', 1)[0]} ..."


def _agreement(a: Tensor, b: Tensor) -> float:
    """Return the lowest concordance (Lin, 1989) of two readings ``(k, rows)`` over the moves.

    Unlike a correlation it sees another scale.
    """
    lowest = 1.0
    for x, y in zip(a.cpu().numpy(), b.cpu().numpy(), strict=True):
        fine = np.isfinite(x) & np.isfinite(y)
        x, y = x[fine], y[fine]
        if len(x) < 2 or np.array_equal(x, y):
            continue
        apart = x.var() + y.var() + (x.mean() - y.mean()) ** 2
        lowest = min(lowest, float(2 * np.cov(x, y, ddof=0)[0, 1] / apart))
    return lowest


def _drowned(read: Read, moves: Sequence[Move], which: Which) -> bool:
    """Say whether some move that differs from its control changes rows by rounding alone."""
    size = read.base.loss.abs().nanmean() + read.base.margin.abs().nanmean()
    for move, change in zip(moves, getattr(read, which), strict=True):
        precision = _precision(move)
        if precision is None:
            continue
        signal = (change * move.weight).square().nanmean().sqrt()
        if signal < _ABOVE_ROUNDING * precision * size:
            return True
    return False


def _precision(move: Move) -> float | None:
    """Return the rounding of the parameters' type; None where both ends are the same model."""
    ends = [end for end in (move.control, move.treated) if isinstance(end, Point)]
    if len(ends) < 2 or all(
        torch.equal(p, ends[1].parameters[name]) for name, p in ends[0].parameters.items()
    ):
        if move.tangent is None or move.control is move.treated:
            return None  # nothing was to move
        return float("inf")  # a tangent that is not zero was rounded away
    return float(torch.finfo(next(iter(ends[0].parameters.values())).dtype).eps)
