"""What must hold of influence whatever the direction is."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from engine import (
    CPU,
    TASKS,
    D,
    K,
    Narrow,
    Setting,
    assert_close,
    correlation,
    exported,
    influence,
    scores,
    setting,
    with_batches_of,
)
from torch import nn

from forward_inf_mlflow.directions import Curvature, Direction, GradientStep, OptimizerSteps, Replay
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.tasks import Classification
from forward_inf_mlflow.tensors import Tensors

cached = cache(setting)
#: These look at all training rows alike, whatever their order.
ORDERLESS: dict[str, Direction] = {
    "gradient": GradientStep(),
    "adam": OptimizerSteps(steps=2),
    "dense": Curvature(solver="dense"),
    "cg": Curvature(solver="cg", tolerance=1e-7),
    "sketch": Curvature(solver="sketch", rank=8),
}
DIRECTIONS: dict[str, Direction] = {
    **ORDERLESS,
    "fisher": Curvature(solver="fisher"),
    "replay": Replay(most_steps=5, most_seeds=2, batch=8),
}
each = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=list(DIRECTIONS))


def network() -> nn.Sequential:
    """A float32 network whose batch norm has seen rows, one of its parameters frozen."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, K)
    )
    module(torch.randn(64, D))
    module[0].bias.requires_grad_(False)
    return module.eval()


def in_float32(module: nn.Module) -> Setting:
    found = cached("classification")
    rows, queries = (replace(t, inputs=t.inputs.float()) for t in (found.rows, found.queries))
    return Setting(Classification(), module, rows, queries)


@each
@pytest.mark.parametrize("kind", TASKS)
def test_scores_do_not_depend_on_batch_size_and_shard_size(kind: str, direction: Direction) -> None:
    found = cached(kind)
    expected = scores(found, direction)
    assert np.abs(expected).max() > 0
    other = replace(found, rows=with_batches_of(found.rows, 5))
    assert_close(scores(other, direction, shard_rows=5), expected)


@pytest.mark.parametrize("direction", ORDERLESS.values(), ids=list(ORDERLESS))
def test_scores_follow_the_order_of_the_rows(direction: Direction) -> None:
    found = cached("classification")
    order = np.random.default_rng(3).permutation(len(found.rows))
    turned = replace(found, rows=found.rows.take(order))
    assert_close(scores(turned, direction), scores(found, direction)[:, order])


@each
def test_a_query_has_the_same_scores_alone_and_among_others(direction: Direction) -> None:
    found = cached("regression")
    whole = scores(found, direction)
    for i in range(len(found.queries)):
        alone = replace(found, queries=found.queries.part(i, i + 1))
        assert_close(scores(alone, direction)[0], whole[i])


@each
@pytest.mark.parametrize("method", ["difference", "auto"])
def test_the_model_is_bit_for_bit_as_it_was(direction: Direction, method: str) -> None:
    module = network()
    module[4].bias.grad = torch.ones(K)
    before = copy.deepcopy(module)
    influence(in_float32(module), direction, method=method)

    after, state = module.state_dict(), before.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert not any(part.training for part in module.modules())
    for now, then in zip(module.parameters(), before.parameters(), strict=True):
        assert now.requires_grad == then.requires_grad
        assert now.dtype == then.dtype
    assert torch.equal(module[4].bias.grad, torch.ones(K))
    assert module[4].weight.grad is None


@each
@pytest.mark.parametrize("kind", ["classification", "causal_lm"])
def test_an_exported_module_gives_the_same_scores(kind: str, direction: Direction) -> None:
    found = cached(kind)
    graph = replace(found, module=_exported(kind))
    assert_close(scores(graph, direction), scores(found, direction), 1e-4)


@cache
def _exported(kind: str) -> nn.Module:
    return exported(cached(kind))


@each
def test_a_row_whose_loss_is_no_number_spoils_no_other(direction: Direction) -> None:
    found, bad = cached("regression"), 4
    targets = found.rows.targets.clone()
    targets[bad] = torch.nan
    spoilt = scores(replace(found, rows=replace(found.rows, targets=targets)), direction)
    kept = np.delete(np.arange(len(targets)), bad)
    without = scores(replace(found, rows=found.rows.take(kept)), direction)
    assert np.isnan(spoilt[:, bad]).all()
    assert_close(spoilt[:, kept], without)


@each
@pytest.mark.parametrize("kind", TASKS)
def test_a_model_that_only_fits_a_few_rows_gives_the_same_scores(
    kind: str, direction: Direction
) -> None:
    found = cached(kind)
    narrow = replace(found, module=Narrow(found.module, 3, torch.OutOfMemoryError))
    assert_close(scores(narrow, direction), scores(found, direction))


@each
def test_a_model_that_fits_no_row_is_refused_in_one_line(direction: Direction) -> None:
    found = cached("classification")
    narrow = replace(found, module=Narrow(found.module, 0, torch.OutOfMemoryError))
    with pytest.raises(ForwardInfError, match="one row at a time does not fit") as raised:
        scores(narrow, direction)
    assert "\n" not in str(raised.value)


@each
def test_a_half_precision_model_is_read_in_float32_and_left_as_it_was(
    direction: Direction,
) -> None:
    half = network().bfloat16()
    before = copy.deepcopy(half)
    single = copy.deepcopy(half).float()
    found = scores(in_float32(half), direction)
    assert_close(found, scores(in_float32(single), direction))
    for name, value in half.state_dict().items():
        assert value.dtype == before.state_dict()[name].dtype
        assert torch.equal(value, before.state_dict()[name])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_read_too(half: torch.dtype) -> None:
    module = network().to(half)
    found = in_float32(module)
    rows, queries = (replace(t, inputs=t.inputs.to(half)) for t in (found.rows, found.queries))
    expected = scores(replace(found, module=copy.deepcopy(module).float()), GradientStep())
    assert (
        correlation(scores(replace(found, rows=rows, queries=queries), GradientStep()), expected)
        > 0.99
    )


@each
def test_loss_and_margin_are_the_models_own_whatever_moves_it(direction: Direction) -> None:
    found = cached("classification")
    own = found.task.readout(found.base, found.rows.batch(slice(None)))
    read = influence(found, direction, shard_rows=7)
    np.testing.assert_allclose(read.loss, own.loss.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(read.margin, own.margin.detach().numpy(), rtol=1e-12)


@each
@pytest.mark.parametrize("kind", TASKS)
def test_a_copy_of_the_query_is_a_proponent(kind: str, direction: Direction) -> None:
    found = cached(kind)
    asked = replace(found, queries=found.rows.part(0, 6))
    assert (np.diag(scores(asked, direction)[:, :6]) > 0).all()


@each
def test_scores_carry_the_settings_that_repeat_them(direction: Direction) -> None:
    provenance: dict[str, Any] = influence(cached("classification"), direction).scores.provenance
    expected = {**direction.describe(), "task": {"name": "classification"}, "readout": "loss"}
    assert expected.items() <= provenance.items()


def test_a_tasks_own_settings_are_among_them() -> None:
    found = cached("denoising")
    provenance: dict[str, Any] = influence(found, GradientStep()).scores.provenance
    assert provenance["task"]["seed"] == 0
    assert provenance["task"]["times"] == 2


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (GradientStep, {"relative_size": 0.0}),
        (GradientStep, {"relative_size": float("inf")}),
        (GradientStep, {"sign": "sideways"}),
        (OptimizerSteps, {"lr": 0.0}),
        (OptimizerSteps, {"steps": -1}),
    ],
)
def test_settings_that_cannot_be_used_are_named_in_one_line(
    make: Any, settings: dict[str, object]
) -> None:
    with pytest.raises(ForwardInfError, match=rf"{next(iter(settings))} must be") as raised:
        make(**settings)
    assert "\n" not in str(raised.value)


def test_a_sequence_with_many_rows_reads_a_random_part_of_them_for_its_curvature() -> None:
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(300, D)))
    rows = Tensors(x, torch.arange(300) % K, CPU, 50)
    found = replace(cached("classification"), rows=rows)
    whole, part = (
        scores(found, Curvature(solver="dense", rows=n, damping=0.1), method="derivative")
        for n in (300, 150)
    )
    assert not np.array_equal(whole, part)
    assert correlation(part, whole) > 0.98
