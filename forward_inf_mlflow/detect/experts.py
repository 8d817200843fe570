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
from scipy import optimize, special, stats

#: Parts of the queries; each is judged by weights from the others.
PARTS = 5
#: A weight below which nobody is heard.
_HEARD = 1e-3
#: Queries that weights are fitted on, at most: numbers, not rows.
_FITTED = 2_000_000


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

    Each training row is judged by one of the pools of `_Pools`, drawn at random, as each query is.

    Args:
        experts: At least one.
        labels: ``(m,)`` class indices of the queries.
        trusted: ``(m,)`` bool, queries that count.
    """
    n, (m, classes) = len(experts[0].train), experts[0].queries.shape
    pools = _Pools.of(experts, labels, trusted)
    drawn = np.random.default_rng([0, 2]).permutation(n) % PARTS
    train, queries = np.empty((n, classes)), np.empty((m, classes))
    for number in range(PARTS):
        for into, part, which in ((train, drawn, "train"), (queries, pools.queries, "queries")):
            rows = np.flatnonzero(part == number)
            into[rows] = pools.said(number, which, rows)
    weights = pools.weights
    used = [expert for expert in experts if expert.name in weights]
    return Pool(" and ".join(weights), train, queries, all(e.blind for e in used), weights)


def suspicions(
    experts: Sequence[Expert], labels: np.ndarray, query_labels: np.ndarray, trusted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return how little is expected of every label, as a rank among training rows, 0 to 1.

    Each training row is ranked by all pools of `_Pools`, and then by its mean rank, which orders
    rows better than any one pool; each query takes the rank that its own pool gives it among the
    training rows. Whatever the pools are worth, as many training rows lie above a rank as under
    any one of them, so that right rows and queries still compare.

    Args:
        experts: At least one.
        labels: ``(n,)`` class indices of the training rows.
        query_labels: ``(m,)`` those of the queries.
        trusted: ``(m,)`` bool, queries that count.

    Returns:
        ``(n,)`` of the training rows and ``(m,)`` of the queries.
    """
    n, m = len(labels), len(query_labels)
    pools = _Pools.of(experts, query_labels, trusted)
    train, queries = np.zeros(n), np.empty(m)
    for number in range(PARTS):
        mine = np.flatnonzero(pools.queries == number)
        given = pools.odds(number, "train", np.arange(n), labels)
        asked = pools.odds(number, "queries", mine, query_labels[mine])
        # Who is equally suspicious is put in a random order, queries among training rows too: the
        # mean would spread the ones, and leave the others together.
        random = np.random.default_rng([1, number])
        order = np.lexsort((random.random(n), given))
        train[order] += np.arange(n) + 0.5
        low, high = (np.searchsorted(given[order], asked, side=side) for side in ("left", "right"))
        queries[mine] = (low + random.random(len(mine)) * (high - low)) / n
    return (stats.rankdata(train) - 0.5) / n, queries


@dataclass(frozen=True)
class _Pools:
    """As many pools as there are parts of the queries, each weighed by the other parts.

    The queries that weigh the experts are also what training rows are compared with, so that
    nothing may be judged by weights that were fitted on it.

    Attributes:
        parts: Of each pool the experts with their weights, and the floor.
        queries: ``(m,)`` the pool that judges each query.
        weights: Of each expert that is heard, the mean over pools, by name.
    """

    parts: list[tuple[list[tuple[Expert, float]], float]]
    queries: np.ndarray
    weights: dict[str, float]

    @classmethod
    def of(cls, experts: Sequence[Expert], labels: np.ndarray, trusted: np.ndarray) -> _Pools:
        """Weigh experts by ``(m,)`` labels of the queries."""
        m, classes = experts[0].queries.shape
        fitted = spread(trusted, classes)
        # Each drawn by itself, so that rows that do not count change nothing for the others.
        part_of_fitted, queries = (
            np.random.default_rng([0, what]).permutation(size) % PARTS
            for what, size in enumerate((len(fitted), m))
        )
        queries[fitted] = part_of_fitted
        parts, heard = [], {expert.name: 0.0 for expert in experts}
        for number in range(PARTS):
            others = fitted[part_of_fitted != number]
            kept = _weigh(experts, labels, others)
            said = _joined([(e.queries[others], w) for e, w in kept])
            parts.append((kept, _floor(said, labels[others])))
            for expert, weight in kept:
                heard[expert.name] += weight / PARTS
        weights = {name: round(weight, 3) for name, weight in heard.items() if weight > _HEARD}
        return cls(parts, queries, weights)

    def odds(self, number: int, which: str, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the log-odds that a pool gives against labels, ``(rows,)``; the floor is left out.

        From sums of logarithms, since probabilities of what is all but certain are all one.
        """
        kept, _ = self.parts[number]
        logs = np.sum([weight * getattr(e, which)[rows] for e, weight in kept], axis=0)
        at = np.arange(len(rows)), labels
        given = logs[at]
        logs[at] = -np.inf
        return np.asarray(special.logsumexp(logs, axis=1) - given)

    def said(self, number: int, which: str, rows: np.ndarray) -> np.ndarray:
        """Return what a pool says of some training rows or queries, ``(rows, K)``."""
        kept, floor = self.parts[number]
        return _floored(_joined([(getattr(e, which)[rows], w) for e, w in kept]), floor)


def _weigh(
    experts: Sequence[Expert], labels: np.ndarray, rows: np.ndarray
) -> list[tuple[Expert, float]]:
    """Return who joins, with which weight, by some queries."""
    truth, chosen, left = labels[rows], [experts[0]], list(experts[1:])
    weights, cost = fit([experts[0].queries[rows]], truth)
    while left:
        trials = [fit([e.queries[rows] for e in (*chosen, other)], truth) for other in left]
        best = int(np.argmin([found[1] for found in trials]))
        if trials[best][1] * len(rows) > cost * len(rows) - 1:
            break
        chosen.append(left.pop(best))
        weights, cost = trials[best]
    found = list(zip(chosen, map(float, weights), strict=True))
    return [found[0], *((e, w) for e, w in found[1:] if w > _HEARD)]


def _joined(said: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    return _normal(np.sum([weight * logs for logs, weight in said], axis=0))


def fit(said: Sequence[np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, float]:
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
        cost, start, jac=True, method="L-BFGS-B", bounds=[(-9, 5)] * len(said)
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


def _normal(logs: np.ndarray) -> np.ndarray:
    return np.asarray(logs - special.logsumexp(logs, axis=1, keepdims=True))


def spread(trusted: np.ndarray, classes: int) -> np.ndarray:
    """Return positions of the trusted queries, evenly spread if they are very many."""
    rows = np.flatnonzero(trusted)
    most = max(200, _FITTED // classes)
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]
