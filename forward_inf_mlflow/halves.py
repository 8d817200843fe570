"""Halves: what the model would say of a training row that it had not been trained on.

The mirrored question asked of the training set itself: train the model on one half of the rows,
read the other half with forward passes; both ways, several times. Every row then has outputs of
models that did not see it, and so does every query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class HeldOut:
    """Outputs of the half-models.

    Attributes:
        train_out: ``(R, n, K)`` float32, for each repeat the half-model that did not see the row.
        queries: ``(R, m, K)`` float32, for each repeat one of the two half-models at random, so
            that queries are asked just as training rows are.
        note: How the half-models came to be, one sentence.
        learned: ``(R, n)`` the output that each half-model that *did* see the row finds largest.
        alike: Whether they were trained as the audited model was, by its own code.
    """

    train_out: np.ndarray
    queries: np.ndarray
    note: str
    learned: np.ndarray | None = None
    alike: bool = False

    @property
    def diverged(self) -> str | None:
        """Return why the outputs say nothing of any row, one clause; None if they do."""
        if all(np.isfinite(x).all() for x in (self.train_out, self.queries)):
            return None
        return "a model trained on half of the rows answers NaN or infinity"


class Fit(Protocol):
    """Trains on some rows and says what the result answers on all."""

    @property
    def note(self) -> str:
        """Return how the models came to be, one sentence."""
        ...

    @property
    def alike(self) -> bool:
        """Return whether they are trained as the audited model was, by its own code."""
        ...

    def __call__(self, index: np.ndarray, seed: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs for all training rows ``(n, K)`` and all queries ``(m, K)``."""
        ...


def read_halves(
    fit: Fit,
    strata: np.ndarray,
    *,
    repeats: int,
    seed: int,
    groups: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
) -> HeldOut:
    """Fit both halves of the rows ``repeats`` times and read everything under each.

    Args:
        fit: Trains one half.
        strata: ``(n,)`` the rows' labels (or binned targets); each is spread over both halves.
        repeats: R, how many times the rows are halved anew.
        seed: Decides the halves and the training.
        groups: ``(n,)`` rows of one group stay together: a copy in the other half would tell a
            model about a row that it must not have seen. None: every row is alone.
        progress: Called with 1 after each of the 2 R fits.
    """
    out: list[np.ndarray] = []
    queries: list[np.ndarray] = []
    learned: list[np.ndarray] = []
    for r in range(repeats):
        rng = np.random.default_rng([seed, r])
        first = halve(strata, rng, groups)
        pair = []
        for number, members in enumerate((first, ~first)):
            pair.append(fit(np.flatnonzero(members), seed * 1009 + 2 * r + number))
            if progress is not None:
                progress(1)
        (a_train, a_query), (b_train, b_query) = pair
        # Queries are asked as training rows are, some of one half-model and some of the other:
        # where one of the two is worse, both kinds of rows suffer alike.
        side = rng.permutation(len(a_query)) < len(a_query) // 2
        for answers, mine, a, b in (
            (out, first, a_train, b_train),
            (queries, side, a_query, b_query),
        ):
            answers.append(np.where(mine.reshape(-1, *[1] * (a.ndim - 1)), b, a))
        learned.append(np.where(first, a_train.argmax(1), b_train.argmax(1)))
    return HeldOut(np.stack(out), np.stack(queries), fit.note, np.stack(learned), fit.alike)


def halve(
    strata: np.ndarray, rng: np.random.Generator, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return a random half ``(n,)`` bool that takes half of every stratum, give or take a row.

    With ``groups``, half of the groups of every stratum (that of a group's first row).
    """
    if groups is None:
        groups = np.arange(len(strata))
    _, leaders, member = np.unique(groups, return_index=True, return_inverse=True)
    order = rng.permutation(len(leaders))
    order = order[np.argsort(strata[leaders][order], kind="stable")]
    chosen = np.zeros(len(leaders), dtype=bool)
    chosen[order[rng.integers(2) :: 2]] = True
    return chosen[member.reshape(-1)]
