from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from forward_inf_mlflow.directions import GradientStep, OptimizerSteps
from forward_inf_mlflow.sweep import outputs, read, sweep
from forward_inf_mlflow.tasks import Classification, Regression
from forward_inf_mlflow.tensors import Tensors

N, M, D, K = 23, 4, 3, 2


def rows(n: int, batch_size: int = 5) -> Tensors:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, D)).astype(np.float32), rng.integers(K, size=n)
    return Tensors(torch.as_tensor(x), torch.as_tensor(y), torch.device("cpu"), batch_size)


class Counting(nn.Module):
    """Counts the rows that pass forward without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(D, K)
        self.passed = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            self.passed += len(inputs)
        return self.layer(inputs)


@pytest.mark.parametrize(
    ("direction", "reads"),
    [
        (GradientStep(), 1 + M),
        (GradientStep(sign="down"), 1 + M),
        (GradientStep(sign="both"), 1 + 2 * M),
        (OptimizerSteps(steps=3), 1 + M),
        (OptimizerSteps(sign="down"), 1 + M),
    ],
    ids=["up", "down", "both", "adam up", "adam down"],
)
def test_the_base_is_read_once_and_every_pass_is_counted(direction: object, reads: int) -> None:
    module, train, queries = Counting(), rows(N), rows(M)
    groups = [queries.take(np.array([i])) for i in range(M)]
    moves = direction.plan(module, Classification(), groups, train)  # type: ignore[attr-defined]
    steps: list[int] = []
    (part,) = sweep(moves, Classification(), train, progress=steps.append)
    assert part.loss.shape == part.margin.shape == (M, N)
    assert part.passes == module.passed == sum(steps) == reads * N


def test_a_move_that_goes_nowhere_costs_no_pass() -> None:
    module = nn.Linear(1, 1)
    still = Tensors(torch.zeros(1, 1), module.bias.detach().clone(), torch.device("cpu"), 1)
    moves = GradientStep().plan(module, Regression(), [still], still)
    (part,) = sweep(moves, Regression(), still)
    assert part.passes == 1
    assert (part.loss == 0).all()


def test_losses_are_read_in_float64_and_in_the_order_of_the_rows() -> None:
    module, train = Counting(), rows(N)
    readout = read(module, Classification(), train)
    assert readout.loss.dtype == readout.margin.dtype == torch.float64
    logits = module(train.inputs).double()
    expected = nn.functional.cross_entropy(logits, train.targets, reduction="none")
    torch.testing.assert_close(readout.loss, expected.detach(), rtol=1e-6, atol=1e-7)


def test_outputs_are_those_of_the_module_for_any_batch_size() -> None:
    module, steps = Counting(), []
    whole = module(rows(N).inputs).detach()
    for batch_size in (1, 5, 100):
        found = outputs(module, rows(N, batch_size), steps.append)
        torch.testing.assert_close(found, whole)
    assert sum(steps) == 3 * N
