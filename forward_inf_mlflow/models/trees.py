"""Ensembles of trees as torch modules: the structure is fixed, the leaves' values are parameters.

A forest answers the mean of its trees' leaves, boosting the sum of them. Values of internal nodes
are left out; leaves are numbered through all trees.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

#: The least probability of a class: a forest's own is zero where no tree has seen it, and then no
#: loss would be a number. Far below what parity tolerates.
LEAST = 1e-6
#: Columns of leaf features; more leaves than that share them by random signs.
_COLUMNS = 1024


@dataclass(frozen=True)
class Tree:
    """One tree with N nodes, the root first.

    Attributes:
        left, right: ``(N,)`` the nodes' children; the node itself in a leaf.
        feature: ``(N,)`` the column that a node asks for.
        threshold: ``(N,)`` rows at or below it go left.
        value: ``(N, V)`` what a leaf answers.
        weight: ``(N,)`` the weighted training rows in a node.
    """

    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    value: np.ndarray
    weight: np.ndarray


class Trees(nn.Module):
    """Trees over inputs ``(B, d)``.

    Attributes:
        values: ``(L, V)`` of all leaves, float64: the only parameter.
        weights: ``(L,)`` the weighted training rows in each leaf.
        count: T, how many trees there are.
        single: Whether inputs are compared in float32, as scikit-learn's own trees do.
    """

    values: nn.Parameter
    weights: Tensor
    _feature: Tensor
    _threshold: Tensor
    _left: Tensor
    _right: Tensor
    _roots: Tensor
    _leaf: Tensor

    def __init__(self, trees: Sequence[Tree], *, single: bool) -> None:
        super().__init__()
        starts = np.cumsum([0, *(len(tree.left) for tree in trees)])[:-1]
        left, right = (
            np.concatenate([getattr(t, side) + at for t, at in zip(trees, starts, strict=True)])
            for side in ("left", "right")
        )
        is_leaf = left == np.arange(len(left))
        self.count, self.single = len(trees), single
        self.values = nn.Parameter(
            torch.as_tensor(np.concatenate([tree.value for tree in trees])[is_leaf])
        )
        buffers = {
            "weights": np.concatenate([tree.weight for tree in trees])[is_leaf],
            "_feature": np.where(is_leaf, 0, np.concatenate([tree.feature for tree in trees])),
            "_threshold": np.concatenate([tree.threshold for tree in trees]),
            "_left": left,
            "_right": right,
            "_roots": starts,
            "_leaf": np.cumsum(is_leaf) - 1,
        }
        for name, value in buffers.items():
            kind = np.float64 if value.dtype.kind == "f" else np.int64
            self.register_buffer(name, torch.as_tensor(value.astype(kind)))
        self._last: tuple[weakref.ref[Tensor], Tensor] | None = None

    def leaves(self, inputs: Tensor) -> Tensor:
        """Return the leaf that each row falls into in each tree, ``(B, T)``."""
        # A batch is read under many moves, and falls into the same leaves under all of them.
        if self._last is not None and self._last[0]() is inputs:
            return self._last[1]
        rows = (inputs.to(torch.float32) if self.single else inputs).to(torch.float64)
        node = self._roots.expand(len(rows), -1)
        while True:
            goes_left = rows.gather(1, self._feature[node]) <= self._threshold[node]
            below = torch.where(goes_left, self._left[node], self._right[node])
            if torch.equal(below, node):
                break
            node = below
        found = self._leaf[node]
        self._last = weakref.ref(inputs), found
        return found

    def features(self, inputs: Tensor) -> Tensor:
        """Return rows whose cosines are the shares of trees in which two rows share the leaf.

        Returns:
            ``(B, h)`` float32: a column a leaf, or, of many leaves, 1,024 columns in which each
            leaf has a random direction, so that the shares are right within .03.
        """
        leaves, total = self.leaves(inputs), len(self.weights)
        if total <= _COLUMNS:
            table = torch.eye(total, device=leaves.device)
        else:
            draw = torch.Generator().manual_seed(0)
            table = torch.randint(0, 2, (total, _COLUMNS), generator=draw, dtype=torch.int8)
            table = table.to(leaves.device)
        found = torch.zeros(len(leaves), table.shape[1], device=leaves.device)
        for tree in leaves.T:
            column = table[tree].to(torch.float32)
            found += column if total <= _COLUMNS else 2 * column - 1
        return found

    def __getstate__(self) -> dict[str, object]:
        """Leave out the last batch, which is no part of the model."""
        return {**self.__dict__, "_last": None}


class Forest(Trees):
    """The mean over trees, each with the mean (or the classes' shares) of its leaf's rows.

    Attributes:
        classes: Whether the values are shares of classes.
        copy: The weight that a training row has in a tree on average: its expected draws.
        class_weights: What a row of each class weighs besides; "balanced", or None for 1.
    """

    def __init__(
        self,
        trees: Sequence[Tree],
        *,
        classes: bool,
        copy: float,
        class_weights: np.ndarray | Literal["balanced"] | None,
    ) -> None:
        super().__init__(trees, single=True)
        self.classes, self.copy, self.class_weights = classes, copy, class_weights

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logarithms of the probabilities ``(B, K)``, or predictions ``(B,)``."""
        mean = nn.functional.embedding_bag(self.leaves(inputs), self.values, mode="mean")
        return mean.clamp_min(LEAST).log() if self.classes else mean[:, 0]


class Boosting(Trees):
    """The sum over stages of K trees each, in the order of stages, from where they begin.

    Attributes:
        classes: Whether scores are logits of classes; two classes have one score.
        start: ``(K,)`` the scores before the first stage.
        factor: What a leaf's Newton step is multiplied by: the learning rate, mostly.
        penalty: What is added to a leaf's second derivatives.
        class_weights: What a row of each class weighs; "balanced", or None for 1.
    """

    start: Tensor

    def __init__(
        self,
        trees: Sequence[Tree],
        *,
        classes: bool,
        start: np.ndarray,
        factor: float,
        penalty: float,
        single: bool,
        class_weights: np.ndarray | Literal["balanced"] | None,
    ) -> None:
        super().__init__(trees, single=single)
        self.register_buffer("start", torch.as_tensor(start.astype(np.float64)))
        self.classes, self.factor, self.penalty = classes, factor, penalty
        self.class_weights = class_weights

    def staged(self, inputs: Tensor) -> Tensor:
        """Return the leaf that each row falls into, ``(B, stages, K)``."""
        return self.leaves(inputs).reshape(len(inputs), -1, len(self.start))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(B, K)``, two of them for two classes, or predictions ``(B,)``."""
        scores = self.start + self.values[:, 0][self.staged(inputs)].sum(1)
        if not self.classes:
            return scores[:, 0]
        if scores.shape[1] == 1:
            return torch.cat([torch.zeros_like(scores), scores], 1)
        return scores


def weights_of_rows(module: Forest | Boosting, targets: Tensor, train: Tensor) -> Tensor:
    """Return what each row weighs for its class, ``(m,)`` float64.

    Args:
        module: Knows how classes are weighed.
        targets: ``(m,)`` class indices, or numbers.
        train: ``(n,)`` those of the training rows, which say what is balanced.
    """
    how = module.class_weights
    if how is None:
        return torch.ones(len(targets), dtype=torch.float64, device=targets.device)
    if isinstance(how, str):
        counts = torch.bincount(train, minlength=int(targets.max()) + 1).to(torch.float64)
        known = int((counts > 0).sum())
        weights = len(train) / (known * counts.clamp_min(1))
    else:
        weights = torch.as_tensor(how)
    return weights.to(targets.device)[targets]
