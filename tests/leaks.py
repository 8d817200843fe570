"""Rows among which leaks are looked for: drawn numbers, and digits as pictures."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

M, N, D = 60, 300, 12


def table(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


def images() -> tuple[np.ndarray, np.ndarray]:
    """Digits as images ``(n, 8, 8)``: queries and training rows."""
    x = load_digits().images.astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[:150]], x[order[150:1000]]
