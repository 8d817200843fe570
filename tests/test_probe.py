from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from engine import D, K, Setting, assert_close, influence, setting
from torch import Tensor, nn

from forward_inf_mlflow.directions import Direction, GradientStep, OptimizerSteps
from forward_inf_mlflow.directions.moves import at_rest
from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.probe import AGREEMENT, Choice, check_loss, choose
from forward_inf_mlflow.task import Batch
from forward_inf_mlflow.tasks import Classification, Regression

cached = cache(setting)
WHOLE = slice(None)


def single(found: Setting) -> Setting:
    """The same in float32."""
    module = setting("classification").module.float()
    rows, queries = (replace(t, inputs=t.inputs.float()) for t in (found.rows, found.queries))
    return Setting(found.task, module, rows, queries)


def chosen(found: Setting, direction: Direction, **options: Any) -> Choice:
    groups = [found.queries.part(i, i + 1) for i in range(len(found.queries))]
    moves = direction.plan(found.module, found.task, groups, found.rows)
    return choose(list(moves), moves.base, found.task, found.rows, **options)


def said(error: pytest.ExceptionInfo[ForwardInfError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_difference_that_agrees_with_the_derivative_is_taken() -> None:
    choice = chosen(cached("classification"), GradientStep(relative_size=1e-3))
    assert choice.method == "difference"
    assert choice.agreement >= AGREEMENT
    assert choice.note is None


def test_a_step_that_is_too_long_gives_way_to_the_derivative_and_says_why() -> None:
    choice = chosen(cached("classification"), GradientStep(relative_size=2.0))
    assert choice.method == "derivative"
    assert choice.agreement < AGREEMENT
    assert choice.note is not None
    assert f"{choice.agreement:.2f}" in choice.note


def test_a_step_that_drowns_gives_way_to_the_derivative() -> None:
    found = single(cached("classification"))
    assert chosen(found, GradientStep(relative_size=1e-12)).method == "derivative"
    assert chosen(found, GradientStep(relative_size=1e-7)).method == "derivative"


@pytest.mark.parametrize("which", ["loss", "margin"])
@pytest.mark.parametrize("size", [1e-12, 1e-8, 3e-7])
def test_a_drowned_difference_that_was_asked_for_is_an_error_never_noise(
    size: float, which: str
) -> None:
    found = single(cached("classification"))
    with pytest.raises(ForwardInfError, match="lost in rounding: take a longer one") as error:
        chosen(found, GradientStep(relative_size=size), method="difference", which=which)
    said(error)


def test_a_step_that_does_not_drown_is_read_as_asked() -> None:
    found = single(cached("classification"))
    for method in ("difference", "derivative"):
        choice = chosen(found, GradientStep(relative_size=1e-3), method=method)
        assert (choice.method, choice.note) == (method, None)


def test_a_query_that_moves_nothing_is_no_drowned_step() -> None:
    found = cached("regression")
    still = replace(found.queries, targets=found.module(found.queries.inputs)[:, 0].detach())
    quiet = replace(found, queries=still)
    for method in ("auto", "difference"):
        assert chosen(quiet, GradientStep(), method=method).method == "difference"


def test_the_readout_that_is_asked_for_decides() -> None:
    # Margins are nearly linear in the logits, losses bend.
    found = cached("classification")
    by_loss, by_margin = (
        chosen(found, GradientStep(relative_size=0.3), which=which) for which in ("loss", "margin")
    )
    assert by_margin.agreement > by_loss.agreement


class Rounded(torch.autograd.Function):
    """The identity; it has a backward pass, and nobody wrote its forward mode."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Backward(nn.Sequential):
    """A model with an operator that has no forward mode."""

    def forward(self, x: Tensor) -> Tensor:
        return Rounded.apply(super().forward(x))  # type: ignore[no-any-return]


def without_forward_mode() -> Setting:
    found = cached("classification")
    return replace(found, module=Backward(*found.module))  # type: ignore[arg-type]


def test_without_forward_mode_differences_are_read_with_one_sentence() -> None:
    found = without_forward_mode()
    choice = chosen(found, GradientStep())
    assert choice.method == "difference"
    assert choice.note is not None
    assert choice.note.startswith("finite differences are read, because this model has no forward")
    assert "\n" not in choice.note
    whole, plain = (influence(s, GradientStep()) for s in (found, cached("classification")))
    torch.testing.assert_close(whole.scores.values, plain.scores.values)


def test_without_forward_mode_a_derivative_that_was_asked_for_is_an_error() -> None:
    with pytest.raises(ForwardInfError, match="exact derivatives cannot be read here") as error:
        chosen(without_forward_mode(), GradientStep(), method="derivative")
    assert "leave the method out" in said(error)


def test_without_forward_mode_a_drowned_step_is_an_error() -> None:
    found = without_forward_mode()
    with pytest.raises(ForwardInfError, match="lost in rounding"):
        chosen(found, GradientStep(relative_size=1e-17))


def test_moves_without_a_derivative_are_read_by_difference_and_nothing_is_said() -> None:
    found = cached("classification")
    choice = chosen(found, OptimizerSteps())
    assert (choice.method, choice.note) == ("difference", None)
    with pytest.raises(ForwardInfError, match="these moves have no derivative") as error:
        chosen(found, OptimizerSteps(), method="derivative")
    said(error)


# What cannot be read at all


class Reduced(Classification):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets).mean()


class PerClass(Classification):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square()


@pytest.mark.parametrize("task", [Reduced(), PerClass()], ids=["a mean", "one per class"])
def test_a_loss_that_is_not_one_number_per_row_is_refused(task: Classification) -> None:
    found = cached("classification")
    with pytest.raises(ModelError, match=r"not \(24,\).*must not be reduced") as error:
        check_loss(found.base, task, found.rows.batch(WHOLE))
    said(error)
    with pytest.raises(ForwardInfError) as error:
        influence(replace(found, task=task), GradientStep())
    said(error)


class Centred(Regression):
    """A loss that mixes rows."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs - outputs.mean(), targets)


def test_a_loss_that_mixes_rows_is_refused() -> None:
    found = cached("regression")
    with pytest.raises(ModelError, match="depends on the rows beside it") as error:
        influence(replace(found, task=Centred()), GradientStep())
    said(error)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), nn.BatchNorm1d(5), nn.Linear(5, K)).double()


def test_statistics_of_the_batch_are_refused() -> None:
    found = replace(cached("classification"), module=normed().train())
    batch = found.rows.batch(WHOLE)
    with pytest.raises(ModelError, match="put the model into evaluation mode") as error:
        check_loss(at_rest(found.module), found.task, batch)
    said(error)
    check_loss(at_rest(found.module.eval()), found.task, batch)


def test_rows_that_are_no_number_are_no_reason_to_refuse_the_others() -> None:
    found = cached("regression")
    batch = found.rows.batch(WHOLE)
    targets = batch.targets.clone()
    targets[3] = torch.nan
    check_loss(found.base, found.task, Batch(batch.inputs, targets))
    with pytest.raises(ModelError, match="depends on the rows beside it"):
        check_loss(found.base, Centred(), batch)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_can_be_checked(rows: int) -> None:
    found = cached("regression")
    check_loss(found.base, found.task, found.rows.batch(slice(0, rows)))


def test_a_model_without_trainable_parameters_is_refused() -> None:
    module = nn.Sequential(nn.Linear(D, K)).double().requires_grad_(False)
    with pytest.raises(ModelError, match=r"no trainable parameters.*requires_grad=True") as error:
        influence(replace(cached("classification"), module=module), GradientStep())
    said(error)


def test_a_model_that_knows_every_row_by_heart_can_still_be_read() -> None:
    found = cached("classification")
    module = setting("classification").module
    with torch.no_grad():
        module[-1].bias.copy_(torch.tensor([70.0, 0.0, 0.0]))  # type: ignore[index]
    rows = replace(found.rows, targets=torch.zeros(24, dtype=torch.int64))
    sure = Setting(found.task, module, rows, rows.part(0, 2))
    assert float(found.task.readout(sure.base, rows.batch(WHOLE)).loss.max()) < 1e-20
    either, exact = (
        influence(sure, GradientStep(), method=method, readout="margin").scores.values
        for method in ("auto", "derivative")
    )
    assert float(abs(exact).min()) > 0
    assert_close(either, exact, 0.02)
