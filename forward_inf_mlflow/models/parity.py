"""Does what will be moved answer as the registered model does? Asked before anything else.

How far they may differ: 1e-4, absolute, of logits and of probabilities. A regression's numbers have
a unit of their own, so theirs is relative to the largest, where that is above one. A model that was
logged in half precision rounds every step that the audit takes in float32: sixteen of its own
rounding errors (.016 in float16, .12 in bfloat16), relative to its largest answer above one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, softmax

from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.forward import outputs
from forward_inf_mlflow.models.logits import Wrapped

TOLERANCE = 1e-4
_HALF_ROUNDINGS = 16  # errors of some tens of layers, which add up like a random walk
_SINGLES = 16  # rows read one at a time


def half_tolerance(half: torch.dtype) -> float:
    """Return how far a model in half precision may be from its float32 form, relatively."""
    return _HALF_ROUNDINGS * torch.finfo(half).eps


def check_parity(
    model: AuditedModel, features: pd.DataFrame | np.ndarray, *, rows: int = 64
) -> float:
    """Predict some rows by the original and by the module, and compare.

    Args:
        model: From ``registry.load``.
        features: ``(n, ...)`` rows as stored; the first ``rows`` of them are read.
        rows: How many.

    Returns:
        The largest difference: absolute for a model with several outputs or of known classes;
        relative to the largest output, where that is above one, for a regression, for a single
        output that does not say what it is (`check_probabilities` asks again where it is a logit)
        and in half precision.

    Raises:
        ModelError: They differ by more than the tolerance, none is a number, or a row's output
            depends on its batch.
        DataError: The rows do not fit the model.
    """
    sample = _first(features, rows)
    inputs = model.prepare(sample)
    together = _answers(model, inputs, batch=model.max_batch or rows)
    expected = np.asarray(model.original(sample), dtype=np.float64)
    if expected.size != together.size:
        raise ModelError(
            f"The model answers with shape {expected.shape} and its rebuilt module with "
            f"{together.shape}: this model is not supported."
        )
    expected = expected.reshape(together.shape)
    fine = np.isfinite(expected).reshape(len(expected), -1).all(1)
    if not fine.any():
        raise ModelError(
            "The model answers NaN or infinity for the first training rows: log one that is "
            "trained."
        )
    inputs, expected, together = inputs[fine], expected[fine], together[fine]
    if model.task == "multilabel":  # as probabilities: log-odds of what is all but sure are rounded
        expected, together = expit(expected), expit(together)
    number = model.task == "regression" or (model.task is None and expected.size == len(expected))
    relative = model.half is not None or number
    difference = _difference(expected, together, relative=relative)
    _require_agreement(model, difference)
    if model.max_batch != 1:
        few = inputs[:_SINGLES]
        try:
            # Relative: another batch size is another order of summation, whatever the task.
            one = _answers(model, few, batch=1)
            one = expit(one) if model.task == "multilabel" else one
            alone = _difference(together[: len(few)], one, relative=True)
        except DataError:  # batch norm without statistics cannot read a single row
            alone = np.inf
        if not alone <= TOLERANCE:
            raise ModelError(
                f"The model mixes rows: a row's output changes by {alone:.1e} with its batch, so "
                "no row can be judged alone; log it in evaluation mode (model.eval())."
            )
    return difference


def check_probabilities(
    model: AuditedModel, wrapped: Wrapped, features: pd.DataFrame | np.ndarray, *, rows: int = 64
) -> float:
    """Compare what the registered model says of some rows with the logits that will be moved.

    Args:
        model: From ``registry.load``.
        wrapped: Its module, with what turns its answers into logits around it.
        features: ``(n, ...)`` rows as stored; the first ``rows`` of them are read.
        rows: How many.

    Returns:
        The largest absolute difference of a probability.

    Raises:
        ModelError: It is larger than the tolerance.
    """
    sample = _first(features, rows)
    expected = wrapped.probabilities(np.asarray(model.original(sample), dtype=np.float64))
    logits = outputs(wrapped, model.prepare(sample), batch=model.max_batch or rows)
    fine = np.isfinite(expected).all(1)
    difference = _difference(expected[fine], softmax(logits[fine], axis=1), relative=False)
    _require_agreement(model, difference)
    return difference


def _first(features: pd.DataFrame | np.ndarray, rows: int) -> pd.DataFrame | np.ndarray:
    return features.iloc[:rows] if isinstance(features, pd.DataFrame) else features[:rows]


def _answers(model: AuditedModel, inputs: np.ndarray, *, batch: int) -> np.ndarray:
    answers = outputs(model.module, inputs, batch=batch)
    return np.asarray(softmax(answers, axis=1)) if model.probabilities else answers


def _require_agreement(model: AuditedModel, difference: float) -> None:
    tolerance = TOLERANCE if model.half is None else half_tolerance(model.half)
    if not difference <= tolerance:  # NaN is no agreement
        raise ModelError(
            f"The registered model and its differentiable form disagree by {difference:.1e} "
            f"(at most {tolerance:.0e}): log it again with the installed library versions."
        )


def _difference(expected: np.ndarray, found: np.ndarray, *, relative: bool) -> float:
    scale = max(1.0, float(np.abs(expected).max())) if relative else 1.0
    return float(np.abs(expected - found).max() / scale)
