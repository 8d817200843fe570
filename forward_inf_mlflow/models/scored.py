"""Scored: what an estimator says of rows as logits, whichever way it says it."""

from __future__ import annotations

from typing import Any

import numpy as np

from forward_inf_mlflow.errors import ModelError

#: How a decision function is read, for the notes.
READ = (
    "has no predict_proba; its decision function was read as logits (the sigmoid of one score, the "
    "softmax of several), which are no calibrated probabilities"
)


def logits_of(estimator: Any, rows: Any, least: float) -> np.ndarray:
    """Return logits ``(n, K)`` float64 in the order of the estimator's own classes.

    The logarithms of its probabilities; else its decision function, one score a class, or one
    score in all, which is the log-odds of the second class.

    Args:
        estimator: Anything fitted.
        rows: As it takes them.
        least: What a probability of zero is read as.

    Raises:
        ModelError: It has neither; or probabilities that are none, or scores of pairs of classes.
    """
    name = type(estimator).__name__
    if hasattr(estimator, "predict_proba"):
        said = np.asarray(estimator.predict_proba(rows), dtype=np.float64)
        if (said < -1e-6).any() or (said > 1 + 1e-6).any():
            raise ModelError(f"the predict_proba of {name} gives no probabilities")
        return np.asarray(np.log(np.maximum(said, least)))
    if not hasattr(estimator, "decision_function"):
        raise ModelError(
            f"{name} has neither predict_proba nor decision_function, so that nothing says how "
            "sure it is of a label: give one that has (CalibratedClassifierCV wraps most)"
        )
    if getattr(estimator, "decision_function_shape", "ovr") != "ovr":
        raise ModelError(
            f"{name} scores pairs of classes: train it with decision_function_shape='ovr'"
        )
    scores = np.asarray(estimator.decision_function(rows), dtype=np.float64)
    if scores.ndim == 1:
        return np.stack([np.zeros_like(scores), scores], axis=1)
    return scores


def odds_of(estimator: Any, rows: Any, least: float) -> np.ndarray:
    """Return the log-odds ``(n, k)`` float64 that each of several labels is set.

    Args:
        estimator: Anything fitted whose ``predict_proba`` gives the probability of each label
            ``(n, k)``, or a list of k arrays ``(n, 2)``; or with a decision function ``(n, k)``.
        rows: As it takes them.
        least: What a probability of zero is read as.

    Raises:
        ModelError: It has neither, or they have another form.
    """
    name = type(estimator).__name__
    if hasattr(estimator, "predict_proba"):
        said = estimator.predict_proba(rows)
        if isinstance(said, list):
            if any(np.shape(one)[1] != 2 for one in said):
                raise ModelError(
                    f"{name} knows labels that are neither 0 nor 1, or one of them alone"
                )
            said = np.stack([np.asarray(one)[:, 1] for one in said], axis=1)
        p = np.asarray(said, dtype=np.float64)
        if (p < -1e-6).any() or (p > 1 + 1e-6).any():
            raise ModelError(f"the predict_proba of {name} gives no probabilities")
        return np.asarray(np.log(np.maximum(p, least)) - np.log(np.maximum(1 - p, least)))
    if not hasattr(estimator, "decision_function"):
        raise ModelError(
            f"{name} has neither predict_proba nor decision_function, so that nothing says how "
            "sure it is of a label: give one that has"
        )
    return np.asarray(estimator.decision_function(rows), dtype=np.float64)
