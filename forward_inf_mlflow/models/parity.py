"""Does what will be moved answer as the registered model does? Asked before anything else."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import softmax

from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.forward import outputs

TOLERANCE = 1e-4
_SINGLES = 16  # rows read one at a time


def check_parity(
    model: AuditedModel, features: pd.DataFrame | np.ndarray, *, rows: int = 64
) -> float:
    """Predict some rows by the original and by the module, and compare.

    Args:
        model: From ``registry.load``.
        features: ``(n, ...)`` rows as stored; the first ``rows`` of them are read.
        rows: How many.

    Returns:
        The largest absolute difference; of outputs larger than one, relative to the largest.

    Raises:
        ModelError: They differ by more than 1e-4, are no numbers, or a row's output depends on its
            batch.
        DataError: The rows do not fit the model.
    """
    sample = features.iloc[:rows] if isinstance(features, pd.DataFrame) else features[:rows]
    inputs = model.prepare(sample)
    together = _answers(model, inputs, batch=model.max_batch or rows)
    expected = np.asarray(model.original(sample), dtype=np.float64)
    if expected.size != together.size:
        raise ModelError(
            f"The model answers with shape {expected.shape} and its rebuilt module with "
            f"{together.shape}: this model is not supported."
        )
    if not np.isfinite(expected).all():
        raise ModelError(
            "The model answers NaN or infinity for the first training rows: log one that is "
            "trained."
        )
    difference = _difference(expected.reshape(together.shape), together)
    if not difference <= TOLERANCE:  # NaN is no agreement
        raise ModelError(
            f"The registered model and its differentiable form disagree by {difference:.1e} "
            f"(at most {TOLERANCE:.0e}): log it again with the installed library versions."
        )
    if model.max_batch != 1:
        few = inputs[:_SINGLES]
        try:
            alone = _difference(together[: len(few)], _answers(model, few, batch=1))
        except DataError:  # batch norm without statistics cannot read a single row
            alone = np.inf
        if not alone <= TOLERANCE:
            raise ModelError(
                f"The model mixes rows: a row's output changes by {alone:.1e} with its batch, so "
                "no row can be judged alone; log it in evaluation mode (model.eval())."
            )
    return difference


def _answers(model: AuditedModel, inputs: np.ndarray, *, batch: int) -> np.ndarray:
    answers = outputs(model.module, inputs, batch=batch)
    if model.estimator is not None and model.task == "classification":
        return np.asarray(softmax(answers, axis=1))
    return answers


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(expected - found).max() / max(1.0, float(np.abs(expected).max())))
