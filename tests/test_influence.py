from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from forward_inf_mlflow.directions import Direction, GradientStep, OptimizerSteps
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tasks import Classification, Regression
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.version import __version__

CPU = torch.device("cpu")
SMALL = GradientStep(relative_size=1e-4, sign="both")
N, M, D, K = 40, 6, 5, 3


def tensors(x: np.ndarray, y: np.ndarray, batch_size: int = 16) -> Tensors:
    return Tensors(torch.as_tensor(x), torch.as_tensor(y), CPU, batch_size)


def rows(n: int, seed: int = 0, dtype: type = np.float64) -> Tensors:
    rng = np.random.default_rng(seed)
    return tensors(rng.normal(size=(n, D)).astype(dtype), rng.integers(K, size=n))


def numbers(n: int, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return tensors(rng.normal(size=(n, D)), rng.normal(size=n))


def linear(outputs: int = K) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, outputs).double()


def network() -> nn.Sequential:
    """A small float32 network whose batch norm has seen some rows, in evaluation mode."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(D, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, K)
    )
    module(torch.randn(64, D))
    return module.eval()


def influence(
    module: nn.Module,
    queries: Tensors,
    train: Tensors,
    *,
    task: Task | None = None,
    direction: Direction = SMALL,
) -> np.ndarray:
    """Influence of each training row on each query, ``(m, n)``."""
    engine = ForwardInfluence(task=task or Classification(), direction=direction)
    groups = QueryGroups.each(queries, np.arange(len(queries)).astype(str))
    found = engine.influence(module, groups, train, np.arange(len(train)).astype(str))
    return found.scores.values


def row_gradients(module: nn.Module, task: Task, data: Tensors) -> np.ndarray:
    """The obvious reference: one backward pass a row, ``(n, parameters)``."""
    found = []
    for i in range(len(data)):
        loss = task.loss(module(data.inputs[i : i + 1]), data.targets[i : i + 1]).sum()
        parts = torch.autograd.grad(loss, list(module.parameters()))
        found.append(torch.cat([p.reshape(-1) for p in parts]).double().numpy())
    return np.stack(found)


def assert_close(found: np.ndarray, expected: np.ndarray, share: float = 1e-3) -> None:
    """Hold every number to a share of the largest expected one."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max())


def test_three_rows_worked_by_hand() -> None:
    # y = w x at w = 1. The query (1, 0) has gradient 1 and is unlearned by w = 1.1; each row's
    # loss changes as written, and the step was a tenth of a copy.
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(module.weight)
    query = tensors(np.array([[1.0]]), np.array([0.0]))
    train = tensors(np.array([[1.0], [2.0], [1.0]]), np.array([0.0, 2.0, 3.0]))
    found = influence(
        module, query, train, task=Regression(), direction=GradientStep(relative_size=0.1)
    )
    by_hand = [(0.605 - 0.5) / 0.1, (0.02 - 0.0) / 0.1, (1.805 - 2.0) / 0.1]
    np.testing.assert_allclose(found[0], by_hand, rtol=1e-5)


@pytest.mark.parametrize("sign", ["up", "down", "both"])
def test_softmax_regression_gives_the_gradient_product_in_closed_form(sign: str) -> None:
    module, queries, train = linear(), rows(M, 1), rows(N)
    found = influence(
        module,
        queries,
        train,
        direction=GradientStep(relative_size=1e-4, sign=sign),
    )

    def residual(data: Tensors) -> np.ndarray:
        probability = torch.softmax(module(data.inputs), 1).detach().numpy()
        return probability - np.eye(K)[data.targets.numpy()]

    same_direction = queries.inputs.numpy() @ train.inputs.numpy().T + 1
    assert_close(found, (residual(queries) @ residual(train).T) * same_direction)


def test_linear_regression_gives_the_gradient_product_in_closed_form() -> None:
    module, queries, train = linear(1), numbers(M, 1), numbers(N)
    found = influence(module, queries, train, task=Regression())

    def residual(data: Tensors) -> np.ndarray:
        return module(data.inputs)[:, 0].detach().numpy() - data.targets.numpy()

    same_direction = queries.inputs.numpy() @ train.inputs.numpy().T + 1
    assert_close(found, np.outer(residual(queries), residual(train)) * same_direction)


def test_a_network_gives_what_a_backward_pass_per_row_gives() -> None:
    module = network().double()
    queries, train, task = rows(M, 1), rows(N), Classification()
    expected = row_gradients(module, task, queries) @ row_gradients(module, task, train).T
    assert_close(influence(module, queries, train), expected)


def test_queries_asked_together_count_as_their_mean() -> None:
    module, queries, train = linear(), rows(M, 1), rows(N)
    engine = ForwardInfluence(task=Classification(), direction=SMALL)
    scores = engine.influence(
        module, QueryGroups.together(queries), train, np.arange(N).astype(str)
    ).scores
    assert list(scores.query_ids) == ["all queries"]
    assert_close(scores.values[0], influence(module, queries, train).mean(0))


def test_a_copy_of_the_query_is_a_proponent_and_with_another_label_an_opponent() -> None:
    module, queries = network(), rows(M, 1, np.float32)
    copies = influence(module, queries, queries, direction=GradientStep()).diagonal()
    assert (copies > 0).all()

    x = queries.inputs.numpy()
    two = [linear(2).float(), tensors(x, np.zeros(M, int)), tensors(x, np.ones(M, int))]
    against = influence(*two, direction=GradientStep()).diagonal()
    assert (against < 0).all()


@pytest.mark.parametrize("direction", [GradientStep(), OptimizerSteps()], ids=["step", "adam"])
def test_a_query_without_gradient_influences_nothing(direction: Direction) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    query = tensors(np.float32([[2.0]]), np.float32([2.0]))
    train = tensors(np.float32([[1.0], [5.0]]), np.float32([0.0, 9.0]))
    found = influence(module, query, train, task=Regression(), direction=direction)
    assert (found == 0).all()


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "loss on query 0 is not a number"), (1e300, "gradient of a query")]
)
def test_a_query_that_is_not_a_number_is_refused(value: float, said: str) -> None:
    query = tensors(np.full((1, D), value), np.zeros(1, int))
    with pytest.raises(ForwardInfError, match=said):
        influence(linear(), query, rows(N))


def test_parameters_that_do_not_train_do_not_move() -> None:
    whole, last = network().double(), network().double()
    for parameter in last[:-1].parameters():
        parameter.requires_grad_(False)
    queries, train, task = rows(M, 1), rows(N), Classification()
    head = sum(p.numel() for p in last[-1].parameters())
    q, t = (row_gradients(whole, task, data)[:, -head:] for data in (queries, train))
    assert_close(influence(last, queries, train), q @ t.T)


def test_batch_norm_answers_with_its_frozen_statistics_while_moved() -> None:
    # Statistics of the batch would make a row's score depend on the rows beside it.
    module, queries = network(), rows(M, 1, np.float32)
    train = rows(N, dtype=np.float32)
    alone = np.concatenate(
        [influence(module, queries, train.take(np.array([i]))) for i in range(5)], axis=1
    )
    np.testing.assert_allclose(alone, influence(module, queries, train)[:, :5], atol=1e-2)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("direction", [GradientStep(), OptimizerSteps()], ids=["step", "adam"])
def test_scores_do_not_depend_on_the_batch_size(batch_size: int, direction: Direction) -> None:
    module, queries, train = network().double(), rows(M, 1), rows(N)
    expected = influence(module, queries, train, direction=direction)
    other = Tensors(train.inputs, train.targets, CPU, batch_size)
    found = influence(module, queries, other, direction=direction)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_group_of_queries_read_in_parts_moves_the_model_the_same_way() -> None:
    module, queries, train = network().double(), rows(M, 1), rows(N)
    engine = ForwardInfluence(task=Classification())
    found = []
    for batch_size in (1, 4, M):
        group = Tensors(queries.inputs, queries.targets, CPU, batch_size)
        scores = engine.influence(
            module, QueryGroups.together(group), train, np.arange(N).astype(str)
        ).scores
        found.append(scores.values)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[1], found[2], rtol=1e-5, atol=1e-7)


def test_scores_follow_the_order_of_rows_and_queries() -> None:
    module, queries, train = network(), rows(M, 1, np.float32), rows(N, dtype=np.float32)
    direction = GradientStep()
    rng = np.random.default_rng(3)
    p, q = rng.permutation(M), rng.permutation(N)
    expected = influence(module, queries, train, direction=direction)[p][:, q]
    found = influence(module, queries.take(p), train.take(q), direction=direction)
    assert_close(found, expected, 3e-5)  # float32: another order is another rounding


def test_up_down_and_both_agree_for_small_steps() -> None:
    module, queries, train = network().double(), rows(M, 1), rows(N)
    up, down, both = (
        influence(module, queries, train, direction=GradientStep(relative_size=1e-5, sign=s))
        for s in ("up", "down", "both")
    )
    assert_close(up, both)
    assert_close(down, both)


def test_a_memorized_query_is_asked_as_precisely_as_any_other() -> None:
    # With a loss below 1e-6 a step of fixed rate would drown in rounding.
    module, train = network(), rows(N, dtype=np.float32)
    query = rows(1, 1, np.float32)
    with torch.no_grad():
        module[-1].bias[query.targets[0]] += 20
    task = Classification()
    assert float(task.loss(module(query.inputs), query.targets).detach()) < 1e-6

    # The gradient keeps its direction in float64, where 1 - p does not round to nothing.
    exact = copy.deepcopy(module).double()
    in_float64 = Tensors(query.inputs.double(), query.targets, CPU, 1)
    reference = Tensors(train.inputs.double(), train.targets, CPU, 16)
    g_query, g_train = (row_gradients(exact, task, data) for data in (in_float64, reference))
    found = influence(module, query, train, direction=GradientStep(sign="both"))
    assert np.abs(found).max() > 0
    assert np.corrcoef(found[0], (g_query @ g_train.T)[0])[0, 1] > 0.99


@pytest.mark.parametrize(("sign", "towards"), [("up", 1), ("down", -1)])
def test_the_first_step_of_adam_moves_each_parameter_by_its_rate(sign: str, towards: int) -> None:
    # m / sqrt(v) after bias correction is g / |g| in the first step.
    module, queries = linear(), rows(1, 1)
    gradient = row_gradients(module, Classification(), queries)[0]
    direction = OptimizerSteps(lr=0.01, sign=sign)
    (move,) = direction.plan(module, Classification(), [queries], queries)
    moved = move.control if sign == "up" else move.treated

    with torch.no_grad():
        bias = moved(torch.zeros(1, D).double())[0]
        weight = (moved(torch.eye(D).double()) - bias).T
    found = torch.cat([weight.reshape(-1), bias]).numpy()
    theta = np.concatenate([p.detach().reshape(-1).numpy() for p in module.parameters()])
    np.testing.assert_allclose(found - theta, towards * 0.01 * np.sign(gradient), atol=1e-6)


def test_more_steps_of_adam_move_further_along_the_query() -> None:
    module, queries = network(), rows(1, 1, np.float32)
    first, fourth = (
        influence(module, queries, queries, direction=OptimizerSteps(steps=steps))[0, 0]
        for steps in (1, 4)
    )
    assert 0 < first < fourth


def test_scores_carry_what_repeats_them() -> None:
    engine = ForwardInfluence(task=Classification(), direction=OptimizerSteps(steps=2))
    queries, train = rows(M, 1), rows(N)
    groups = QueryGroups.each(queries, np.array(list("abcdef")))
    scores = engine.influence(linear(), groups, train, np.arange(N).astype(str)).scores
    assert list(scores.query_ids) == list("abcdef")
    assert scores.provenance == {
        "task": {"name": "classification"},
        "readout": "loss",
        "method": "auto",
        "compiled": False,
        "shard_rows": 8192,
        "versions": {"forward_inf_mlflow": __version__, "torch": torch.__version__},
        "direction": "optimizer",
        "lr": 5e-3,
        "steps": 2,
        "sign": "up",
    }


def test_removing_a_row_and_adding_the_query_mirror_each_other_in_logistic_regression() -> None:
    # Leave-one-out: the query's loss without row i less with it. Mirrored: row i's loss without
    # the query less with it. The hypothesis is that they correlate on high-loss queries, and the
    # engine's single step must agree in tendency with both.
    x, y = load_digits(return_X_y=True)
    chosen = np.isin(y, (3, 8))
    x, y = x[chosen] / 16, (y[chosen] == 8).astype(int)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    train, rest = order[:100], order[100:]

    def fit(index: np.ndarray) -> LogisticRegression:
        model = LogisticRegression(C=1 / (0.01 * len(train)), tol=1e-9, max_iter=1000)
        return model.fit(x[index], y[index])

    def loss(model: LogisticRegression, index: np.ndarray) -> np.ndarray:
        return -model.predict_log_proba(x[index])[np.arange(len(index)), y[index]]

    whole = fit(train)
    queries = rest[np.argsort(-loss(whole, rest))[:5]]
    without_row = np.stack([loss(fit(np.delete(train, i)), queries) for i in range(len(train))], 1)
    leave_one_out = without_row - loss(whole, queries)[:, None]
    mirrored = np.stack(
        [loss(whole, train) - loss(fit(np.append(train, q)), train) for q in queries]
    )
    module = nn.Linear(x.shape[1], 2).double()
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(np.stack([-whole.coef_[0], whole.coef_[0]]) / 2))
        module.bias.copy_(torch.as_tensor(np.array([-1, 1]) * whole.intercept_[0] / 2))
    one_step = influence(module, tensors(x[queries], y[queries]), tensors(x[train], y[train]))

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(i, j)[0, 1] for i, j in zip(a, b, strict=True)]))

    assert correlation(leave_one_out, mirrored) > 0.9
    assert correlation(leave_one_out, one_step) > 0.4
