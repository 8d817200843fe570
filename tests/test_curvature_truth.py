"""Influence by curvature against closed forms and models that are fitted again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine import (
    CPU,
    Setting,
    assert_close,
    correlation,
    scores,
)
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from forward_inf_mlflow.directions import Curvature
from forward_inf_mlflow.tasks import Classification, Regression, Weighted
from forward_inf_mlflow.tensors import Tensors


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


def test_weighted_classes_give_the_influence_of_refitting_with_these_weights(
    digits: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    x, y, asked_x, asked_y = digits
    by_class, n, little = {0: 0.5, 1: 4.0}, len(y), 1e-4

    def fitted(a: np.ndarray, b: np.ndarray, copies: np.ndarray) -> np.ndarray:
        model = LogisticRegression(
            class_weight=by_class, fit_intercept=False, solver="newton-cholesky", tol=1e-13
        )
        found: np.ndarray = model.fit(a, b, sample_weight=copies).coef_[0]
        return found

    weights = fitted(x, y, np.ones(n))
    task, penalty = Weighted((0.5, 4.0)), 1 / n
    rows, queries = (
        Tensors(torch.as_tensor(a), torch.as_tensor(b), CPU, 32)
        for a, b in ((x, y), (asked_x, asked_y))
    )
    setting = Setting(task, Logistic(weights), rows, queries)
    direction = Curvature(damping=0.0, penalty=penalty, by_layer=False)
    copies = np.append(np.ones(n), little)
    moved = [
        losses(x, y, fitted(np.vstack([x, a]), np.append(y, b), copies))
        for a, b in zip(asked_x, asked_y, strict=True)
    ]
    refitted = (losses(x, y, weights) - np.stack(moved)) / little
    assert_close(scores(setting, direction, method="derivative"), refitted, 0.01)
    plain = Setting(Classification(), Logistic(weights), rows, queries)
    assert correlation(scores(plain, direction, method="derivative"), refitted) < 0.98


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
