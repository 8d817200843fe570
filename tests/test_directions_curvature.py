from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from engine import (
    CPU,
    TASKS,
    Setting,
    assert_close,
    correlation,
    gauss_newton,
    gradients,
    names,
    scores,
    setting,
    with_batches_of,
)
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from forward_inf_mlflow.directions import Curvature, curvature
from forward_inf_mlflow.directions.fisher import Fisher, fisher
from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tasks import CausalLM, Classification, Denoising, Regression
from forward_inf_mlflow.tensors import Tensors

cached = cache(setting)
dense = cache(lambda kind: gauss_newton(cached(kind)))
EXACT = Curvature(solver="dense", by_layer=False, damping=0.1)
SOLVERS = {
    "dense": EXACT,
    "cg": replace(EXACT, solver="cg", tolerance=1e-9, iterations=400),
    "sketch": replace(EXACT, solver="sketch", rank=10**6),
    "fisher": replace(EXACT, solver="fisher", gradients=2000),
}


def expected(found: Setting, damping: float, penalty: float = 0.0) -> np.ndarray:
    """The influence function from whole matrices and a backward pass a row, ``(m, n)``."""
    matrix = gauss_newton(found).numpy()
    g, asked = gradients(found, found.rows), gradients(found, found.queries)
    solved = np.linalg.solve(matrix + (damping + penalty) * np.eye(len(matrix)), asked.T)
    return solved.T @ g.T / len(found.rows)


def held(kind: str, draws: int, batch_size: int = 7) -> Fisher:
    found = cached(kind)
    rows = with_batches_of(found.rows, batch_size)
    return fisher(found.base, found.task, rows, draws=draws, seed=0)


# Drawn gradients


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (Classification(), (3,), torch.int64),
        (Regression(), (), torch.float64),
        (CausalLM(), (2, 3), torch.int64),
        (CausalLM(mean=True), (2, 3), torch.int64),
        (Denoising(alphas_cumprod=(0.8, 0.1), draws=2, times=2), (4, 2), torch.int64),
    ],
    ids=["classification", "regression", "causal_lm", "causal_lm mean", "denoising"],
)
def test_drawn_residuals_have_the_losses_curvature_as_covariance(
    task: Task, outputs: tuple[int, ...], targets: torch.dtype
) -> None:
    many, generator = 20_000, torch.Generator().manual_seed(0)
    at = torch.randn(1, *outputs, generator=generator, dtype=torch.float64)
    shape = (1, outputs[0]) if isinstance(task, CausalLM) else (1,)
    given = torch.ones(shape, dtype=targets)
    if isinstance(task, CausalLM):
        given[0, 0] = -100
        given = given if task.mean else torch.ones_like(given)
    curved = torch.autograd.functional.hessian(lambda z: task.loss(z, given).sum(), at)
    curved = curved.reshape(at.numel(), at.numel())
    residuals = task.drawn(
        at.expand(many, *outputs), given.expand(many, *given.shape[1:]), generator
    )
    assert residuals is not None
    assert residuals.shape == (many, *outputs)
    assert residuals.dtype == at.dtype
    flat = residuals.reshape(many, -1)
    size = float(curved.diagonal().max())
    torch.testing.assert_close(flat.T @ flat / many, curved, rtol=0, atol=0.04 * size)
    assert float(flat.mean(0).abs().max()) < 0.03 * size**0.5
    between = flat[: many // 2].T @ flat[many // 2 :] / (many // 2)  # rows are independent
    assert float(between.abs().max()) < 0.04 * size


@pytest.mark.parametrize("kind", TASKS)
def test_many_drawn_gradients_are_the_gauss_newton_matrix(kind: str) -> None:
    a = held(kind, draws=200).gradients
    whole = dense(kind)
    assert float((a.T @ a / len(a) - whole).norm() / whole.norm()) < 0.1


@pytest.mark.parametrize("kind", TASKS)
def test_the_inverse_of_drawn_gradients_is_that_of_their_matrix(kind: str) -> None:
    found = held(kind, draws=2)
    a = found.gradients
    whole = a.T @ a / len(a)
    right = torch.randn(len(whole), 3, generator=torch.Generator().manual_seed(1)).double()
    for damping in (0.01, 1.0):
        solved = torch.linalg.solve(whole + damping * torch.eye(len(whole)).double(), right)
        torch.testing.assert_close(found.solve(damping, right), solved, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", TASKS)
def test_the_leading_eigenvectors_of_drawn_gradients_are_exact(kind: str) -> None:
    found = held(kind, draws=2)
    a = found.gradients
    values = torch.linalg.eigvalsh(a.T @ a / len(a)).flip(0)
    leading = found.sketch(5)
    torch.testing.assert_close(leading.values, values[:5])
    torch.testing.assert_close(leading.vectors.T @ leading.vectors, torch.eye(5).double())
    moved = a.T @ (a @ leading.vectors) / len(a)
    torch.testing.assert_close(moved, leading.vectors * leading.values)
    assert found.trace == pytest.approx(float(values.sum()))


@pytest.mark.parametrize("kind", TASKS)
def test_drawn_gradients_do_not_depend_on_the_batch_size(kind: str) -> None:
    first, second = (held(kind, 2, batch_size).gradients for batch_size in (3, 24))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11)


# Influence


@pytest.mark.parametrize("kind", TASKS)
def test_influence_is_the_influence_function_from_whole_matrices(kind: str) -> None:
    found = cached(kind)
    assert_close(
        scores(found, replace(EXACT, penalty=0.05), method="derivative"),
        expected(found, 0.1, 0.05),
    )


@pytest.mark.parametrize("kind", TASKS)
def test_by_layer_every_layer_is_inverted_by_itself(kind: str) -> None:
    found = cached(kind)
    of_layer = [
        sum(p.numel() for p in part.parameters(recurse=False)) for part in found.module.modules()
    ]
    blocks = torch.block_diag(*[torch.ones(size, size) for size in of_layer if size]).double()
    matrix = (dense(kind) * blocks).numpy() + 0.1 * np.eye(len(dense(kind)))
    g, asked = gradients(found, found.rows), gradients(found, found.queries)
    blockwise = np.linalg.solve(matrix, asked.T).T @ g.T / len(found.rows)
    exact = scores(found, replace(EXACT, by_layer=True), method="derivative")
    assert_close(exact, blockwise)
    drawn = replace(SOLVERS["fisher"], by_layer=True, damping=None)
    ruled = scores(found, replace(EXACT, by_layer=True, damping=None), method="derivative")
    assert correlation(scores(found, drawn, method="derivative"), ruled) > 0.95


@pytest.mark.parametrize("kind", TASKS)
def test_a_small_step_reads_the_same_influence(kind: str) -> None:
    found = cached(kind)
    direction = replace(EXACT, relative_size=1e-6, sign="both")
    assert_close(scores(found, direction, method="difference"), expected(found, 0.1), 1e-4)


@pytest.mark.parametrize("solver", ["cg", "sketch"])
@pytest.mark.parametrize("kind", TASKS)
def test_every_exact_solver_gives_the_same_scores(kind: str, solver: str) -> None:
    found = cached(kind)
    exact = scores(found, EXACT, method="derivative")
    assert_close(scores(found, SOLVERS[solver], method="derivative"), exact, 1e-4)


@pytest.mark.parametrize("kind", TASKS)
def test_drawn_gradients_give_nearly_the_same_scores(kind: str) -> None:
    found = cached(kind)
    exact = scores(found, replace(EXACT, damping=None), method="derivative")
    drawn = replace(SOLVERS["fisher"], damping=None)
    assert correlation(scores(found, drawn, method="derivative"), exact) > 0.95


def test_a_sketch_of_low_rank_is_close_to_the_inverse_at_a_large_damping() -> None:
    found = cached("classification")
    exact = scores(found, replace(EXACT, damping=0.3), method="derivative")
    low = replace(EXACT, damping=0.3, solver="sketch", rank=8)
    assert correlation(scores(found, low, method="derivative"), exact) > 0.98


def test_an_infinite_damping_leaves_the_gradient_divided_by_it() -> None:
    found, damping = cached("classification"), 1e7
    plain = gradients(found, found.queries) @ gradients(found, found.rows).T
    for solver in SOLVERS.values():
        direction = replace(solver, damping=damping)
        read = scores(found, direction, method="derivative")
        assert_close(read * damping * len(found.rows), plain)


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_group_is_the_mean_of_its_queries(solver: str) -> None:
    found = cached("classification")
    engine = ForwardInfluence(task=found.task, direction=SOLVERS[solver], method="derivative")
    groups = QueryGroups.together(found.queries)
    together = engine.influence(found.module, groups, found.rows, names(len(found.rows))).scores
    each = scores(found, SOLVERS[solver], method="derivative")
    assert_close(together.values[0], each.mean(0))


@pytest.mark.parametrize("solver", ["dense", "sketch", "cg", "fisher"])
def test_moves_for_many_groups_give_what_a_move_for_each_gives(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cached("regression")
    each = scores(found, SOLVERS[solver], method="derivative")
    monkeypatch.setattr(curvature, "_MANY", 0)
    full = replace(SOLVERS[solver], rank=10**6)
    # Drawn gradients leave out eigenvectors that float32 could not tell from rounding.
    share = 1e-2 if solver == "fisher" else 1e-4
    assert_close(scores(found, full, method="derivative"), each, share)


def test_a_thousand_queries_share_a_few_moves() -> None:
    found = setting("classification", n=12, m=130)
    direction = replace(EXACT, rank=16)
    moves = direction.plan(
        found.module,
        found.task,
        [found.queries.part(i, i + 1) for i in range(130)],
        found.rows,
    )
    assert len(moves) == moves.facts["rank"] == 16
    assert moves.coefficients.shape == (130, 16)


# Truth


class Logistic(nn.Module):
    """``p = sigmoid(x w)`` as two logits, so that its parameters are sklearn's."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.weight
        return torch.stack([torch.zeros_like(z), z], 1)


def fit(x: np.ndarray, y: np.ndarray, c: float) -> np.ndarray:
    model = LogisticRegression(C=c, fit_intercept=False, solver="newton-cholesky", tol=1e-12)
    weights: np.ndarray = model.fit(x, y).coef_[0]
    return weights


def losses(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, np.where(y == 1, -1, 1) * (x @ weights))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """100 training rows of threes and eights, and five queries with a high loss."""
    x, y = load_digits(return_X_y=True)
    chosen = np.isin(y, (3, 8))
    x, y = x[chosen] / 16, (y[chosen] == 8).astype(int)
    order = np.random.default_rng(0).permutation(len(y))
    train, rest = order[:100], order[100:]
    worst = rest[np.argsort(-losses(x[rest], y[rest], fit(x[train], y[train], 1.0)))[:5]]
    return x[train], y[train], x[worst], y[worst]


def logistic(
    digits: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], **settings: object
) -> np.ndarray:
    x, y, asked_x, asked_y = digits
    rows, queries = (
        Tensors(torch.as_tensor(a), torch.as_tensor(b), CPU, 32)
        for a, b in ((x, y), (asked_x, asked_y))
    )
    found = Setting(Classification(), Logistic(fit(x, y, 1.0)), rows, queries)
    direction = Curvature(damping=0.0, penalty=1 / len(y), by_layer=False, **settings)  # type: ignore[arg-type]
    return scores(found, direction, method="derivative")


def test_logistic_regression_gives_the_influence_function_in_closed_form(
    digits: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    x, y, asked_x, asked_y = digits
    weights = fit(x, y, 1.0)

    def gradient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (1 / (1 + np.exp(-a @ weights)) - b)[:, None] * a

    p = 1 / (1 + np.exp(-x @ weights))
    hessian = (x * (p * (1 - p))[:, None]).T @ x / len(y) + np.eye(x.shape[1]) / len(y)
    closed = gradient(asked_x, asked_y) @ np.linalg.solve(hessian, gradient(x, y).T) / len(y)
    assert_close(logistic(digits), closed)
    by_products = logistic(digits, solver="cg", tolerance=1e-9)
    assert_close(by_products, closed)


def test_influence_foretells_leaving_a_row_out_and_adding_the_query(
    digits: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    x, y, asked_x, asked_y = digits
    whole = fit(x, y, 1.0)
    without = np.stack(
        [
            losses(asked_x, asked_y, fit(np.delete(x, i, 0), np.delete(y, i), 1.0))
            for i in range(100)
        ],
        1,
    )
    left_out = without - losses(asked_x, asked_y, whole)[:, None]
    mirrored = np.stack(
        [
            losses(x, y, whole) - losses(x, y, fit(np.vstack([x, a]), np.append(y, b), 1.0))
            for a, b in zip(asked_x, asked_y, strict=True)
        ]
    )
    found = logistic(digits)
    assert correlation(found, left_out) > 0.95
    assert correlation(found, mirrored) > 0.95
    assert correlation(left_out, mirrored) > 0.9


def test_scores_are_nats_per_copy_of_the_query_added_to_the_training_set() -> None:
    rng = np.random.default_rng(0)
    n, d, ridge = 4000, 4, 0.2
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    asked_x, asked_y = rng.normal(size=(2, d)), rng.normal(size=2) + 2

    def solved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.linalg.solve(a.T @ a + ridge * n * np.eye(d), a.T @ b)
        return found

    module = nn.Linear(d, 1, bias=False).double()
    before = solved(x, y)
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(before)[None])
    rows, queries = (
        Tensors(torch.as_tensor(a), torch.as_tensor(b), CPU, 1000)
        for a, b in ((x, y), (asked_x, asked_y))
    )
    found = scores(
        Setting(Regression(), module, rows, queries),
        Curvature(damping=0.0, penalty=ridge, rows=n),
        method="derivative",
    )
    refitted = [
        ((y - x @ before) ** 2 - (y - x @ solved(np.vstack([x, a]), np.append(y, b))) ** 2) / 2
        for a, b in zip(asked_x, asked_y, strict=True)
    ]
    assert_close(found, np.stack(refitted), 0.01)


# Settings and refusals


def test_the_damping_is_a_multiple_of_the_mean_eigenvalue_plus_the_penalty() -> None:
    found = cached("classification")
    groups = [found.queries]
    for solver in SOLVERS.values():
        direction = replace(solver, damping=None, multiple=2.0, penalty=0.5)
        facts = direction.plan(found.module, found.task, groups, found.rows).facts
        assert facts["damping_used"] == pytest.approx(2 * facts["mean_eigenvalue"] + 0.5)  # type: ignore[operator]
        trace = float(dense("classification").trace())
        assert facts["mean_eigenvalue"] == pytest.approx(
            trace / len(dense("classification")), rel=0.2
        )


def test_auto_takes_the_matrix_for_few_parameters_and_drawn_gradients_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = cached("classification")

    def solver(some: Setting) -> object:
        return Curvature().plan(some.module, some.task, [some.queries], some.rows).facts["solver"]

    assert solver(found) == "dense"
    monkeypatch.setattr(curvature, "_DENSE", 10)
    assert solver(found) == "fisher"
    monkeypatch.setattr(curvature, "_HELD", len(dense("classification")) * 10)
    assert solver(found) == "sketch"


class Undrawn(Regression):
    """A task that does not say how targets are drawn."""

    name = "undrawn"

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> None:  # type: ignore[override]
        return None


def test_where_rows_cannot_be_differentiated_alone_products_are_taken_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(curvature, "_DENSE", 10)
    found = replace(cached("regression"), task=Undrawn())
    moves = Curvature().plan(found.module, found.task, [found.queries], found.rows)
    assert moves.facts["solver"] == "sketch"
    assert "undrawn draws no targets" in str(moves.facts["note"])
    with pytest.raises(ModelError, match="take the solver 'sketch'") as raised:
        replace(SOLVERS["fisher"]).plan(found.module, found.task, [found.queries], found.rows)
    assert "\n" not in str(raised.value)


def test_rows_without_any_number_for_a_loss_are_refused_in_one_line() -> None:
    found = cached("regression")
    rows = replace(found.rows, targets=torch.full_like(found.rows.targets, torch.nan))
    with pytest.raises(DataError, match="no training row's loss is a number") as raised:
        EXACT.plan(found.module, found.task, [found.queries], rows)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("solver", ["fisher", "sketch", "cg"])
def test_only_the_whole_matrix_has_an_inverse_without_damping(solver: str) -> None:
    found = cached("regression")
    with pytest.raises(ForwardInfError, match="needs a damping or a penalty above 0") as raised:
        scores(found, replace(SOLVERS[solver], damping=0.0))
    assert "\n" not in str(raised.value)
    assert np.isfinite(scores(found, replace(EXACT, damping=0.0))).all()


def test_a_damping_below_rounding_is_refused_not_divided_by() -> None:
    found = cached("regression")
    with pytest.raises(ForwardInfError, match="lost in rounding: give a larger one"):
        scores(found, replace(SOLVERS["fisher"], damping=1e-300))


class Dead(nn.Linear):
    """A model whose answers do not depend on its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0


@pytest.mark.parametrize("many", [False, True], ids=["a move each", "shared moves"])
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_model_that_nothing_moves_has_no_influence(
    solver: str, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:
        monkeypatch.setattr(curvature, "_MANY", 0)
    found = replace(cached("regression"), module=Dead(4, 1).double())
    assert (scores(found, replace(SOLVERS[solver], rank=3)) == 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"damping": -1.0},
        {"damping": float("nan")},
        {"multiple": -1.0},
        {"penalty": float("inf")},
        {"rank": 0},
        {"rows": 0},
        {"gradients": 0},
        {"iterations": 0},
        {"tolerance": 0.0},
        {"relative_size": 0.0},
        {"solver": "magic"},
        {"sign": "sideways"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_cannot_be_used_are_named_in_one_line(settings: dict[str, object]) -> None:
    with pytest.raises(ForwardInfError, match=rf"{next(iter(settings))} must be") as raised:
        Curvature(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
