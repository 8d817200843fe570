from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from forward_inf_mlflow.models.penalty import is_linear, penalty_of


@pytest.mark.parametrize(
    ("estimator", "penalty"),
    [
        (LogisticRegression(C=0.5), 1 / (0.5 * 100)),
        (make_pipeline(StandardScaler(), LogisticRegression(C=2)), 1 / 200),
        (LogisticRegression(l1_ratio=1, solver="saga"), None),
        (Ridge(alpha=3), 0.03),
        (Ridge(alpha=np.array([1.0, 2.0])), None),
        (LinearRegression(), 0.0),
        (SGDClassifier(alpha=0.01), 0.01),
        (SGDClassifier(penalty="l1"), None),
        (MLPClassifier(alpha=0.2, solver="lbfgs"), 0.002),
        (MLPClassifier(alpha=0.2, batch_size=20), 0.01),
        (MLPClassifier(alpha=0.2), 0.002),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_penalty_is_that_of_the_mean_loss(estimator: object, penalty: float | None) -> None:
    found = penalty_of(estimator, 100)
    assert found == (None if penalty is None else pytest.approx(penalty))


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_a_fitted_logistic_regression_is_where_its_penalised_gradient_vanishes(c: float) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 4)), rng.integers(2, size=80)
    model = LogisticRegression(C=c, fit_intercept=False, tol=1e-10, max_iter=1000).fit(x, y)
    residual = model.predict_proba(x)[:, 1] - y
    gradient = x.T @ residual / 80 + penalty_of(model, 80) * model.coef_[0]
    assert np.abs(gradient).max() < 1e-6


def test_linear_models_are_told_from_others() -> None:
    assert is_linear(make_pipeline(StandardScaler(), LogisticRegression()))
    assert not is_linear(MLPClassifier())
