"""Reliability: how much of a score comes back when what is drawn at random is drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from scipy.stats import spearmanr

from forward_inf_mlflow.directions.moves import Sign, Tangent, small_step
from forward_inf_mlflow.memory import batches_that_fit
from forward_inf_mlflow.readers import by_difference
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Tensors

#: Rows, and query groups, that scores are compared on.
COMPARED_ROWS, COMPARED_GROUPS = 256, 4


def read_some(
    tangents: Sequence[Tangent], task: Task, rows: Tensors, *, relative_size: float, sign: Sign
) -> np.ndarray:
    """Return the influences of some rows on every group, ``(m, rows)``."""
    moves = [small_step(t, relative_size, sign) for t in tangents]
    read = by_difference(moves, tangents[0].at, task)
    parts = batches_that_fit(rows, lambda batch: read(batch).loss.cpu())
    return torch.cat(list(parts), 1).numpy()


def reliability_of(scores: np.ndarray) -> float:
    """Return how reliable the mean of s equally good scores is, from ``(s, m, n)``.

    The mean Spearman correlation r between two seeds, over the m groups, stepped up to s of them by
    the Spearman-Brown formula ``s r / (1 + (s - 1) r)``: 1 is perfect, 0 is noise.
    """
    pairs = combinations(range(len(scores)), 2)
    found = [
        spearmanr(a, b).statistic
        for i, j in pairs
        for a, b in zip(scores[i], scores[j], strict=True)
        if np.ptp(a) and np.ptp(b)
    ]
    if not found:
        return float("nan")
    mean, s = float(np.mean(found)), len(scores)
    return s * mean / (1 + (s - 1) * mean)
