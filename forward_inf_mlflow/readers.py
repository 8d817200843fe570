"""Readers: how much a batch of rows changes from control to treated, for several moves at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap

from forward_inf_mlflow.directions.moves import (
    Move,
    Parameters,
    Point,
    Tangent,
    math_attention,
    whole_float32,
)
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.task import Batch, Forward, Readout, Task

#: Moves whose derivatives are pushed through one pass together.
_TOGETHER = 8


class Read(NamedTuple):
    """What a batch of B rows says under the model as it was, and under k moves.

    ``loss`` and ``margin`` are influences per added copy, ``(k, B)`` float64: how much the loss
    falls, and how much the margin rises, from control to treated. ``outputs`` ``(k, B, ...)`` is
    how much the model's answers change, where that was asked, else None.
    """

    base: Readout
    loss: Tensor
    margin: Tensor
    outputs: Tensor | None = None


Reader = Callable[[Batch], Read]


def by_difference(
    moves: Sequence[Move],
    base: Forward,
    task: Task,
    *,
    with_outputs: bool = False,
    compiled: bool = False,
) -> Reader:
    """Read rows at both ends of every move: one forward pass for each end that is not the base.

    ``compiled`` runs the passes through ``torch.compile``, one compilation for all points.
    """
    run = _compiled() if compiled else None

    @whole_float32()
    def read(batch: Batch) -> Read:
        seen: dict[int, tuple[Readout, Tensor]] = {}

        def at(forward: Forward) -> tuple[Readout, Tensor]:
            if id(forward) not in seen:  # moves share their control
                model = run(forward) if run is not None else forward
                answers = task.outputs(model, batch)
                seen[id(forward)] = task.readout_of(answers, batch), answers
            return seen[id(forward)]

        with torch.no_grad():
            before, _ = at(base)
            shared = {id(base)} | {id(m.tangent.at) for m in moves if m.tangent is not None}
            loss, margin, outputs = [], [], []
            for move in moves:
                (control, answers), (treated, moved) = at(move.control), at(move.treated)
                loss.append((control.loss - treated.loss) / move.weight)
                margin.append((treated.margin - control.margin) / move.weight)
                if with_outputs:
                    outputs.append((moved - answers) / move.weight)
                for key in seen.keys() - shared:
                    del seen[key]
        return Read(
            before,
            torch.stack(loss),
            torch.stack(margin),
            torch.stack(outputs) if with_outputs else None,
        )

    return read


def _compiled() -> Callable[[Forward], Forward]:
    """Return what turns a point into its compiled self; estimators are left as they are."""
    from torch._dynamo.exc import TorchDynamoException  # a second, and few compile

    def called(module: nn.Module, parameters: Parameters, inputs: tuple[Tensor, ...]) -> Tensor:
        output: Tensor = functional_call(module, parameters, inputs)
        return output

    call = torch.compile(called)

    def run(forward: Forward) -> Forward:
        if not isinstance(forward, Point):
            return forward

        def passed(*inputs: Tensor) -> Tensor:
            try:
                return call(forward.module, forward.parameters, inputs)
            except TorchDynamoException as error:
                why = next(iter(str(error).splitlines()), "")
                raise ForwardInfError(
                    f"this model cannot be compiled here ({why[:200]}): leave compile out"
                ) from error

        return passed

    return run


def by_derivative(
    moves: Sequence[Move], base: Forward, task: Task, *, with_outputs: bool = False
) -> Reader:
    """Read exact directional derivatives in forward mode; moves from one point share its pass.

    Every move must have a tangent.
    """
    stacks = _stacked([move.tangent for move in moves])

    @whole_float32()
    def read(batch: Batch) -> Read:
        loss: dict[int, Tensor] = {}
        margin: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}
        before = None
        with torch.no_grad(), math_attention():
            for origin, positions, along in stacks:
                here, pushed = _pushed(origin, along, task, batch)
                before = here if origin is base else before
                for i, position in enumerate(positions):
                    loss[position], margin[position] = -pushed[0][i], pushed[1][i]
                    outputs[position] = pushed[2][i]
            if before is None:
                before = task.readout(base, batch)
        order = range(len(moves))
        return Read(
            before,
            torch.stack([loss[k] for k in order]),
            torch.stack([margin[k] for k in order]),
            torch.stack([outputs[k] for k in order]) if with_outputs else None,
        )

    return read


def _stacked(tangents: Sequence[Tangent | None]) -> list[tuple[Point, list[int], Parameters]]:
    """Put tangents that start at one point on top of each other, a few at a time."""
    found: list[tuple[Point, list[int]]] = []
    for k, tangent in enumerate(tangents):
        assert tangent is not None, "a move without a tangent has no derivative"
        last = next((f for f in reversed(found) if f[0] is tangent.at), None)
        if last is None or len(last[1]) == _TOGETHER:
            found.append((tangent.at, [k]))
        else:
            last[1].append(k)
    stacks = []
    for origin, positions in found:
        along = [tangents[k].along for k in positions]  # type: ignore[union-attr]
        stack = {name: torch.stack([a[name] for a in along]) for name in origin.parameters}
        stacks.append((origin, positions, stack))
    return stacks


def _pushed(
    origin: Point, along: Parameters, task: Task, batch: Batch
) -> tuple[Readout, tuple[Tensor, Tensor, Tensor]]:
    """Return the readout at a point, and the derivatives of loss, margin and outputs."""

    def values(parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        answers = task.outputs(Point(origin.module, parameters), batch)
        return *task.readout_of(answers, batch), answers

    def push(one: Parameters) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        here, moved = jvp(values, (origin.parameters,), (one,))[:2]
        return here, moved

    if len(next(iter(along.values()))) == 1:
        here, pushed = _pushed_alone(values, origin.parameters, along)
    else:
        # The first result is the same for all: its axis is left out.
        here, pushed = vmap(push, out_dims=(None, 0))(along)  # type: ignore[arg-type]
    return Readout(here[0], here[1]), (pushed[0], pushed[1], pushed[2])


def _pushed_alone(
    values: Callable[[Parameters], tuple[Tensor, ...]], parameters: Parameters, along: Parameters
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return values and derivatives for one move: without ``torch.func``, which costs a tenth."""
    with forward_ad.dual_level():
        dual = {
            name: forward_ad.make_dual(p, along[name][0])  # type: ignore[no-untyped-call]
            for name, p in parameters.items()
        }
        found = [forward_ad.unpack_dual(v) for v in values(dual)]  # type: ignore[no-untyped-call]
    here = tuple(value.primal for value in found)
    moved = (torch.zeros_like(v.primal) if v.tangent is None else v.tangent for v in found)
    return here, tuple(tangent[None] for tangent in moved)
