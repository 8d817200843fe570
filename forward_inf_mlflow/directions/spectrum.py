"""The spectrum of a Gauss-Newton matrix: its largest, mean and leading eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_inf_mlflow.directions.products import GaussNewton

#: Random vectors whose quadratic forms average to the trace; the estimate is within a few percent.
_PROBES = 32
#: Columns of a product that are computed at once.
_BLOCK = 16
_TINY = 1e-30


@dataclass(frozen=True)
class Sketch:
    """The leading eigenvectors ``(P, r)`` and their eigenvalues ``(r,)``, largest first."""

    vectors: Tensor
    values: Tensor


def mean_eigenvalue(matrix: GaussNewton, seed: int) -> float:
    """Return the trace over the number of eigenvalues that can be positive.

    The trace is estimated from random signs (Hutchinson, 1989).

    Args:
        matrix: Only products with it are taken.
        seed: Of the signs.
    """
    size = matrix.layout.size
    signs = _random(matrix, _PROBES, seed).sign()
    trace = float((signs * (matrix @ signs)).sum()) / _PROBES
    return max(trace, 0.0) / min(size, max(1, matrix.rank_bound))


def largest_eigenvalue(matrix: GaussNewton, seed: int, iterations: int = 12) -> float:
    """Return the largest eigenvalue by power iteration; from below, within a few percent."""
    vector, value = _random(matrix, 1, seed), 0.0
    for _ in range(iterations):
        vector = vector / vector.norm()
        moved = matrix @ vector
        value = float((vector * moved).sum())
        vector = moved
        if not vector.any():
            return 0.0
    return value


def sketch(matrix: GaussNewton, rank: int, seed: int) -> Sketch:
    """Return the leading eigenvectors from products with one random subspace.

    A randomised Nystroem approximation (Tropp, Yurtsever, Udell and Cevher, 2017, algorithm 3) with
    one power iteration before it: 2 (rank + 10) products in all.
    """
    size = matrix.layout.size
    width = min(size, rank + 10)
    basis = _orthonormal(_product(matrix, _orthonormal(_random(matrix, width, seed))))
    image = _product(matrix, basis).double()
    basis = basis.double()
    shift = max(float(image.norm()) * torch.finfo(torch.float32).eps * 10, _TINY)
    image += shift * basis
    inner = basis.T @ image
    lower = torch.linalg.cholesky((inner + inner.T) / 2 + shift * 1e-3 * torch.eye(width).to(inner))
    factor = torch.linalg.solve_triangular(lower, image.T, upper=False).T
    vectors, values, _ = torch.linalg.svd(factor, full_matrices=False)
    values = (values.square() - shift).clamp_min(0)[:rank]
    return Sketch(vectors[:, :rank].to(matrix.layout.dtype), values)


def _product(matrix: GaussNewton, columns: Tensor) -> Tensor:
    """Return the matrix times the columns, a block at a time."""
    parts = [matrix @ block for block in torch.split(columns, _BLOCK, 1)]
    return torch.cat(parts, 1)


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis


def _random(matrix: GaussNewton, width: int, seed: int) -> Tensor:
    """Return normal columns ``(P, width)`` that a seed repeats on every device."""
    generator = torch.Generator().manual_seed(seed)
    like = matrix.layout
    return torch.randn(like.size, width, generator=generator).to(like.device, like.dtype)
