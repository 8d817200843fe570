"""Another rule: do the training labels follow from the rows as the queries' labels do?

Errors that follow from the rows themselves (people who take one topic for another) are learned as
what is right is learned, so that no label looks odd to whoever learned from such labels. Who
learned from the queries' labels alone still tells it: among the rows of one label, it takes another
share for each class than among the queries of that label.

With a share rho of a label's rows wrong, the classes that it takes these rows for differ from those
of the queries by a total variation of at most rho, whatever the errors are like, if right rows of a
label are like the queries of that label. So the variation, less what chance gives, is a share of
wrong labels that there are about at least; and where rows and queries of each label are exchanged
at random (an exact test), it is seldom so large if there are none. Shares of labels may differ.
"""

from __future__ import annotations

import numpy as np

#: Random exchanges of rows and queries, and how many where there are very many counts.
_DRAWS, _FEW, _MANY = 999, 199, 20_000


def another_rule(
    taken: np.ndarray,
    labels: np.ndarray,
    queries_taken: np.ndarray,
    query_labels: np.ndarray,
) -> tuple[float, float]:
    """Return how likely chance alone makes the labels differ so much, and by how much they do.

    Args:
        taken: ``(n,)`` class indices that training rows are taken for by who learned no label of
            theirs.
        labels: ``(n,)`` their own.
        queries_taken, query_labels: ``(m,)`` the same of the queries.

    Returns:
        The p-value, and the share of training rows whose label another rule gave, about at least.
    """
    rng, n = np.random.default_rng([0, 7]), len(labels)
    shared = np.intersect1d(labels, query_labels)
    counts = len(shared) * min(len(shared), len(np.unique(taken)))
    draws = _FEW if counts > _MANY else _DRAWS
    found, by_chance = 0.0, np.zeros(draws)
    for label in shared:
        mine, theirs = taken[labels == label], queries_taken[query_labels == label]
        classes, place = np.unique(np.concatenate([mine, theirs]), return_inverse=True)
        both = np.bincount(place, minlength=len(classes))
        own = np.bincount(place[: len(mine)], minlength=len(classes))
        # In each exchange as many rows of each class go to the one side as to the other by chance.
        drawn = rng.multivariate_hypergeometric(both, len(mine), size=draws)
        found += len(mine) / n * float(_variation(own[None], both, len(mine))[0])
        by_chance += len(mine) / n * _variation(drawn, both, len(mine))
    p = (1 + int((by_chance >= found - 1e-12).sum())) / (draws + 1)
    return p, max(0.0, found - float(by_chance.mean()))


def _variation(own: np.ndarray, both: np.ndarray, rows: int) -> np.ndarray:
    """Return the total variation ``(k,)`` between two sides, of counts ``(k, classes)`` of one."""
    others = both - own
    apart = np.abs(own / rows - others / max(1, int(both.sum()) - rows))
    return np.asarray(apart.sum(1) / 2)
