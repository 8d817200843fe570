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
#: Rows of tall matrices that are held in float64 at once.
_ROWS = 2**20
_TINY, _EPS = 1e-30, torch.finfo(torch.float32).eps


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
    width = min(matrix.layout.size, rank + 10)
    basis = _orthonormal(_product(matrix, _orthonormal(_random(matrix, width, seed))))
    image = _product(matrix, basis)
    shift = max(float(_gram(image, image).trace().sqrt()) * 10 * _EPS, _TINY)
    image.add_(basis, alpha=shift)
    inner = _gram(basis, image)
    del basis
    lower = torch.linalg.cholesky((inner + inner.T) / 2 + shift * 1e-3 * torch.eye(width).to(inner))
    factor = _times(image, torch.linalg.inv(lower).T)
    del image
    squares, turn = torch.linalg.eigh(_gram(factor, factor))
    squares, turn = squares.clamp_min(_TINY).flip(0)[:rank], turn.flip(1)[:, :rank]
    return Sketch(_times(factor, turn / squares.sqrt()), (squares - shift).clamp_min(0))


def _product(matrix: GaussNewton, columns: Tensor) -> Tensor:
    """Return the matrix times the columns, a block at a time."""
    parts = [matrix @ block for block in torch.split(columns, _BLOCK, 1)]
    return torch.cat(parts, 1)


def _orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal columns that span the same; zeros for what depends on the others.

    By the eigenvectors of their inner products, twice for accuracy: with many millions of rows,
    which would not fit in float64, a QR factorisation fails on a card.
    """
    for _ in range(2):
        squares, turn = torch.linalg.eigh(_gram(columns, columns))
        kept = squares > squares[-1] * _EPS**2
        columns = _times(columns, turn * torch.where(kept, squares.clamp_min(_TINY).rsqrt(), 0))
    return columns


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a^T b`` of tall matrices, float64, some rows at a time."""
    blocks = zip(torch.split(a, _ROWS), torch.split(b, _ROWS), strict=True)
    total = a.new_zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for x, y in blocks:
        total += x.double().T @ y.double()
    return total


def _times(a: Tensor, small: Tensor) -> Tensor:
    """Return a tall matrix times a small one of float64, some rows at a time."""
    found = a.new_empty(len(a), small.shape[1])
    for start in range(0, len(a), _ROWS):
        found[start : start + _ROWS] = (a[start : start + _ROWS].double() @ small).to(a.dtype)
    return found


def _random(matrix: GaussNewton, width: int, seed: int) -> Tensor:
    """Return normal columns ``(P, width)`` that a seed repeats on every device."""
    generator = torch.Generator().manual_seed(seed)
    like = matrix.layout
    return torch.randn(like.size, width, generator=generator).to(like.device, like.dtype)
