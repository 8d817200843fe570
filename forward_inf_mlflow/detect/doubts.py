"""Doubts: what the queries hold against all that experts together say of the labels.

Experts who learned from training labels learn errors that follow a rule as they learn what is
right, and count none. Each of these asks in another way whether the training labels go with the
rows as the queries' labels do; none refuses a version, since training rows of another kind than the
queries look the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forward_inf_mlflow.detect.another_rule import another_rule
from forward_inf_mlflow.detect.experts import Expert, pool

#: How rarely labels of clean rows may be taken for those of another rule.
BY_CHANCE = 0.01


def agreeing(
    naive: Sequence[Expert],
    labels: np.ndarray,
    tested: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
) -> str | None:
    """Return who agrees with training labels oftener than with the truth, if anybody does.

    Wrong labels lower the agreement of whoever has not learned them; only errors by a rule, which
    other rows teach, or remembered labels raise it.
    """
    for expert in naive:
        if not expert.blind:
            right = int((expert.queries.argmax(1) == query_labels)[trusted].sum())
            agree = int((expert.train.argmax(1) == labels)[tested].sum())
            if _surely_more(agree, int(tested.sum()), right, int(trusted.sum())) > 0:
                return expert.name
    return None


def blind_differ(
    naive: Sequence[Expert],
    labels: np.ndarray,
    tested: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
) -> float:
    """Return the least share of wrong labels that those show who never saw a training label.

    With accuracy b on queries and agreement a, ``a >= (1 - eta) b`` whatever the errors are like:
    eta is at least ``1 - a / b``; here less 3.09 standard deviations.
    """
    blind = [expert for expert in naive if expert.blind]
    if not blind:
        return 0.0
    joined = pool(blind, query_labels, trusted)
    right = int((joined.queries.argmax(1) == query_labels)[trusted].sum())
    agree, queries = int((joined.train.argmax(1) == labels)[tested].sum()), int(trusted.sum())
    more = _surely_more(right, queries, agree, int(tested.sum()))
    return max(0.0, more / max(right / queries, 1e-9))


def following_another_rule(
    naive: Sequence[Expert],
    labels: np.ndarray,
    tested: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
) -> float:
    """Return the share of labels that another rule gave, by who never saw a training label.

    0 where chance alone may be behind it.
    """
    blind = [expert for expert in naive if expert.blind]
    if not blind:
        return 0.0
    joined = pool(blind, query_labels, trusted)
    p, share = another_rule(
        joined.train.argmax(1)[tested],
        labels[tested],
        joined.queries.argmax(1)[trusted],
        query_labels[trusted],
    )
    return share if p < BY_CHANCE else 0.0


def _surely_more(first: int, rows: int, second: int, others: int) -> float:
    """Return by how much one share is above another at least, at 3.09 standard deviations."""
    x, y = (first + 1) / (rows + 2), (second + 1) / (others + 2)
    deviation = np.sqrt(x * (1 - x) / (rows + 2) + y * (1 - y) / (others + 2))
    return float(x - y - 3.09 * deviation)
