"""Opinions: who says what of a row's class without having learned its label.

Models trained on other rows; neighbours, in any form of the rows; and linear models on any form of
them, each row left out in turn. What each is worth is for the queries to say (`experts`).
"""

from __future__ import annotations

import numpy as np
from scipy import special
from sklearn.linear_model import RidgeCV

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.experts import Expert, fit, spread
from forward_inf_mlflow.detect.index import LARGE, Index

#: The least log-probability.
_LEAST = -1e4
#: How many neighbours may vote.
_VOTERS = (5, 10, 20, 40)
#: Votes that every class has before any is counted.
_PRIOR = 0.5
#: Rows that may vote without an index, at most: numbers in all of a distance matrix's sums.
_BUDGET = 2e13
#: Columns of a linear model; more are projected at random. Numbers in its rows, at most.
_COLUMNS, _NUMBERS = 1024, 2**28
#: Its penalties, in units of the rows' mean square along a direction.
_PENALTIES = np.geomspace(1e-4, 10, 6)


def of_logits(name: str, train: np.ndarray, queries: np.ndarray) -> Expert:
    """Return an expert from logits ``(R, n, K)`` and ``(R, m, K)``: the mean over R models."""

    def mean(logits: np.ndarray) -> np.ndarray:
        found = np.full(logits.shape[1:], -np.inf)
        for one in logits:  # one at a time: R copies in float64 would be the peak of memory
            found = np.logaddexp(found, special.log_softmax(one.astype(np.float64), axis=1))
        # A class that a model rules out (a mask of minus infinity) is only very unlikely.
        return np.asarray(np.maximum(found - np.log(len(logits)), _LEAST))

    return Expert(name, mean(train), mean(queries))


def of_neighbours(
    name: str,
    train: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
    *,
    classes: int,
) -> Expert | None:
    """Return the votes of the nearest training rows; how many may vote, the queries choose.

    Args:
        name: What the rows are compared by.
        train: ``(n, d)`` float32.
        queries: ``(m, d)``.
        labels: ``(n,)`` class indices, some of them wrong.
        groups: ``(n,)`` rows of one group are the same row and do not vote for each other.
        query_labels: ``(m,)`` class indices.
        trusted: ``(m,)`` bool, queries that count.
        classes: K.

    Returns:
        None where there are too few rows, or too many to compare.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    voters, own = first, member.reshape(-1)
    if len(voters) <= _VOTERS[0]:
        return None
    each = float(len(train) + len(queries)) * train.shape[1]
    index = Index.of(train[voters]) if each * len(voters) > LARGE else None
    most = len(voters) if index is not None else int(_BUDGET / each)
    if most < 50 * classes:
        return None
    if most < len(voters):  # some of the rows stand for all
        drawn = np.sort(np.random.default_rng(0).permutation(len(voters))[:most])
        at = np.full(len(voters), -1)
        at[drawn] = np.arange(most)
        voters, own = voters[drawn], at[own]
    ks = [k for k in _VOTERS if k < len(voters)]
    # Both are asked in the same way: neighbours that an index misses are missed by both.
    near_train, near_queries = (
        np.concatenate([
            labels[voters[near]]
            for near in nb.nearest_ranks(rows, train[voters], ks[-1], own=mine, index=index)
        ])
        for rows, mine in ((train, own), (queries, None))
    )  # fmt: skip
    fitted = spread(trusted, classes)

    def cost(k: int) -> float:
        return fit([_votes(near_queries[fitted, :k], classes)], query_labels[fitted])[1]

    k = min(ks, key=cost)
    return Expert(name, _votes(near_train[:, :k], classes), _votes(near_queries[:, :k], classes))


def of_trusted_neighbours(
    name: str,
    train: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
    *,
    classes: int,
) -> Expert | None:
    """Return the votes of the nearest *queries*, whose labels are trusted.

    A query is judged by the others. Errors by a rule, which training rows share with their
    neighbours, do not reach these votes.

    Args:
        name: What the rows are compared by.
        train: ``(n, d)`` float32.
        queries: ``(m, d)``.
        query_labels: ``(m,)`` class indices.
        trusted: ``(m,)`` bool, queries that count, and vote.
        classes: K.

    Returns:
        None where there are too few of them.
    """
    voters = np.flatnonzero(trusted)
    if len(voters) <= _VOTERS[0] + 1:
        return None
    own = np.full(len(queries), -1)
    own[voters] = np.arange(len(voters))
    ks = [k for k in _VOTERS if k < len(voters)]
    near_train, near_queries = (
        np.concatenate(
            [
                query_labels[voters[near]]
                for near in nb.nearest_ranks(rows, queries[voters], ks[-1], own=mine)
            ]
        )
        for rows, mine in ((train, None), (queries, own))
    )
    fitted = spread(trusted, classes)

    def cost(k: int) -> float:
        return fit([_votes(near_queries[fitted, :k], classes)], query_labels[fitted])[1]

    k = min(ks, key=cost)
    votes = _votes(near_train[:, :k], classes), _votes(near_queries[:, :k], classes)
    return Expert(name, *votes, blind=True)


def of_linear(
    name: str,
    train: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
    *,
    classes: int,
) -> Expert | None:
    """Return what a linear model says of each row when that row is left out.

    A ridge regression on the labels, as ones and zeros: leaving a row out has a closed form there
    (Allen's PRESS), for all rows at once. Its penalty is the best for left-out training rows, and
    its numbers become log-probabilities at the scale that suits the queries best. A copy of the row
    among the others still tells its label.

    Args:
        name: What the rows are given as.
        train: ``(n, d)`` float32.
        queries: ``(m, d)``.
        labels: ``(n,)`` class indices, some of them wrong.
        query_labels: ``(m,)`` class indices.
        trusted: ``(m,)`` bool, queries that count.
        classes: K.

    Returns:
        None where there are too many rows, or nothing to see.
    """
    n, columns = len(train), min(train.shape[1], _COLUMNS)
    if n * max(columns, classes * len(_PENALTIES)) > _NUMBERS or n < _VOTERS[0]:
        return None
    if columns < train.shape[1]:
        draw = np.random.default_rng(0).standard_normal((train.shape[1], columns))
        train, queries = (x @ draw.astype(np.float32) for x in (train, queries))
    size = float(np.square(train - train.mean(0)).sum()) / min(n, columns)
    if not size > 0:
        return None
    truth = np.eye(classes)[labels]
    model = RidgeCV(_PENALTIES * size, scoring="neg_mean_squared_error", store_cv_results=True)
    model.fit(train.astype(np.float64), truth)
    best = int(np.argmin(np.abs(model.alphas - model.alpha_)))
    said = model.cv_results_[:, :, best], model.predict(queries.astype(np.float64))
    some = spread(trusted, classes)
    scale = fit([said[1][some]], query_labels[some])[0][0]
    return Expert(name, *(special.log_softmax(scale * logits, axis=1) for logits in said))


def _votes(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return log shares of votes, ``(rows, K)``, of neighbours' labels ``(rows, k)``."""
    counts = np.zeros((len(labels), classes), dtype=np.float32)
    rows = np.arange(len(labels))
    for column in labels.T:
        counts[rows, column] += 1
    total = labels.shape[1] + _PRIOR * classes
    return np.asarray(np.log((counts + np.float32(_PRIOR)) / np.float32(total)))
