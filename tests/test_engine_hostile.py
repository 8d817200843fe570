"""Models and rows that break arithmetic: a right number or one sentence, never noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine import CPU, D, K, Setting, assert_close, correlation, influence, mlp, scores, setting
from torch import Tensor, nn

from forward_inf_mlflow.directions import Curvature, Direction, GradientStep, OptimizerSteps, Replay
from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.planner import Job, plan
from forward_inf_mlflow.tasks import Classification, Regression
from forward_inf_mlflow.tensors import Tensors

DIRECTIONS: dict[str, Direction] = {
    "gradient": GradientStep(),
    "adam": OptimizerSteps(steps=2),
    "dense": Curvature(),
    "fisher": Curvature(solver="fisher"),
    "replay": Replay(most_steps=5, most_seeds=2, batch=8),
}
each = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=list(DIRECTIONS))


def labelled(module: nn.Module, n: int = 40, *, seed: int = 0) -> Setting:
    rng = np.random.default_rng(seed)
    x = torch.as_tensor(rng.normal(size=(n, D)), dtype=torch.float32)
    rows = Tensors(x, torch.as_tensor(rng.integers(K, size=n)), CPU, 16)
    return Setting(Classification(), module.eval(), rows, rows.part(0, 3))


def refused(found: Setting, direction: Direction, kind: type[ForwardInfError]) -> str:
    with pytest.raises(kind) as caught:
        scores(found, direction)
    text = str(caught.value)
    assert "\n" not in text
    return text


@each
def test_a_model_of_zeros_can_be_moved(direction: Direction) -> None:
    module = nn.Linear(D, K)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    found = scores(labelled(module), direction)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0


@pytest.mark.parametrize("margin", [60.0, 95.0, 98.0, 100.0, 103.0, 110.0])
@pytest.mark.parametrize("direction", [GradientStep(), Curvature(damping=0.1)], ids=["g", "c"])
def test_a_query_that_the_model_is_certain_of_breaks_nothing(
    direction: Direction, margin: float
) -> None:
    module = nn.Linear(1, 2)
    with torch.no_grad():
        module.weight[:] = torch.tensor([[0.5], [-0.5]])
        module.bias.zero_()
    x = torch.linspace(-2, 2, 40)[:, None]
    rows = Tensors(x, (x[:, 0] < 0).long(), CPU, 16)
    sure = Tensors(torch.tensor([[margin]]), torch.tensor([0]), CPU, 1)
    found = scores(Setting(Classification(), module.eval(), rows, sure), direction)
    assert np.isfinite(found).all()


class Recurrent(nn.Module):
    """Too few parameters to be anything but dense, and no forward mode on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[..., None])[0][:, -1])


class Plain(torch.autograd.Function):
    """A square that can be differentiated in reverse mode only."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return 2 * x * grad


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(K)

    def forward(self, x: Tensor) -> Tensor:
        return Plain.apply(self.layers(x))  # type: ignore[no-any-return]


def test_a_small_model_without_forward_mode_takes_drawn_gradients() -> None:
    torch.manual_seed(0)
    found = labelled(Recurrent())
    result = influence(found, Curvature())
    assert result.facts["solver"] == "fisher"
    assert np.isfinite(result.scores.values).all()
    assert "needs" in refused(found, Curvature(solver="dense"), ModelError)


def test_a_model_that_knows_reverse_mode_only_names_the_direction_that_works() -> None:
    torch.manual_seed(0)
    found = labelled(Own())
    assert "direction 'gradient'" in refused(found, Curvature(), ModelError)
    assert "take another direction" in refused(found, Replay(most_steps=2), ModelError)
    assert np.isfinite(scores(found, GradientStep())).all()


@each
def test_a_query_that_is_no_number_is_named(direction: Direction) -> None:
    found = labelled(mlp(K))
    inputs = found.queries.inputs.clone()
    inputs[1] = torch.nan
    spoilt = replace(found, queries=replace(found.queries, inputs=inputs))
    assert "query 1 is not a number" in refused(spoilt, direction, DataError)


class Root(nn.Module):
    """Its answer is a number where its gradient is none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x)).sqrt()


def test_a_curvature_that_is_no_number_is_one_sentence() -> None:
    torch.manual_seed(0)
    found = labelled(Root())
    assert "not a number" in refused(found, Curvature(solver="dense"), ForwardInfError)
    assert np.isfinite(scores(found, Curvature(solver="fisher"))).all()


@pytest.mark.parametrize("wrong", ["label", "length"])
def test_targets_that_do_not_fit_are_one_sentence(wrong: str) -> None:
    found = labelled(mlp(K))
    targets = found.rows.targets.clone()
    targets[3] = 17
    rows = replace(found.rows, targets=targets if wrong == "label" else targets[:9])
    text = refused(replace(found, rows=rows), Curvature(), ForwardInfError)
    assert "cannot read the model's answers" in text


def test_wrong_arguments_are_named() -> None:
    found = labelled(mlp(K))
    each_query = QueryGroups.each(found.queries, np.arange(3))
    with pytest.raises(DataError, match="40 training rows have 7 ids"):
        ForwardInfluence(task=found.task).influence(
            found.module, each_query, found.rows, np.arange(7)
        )
    with pytest.raises(DataError, match="3 query groups have 2 ids"):
        ForwardInfluence(task=found.task).influence(
            found.module, QueryGroups(each_query.rows, np.arange(2)), found.rows, np.arange(40)
        )
    with pytest.raises(DataError, match="give an object"):
        ForwardInfluence(task=Classification).influence(  # type: ignore[arg-type]
            found.module, each_query, found.rows, np.arange(40)
        )


def test_least_squares_without_a_penalty_are_undamped_and_agree_with_retraining() -> None:
    rng = np.random.default_rng(0)
    scales = np.array([1.0, 10.0, 0.1, 1.0])
    x = rng.normal(size=(60, D)) * scales
    y = x @ (rng.normal(size=D) / scales) + rng.normal(size=60)
    queries_x, queries_y = rng.normal(size=(4, D)) * scales, rng.normal(size=4)

    def fitted(rows_x: np.ndarray, rows_y: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(rows_x, rows_y, rcond=None)[0]

    module = nn.Linear(D, 1, bias=False).double()
    with torch.no_grad():
        module.weight[0] = torch.as_tensor(fitted(x, y))
    job = Job(
        rows=60, groups=4, queries=4, parameters=D, saturates=False, known=0.0,
        penalty=0.0, linear=True, quadratic=True,
    )  # fmt: skip
    direction = plan(job).direction
    assert isinstance(direction, Curvature)
    assert direction.damping == 0
    rows, queries = (
        Tensors(torch.as_tensor(a), torch.as_tensor(b), CPU, 16)
        for a, b in ((x, y), (queries_x, queries_y))
    )
    found = scores(Setting(Regression(), module, rows, queries), direction)
    truth = np.empty((4, 60))
    for q in range(4):  # one more copy of the query
        moved = fitted(np.vstack([x, queries_x[q]]), np.append(y, queries_y[q]))
        truth[q] = ((x @ fitted(x, y) - y) ** 2 - (x @ moved - y) ** 2) / 2
    assert correlation(found, truth) > 0.98
    assert_close(found, truth, 0.25)


def test_the_curvature_of_a_tiny_batch_is_that_of_a_large_one() -> None:
    found = setting("classification")
    alone = replace(found, rows=replace(found.rows, batch_size=1))
    assert_close(scores(alone, Curvature()), scores(found, Curvature()))
