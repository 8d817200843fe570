"""Curvature: what retraining with the queries would do, by Gauss-Newton products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from forward_inf_mlflow.directions.moves import (
    MoveAlong,
    Moves,
    Sign,
    Tangent,
    at_rest,
    loss_gradient,
)
from forward_inf_mlflow.directions.products import GaussNewton
from forward_inf_mlflow.directions.solve import solve
from forward_inf_mlflow.directions.spectrum import Sketch, mean_eigenvalue, sketch
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Stream, Tensors, sample
from forward_inf_mlflow.work import KEEP_NOTHING, Arrays, Work

#: Queries that are solved at once.
_BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Newton's step for one added copy of a query: ``theta - (G + d I)^-1 g / n``.

    g is the gradient of a query group's mean loss, G the Gauss-Newton matrix of the mean training
    loss (with the objective's penalty), n the number of training rows and d the damping. Influence
    is the influence function ``g_row (G + d I)^-1 g / n``: how much a row's loss falls when one
    copy of the query is added to the training set, in nats. Positive: a proponent.

    "cg" solves for every group by conjugate gradients: one move each, coefficient 1. "sketch" finds
    the r leading eigenvectors u once, for any number of groups: r moves along them, coefficients
    ``u . g / (eigenvalue + d)``; what lies outside their span is left out.

    Damping, where none is given: ``multiple`` times the mean eigenvalue of G, the trace over the
    number of eigenvalues that can be positive. Small damping trusts directions that a few
    thousand rows do not determine.

    Cost in forward-equivalents of the curvature rows: "cg" about 3.5 an iteration and group;
    "sketch" about 7 (r + 10), once. Then one sweep a move.
    Source: influence functions (Koh and Liang, ICML 2017) by Gauss-Newton (Martens, 2010), read by
    forward passes (Ko et al., CVPR 2024).

    Attributes:
        damping: d in nats per row; None for the rule.
        multiple: Of the mean eigenvalue, for the rule.
        penalty: What the training objective adds to every parameter's second derivative, in nats
            per row: weight decay, or 1 / (C n) of a LogisticRegression.
        solver: "cg", "sketch", or "auto": the sketch where there are more groups than its rank.
        rank: r, of the sketch.
        rows: At most so many training rows, drawn at random, stand for all in G.
        iterations: Most iterations of "cg"; it stops at a relative residual of ``tolerance``.
        tolerance: See there.
        relative_size: Length of a step read by finite difference over the parameters' norm.
        sign: Which way such a step goes.
        seed: Of the rows drawn and the sketch.
    """

    damping: float | None = None
    multiple: float = 3.0
    penalty: float = 0.0
    solver: Literal["auto", "cg", "sketch"] = "auto"
    rank: int = 128
    rows: int = 2000
    iterations: int = 100
    tolerance: float = 1e-3
    relative_size: float = 0.001
    sign: Sign = "up"
    seed: int = 0

    def plan(
        self,
        module: nn.Module,
        task: Task,
        groups: Sequence[Tensors],
        train: Stream,
        work: Work = KEEP_NOTHING,
    ) -> Moves:
        """Return one move per group, or r moves for all."""
        base = at_rest(module)
        rows = sample(train, self.rows, self.seed)
        matrix = GaussNewton(module, task, rows, penalty=self.penalty)
        layout = matrix.layout
        kept = work.once("spectrum", lambda: {"mean": np.array(mean_eigenvalue(matrix, self.seed))})
        mean = float(kept["mean"])
        damping = self.multiple * mean if self.damping is None else self.damping
        facts: dict[str, object] = {"mean_eigenvalue": mean, "damping": damping}

        def gradient(group: Tensors) -> Tensor:
            return layout.join(loss_gradient(base, task, group))

        def tangent(vector: Tensor) -> Tangent:
            return Tangent(base, layout.split(vector / -len(train)))

        rank = min(self.rank, layout.size)
        if self.solver == "sketch" or (self.solver == "auto" and len(groups) > rank):
            found = self._sketch(matrix, rank, work)
            rates = 1 / (found.values + damping + self.penalty)
            products = [rates * (found.vectors.T @ gradient(group)).double() for group in groups]
            coefficients = torch.stack(products).cpu().numpy()
            tangents = [tangent(u) for u in found.vectors.T]
            facts |= {"solver": "sketch", "rank": rank}
        else:
            coefficients = np.eye(len(groups))
            tangents, residual = [], 0.0
            for start in range(0, len(groups), _BLOCK):
                block = groups[start : start + _BLOCK]
                solved = self._solve(matrix, damping, block, gradient, f"solved/{start}", work)
                vectors = torch.as_tensor(solved["vectors"]).to(layout.device, layout.dtype)
                tangents += [tangent(x) for x in vectors]
                residual = max(residual, float(solved["residual"]))
            facts |= {"solver": "cg", "residual": residual}
        return MoveAlong(base, tangents, coefficients, self.relative_size, self.sign, facts)

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these moves."""
        return {"direction": "curvature", **asdict(self)}

    def _sketch(self, matrix: GaussNewton, rank: int, work: Work) -> Sketch:
        def make() -> Arrays:
            found = sketch(matrix, rank, self.seed)
            return {"vectors": found.vectors.cpu().numpy(), "values": found.values.cpu().numpy()}

        kept, layout = work.once("sketch", make), matrix.layout
        return Sketch(
            torch.as_tensor(kept["vectors"]).to(layout.device),
            torch.as_tensor(kept["values"]).to(layout.device),
        )

    def _solve(
        self,
        matrix: GaussNewton,
        damping: float,
        groups: Sequence[Tensors],
        gradient: Callable[[Tensors], Tensor],
        name: str,
        work: Work,
    ) -> Arrays:
        """Return the solutions of some groups, one a row."""

        def make() -> Arrays:
            right = torch.stack([gradient(group) for group in groups], 1)
            found = solve(
                matrix, damping, right, iterations=self.iterations, tolerance=self.tolerance
            )
            return {
                "vectors": found.vectors.T.contiguous().cpu().numpy(),
                "residual": np.array(found.residual),
            }

        return work.once(name, make)
