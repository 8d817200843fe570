"""LeafValues: the trees stay as they are, and their leaves' values are estimated anew.

Refitting an ensemble with one more row draws every bootstrap anew, which is noise: two seeds do not
agree on who speaks for a query. What the row itself does to the trees that there are is a count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from forward_inf_mlflow.directions.moves import Move, MoveEach, Moves, at_rest
from forward_inf_mlflow.errors import ModelError
from forward_inf_mlflow.models.trees import Boosting, Forest, weights_of_rows
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Stream, Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Work

#: Second derivatives below which a leaf does not answer, as scikit-learn has it.
_NOTHING = 1e-150


@dataclass(frozen=True, eq=False)
class Revalued:
    """Trees with other values in their leaves, as a function.

    No step was chosen that could be too short: where no row moves beyond rounding, none is meant
    to, so that this is no `Point`, whose steps are looked at.
    """

    module: nn.Module
    values: Tensor

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the module's outputs with these values."""
        output: Tensor = functional_call(self.module, {"values": self.values}, inputs)
        return output


@dataclass(frozen=True)
class LeafValues:
    """Add one copy of a query to the leaves that it falls into, and estimate their values anew.

    A forest's leaf with weighted rows ``n`` of mean ``v`` becomes ``v + w (y - v) / (n + w)``,
    ``w`` being what a training row weighs in a tree on average (its expected draws, 1 in a usual
    bootstrap, and its class's weight). That is exact: rows that share no leaf do not change.

    Boosting goes through its stages in order: with the copy among the training rows, and without
    it, each leaf's Newton step is taken anew from the scores that the earlier stages now give, so
    that later residuals change with earlier leaves. The difference of both is added to the fitted
    values: these also know which rows a stage drew, where it drew some. Where boosting starts from
    stays.

    Several queries that are asked together are one copy in all. Unit: nats per added copy.
    Cost: nothing for a forest; for boosting the training rows once through all trees, then one
    pass over their scores a query.
    """

    def plan(
        self,
        module: nn.Module,
        task: Task,
        groups: Sequence[Tensors],
        train: Stream,
        work: Work = KEEP_NOTHING,
    ) -> Moves:
        """Return one move per query group; they are cheap, so nothing is kept.

        Raises:
            ModelError: The module is no ensemble of trees.
        """
        base = at_rest(module)
        rows = train.part(0, len(train))
        facts: Mapping[str, object] = {}
        if isinstance(module, Forest):
            targets = rows.targets.to(rows.device)

            def values(group: Tensors) -> Tensor:
                return counted(module, group, targets)

        elif isinstance(module, Boosting):
            stages = Stages(module, rows)
            facts = {"leaf_values_agree": stages.agreement}
            values = stages.values
        else:
            raise ModelError(f"a {type(module).__name__} has no leaves: take another direction")

        def make(group: Tensors) -> Move:
            return Move(base, Revalued(module, values(group)))

        return MoveEach(base, groups, make, facts)

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these moves."""
        return {"direction": "leaves"}


@torch.no_grad()
def counted(module: Forest, group: Tensors, train: Tensor) -> Tensor:
    """Return a forest's leaf values ``(L, V)`` with one more copy of a query group.

    Args:
        module: The forest.
        group: m queries, a copy of ``1/m`` each.
        train: ``(n,)`` the training rows' targets, which say what class weights are balanced.
    """
    values, n = module.values.detach(), module.weights
    targets = group.targets.to(values.device)
    leaves = _leaves(module, group)  # (m, T)
    weight = module.copy * weights_of_rows(module, targets, train) / len(group)
    if module.classes:
        said = nn.functional.one_hot(targets, values.shape[1]).to(values)
    else:
        said = targets.to(values)[:, None]
    # Of deviations, so that what is equal stays so to the last bit.
    pulls = torch.zeros_like(values)
    added = torch.zeros_like(n)
    for tree in leaves.T:
        pulls.index_add_(0, tree, weight[:, None] * (said - values[tree]))
        added.index_add_(0, tree, weight)
    return values + pulls / (n + added)[:, None]


class Stages:
    """Boosting's training rows, from which the leaves' values are estimated stage by stage.

    Attributes:
        agreement: How well these values give the fitted model's scores of the training rows: 1
            less the share of their spread that is missed. Below 1 where stages drew rows or where
            other rows were held out, or where the model was trained on others.
    """

    def __init__(self, module: Boosting, train: Tensors) -> None:
        """Send the rows through all trees once."""
        self._module = module
        self._targets = train.targets.to(train.device)
        self._leaves = self._staged(train)
        self._weights = weights_of_rows(module, self._targets, self._targets)
        self._without, scores = self._estimated(self._leaves, self._targets, self._weights)
        fitted = module.start + module.values.detach()[:, 0][self._leaves].sum(1)
        missed = (fitted - scores).square().mean() / fitted.var(0).mean().clamp_min(1e-30)
        self.agreement = float(1 - missed)

    @torch.no_grad()
    def values(self, group: Tensors) -> Tensor:
        """Return the leaf values ``(L, 1)`` with one more copy of a query group."""
        targets = group.targets.to(self._targets)
        weights = weights_of_rows(self._module, targets, self._targets) / len(group)
        with_copy, _ = self._estimated(
            torch.cat([self._leaves, self._staged(group)]),
            torch.cat([self._targets, targets]),
            torch.cat([self._weights, weights]),
        )
        return self._module.values.detach() + (with_copy - self._without)[:, None]

    @torch.no_grad()
    def _estimated(self, leaves: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the leaves' values ``(L,)`` from rows' leaves ``(n, S, K)``, and their scores."""
        module, k = self._module, len(self._module.start)
        scores = module.start.expand(len(leaves), -1).clone()
        values, wide = torch.zeros_like(module.weights), weights[:, None].expand(-1, k).reshape(-1)
        for leaf in leaves.unbind(1):  # (n, K) each
            pull, bend = _derivatives(scores, targets, classes=module.classes)
            flat = leaf.reshape(-1)
            pulls, bends = torch.zeros_like(values), torch.zeros_like(values)
            pulls.index_add_(0, flat, pull.reshape(-1) * wide)
            bends.index_add_(0, flat, bend.reshape(-1) * wide)
            step = torch.where(bends > _NOTHING, pulls / (bends + module.penalty), 0.0)
            here = module.factor * step
            scores += here[leaf]
            values += here  # a leaf belongs to one stage: elsewhere this is zero
        return values, scores

    def _staged(self, rows: Tensors) -> Tensor:
        leaves = _leaves(self._module, rows)
        return leaves.reshape(len(leaves), -1, len(self._module.start))


def _derivatives(scores: Tensor, targets: Tensor, *, classes: bool) -> tuple[Tensor, Tensor]:
    """Return minus the loss's slope by each score ``(n, K)``, and its curvature."""
    if not classes:
        return targets.to(scores)[:, None] - scores, torch.ones_like(scores)
    if scores.shape[1] == 1:
        p, wanted = scores.sigmoid(), targets.to(scores)[:, None]
    else:
        p, wanted = scores.softmax(1), nn.functional.one_hot(targets, scores.shape[1]).to(scores)
    return wanted - p, p * (1 - p)


@torch.no_grad()
def _leaves(module: Forest | Boosting, rows: Tensors) -> Tensor:
    """Return the leaf of each row in each tree, ``(n, T)``."""
    return torch.cat([module.leaves(batch.inputs) for batch in rows])
