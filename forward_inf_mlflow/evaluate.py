"""How good scores are, judged by retraining: numbers in, numbers out.

*LDS* (linear datamodeling score; Park et al., "TRAK: Attributing Model Behavior at Scale", ICML
2023, arXiv 2303.14186): networks are retrained on random subsets of the rows; for each query, does
the sum of influences over a subset rank the subsets as the retrained networks' losses do?
*Leave-top-k-out*: does the loss of a query rise when its top proponents are left out?

Sign: positive influence is a proponent, a row that lowers the query's loss.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, rankdata

from forward_inf_mlflow.errors import DataError


class Estimate(NamedTuple):
    """A mean over queries with its 95 % interval."""

    mean: float
    low: float
    high: float


def lds(scores: np.ndarray, masks: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the linear datamodeling score of each query, ``(q,)`` in [-1, 1].

    For query j it is the Spearman correlation, over subsets S, of sum_{i in S} scores[j, i] with
    minus the mean loss of query j after retraining on S.

    Args:
        scores: Influence of rows on queries, ``(q, n)``, in any unit.
        masks: The rows of each subset, ``(subsets, n)`` bool.
        losses: The queries' losses after retraining, ``(subsets, q)`` or, of several retrainings,
            ``(subsets, s, q)``. For another output that is better when larger, pass minus it.

    Raises:
        DataError: Shapes do not fit, or something is not finite.
    """
    scores, losses = _finite("scores", scores, 2), _finite("losses", losses, np.ndim(losses))
    if losses.ndim == 3:
        losses = losses.mean(1)
    if losses.shape != (len(masks), len(scores)) or np.shape(masks)[1:] != scores.shape[1:]:
        raise DataError(
            f"scores {scores.shape}, masks {np.shape(masks)} and losses {losses.shape} do not fit: "
            "give (q, n), (subsets, n) and (subsets, q)"
        )
    predicted = scores @ np.asarray(masks, dtype=np.float64).T
    return spearman(predicted, -losses.T)


def reliability(losses: np.ndarray) -> np.ndarray:
    """Return the noise ceiling of each query's LDS, ``(q,)`` in [0, 1].

    A retrained loss is the loss expected of its subset plus the noise of one training, so that even
    a perfect predictor of the expected loss correlates with it at less than 1. With r the mean
    correlation, over subsets, of two of the s retrainings, the mean of all s has the reliability
    s r / (1 + (s - 1) r) (Spearman and Brown, 1910; for s = 2 the split half), and the ceiling is
    its square root. Ranks are correlated, as in :func:`lds`; the formula is exact for values. A
    negative r, which only chance gives, counts as 0.

    Args:
        losses: The queries' losses after retraining, ``(subsets, s, q)`` with s at least 2.

    Raises:
        DataError: Fewer than two retrainings of each subset, or something is not finite.
    """
    losses = _finite("losses", losses, 3)
    s = losses.shape[1]
    if s < 2:
        raise DataError("the noise ceiling needs two retrainings of each subset: train each again")
    by_query = losses.transpose(1, 2, 0)
    pairs = [spearman(by_query[a], by_query[b]) for a in range(s) for b in range(a + 1, s)]
    r = np.mean(pairs, axis=0).clip(0)
    return np.asarray(np.sqrt(s * r / (1 + (s - 1) * r)))


def leave_top_k_out(with_them: np.ndarray, without: np.ndarray) -> Estimate:
    """Return by how many nats the queries' losses rise when their top k proponents are left out.

    Args:
        with_them: The queries' losses after training on all rows, ``(seeds, q)``.
        without: Each query's loss after training without its own top k, ``(seeds, q)``; the same
            seeds.

    Raises:
        DataError: Shapes differ, something is not finite, or there are fewer than two queries.
    """
    with_them, without = _finite("losses", with_them, 2), _finite("losses", without, 2)
    if with_them.shape != without.shape:
        raise DataError(
            f"losses with and without differ in shape, {with_them.shape} and {without.shape}: "
            "retrain with the same seeds and ask the same queries"
        )
    return mean_over_queries((without - with_them).mean(0))


def mean_over_queries(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the mean of one value per query with a percentile bootstrap 95 % interval.

    Queries are drawn with replacement; the retrained networks are not, so the interval says how
    the mean would move with other queries, not with another bank.

    Args:
        values: ``(q,)``.
        seed: Of the 9,999 draws.

    Raises:
        DataError: Something is not finite, or there are fewer than two queries.
    """
    values = _finite("values", values, 1)
    if len(values) < 2:
        raise DataError("an interval over queries needs two of them: ask more queries")
    found = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(seed))
    return Estimate(float(values.mean()), *(float(end) for end in found.confidence_interval))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the rank correlation ``(m,)`` of the rows of ``a`` with those of ``b``, ``(m, n)``.

    Ties share their mean rank. A row that is constant orders nothing and gives 0.
    """
    return cosine(*(ranks - ranks.mean(-1, keepdims=True) for ranks in map(_ranks, (a, b))))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine ``(m,)`` of the rows of ``a`` with those of ``b``, ``(m, n)``.

    A row of zeros has no direction and gives 0.
    """
    a, b = _finite("scores", a, 2), _finite("scores", b, 2)
    if a.shape != b.shape:
        raise DataError(f"{a.shape} and {b.shape} cannot be compared: give two of one shape")
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = np.einsum("mn,mn->m", a, b)
    return np.asarray(np.divide(products, norms, out=np.zeros(len(a)), where=norms > 0))


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.asarray(rankdata(_finite("scores", values, 2), axis=1))


def _finite(name: str, values: np.ndarray, axes: int) -> np.ndarray:
    """Return the values in float64."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != axes:
        raise DataError(f"{name} have {values.ndim} axes: give {axes}")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise DataError(f"{count:,} of the {name} are not finite: leave their rows or queries out")
    return values
