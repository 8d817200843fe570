from __future__ import annotations

from functools import cache

import pytest
import torch
from engine import (
    TASKS,
    gauss_newton,
    setting,
    with_batches_of,
)

from forward_inf_mlflow.directions.fisher import Fisher, fisher
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tasks import CausalLM, Classification, Denoising, Regression

cached = cache(setting)
dense = cache(lambda kind: gauss_newton(cached(kind)))


def held(kind: str, draws: int, batch_size: int = 7) -> Fisher:
    found = cached(kind)
    rows = with_batches_of(found.rows, batch_size)
    return fisher(found.base, found.task, rows, draws=draws, seed=0)


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (Classification(), (3,), torch.int64),
        (Regression(), (), torch.float64),
        (CausalLM(), (2, 3), torch.int64),
        (CausalLM(mean=True), (2, 3), torch.int64),
        (Denoising(alphas_cumprod=(0.8, 0.1), draws=2, times=2), (4, 2), torch.int64),
    ],
    ids=["classification", "regression", "causal_lm", "causal_lm mean", "denoising"],
)
def test_drawn_residuals_have_the_losses_curvature_as_covariance(
    task: Task, outputs: tuple[int, ...], targets: torch.dtype
) -> None:
    many, generator = 20_000, torch.Generator().manual_seed(0)
    at = torch.randn(1, *outputs, generator=generator, dtype=torch.float64)
    shape = (1, outputs[0]) if isinstance(task, CausalLM) else (1,)
    given = torch.ones(shape, dtype=targets)
    if isinstance(task, CausalLM):
        given[0, 0] = -100
        given = given if task.mean else torch.ones_like(given)
    curved = torch.autograd.functional.hessian(lambda z: task.loss(z, given).sum(), at)
    curved = curved.reshape(at.numel(), at.numel())
    residuals = task.drawn(
        at.expand(many, *outputs), given.expand(many, *given.shape[1:]), generator
    )
    assert residuals is not None
    assert residuals.shape == (many, *outputs)
    assert residuals.dtype == at.dtype
    flat = residuals.reshape(many, -1)
    size = float(curved.diagonal().max())
    torch.testing.assert_close(flat.T @ flat / many, curved, rtol=0, atol=0.04 * size)
    assert float(flat.mean(0).abs().max()) < 0.03 * size**0.5
    between = flat[: many // 2].T @ flat[many // 2 :] / (many // 2)  # rows are independent
    assert float(between.abs().max()) < 0.04 * size


@pytest.mark.parametrize("kind", TASKS)
def test_many_drawn_gradients_are_the_gauss_newton_matrix(kind: str) -> None:
    a = held(kind, draws=200).gradients
    whole = dense(kind)
    assert float((a.T @ a / len(a) - whole).norm() / whole.norm()) < 0.1


@pytest.mark.parametrize("kind", TASKS)
def test_the_inverse_of_drawn_gradients_is_that_of_their_matrix(kind: str) -> None:
    found = held(kind, draws=2)
    a = found.gradients
    whole = a.T @ a / len(a)
    right = torch.randn(len(whole), 3, generator=torch.Generator().manual_seed(1)).double()
    for damping in (0.01, 1.0):
        solved = torch.linalg.solve(whole + damping * torch.eye(len(whole)).double(), right)
        torch.testing.assert_close(found.solve(damping, right), solved, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", TASKS)
def test_the_leading_eigenvectors_of_drawn_gradients_are_exact(kind: str) -> None:
    found = held(kind, draws=2)
    a = found.gradients
    values = torch.linalg.eigvalsh(a.T @ a / len(a)).flip(0)
    leading = found.sketch(5)
    torch.testing.assert_close(leading.values, values[:5])
    torch.testing.assert_close(leading.vectors.T @ leading.vectors, torch.eye(5).double())
    moved = a.T @ (a @ leading.vectors) / len(a)
    torch.testing.assert_close(moved, leading.vectors * leading.values)
    assert found.trace == pytest.approx(float(values.sum()))


@pytest.mark.parametrize("kind", TASKS)
def test_drawn_gradients_do_not_depend_on_the_batch_size(kind: str) -> None:
    first, second = (held(kind, 2, batch_size).gradients for batch_size in (3, 24))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11)
