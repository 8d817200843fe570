"""Class weights of a training loss: an estimator's own, or what the user says of a module's."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils.class_weight import compute_class_weight

from forward_inf_mlflow.errors import ForwardInfError

_WEIGHTED = (LogisticRegression, SGDClassifier)


def class_weights(
    estimator: Any, wanted: str | None, classes: np.ndarray, targets: np.ndarray
) -> tuple[float, ...] | None:
    """Return what a row of each class weighs in the training loss ``(K,)``; None if all do one.

    Weights that were balanced stay as the training rows balance them.

    Args:
        estimator: The fitted estimator, or a pipeline that ends in one; None for a module.
        wanted: What the user says: ``balanced``, or a number for each class, ``1,5``; None for
            the estimator's own.
        classes: ``(K,)`` the classes.
        targets: ``(n,)`` class indices of the training rows.

    Raises:
        ForwardInfError: The user says something else, or as much for an estimator, which says it
            itself.
    """
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    if wanted is not None and estimator is not None:
        raise ForwardInfError(
            f"{type(estimator).__name__} says itself how its classes are weighed: leave "
            "--class-weight out"
        )
    told: Any = wanted
    if type(estimator) in _WEIGHTED:
        told = estimator.class_weight
    if told is None:
        return None
    if isinstance(told, dict):
        return tuple(float(told.get(name, 1.0)) for name in classes.tolist())
    if told == "balanced":
        here = np.unique(targets)
        weights = np.ones(len(classes))
        weights[here] = compute_class_weight("balanced", classes=here, y=targets)
        return tuple(weights.tolist())
    try:
        numbers = [float(part) for part in str(told).split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(classes) or not all(0 < one < np.inf for one in numbers):
        raise ForwardInfError(
            f"--class-weight is {str(told)[:40]!r}: write balanced, or a number above 0 for each "
            f"of the {len(classes)} classes in the order of the model's outputs, such as 1,5"
        )
    return tuple(numbers)
