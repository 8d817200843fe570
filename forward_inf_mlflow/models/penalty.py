"""The penalty that an estimator was fitted with: it belongs to the curvature of its objective."""

from __future__ import annotations

from typing import Any

from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline

from forward_inf_mlflow.models.several_estimators import first_part


def penalty_of(estimator: Any, rows: int) -> float | None:
    """Return what the objective, in nats (or half squared units) per row, adds to each parameter's
    second derivative; None where the estimator does not say.

    The intercept's share, which scikit-learn leaves out, is not told apart.

    Args:
        estimator: A fitted estimator, or a pipeline that ends in one.
        rows: How many it was fitted on.
    """
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    estimator = first_part(estimator)
    kind = type(estimator)
    if kind is LogisticRegression:  # C * sum of losses + |w|^2 / 2
        ridge = estimator.penalty in ("l2", "deprecated") and not estimator.l1_ratio
        return 1 / (estimator.C * rows) if ridge else None
    if kind is Ridge:  # sum of squared errors + alpha |w|^2
        return float(estimator.alpha) / rows if isinstance(estimator.alpha, int | float) else None
    if kind is LinearRegression:
        return 0.0
    if kind is SGDClassifier:  # mean loss + alpha |w|^2 / 2
        return float(estimator.alpha) if estimator.penalty == "l2" else None
    if kind in (MLPClassifier, MLPRegressor):  # mean loss + alpha |w|^2 / (2 rows of a batch)
        batch = min(200, rows) if estimator.batch_size == "auto" else int(estimator.batch_size)
        return float(estimator.alpha) / (rows if estimator.solver == "lbfgs" else min(batch, rows))
    return None


def is_linear(estimator: Any) -> bool:
    """Say whether the estimator's outputs are linear in its parameters."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    estimator = first_part(estimator)
    return type(estimator) in (LogisticRegression, Ridge, LinearRegression)
