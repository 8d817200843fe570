from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from engine import TASKS, Narrow, Setting, assert_close, setting, with_batches_of
from torch import nn

from forward_inf_mlflow import sweep as sweeping
from forward_inf_mlflow.directions import Curvature, GradientStep, OptimizerSteps
from forward_inf_mlflow.directions.moves import Moves
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.streams import IterableStream
from forward_inf_mlflow.sweep import Part, outputs, read, sweep
from forward_inf_mlflow.tasks import Classification, Regression
from forward_inf_mlflow.tensors import Tensors

N, M, D, K = 23, 4, 3, 2


def rows(n: int, batch_size: int = 5) -> Tensors:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, D)).astype(np.float32), rng.integers(K, size=n)
    return Tensors(torch.as_tensor(x), torch.as_tensor(y), torch.device("cpu"), batch_size)


class Counting(nn.Module):
    """Counts the rows that pass forward without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(D, K)
        self.passed = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            self.passed += len(inputs)
        return self.layer(inputs)


@pytest.mark.parametrize(
    ("direction", "reads"),
    [
        (GradientStep(), 1 + M),
        (GradientStep(sign="down"), 1 + M),
        (GradientStep(sign="both"), 1 + 2 * M),
        (OptimizerSteps(steps=3), 1 + M),
        (OptimizerSteps(sign="down"), 1 + M),
    ],
    ids=["up", "down", "both", "adam up", "adam down"],
)
def test_the_base_is_read_once_and_every_pass_is_counted(direction: object, reads: int) -> None:
    module, train, queries = Counting(), rows(N), rows(M)
    groups = [queries.take(np.array([i])) for i in range(M)]
    moves = direction.plan(module, Classification(), groups, train)  # type: ignore[attr-defined]
    steps: list[int] = []
    (part,) = sweep(moves, Classification(), train, progress=steps.append)
    assert part.loss.shape == part.margin.shape == (M, N)
    assert part.passes == module.passed == sum(steps) == reads * N


def test_a_move_that_goes_nowhere_costs_no_pass() -> None:
    module = nn.Linear(1, 1)
    still = Tensors(torch.zeros(1, 1), module.bias.detach().clone(), torch.device("cpu"), 1)
    moves = GradientStep().plan(module, Regression(), [still], still)
    (part,) = sweep(moves, Regression(), still)
    assert part.passes == 1
    assert (part.loss == 0).all()


def test_losses_are_read_in_float64_and_in_the_order_of_the_rows() -> None:
    module, train = Counting(), rows(N)
    readout = read(module, Classification(), train)
    assert readout.loss.dtype == readout.margin.dtype == torch.float64
    logits = module(train.inputs).double()
    expected = nn.functional.cross_entropy(logits, train.targets, reduction="none")
    torch.testing.assert_close(readout.loss, expected.detach(), rtol=1e-6, atol=1e-7)


def test_outputs_are_those_of_the_module_for_any_batch_size() -> None:
    module = Counting()
    whole = module(rows(N).inputs).detach()
    for batch_size in (1, 5, 100):
        torch.testing.assert_close(outputs(module, rows(N, batch_size)), whole)


# Parts

cached = cache(setting)


def moves_of(found: Setting, **settings: object) -> Moves:
    groups = [found.queries.part(i, i + 1) for i in range(len(found.queries))]
    direction = GradientStep(**settings)  # type: ignore[arg-type]
    return direction.plan(found.module, found.task, groups, found.rows)


def whole(parts: list[Part], k: int, n: int) -> np.ndarray:
    """Put parts together; every row under every move must come exactly once."""
    loss, seen = np.full((k, n), np.nan, np.float32), np.zeros((k, n), int)
    for part in parts:
        loss[part.moves, part.rows] = part.loss
        seen[part.moves, part.rows] += 1
    assert (seen == 1).all()
    return loss


@pytest.mark.parametrize("method", ["difference", "derivative"])
@pytest.mark.parametrize("held", [1, 2**30], ids=["a move at a time", "all moves"])
@pytest.mark.parametrize("shard_rows", [1, 7, 10, 8192])
def test_parts_hold_every_row_under_every_move_once(
    shard_rows: int, held: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cached("classification")
    n, k = len(found.rows), len(found.queries)
    moves, steps = moves_of(found), list[int]()
    (expected,) = sweep(moves, found.task, found.rows, method=method)  # type: ignore[arg-type]
    monkeypatch.setattr(sweeping, "room", lambda device: held)
    parts = list(
        sweep(
            moves,
            found.task,
            found.rows,
            method=method,  # type: ignore[arg-type]
            shard_rows=shard_rows,
            progress=steps.append,
        )
    )
    loss = whole(parts, k, n)
    assert_close(loss, expected.loss, 1e-6)
    assert sum(steps) == sum(part.passes for part in parts)
    rows = max(1, shard_rows // 7) * 7  # whole batches
    assert len(parts) == -(-n // rows) * (k if held == 1 else 1)


def test_progress_is_as_many_rows_as_were_announced() -> None:
    found = cached("classification")
    moves, steps = moves_of(found), list[int]()
    list(sweep(moves, found.task, found.rows, method="derivative", progress=steps.append))
    assert sum(steps) == sweeping.passes(list(moves), moves.base, "derivative") * len(found.rows)


@pytest.mark.parametrize("kind", TASKS)
def test_changed_outputs_are_swept_where_they_are_asked_for(kind: str) -> None:
    found = cached(kind)
    moves = moves_of(found)
    options = {"method": "derivative", "shard_rows": 7}
    with_them, without = (
        list(sweep(moves, found.task, found.rows, with_outputs=asked, **options))  # type: ignore[arg-type]
        for asked in (True, False)
    )
    answers = found.task.outputs(found.base, found.rows.batch(slice(None)))
    shapes = [part.outputs.shape for part in with_them if part.outputs is not None]
    assert sum(shape[1] for shape in shapes) == len(found.rows)
    assert all((shape[0], *shape[2:]) == (3, *answers.shape[1:]) for shape in shapes)
    assert all(part.outputs is None for part in without)


def test_a_stream_is_swept_as_rows_in_memory_are() -> None:
    found = cached("classification")
    x, y = found.rows.inputs, found.rows.targets
    stream = IterableStream(
        lambda: ((x[i : i + 5], y[i : i + 5]) for i in range(0, 24, 5)),
        24,
        device=found.rows.device,
        batch_size=7,
    )
    moves = moves_of(found)
    (expected,) = sweep(moves, found.task, found.rows)
    parts = list(sweep(moves, found.task, stream, shard_rows=7))
    assert np.array_equal(whole(parts, 3, 24), expected.loss)


# Memory


@pytest.mark.parametrize("method", ["difference", "derivative"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("most", [1, 4])
def test_batches_that_do_not_fit_are_halved_and_give_the_same_scores(
    most: int, error: type[BaseException], method: str
) -> None:
    found = cached("classification")
    narrow = replace(found, module=Narrow(found.module, most, error))
    shards = [
        list(sweep(moves_of(s), s.task, with_batches_of(s.rows, 10), method=method))  # type: ignore[arg-type]
        for s in (found, narrow)
    ]
    assert_close(shards[1][0].loss, shards[0][0].loss)
    assert_close(shards[1][0].margin, shards[0][0].margin)
    torch.testing.assert_close(shards[1][0].base.loss, shards[0][0].base.loss)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_single_row_that_does_not_fit_is_an_error_of_one_line(
    error: type[BaseException],
) -> None:
    found = cached("classification")
    narrow = Narrow(found.module, 24, error)
    groups = [found.queries]
    moves = Curvature().plan(narrow, found.task, groups, found.rows)
    narrow.most = 0
    with pytest.raises(ForwardInfError, match="one row at a time does not fit") as raised:
        list(sweep(moves, found.task, found.rows))
    assert "\n" not in str(raised.value)


def test_an_error_that_is_not_about_memory_passes() -> None:
    found = cached("classification")
    narrow = replace(found, module=Narrow(found.module, 4, ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        list(sweep(moves_of(narrow), found.task, found.rows))
