"""Conjugate gradients for many right-hand sides at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forward_inf_mlflow.directions.products import GaussNewton


class Solution(NamedTuple):
    """What was found: ``vectors (P, k)``, the largest relative residual, and iterations made."""

    vectors: Tensor
    residual: float
    iterations: int


def solve(
    matrix: GaussNewton, damping: float, right: Tensor, *, iterations: int, tolerance: float
) -> Solution:
    """Solve ``(G + damping I) x = b`` for every column b of ``right (P, k)`` alone.

    Each column stops moving when its residual is below ``tolerance`` of its norm.
    Source: Hestenes and Stiefel (1952).
    """
    x, r = torch.zeros_like(right), right.clone()
    p, rr = r.clone(), _dots(r, r)
    goal = rr * tolerance**2
    done = 0
    while done < iterations and bool((rr > goal).any()):
        moving = rr > goal
        applied = matrix @ p + damping * p
        alpha = torch.where(moving, rr / _dots(p, applied).clamp_min(_TINY), 0)
        x += alpha * p
        r -= alpha * applied
        new = torch.where(moving, _dots(r, r), rr)
        p = torch.where(moving, r + new / rr.clamp_min(_TINY) * p, p)
        rr, done = new, done + 1
    relative = (rr / _dots(right, right).clamp_min(_TINY)).sqrt()
    return Solution(x, float(relative.max()), done)


_TINY = 1e-30


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of every column, ``(k,)``."""
    return (a * b).sum(0)
