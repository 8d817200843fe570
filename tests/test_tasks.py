from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from forward_inf_mlflow.task import Batch, Task
from forward_inf_mlflow.tasks import Classification, Regression
from forward_inf_mlflow.tensors import Tensors


def test_cross_entropy_and_margin_worked_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, -1.0]])
    task, labels = Classification(), torch.tensor([1, 1])
    loss, margin = task.loss(logits, labels), task.margin(logits, labels)
    by_hand = torch.tensor([-math.log(3 / 4), math.log(1 + math.exp(3))])
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(margin, torch.tensor([math.log(3.0), -3.0]))


def test_the_margin_is_the_log_odds_of_the_given_class() -> None:
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(200) % 5
    p = torch.softmax(logits, 1)[torch.arange(200), labels]
    torch.testing.assert_close(Classification().margin(logits, labels), torch.log(p / (1 - p)))


def test_the_margin_still_moves_where_the_loss_no_longer_does() -> None:
    logits = torch.tensor([[60.0, 0.0]], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0])
    (by_loss,) = torch.autograd.grad(Classification().loss(logits, label).sum(), logits)
    (by_margin,) = torch.autograd.grad(Classification().margin(logits, label).sum(), logits)
    assert by_loss.abs().max() < 1e-20
    torch.testing.assert_close(by_margin, torch.tensor([[1.0, -1.0]], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_squared_error_is_the_same_for_flat_and_column_outputs(shape: tuple[int, ...]) -> None:
    outputs, targets = torch.tensor([1.0, 2.0, 5.0]).reshape(shape), torch.tensor([1.0, 0.0, 6.0])
    assert Regression().loss(outputs, targets).tolist() == [0.0, 2.0, 0.5]
    assert Regression().margin(outputs, targets).tolist() == [0.0, -2.0, -0.5]


@pytest.mark.parametrize("task", [Classification(), Regression()], ids=lambda t: t.name)
def test_a_row_is_read_the_same_alone_and_among_others(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    width = 3 if isinstance(task, Classification) else 1
    inputs = torch.randn(8, width, generator=generator)
    targets = torch.arange(8) % 3 if width == 3 else torch.randn(8, generator=generator)
    whole = task.readout(lambda x: x, Batch(inputs, targets))
    for i in range(8):
        one = task.readout(lambda x: x, Batch(inputs[i : i + 1], targets[i : i + 1]))
        torch.testing.assert_close(one.loss[0], whole.loss[i])
        torch.testing.assert_close(one.margin[0], whole.margin[i])


def test_readouts_are_float64_so_that_small_differences_survive() -> None:
    # Two outputs of float32 whose losses differ in the ninth digit.
    inputs = torch.tensor([[20.0, 0.0], [20.000002, 0.0]])
    loss = Classification().readout(lambda x: x, Batch(inputs, torch.tensor([0, 0]))).loss
    assert loss.dtype == torch.float64
    assert loss[0] > loss[1] > 0


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_hold_every_row_once_in_order(batch_size: int) -> None:
    rows = Tensors(torch.arange(7.0)[:, None], torch.arange(7), torch.device("cpu"), batch_size)
    batches = list(rows)
    assert max(len(b.targets) for b in batches) <= batch_size
    assert torch.cat([b.targets for b in batches]).tolist() == list(range(7))
    assert torch.cat([b.inputs for b in batches])[:, 0].tolist() == list(range(7))


def test_taken_rows_keep_inputs_beside_their_targets() -> None:
    rows = Tensors(torch.arange(7.0)[:, None], torch.arange(7), torch.device("cpu"), 2)
    some = rows.take(np.array([5, 0, 5]))
    assert some.targets.tolist() == some.inputs[:, 0].tolist() == [5, 0, 5]
    assert (len(some), some.batch_size) == (3, 2)


def test_skill_is_zero_for_a_guess_and_one_for_perfect() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    sure = torch.eye(2)
    assert Classification().skill(sure[labels], labels) == 1
    assert Classification().skill(sure[torch.zeros(4, dtype=torch.long)], labels) == 0
    assert Classification().skill(sure[[1, 1, 1, 0]], labels) < 0
    numbers = torch.tensor([1.0, 2.0, 6.0])
    assert Regression().skill(numbers[:, None], numbers) == 1
    assert Regression().skill(torch.full((3,), 3.0), numbers) == pytest.approx(0)


def test_skill_without_anything_to_know_is_zero() -> None:
    assert Classification().skill(torch.eye(2)[[0, 0]], torch.tensor([0, 0])) == 0
    assert Regression().skill(torch.ones(2), torch.ones(2)) == 0
