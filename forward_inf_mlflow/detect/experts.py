"""Experts: who can say a row's class without having learned its label, and what each is worth.

An expert gives every class a probability, for training rows it has not learned from and for
queries. The queries' labels are trusted, so they show what an expert is worth; no label that may be
wrong decides. Experts are joined in a logarithmic opinion pool, ``log p = sum w_e log p_e + c``,
whose weights have the highest likelihood on other queries (stacking: Wolpert, Neural Networks 1992;
pools: Heskes, NeurIPS 1998). An expert joins only if the likelihood gains more than a weight costs
(Akaike's criterion), so that few queries are not overfitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, special

from forward_inf_mlflow.detect import neighbours as nb

#: How many neighbours may vote.
_VOTERS = (5, 10, 20, 40)
#: Votes that every class has before any is counted.
_PRIOR = 0.5
#: Parts of the queries; each is judged by weights from the others.
PARTS = 5
#: A weight below which nobody is heard.
_HEARD = 1e-3
#: Queries that weights are fitted on, at most: numbers, not rows.
_FITTED = 2_000_000
#: Rows that may vote, at most: numbers in all of a distance matrix's sums.
_BUDGET = 2e13


@dataclass(frozen=True)
class Expert:
    """What one says.

    Attributes:
        name: Who, in words that follow "with".
        train: ``(n, K)`` log-probabilities.
        queries: ``(m, K)`` log-probabilities.
        blind: Whether they never saw any training label, be it of another row.
    """

    name: str
    train: np.ndarray
    queries: np.ndarray
    blind: bool = False


@dataclass(frozen=True)
class Pool(Expert):
    """Several joined.

    Attributes:
        weights: Of each expert that joined, by name.
    """

    weights: dict[str, float] = field(default_factory=dict)

    def described(self) -> str:
        """Return who was heard, and how loudly, one clause."""
        return " and ".join(f"{name} (weight {w:.2g})" for name, w in self.weights.items())


def pool(experts: Sequence[Expert], labels: np.ndarray, trusted: np.ndarray) -> Pool:
    """Join experts, the first of which is always in.

    The queries that weigh the experts are also what training rows are compared with, so that no row
    may be judged by weights that were fitted on it: each query is judged by a pool that the other
    parts of the queries weighed, and each training row by one of these pools, drawn at random.

    Args:
        experts: At least one.
        labels: ``(m,)`` class indices of the queries.
        trusted: ``(m,)`` bool, queries that count.
    """
    n, (m, classes) = len(experts[0].train), experts[0].queries.shape
    fitted = _some(trusted, classes)
    # Each drawn by itself, so that rows that do not count change nothing for the others.
    rows_part, part_of_fitted, queries_part = (
        np.random.default_rng([0, what]).permutation(size) % PARTS
        for what, size in enumerate((n, len(fitted), m))
    )
    queries_part[fitted] = part_of_fitted
    train, queries = np.empty((n, classes)), np.empty((m, classes))
    heard = {expert.name: 0.0 for expert in experts}
    for number in range(PARTS):
        others = fitted[part_of_fitted != number]
        kept = _weigh(experts, labels, others)
        floor = _floor(_joined([(e.queries[others], w) for e, w in kept]), labels[others])
        for mine, into, which in (
            (rows_part, train, "train"),
            (queries_part, queries, "queries"),
        ):
            rows = mine == number
            said = _joined([(getattr(e, which)[rows], w) for e, w in kept])
            into[rows] = _floored(said, floor)
        for expert, weight in kept:
            heard[expert.name] += weight / PARTS
    weights = {name: round(weight, 3) for name, weight in heard.items() if weight > _HEARD}
    used = [expert for expert in experts if expert.name in weights]
    return Pool(" and ".join(weights), train, queries, all(e.blind for e in used), weights)


def _weigh(
    experts: Sequence[Expert], labels: np.ndarray, rows: np.ndarray
) -> list[tuple[Expert, float]]:
    """Return who joins, with which weight, by some queries."""
    truth, chosen, left = labels[rows], [experts[0]], list(experts[1:])
    weights, cost = _fit([experts[0].queries[rows]], truth)
    while left:
        trials = [_fit([e.queries[rows] for e in (*chosen, other)], truth) for other in left]
        best = int(np.argmin([found[1] for found in trials]))
        if trials[best][1] * len(rows) > cost * len(rows) - 1:
            break
        chosen.append(left.pop(best))
        weights, cost = trials[best]
    found = list(zip(chosen, map(float, weights), strict=True))
    return [found[0], *((e, w) for e, w in found[1:] if w > _HEARD)]


def _joined(said: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    return _normal(np.sum([weight * logs for logs, weight in said], axis=0))


def of_logits(name: str, train: np.ndarray, queries: np.ndarray) -> Expert:
    """Return an expert from logits ``(R, n, K)`` and ``(R, m, K)``: the mean over R models."""

    def mean(logits: np.ndarray) -> np.ndarray:
        found = np.full(logits.shape[1:], -np.inf)
        for one in logits:  # one at a time: R copies in float64 would be the peak of memory
            found = np.logaddexp(found, special.log_softmax(one.astype(np.float64), axis=1))
        return np.asarray(found - np.log(len(logits)))

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
    most = int(_BUDGET / each)
    if most < 50 * classes:
        return None
    if most < len(voters):  # some of the rows stand for all
        drawn = np.sort(np.random.default_rng(0).permutation(len(voters))[:most])
        at = np.full(len(voters), -1)
        at[drawn] = np.arange(most)
        voters, own = voters[drawn], at[own]
    ks = [k for k in _VOTERS if k < len(voters)]
    said = [
        labels[voters[near]] for near in nb.nearest_ranks(train, train[voters], ks[-1], own=own)
    ]
    asked = [labels[voters[near]] for near in nb.nearest_ranks(queries, train[voters], ks[-1])]
    near_train, near_queries = np.concatenate(said), np.concatenate(asked)
    fitted = _some(trusted, classes)

    def cost(k: int) -> float:
        return _fit([_votes(near_queries[fitted, :k], classes)], query_labels[fitted])[1]

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
    fitted = _some(trusted, classes)

    def cost(k: int) -> float:
        return _fit([_votes(near_queries[fitted, :k], classes)], query_labels[fitted])[1]

    k = min(ks, key=cost)
    votes = _votes(near_train[:, :k], classes), _votes(near_queries[:, :k], classes)
    return Expert(name, *votes, blind=True)


def _fit(said: Sequence[np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the weights of experts, and minus the mean log-likelihood that they reach."""
    stacked, rows = np.stack(said), np.arange(len(labels))

    def cost(logs: np.ndarray) -> tuple[float, np.ndarray]:
        weights = np.exp(logs)
        probability = special.softmax(np.tensordot(weights, stacked, 1), axis=1)
        chosen = np.maximum(probability[rows, labels], np.finfo(np.float64).tiny)
        slope = (stacked * probability).sum(2) - stacked[:, rows, labels]
        return float(-np.log(chosen).mean()), weights * slope.mean(1)

    start = np.full(len(said), -np.log(len(said)))
    found = optimize.minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=[(-9, 3)] * len(said)
    )
    return np.exp(found.x), float(found.fun)


def _floor(logs: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of a uniform distribution that the labels call for.

    It is at least 1 / (2 (m + 1)), Jeffreys' estimate of what did not happen once in m rows: they
    cannot show that it never does.
    """
    least = 0.5 / (len(labels) + 1)
    chosen = np.exp(logs[np.arange(len(labels)), labels])

    def cost(floor: float) -> float:
        return float(-np.log((1 - floor) * chosen + floor / logs.shape[1]).mean())

    found = optimize.minimize_scalar(cost, bounds=(least, 0.5), method="bounded").x
    return float(min((least, found), key=cost))


def _floored(logs: np.ndarray, floor: float) -> np.ndarray:
    return np.asarray(np.log((1 - floor) * np.exp(logs) + floor / logs.shape[1]))


def _votes(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return log shares of votes, ``(rows, K)``, of neighbours' labels ``(rows, k)``."""
    counts = np.zeros((len(labels), classes), dtype=np.float32)
    rows = np.arange(len(labels))
    for column in labels.T:
        counts[rows, column] += 1
    total = labels.shape[1] + _PRIOR * classes
    return np.asarray(np.log((counts + np.float32(_PRIOR)) / np.float32(total)))


def _normal(logs: np.ndarray) -> np.ndarray:
    return np.asarray(logs - special.logsumexp(logs, axis=1, keepdims=True))


def _some(trusted: np.ndarray, classes: int) -> np.ndarray:
    """Return positions of the trusted queries, evenly spread if they are very many."""
    rows = np.flatnonzero(trusted)
    most = max(200, _FITTED // classes)
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]
