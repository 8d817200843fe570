"""scikit-learn's linear models of several labels a row, as what a torch module is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor

from forward_inf_mlflow.errors import ModelError

_REGRESSORS = (LinearRegression, Ridge)


def stacked(estimator: Any) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Return weights ``(k, d)``, intercepts ``(k,)`` and the task; None if it is none of these.

    ``multilabel``: the log-odds of k labels, by MultiOutputClassifier or OneVsRestClassifier over
    LogisticRegression. ``regression``: k numbers, by LinearRegression, Ridge or
    MultiOutputRegressor over one of them.

    Raises:
        ModelError: A part of it is another estimator, or knows other labels than 0 and 1.
        AttributeError: It is not fitted.
    """
    kind = type(estimator)
    if kind in _REGRESSORS:
        weight = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))
        bias = np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64), (len(weight),))
        return (weight, bias, "regression") if len(weight) > 1 else None
    if kind is MultiOutputRegressor:
        return *_of_parts(estimator.estimators_, _REGRESSORS, kind.__name__), "regression"
    if kind is OneVsRestClassifier and not estimator.multilabel_:
        return None
    if kind not in (MultiOutputClassifier, OneVsRestClassifier):
        return None
    parts = estimator.estimators_
    known = [getattr(part, "classes_", None) for part in parts]
    if any(names is None or [*names] != [0, 1] for names in known):
        raise ModelError(
            f"{kind.__name__} of labels that are not 0 and 1, or one of which all rows have, is "
            "not supported: encode them, or leave that label out"
        )
    return *_of_parts(parts, (LogisticRegression,), kind.__name__), "multilabel"


def _of_parts(
    parts: list[Any], kinds: tuple[type, ...], name: str
) -> tuple[np.ndarray, np.ndarray]:
    if foreign := [type(part).__name__ for part in parts if type(part) not in kinds]:
        known = " or ".join(kind.__name__ for kind in kinds)
        raise ModelError(f"{name} over {foreign[0]} is not supported, but over {known}.")
    weights = np.stack([np.asarray(part.coef_, dtype=np.float64).reshape(-1) for part in parts])
    return weights, np.array([np.ravel(part.intercept_)[0] for part in parts], dtype=np.float64)


def first_part(estimator: Any) -> Any:
    """Return an estimator of one label that stands for all of several, or the estimator itself."""
    kinds = (MultiOutputClassifier, MultiOutputRegressor, OneVsRestClassifier)
    return estimator.estimators_[0] if type(estimator) in kinds else estimator
