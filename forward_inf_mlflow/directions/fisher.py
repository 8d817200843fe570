"""The Fisher matrix of some rows, held as one drawn gradient for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import vjp, vmap

from forward_inf_mlflow.directions.moves import Parameters, Point, math_attention
from forward_inf_mlflow.directions.products import Layout
from forward_inf_mlflow.directions.spectrum import Sketch
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.memory import batches_that_fit
from forward_inf_mlflow.task import Batch, Task
from forward_inf_mlflow.tensors import Tensors

#: Gradients that are taken at once.
_TOGETHER = 64
#: Gradients whose inner products with all later ones are taken at once.
_BLOCK = 256
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Fisher:
    """The matrix ``F = A^T A / s`` of s gradients, ``A (s, P)``.

    Each is the gradient that a row would have, had its target been drawn from the model's own
    prediction, so that F equals the Gauss-Newton matrix on average; with a few draws for each row
    it is inverted exactly, in the space of the s gradients rather than of the P parameters.

    Source: Kunstner, Balles and Hennig, "Limitations of the empirical Fisher approximation"
    (NeurIPS 2019), for drawn against given targets.
    """

    gradients: Tensor

    @property
    def trace(self) -> float:
        """Return the sum of all eigenvalues."""
        return float(self.gradients.square().sum(dtype=torch.float64)) / len(self.gradients)

    @cached_property
    def _products(self) -> Tensor:
        """Return the inner products of all gradients, ``(s, s)`` float64; each pair once."""
        a = self.gradients
        found = a.new_empty(len(a), len(a), dtype=torch.float64)
        for start in range(0, len(a), _BLOCK):
            part = slice(start, start + _BLOCK)
            products = a[part] @ a[start:].T
            found[part, start:], found[start:, part] = products, products.T
        return found

    @cached_property
    def _factors(self) -> dict[float, Tensor]:
        """Return the Cholesky factors of the dampings that were asked for."""
        return {}

    def _factor(self, damping: float) -> Tensor:
        if damping not in self._factors:
            small = self._products.clone()
            small.diagonal().add_(damping * len(small))
            lower, failed = torch.linalg.cholesky_ex(small)
            if failed:
                raise ForwardInfError(
                    f"a damping of {damping:.1e} is lost in rounding: give a larger one, or none"
                )
            self._factors[damping] = lower
        return self._factors[damping]

    def of_rows(self, index: Tensor) -> Fisher:
        """Return the matrix of some of the gradients; their inner products are known already."""
        part = Fisher(self.gradients[index])
        part.__dict__["_products"] = self._products[index][:, index]
        return part

    def solve(self, damping: float, right: Tensor) -> Tensor:
        """Return ``(F + damping I)^-1 right``, ``(P, k)``, by the Woodbury identity.

        Raises:
            ForwardInfError: The damping is lost in rounding.
        """
        a = self.gradients
        inner = torch.cholesky_solve((a @ right).double(), self._factor(damping))
        return (right - a.T @ inner.to(a.dtype)) / damping

    def sketch(self, rank: int) -> Sketch:
        """Return the leading eigenvectors and their eigenvalues, exactly."""
        a, s = self.gradients, len(self.gradients)
        values, inner = torch.linalg.eigh(self._products / s)
        values, inner = values.flip(0)[:rank], inner.flip(1)[:, :rank]
        kept = values > values[0] * torch.finfo(torch.float32).eps * s
        kept[0] = True  # even where no gradient is other than zero
        values, inner = values[kept].clamp_min(_TINY), inner[:, kept]
        return Sketch(a.T @ (inner / (values * s).sqrt()).to(a.dtype), values)


def fisher(base: Point, task: Task, rows: Tensors, *, draws: int, seed: int) -> Fisher:
    """Return the matrix from ``draws`` gradients of each row.

    Rows draw one after the other, so that what they draw does not depend on the batch size. Cost:
    about ``2 + 2 draws`` forward-equivalents of the rows, and memory for them times P numbers.

    Raises:
        NotImplementedError: The task draws no targets.
        RuntimeError: An operator of the model cannot be differentiated row by row.
    """
    layout, generator = Layout(base.parameters), torch.Generator().manual_seed(seed)

    def of_row(inputs: Tensor, targets: Tensor, residuals: Tensor) -> Tensor:
        def outputs(parameters: Parameters) -> Tensor:
            alone = Batch(inputs[None], targets[None])
            return task.outputs(Point(base.module, parameters), alone)[0]

        pull = vjp(outputs, base.parameters)[1]
        gradients: Tensor = vmap(lambda residual: layout.join(pull(residual)[0]))(residuals)
        return gradients

    def drawn(answer: Tensor, target: Tensor) -> Tensor:
        many = (answer.expand(draws, *answer.shape), target.expand(draws, *target.shape))
        residuals = task.drawn(*many, generator)
        if residuals is None:
            raise NotImplementedError(f"the task {task.name} draws no targets")
        return residuals.to(answer.dtype)

    def of_batch(batch: Batch) -> Tensor:
        before = generator.get_state()
        try:
            with torch.no_grad():
                answers = task.outputs(base, batch)
                rows_alone = zip(answers, batch.targets, strict=True)
                residuals = torch.stack([drawn(*row) for row in rows_alone])
            with math_attention():  # the fused one would take rows one by one
                pulled: Tensor = vmap(of_row, chunk_size=max(1, _TOGETHER // draws))(
                    batch.inputs, batch.targets, residuals
                )
        except BaseException:
            generator.set_state(before)  # a batch that did not fit draws the same, in halves
            raise
        return pulled.flatten(0, 1)

    found, filled = None, 0
    for part in batches_that_fit(rows, of_batch):
        if found is None:  # at once, so that they are not held twice
            found = part.new_empty(len(rows) * draws, part.shape[1])
        found[filled : filled + len(part)] = part
        filled += len(part)
    assert found is not None, "there are rows"
    fine = torch.isfinite(found).all(1)  # a loss may be a number where its gradient is none
    return Fisher(found if fine.all() else found[fine])
