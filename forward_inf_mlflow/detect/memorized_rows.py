"""Memorized rows without labels: which does the model know only because it saw them?

The counterfactual memorization of Zhang, Ippolito, Lee, Jagielski, Tramer and Carlini (NeurIPS
2023), in the loss of whatever kind the rows have: how much of the loss that models without the row
have on it does the audited model save? 0 is nothing, 1 all of it.

Whatever a model learns from other rows it saves on the queries too, and those it never saw. So a
row is **named** where it saves more than on all but 1 % of the queries, and at least a quarter,
which is what classes are named from. How many rows are surely memorized, order alone says
(`error_control`). What is assumed: rows and queries are of one kind.
"""

from __future__ import annotations

import numpy as np

from forward_inf_mlflow.detect.error_control import Envelope
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.memorization import THRESHOLD, Memorized
from forward_inf_mlflow.halves import HeldOut

#: Fewer queries than this show nothing beside the rows.
MIN_QUERIES = 20
#: Share of the queries on which a model may save more than on a row that is named.
FALSE = 0.01
#: Losses below this are none.
_NOTHING = 1e-9


def memorized_rows(
    held_out: HeldOut | None,
    loss: np.ndarray,
    query_loss: np.ndarray,
    trusted: np.ndarray,
    *,
    rough: bool = False,
) -> Memorized:
    """Name the rows on which the model saves more than it does on rows that it never saw.

    Args:
        held_out: Losses of the half-models, ``(R, n, 1)`` and ``(R, m, 1)``; None: nobody was
            trained, and nobody is named.
        loss: ``(n,)`` the training rows' under the audited model.
        query_loss: ``(m,)`` the queries'.
        trusted: ``(m,)`` bool, queries that were not trained on.
        rough: Whether the loss tells single rows too roughly, so that nobody is named.
    """
    n, k = len(loss), int(trusted.sum())
    if held_out is None:
        return _nobody(n, "no half-models were trained (take the effort 'standard')")
    if held_out.diverged is not None:
        return _nobody(n, held_out.diverged)
    saved = saved_share(loss, held_out.train_out[..., 0].mean(0))
    if rough:
        return _nobody(
            n,
            "the loss of a diffusion model tells single images too roughly; they are ranked by "
            "the share that having seen them saves, and none is named",
            saved,
        )
    if k < MIN_QUERIES:
        return _nobody(
            n,
            f"only {k} query rows are not leaked; {MIN_QUERIES} are needed to know what a model "
            "saves on rows that it never saw",
            saved,
        )
    usual = saved_share(query_loss, held_out.queries[..., 0].mean(0))[trusted]
    limit = np.sort(usual)[::-1][int(FALSE * k)]
    much = saved >= THRESHOLD
    flags = much & (saved > limit)
    count, innocent = int(flags.sum()), float(((usual >= THRESHOLD) & (usual > limit)).mean())
    surely = min(Envelope.of(saved, usual).guilty, count)
    unknown = np.full(n, np.nan)
    return Memorized(
        score=saved,
        fall=saved,
        low=unknown,
        high=unknown,
        flags=flags,
        measure=Measure(
            count=count,
            total=n,
            estimate=max(surely / n, count / n - innocent),
            rate_low=surely / n,
            rate_high=int(much.sum()) / n,
            threshold=THRESHOLD,
            note=(
                f"the model saves {THRESHOLD:.0%} or more of the loss that models without the row "
                f"have on it, and more than on all but {FALSE:.0%} of {k:,} query rows; no more "
                "are memorized than save so much"
            ),
        ),
    )


def saved_share(loss: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return which share of the loss without the row is saved ``(k,)``; negative if none is.

    Args:
        loss: ``(k,)`` not negative.
        without: ``(k,)`` of models that did not see the row.
    """
    return np.asarray(1 - loss / np.maximum(without.astype(np.float64), _NOTHING))


def _nobody(n: int, why: str, score: np.ndarray | None = None) -> Memorized:
    unknown = np.full(n, np.nan)
    score = unknown if score is None else score
    nobody = np.zeros(n, dtype=bool)
    return Memorized(score, score, unknown, unknown, nobody, Measure.none(n, why))
