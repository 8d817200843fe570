from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from engine import KINDS, TASKS, Setting, exported, gauss_newton, setting, with_batches_of
from torch import Tensor

from forward_inf_mlflow.directions.products import GaussNewton, Layout
from forward_inf_mlflow.directions.solve import solve
from forward_inf_mlflow.directions.spectrum import largest_eigenvalue, mean_eigenvalue, sketch

cached = cache(setting)
dense = cache(lambda kind: gauss_newton(cached(kind)))


def product(found: Setting, batch_size: int = 100) -> GaussNewton:
    return GaussNewton(found.base, found.task, with_batches_of(found.rows, batch_size))


def columns(size: int, k: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(size, k, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("kind", TASKS)
def test_products_are_those_of_the_whole_matrix_for_any_batch_size(
    kind: str, batch_size: int
) -> None:
    matrix = product(cached(kind), batch_size)
    some = columns(matrix.layout.size)
    torch.testing.assert_close(matrix @ some, dense(kind) @ some, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["cnn", "attention"])
def test_products_go_through_convolutions_group_norm_and_attention(kind: str) -> None:
    matrix = product(cached(kind))
    some = columns(matrix.layout.size)
    torch.testing.assert_close(matrix @ some, dense(kind) @ some, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", TASKS)
def test_the_matrix_is_symmetric_and_positive_semi_definite(kind: str) -> None:
    matrix = product(cached(kind))
    whole = matrix @ torch.eye(matrix.layout.size, dtype=torch.float64)
    torch.testing.assert_close(whole, whole.T, rtol=1e-9, atol=1e-11)
    assert torch.linalg.eigvalsh(whole).min() > -1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_module_has_the_same_matrix(kind: str) -> None:
    found = cached(kind)
    other = replace(found, module=exported(found))
    some = columns(product(found).layout.size)
    # Parameters keep their order when a module is exported.
    torch.testing.assert_close(product(other) @ some, product(found) @ some, rtol=1e-9, atol=1e-11)


def test_many_columns_are_what_each_gives_alone() -> None:
    matrix = product(cached("classification"))
    some = columns(matrix.layout.size, 20)
    alone = torch.cat([matrix @ some[:, i : i + 1] for i in range(20)], 1)
    torch.testing.assert_close(matrix @ some, alone, rtol=1e-12, atol=1e-14)


def test_parameters_that_do_not_train_are_no_part_of_the_matrix() -> None:
    found = setting("classification")
    first = sum(p.numel() for p in found.module[0].parameters())  # type: ignore[index]
    whole = gauss_newton(found)[first:, first:]
    found.module[0].requires_grad_(False)  # type: ignore[index]
    matrix = product(found)
    assert matrix.layout.size == len(whole)
    some = columns(len(whole))
    torch.testing.assert_close(matrix @ some, whole @ some, rtol=1e-9, atol=1e-11)


def test_a_long_vector_is_split_and_joined_without_loss() -> None:
    layout = Layout(cached("causal_lm").base.parameters)
    vector = torch.arange(layout.size, dtype=torch.float64)
    assert torch.equal(layout.join(layout.split(vector)), vector)


@pytest.mark.parametrize("kind", TASKS)
def test_no_more_eigenvalues_are_positive_than_the_bound(kind: str) -> None:
    few = setting(kind, n=2)
    positive = torch.linalg.eigvalsh(gauss_newton(few)) > 1e-9
    assert 0 < int(positive.sum()) <= product(few).rank_bound


@pytest.mark.parametrize("kind", TASKS)
def test_the_mean_eigenvalue_is_the_trace_over_those_that_can_be_positive(kind: str) -> None:
    matrix = product(cached(kind))
    expected = float(dense(kind).trace()) / min(matrix.layout.size, matrix.rank_bound)
    assert mean_eigenvalue(matrix, seed=0) == pytest.approx(expected, rel=0.3)


def test_the_mean_eigenvalue_is_right_on_average_over_seeds() -> None:
    matrix, expected = product(cached("regression")), float(dense("regression").trace())
    found = [mean_eigenvalue(matrix, seed) for seed in range(20)]
    bound = min(matrix.layout.size, matrix.rank_bound)
    assert sum(found) / 20 * bound == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", TASKS)
def test_the_largest_eigenvalue_is_found_from_below(kind: str) -> None:
    expected = float(torch.linalg.eigvalsh(dense(kind))[-1])
    assert 0.9 * expected < largest_eigenvalue(product(cached(kind)), 0) < expected * (1 + 1e-9)


@pytest.mark.parametrize("kind", TASKS)
def test_a_sketch_has_the_leading_eigenvectors_and_their_eigenvalues(kind: str) -> None:
    whole, rank = dense(kind), 6
    found = sketch(product(cached(kind)), rank, seed=0)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(rank).double())
    values = torch.linalg.eigvalsh(whole).flip(0)
    torch.testing.assert_close(found.values, values[:rank], rtol=0.02, atol=1e-4 * float(values[0]))
    leading = found.vectors[:, :2]
    moved = whole @ leading - leading * found.values[:2]
    assert float(moved.norm(dim=0).max()) < 0.02 * float(values[0])


def test_a_sketch_of_full_rank_is_the_matrix() -> None:
    whole = dense("classification")
    found = sketch(product(cached("classification")), len(whole), seed=0)
    again = found.vectors * found.values @ found.vectors.T
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("damping", [0.01, 10.0])
@pytest.mark.parametrize("kind", TASKS)
def test_conjugate_gradients_solve_every_column(kind: str, damping: float) -> None:
    whole, matrix = dense(kind), product(cached(kind))
    right = columns(len(whole)) * torch.tensor([1.0, 1e-6, 1e6, 1.0, 1.0])
    found = solve(matrix, damping, right, iterations=400, tolerance=1e-9)
    expected = torch.linalg.solve(whole + damping * torch.eye(len(whole)).double(), right)
    assert found.residual < 1e-9
    size = expected.norm(dim=0)
    torch.testing.assert_close(found.vectors / size, expected / size, rtol=0, atol=1e-6)


def test_a_column_of_zeros_has_the_solution_zero_and_spoils_no_other() -> None:
    matrix = product(cached("classification"))
    right = columns(matrix.layout.size, 2)
    both = torch.cat([torch.zeros_like(right[:, :1]), right], 1)
    found = solve(matrix, 0.1, both, iterations=200, tolerance=1e-8)
    assert (found.vectors[:, 0] == 0).all()
    alone = solve(matrix, 0.1, right, iterations=200, tolerance=1e-8)
    torch.testing.assert_close(found.vectors[:, 1:], alone.vectors)
    assert solve(matrix, 0.1, 0 * right, iterations=9, tolerance=1e-3).iterations == 0


def test_a_solution_that_is_stopped_early_says_how_far_it_is() -> None:
    whole, matrix = dense("causal_lm"), product(cached("causal_lm"))
    right = columns(len(whole))
    found = solve(matrix, 1e-4, right, iterations=3, tolerance=1e-9)
    left = right - (whole + 1e-4 * torch.eye(len(whole)).double()) @ found.vectors
    assert found.iterations == 3
    assert found.residual == pytest.approx(float((left.norm(dim=0) / right.norm(dim=0)).max()))
