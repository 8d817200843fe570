from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from engine import KINDS, TASKS, Setting, exported, setting
from torch import Tensor, nn

from forward_inf_mlflow.directions import GradientStep, Replay
from forward_inf_mlflow.directions.moves import Move, Point, Tangent, loss_gradient, small_step
from forward_inf_mlflow.readers import Read, by_derivative, by_difference

cached = cache(setting)
WHOLE = slice(None)


def along(at: Point, seed: int) -> Tangent:
    generator = torch.Generator().manual_seed(seed)
    parts = {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in at.parameters.items()
    }
    return Tangent(at, parts)


def moves_from(at: Point, k: int, relative_size: float = 1e-6) -> list[Move]:
    return [small_step(along(at, seed), relative_size, "both") for seed in range(k)]


def assert_same(found: Read, expected: Read, rtol: float = 1e-9, share: float = 1e-9) -> None:
    for one, other in zip(
        (*found.base, found.loss, found.margin),
        (*expected.base, expected.loss, expected.margin),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=rtol, atol=share * float(other.abs().max()))
    if expected.outputs is not None:
        assert found.outputs is not None
        atol = share * float(expected.outputs.abs().max())
        torch.testing.assert_close(found.outputs, expected.outputs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_the_limit_of_central_differences(kind: str) -> None:
    found = cached(kind)
    base = found.base
    moves = moves_from(base, 3)
    batch = found.rows.batch(WHOLE)
    exact = by_derivative(moves, base, found.task, with_outputs=True)(batch)
    assert_same(exact, by_difference(moves, base, found.task, with_outputs=True)(batch), 1e-6, 1e-6)
    assert exact.loss.dtype == exact.margin.dtype == torch.float64
    assert exact.loss.shape == (3, len(found.rows))


@pytest.mark.parametrize("kind", TASKS)
def test_derivatives_are_the_products_of_gradients_row_by_row(kind: str) -> None:
    found = cached(kind)
    base = found.base
    pull = loss_gradient(base, found.task, found.queries)
    tangent = Tangent(base, {name: -g for name, g in pull.items()})
    read = by_derivative([Move(base, base, 1.0, tangent)], base, found.task)(
        found.rows.batch(WHOLE)
    )
    for i in range(len(found.rows)):
        own = loss_gradient(base, found.task, found.rows.part(i, i + 1), asked=False)
        product = sum(float((own[name] * g).sum()) for name, g in pull.items())
        assert float(read.loss[0, i]) == pytest.approx(product, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_module_is_read_the_same(kind: str) -> None:
    found = cached(kind)
    other = replace(found, module=exported(found))
    batch = found.rows.batch(slice(0, 5))
    for reader in (by_derivative, by_difference):
        plain, graph = (
            reader(moves_from(s.base, 2), s.base, s.task, with_outputs=True)(batch)
            for s in (found, other)
        )
        assert_same(graph, plain, 1e-8, 1e-7)


class Counting(nn.Module):
    """Counts how often a module is called."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        output: Tensor = self.inner(*inputs)
        return output


def counted(kind: str) -> tuple[Setting, Counting]:
    found = cached(kind)
    module = Counting(found.module)
    return replace(found, module=module), module


@pytest.mark.parametrize(("k", "calls"), [(1, 1), (5, 1), (8, 1), (9, 2), (17, 3)])
def test_derivatives_from_one_point_share_its_pass_eight_at_a_time(k: int, calls: int) -> None:
    found, module = counted("classification")
    base = found.base
    by_derivative(moves_from(base, k), base, found.task)(found.rows.batch(WHOLE))
    assert module.calls == calls


@pytest.mark.parametrize("kind", ["classification", "attention", "cnn"])
def test_derivatives_together_are_what_each_is_alone(kind: str) -> None:
    found = cached(kind)
    base, batch = found.base, found.rows.batch(WHOLE)
    moves = moves_from(base, 10)
    together = by_derivative(moves, base, found.task, with_outputs=True)(batch)
    for k, move in enumerate(moves):
        alone = by_derivative([move], base, found.task, with_outputs=True)(batch)
        assert together.outputs is not None
        torch.testing.assert_close(together.loss[k], alone.loss[0])
        torch.testing.assert_close(together.margin[k], alone.margin[0])
        assert alone.outputs is not None
        torch.testing.assert_close(together.outputs[k], alone.outputs[0])


def test_a_difference_reads_each_model_once_and_a_shared_control_once_for_all() -> None:
    found, module = counted("classification")
    base = found.base
    control = base.moved(along(base, 99).along, 0.1)
    shared = [small_step(along(control, seed), 1e-4, "up") for seed in range(4)]
    by_difference(shared, base, found.task)(found.rows.batch(WHOLE))
    assert module.calls == 1 + 1 + 4  # base, control, the other ends


@pytest.mark.parametrize("reader", [by_difference, by_derivative])
def test_moves_from_elsewhere_are_read_there_and_the_base_as_it_was(reader: object) -> None:
    found = cached("classification")
    base, batch = found.base, found.rows.batch(WHOLE)
    points = [base.moved(along(base, seed).along, 0.3) for seed in (50, 51)]
    # In turn, so that positions and points do not go together.
    moves = [small_step(along(points[i % 2], i), 1e-6, "both") for i in range(4)]
    mixed = reader(moves, base, found.task)(batch)  # type: ignore[operator]
    own = found.task.readout(base, batch)
    torch.testing.assert_close(mixed.base.loss, own.loss.detach())
    torch.testing.assert_close(mixed.base.margin, own.margin.detach())
    for k, move in enumerate(moves):
        there = by_derivative([move], points[k % 2], found.task)(batch)
        torch.testing.assert_close(mixed.loss[k], there.loss[0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(there.base.loss, own.loss)


@pytest.mark.parametrize("reader", [by_difference, by_derivative])
def test_changed_outputs_are_given_where_they_are_asked_for_alone(reader: object) -> None:
    found = cached("regression")
    base, batch = found.base, found.rows.batch(WHOLE)
    moves = moves_from(base, 2)
    assert reader(moves, base, found.task)(batch).outputs is None  # type: ignore[operator]
    read = reader(moves, base, found.task, with_outputs=True)(batch)  # type: ignore[operator]
    answers = found.task.outputs(base, batch)
    assert read.outputs.shape == (2, *answers.shape)
    # Half the squared error falls by the residual times the change of the answer.
    fell = (batch.targets[:, None] - answers) * read.outputs
    torch.testing.assert_close(read.loss, fell[..., 0].detach(), rtol=1e-5, atol=1e-6)


def test_readers_leave_no_gradient_behind() -> None:
    found = cached("classification")
    base = found.base
    for reader in (by_difference, by_derivative):
        read = reader(moves_from(base, 2), base, found.task)(found.rows.batch(WHOLE))
        assert not any(x.requires_grad for x in (*read.base, read.loss, read.margin))
    assert all(p.grad is None for p in found.module.parameters())


@pytest.mark.parametrize("direction", [GradientStep(), Replay(most_steps=3, most_seeds=2)])
def test_the_weight_makes_readings_independent_of_the_steps_length(direction: object) -> None:
    found = cached("regression")
    groups = [found.queries.part(i, i + 1) for i in range(3)]
    read = []
    for size in (1e-6, 1e-5):
        sized = replace(direction, relative_size=size, sign="both")  # type: ignore[type-var]
        moves = sized.plan(found.module, found.task, groups, found.rows)  # type: ignore[attr-defined]
        reader = by_difference(list(moves), moves.base, found.task)
        read.append(reader(found.rows.batch(WHOLE)).loss.numpy())
    np.testing.assert_allclose(*read, rtol=0, atol=1e-4 * np.abs(read[0]).max())
