"""Traced: the training texts behind a completion, screened by the last layer, read token by token.

Source: rows that a language model knows by heart are read by their margins, since their losses no
longer move; the last layer's cosines name the candidates (see `screen`), and a move of the whole
model along the completion says how much each of them, and each of its tokens, has to do with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from torch import Tensor, nn

from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.probe import Choice, Which
from forward_inf_mlflow.screen import likeness
from forward_inf_mlflow.sweep import Progress, sweep
from forward_inf_mlflow.task import Batch, Forward, Task
from forward_inf_mlflow.tasks import CausalLM
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Arrays, Within, Work


@dataclass(frozen=True)
class Traced:
    """The candidates behind one completion, best first.

    Attributes:
        rows: ``(c,)`` positions of training rows.
        score: ``(c,)`` what they are ordered by: the mean of their ranks by screen, by features
            and by influence, 1 for the best.
        screen: ``(c,)`` the last layer's cosines, summed over the completion's tokens.
        features: ``(c,)`` the same of the hidden states alone.
        influence: ``(c,)`` how much the row's margin rises (or its loss falls) per added copy of
            the completion, nats.
        tokens: ``(c, L)`` the same of each of its next tokens, 0 where one does not count.
        choice, facts: As of an `influence.Influence`.
        forward_passes: Rows passed forward, by the screen and by the sweep.
    """

    rows: np.ndarray
    score: np.ndarray
    screen: np.ndarray
    features: np.ndarray
    influence: np.ndarray
    tokens: np.ndarray
    choice: Choice
    facts: Mapping[str, object]
    forward_passes: int


@dataclass(frozen=True, kw_only=True)
class ByToken(Task):
    """A language model whose answer for a row is what each of its tokens is worth, ``(B, L)``.

    Attributes:
        which: Margins, or minus the losses, of the next tokens.
    """

    which: Which = "margin"

    name = "causal_lm_by_token"
    saturates = True

    def outputs(self, forward: Forward, batch: Batch) -> Tensor:
        """Return margins, or minus losses, ``(B, L)`` float64; 0 where a token does not count."""
        task = CausalLM()
        logits = task.outputs(forward, batch)
        if self.which == "margin":
            return task.token_margins(logits, batch.targets)
        return -task.token_losses(logits, batch.targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return minus the sum over a row's tokens, ``(B,)``."""
        return -outputs.sum(1)


def trace_one(
    engine: ForwardInfluence,
    module: nn.Module,
    query: Tensors,
    train: Tensors,
    *,
    count: int,
    work: Work = KEEP_NOTHING,
    progress: Progress | None = None,
) -> Traced:
    """Return the candidates behind a completion.

    Cost: two passes over the training rows, what the direction costs, and two passes over the
    candidates.

    Args:
        engine: How influence is computed; its task is a `CausalLM`.
        module: In evaluation mode; left bit for bit as it was.
        query: One row; the targets of its prompt do not count.
        train: The rows.
        count: Candidates.
        work: Where finished pieces are kept.
        progress: Called with the number of rows just read.

    Raises:
        ModelError: The model cannot be moved, or has no last layer that answers for its rows.
        ForwardInfError: As `ForwardInfluence.influence`.
    """
    group = QueryGroups([query], np.array(["completion"]))
    moves, choice = engine.plan_moves(module, group, train, work)

    def screened() -> Arrays:
        both, alone = likeness(module, engine.task, query, train, progress=progress)
        return {"scores": both.numpy()[0], "features": alone.numpy()[0]}

    kept = work.once("screen", screened)
    every = kept["scores"]
    rows = np.sort(np.argsort(-every, kind="stable")[:count])
    parts = list(
        sweep(
            moves,
            ByToken(which=engine.readout),
            train.take(rows),
            method=choice.method,
            with_outputs=True,
            work=Within(work, "candidates"),
            progress=progress,
        )
    )
    tokens = np.concatenate([p.outputs for p in parts if p.outputs is not None], 1)
    tokens = np.tensordot(moves.coefficients[0], tokens.astype(np.float64), 1)
    influence, screen, features = tokens.sum(1), every[rows], kept["features"][rows]
    # Equal ones share their mean rank.
    score = np.mean([rankdata(-values) for values in (influence, screen, features)], axis=0)
    best = np.argsort(score, kind="stable")
    return Traced(
        rows[best],
        score[best],
        screen[best],
        features[best],
        influence[best],
        tokens[best],
        choice,
        moves.facts,
        2 * len(train) + sum(p.passes for p in parts),
    )
