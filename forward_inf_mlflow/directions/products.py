"""Products with a model's Gauss-Newton matrix: no matrix, no hooks, only jvp and vjp."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from forward_inf_mlflow.directions.moves import Parameters, Point, math_attention
from forward_inf_mlflow.memory import batches_that_fit
from forward_inf_mlflow.task import Batch, Task
from forward_inf_mlflow.tensors import Tensors

#: Numbers that the outputs of all columns of a product may hold at once.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class Layout:
    """How parameters lie in one long vector."""

    like: Parameters

    @property
    def size(self) -> int:
        """Return P, how many numbers there are."""
        return sum(p.numel() for p in self.like.values())

    @property
    def dtype(self) -> torch.dtype:
        """Return the widest type among the parameters."""
        return max((p.dtype for p in self.like.values()), key=lambda kind: kind.itemsize)

    @property
    def device(self) -> torch.device:
        """Return where the parameters are."""
        return next(iter(self.like.values())).device

    @property
    def layers(self) -> list[slice]:
        """Return where each layer's own parameters lie: those whose names differ in the last part
        only, such as a weight and its bias.
        """
        found: list[slice] = []
        previous, start, stop = None, 0, 0
        for name, p in self.like.items():
            layer = name.rpartition(".")[0]
            if layer != previous and stop:
                found.append(slice(start, stop))
                start = stop
            previous, stop = layer, stop + p.numel()
        return [*found, slice(start, stop)]

    def join(self, parameters: Parameters) -> Tensor:
        """Return the parameters as one vector ``(P,)``."""
        return torch.cat([parameters[name].reshape(-1) for name in self.like])

    def split(self, vector: Tensor) -> Parameters:
        """Return the parameters that a vector ``(P,)`` holds, sharing its memory."""
        parts = torch.split(vector, [p.numel() for p in self.like.values()])
        return {
            name: part.view(p.shape).to(p.dtype)
            for (name, p), part in zip(self.like.items(), parts, strict=True)
        }


class GaussNewton:
    """The Gauss-Newton matrix ``G = mean_i J_i^T H_i J_i`` of some rows' loss.

    ``J_i`` is the derivative of row i's outputs by the trainable parameters and ``H_i`` the second
    derivative of its loss by its outputs, so that G is positive semi-definite. Only products with
    it are ever computed: forward mode through the model, then reverse mode. That works on exported
    graph modules too, where hooks never fire.

    Cost of a product with k columns: about 2 + 3.5 k forward-equivalents of the rows.
    Source: Schraudolph, "Fast curvature matrix-vector products" (Neural Computation 2002).
    """

    def __init__(self, base: Point, task: Task, rows: Tensors) -> None:
        self._base, self._task, self._rows = base, task, rows
        self.layout = Layout(base.parameters)

    @property
    def rank_bound(self) -> int:
        """Return how many eigenvalues can be positive: one for each output of each row."""
        with torch.no_grad():
            answers = self._task.outputs(self._base, self._rows.batch(slice(0, 1)))
        return len(self._rows) * answers.numel()

    def __matmul__(self, columns: Tensor) -> Tensor:
        """Return ``G @ columns``, ``(P, k)``."""
        rows = columns.T.contiguous()
        total = torch.zeros_like(rows)
        with math_attention():
            for part in batches_that_fit(self._rows, lambda b: self._of_batch(b, rows)):
                total += part
        return (total / len(self._rows)).T

    def _of_batch(self, batch: Batch, vectors: Tensor) -> Tensor:
        """Return the sum over a batch of ``J^T H J v`` for vectors ``(k, P)``."""

        def outputs(parameters: Parameters) -> Tensor:
            return self._task.outputs(Point(self._base.module, parameters), batch)

        def loss(answers: Tensor) -> Tensor:
            return self._task.loss(answers, batch.targets).sum()

        theta = self._base.parameters
        answers, pull = vjp(outputs, theta)[:2]

        def product(vector: Tensor) -> Tensor:
            moved = jvp(outputs, (theta,), (self.layout.split(vector),))[1]
            curved = jvp(grad(loss), (answers,), (moved,))[1]
            return self.layout.join(pull(curved)[0])

        width = max(1, _AT_ONCE // max(1, answers.numel()))
        result: Tensor = vmap(product, chunk_size=min(width, len(vectors)))(vectors)
        return result
