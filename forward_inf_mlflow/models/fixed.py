"""Models that no query can move: they are asked, and their trainer fits them anew.

Neighbours, kernels, boosting of other libraries, and whatever MLflow wraps as a ``pyfunc``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.pipeline import Pipeline
from torch import Tensor, nn

from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.inputs import numeric_array, require_finite
from forward_inf_mlflow.models.scored import READ, logits_of
from forward_inf_mlflow.models.transform import Transform
from forward_inf_mlflow.models.trees import LEAST


class Fixed(nn.Module):
    """Asks a model of another library; it has no parameters that a step could move."""

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray]) -> None:
        """Take what answers inputs ``(B, ...)`` with logits or predictions ``(B, ...)``."""
        super().__init__()
        self.answer = answer

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the model says, float64 on the inputs' device."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = self.answer(inputs.detach().cpu().numpy())
        return torch.as_tensor(np.asarray(said, dtype=np.float64), device=inputs.device)


def fixed_estimator(estimator: Any) -> AuditedModel:
    """Ask a fitted estimator, or a pipeline that ends in one, as it is.

    Raises:
        ModelError: It is neither classifier nor regressor, not fitted, has several outputs, or
            does not say how sure it is.
    """
    steps: list[Any] = []
    last = estimator
    while isinstance(last, Pipeline):
        steps += [step for _, step in last.steps[:-1] if step not in (None, "passthrough")]
        last = last.steps[-1][1]
    name, transform = type(last).__name__, Transform(estimator, tuple(steps))
    names = getattr(last, "feature_names_in_", None)

    def named(rows: np.ndarray) -> Any:
        return rows if names is None else pd.DataFrame(rows, columns=names)

    if isinstance(last, RegressorMixin):
        return AuditedModel(
            module=Fixed(lambda rows: np.asarray(last.predict(named(rows)))),
            prepare=transform.prepare,
            kind="sklearn",
            original=transform.predict,
            task="regression",
            fixed=True,
        )
    if not (isinstance(last, ClassifierMixin) or hasattr(last, "classes_")):
        raise ModelError(f"{name} is neither a classifier nor a regressor: log one that predicts")
    classes = getattr(last, "classes_", None)
    if classes is None:
        raise ModelError(f"The {name} is not fitted: fit it, and log it again.")
    if isinstance(classes, list):
        raise ModelError(f"{name} with {len(classes)} outputs is not supported: train one for each")
    sure = hasattr(last, "predict_proba")

    def original(features: pd.DataFrame | np.ndarray) -> np.ndarray:
        return np.asarray(softmax(logits_of(estimator, transform.aligned(features), LEAST), axis=1))

    return AuditedModel(
        module=Fixed(lambda rows: logits_of(last, named(rows), LEAST)),
        prepare=transform.prepare,
        kind="sklearn",
        original=original,
        task="classification",
        classes=np.asarray(classes),
        probabilities=True,
        fixed=True,
        notes=() if sure else (READ,),
    )


def fixed_pyfunc(loaded: Any) -> AuditedModel:
    """Ask a loaded ``mlflow.pyfunc`` model; what it wraps, if that says how sure it is itself.

    Raises:
        ModelError: What it wraps cannot be asked.
    """
    inner = _wrapped(loaded)
    if inner is not None:
        return fixed_estimator(inner)
    asked = _Asked(loaded)
    return AuditedModel(
        module=Fixed(asked.answer),
        prepare=asked.prepare,
        kind="pyfunc",
        original=asked.original,
        classes=asked.classes,
        fixed=True,
    )


def require_doubt(model: AuditedModel, outputs: Tensor, labels: np.ndarray, wanted: str) -> None:
    """Refuse a model whose answers may be the classes themselves, with no word of how sure it is.

    Args:
        model: What answered.
        outputs: Its answers, ``(n,)`` or ``(n, ...)``.
        labels: ``(n,)`` the rows' own.
        wanted: The task that the user named; "regression" says that numbers are meant.

    Raises:
        ModelError: Both are whole numbers, one a row.
    """
    if not model.fixed or model.task is not None or wanted == "regression":
        return
    one = outputs.ndim == 1 or outputs.shape[1] == 1
    whole = labels.dtype.kind in "biu" and bool((outputs == outputs.round()).all())
    if one and whole:
        raise ModelError(
            "the model answers whole numbers, as classes are, and not how sure it is: log one "
            "whose predict gives probabilities, or say --task regression if numbers are meant"
        )


def _wrapped(loaded: Any) -> Any:
    """Return the estimator inside (xgboost's, lightgbm's ...), or None: predict gives labels."""
    try:
        inner = loaded.get_raw_model()
    except (NotImplementedError, AttributeError):  # few wrappers have one
        return None
    known = hasattr(inner, "classes_") or isinstance(inner, RegressorMixin)
    return inner if known and hasattr(inner, "predict") else None


class _Asked:
    """A pyfunc model, between the rows that it takes and the numbers that are read.

    Attributes:
        classes: ``(K,)`` the names of the columns that it answers, where its signature has several.
    """

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded
        signature = loaded.metadata.signature if loaded.metadata is not None else None
        inputs, outputs = (getattr(signature, side, None) for side in ("inputs", "outputs"))
        self._columns = self._kinds = None
        self._kind: Any = None
        if inputs is not None and inputs.has_input_names() and not inputs.is_tensor_spec():
            self._columns, self._kinds = inputs.input_names(), inputs.numpy_types()
        elif inputs is not None and inputs.is_tensor_spec() and len(inputs.inputs) == 1:
            self._kind = inputs.inputs[0].type
        names = []
        if outputs is not None and outputs.has_input_names() and not outputs.is_tensor_spec():
            names = outputs.input_names()
        self.classes = np.asarray(names) if len(names) > 1 else None

    def prepare(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return the rows as numbers, ``(n, ...)`` float64.

        Raises:
            DataError: A column is missing, or a value is no finite number.
        """
        if isinstance(features, pd.DataFrame) and self._columns is not None:
            if missing := [str(name) for name in self._columns if name not in features.columns]:
                raise DataError(
                    f"The data lacks the model's columns {', '.join(map(repr, missing[:5]))}: give "
                    "the data it was trained on."
                )
            features = features[self._columns]
        elif isinstance(features, pd.DataFrame) and self._kind is None:
            self._columns, self._kinds = list(features.columns), list(features.dtypes)
        elif self._columns is None and self._kind is None:
            self._kind = np.asarray(features).dtype
        values = numeric_array(features).astype(np.float64)
        require_finite(values, features)
        if self._columns is not None and values.shape[1:] != (len(self._columns),):
            raise DataError(
                f"The model takes {len(self._columns)} columns and these rows have shape "
                f"{values.shape[1:]}: give it the data it was trained on."
            )
        return values

    def original(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return what the model answers to stored rows, ``(n, ...)``."""
        return self.answer(self.prepare(features))

    def answer(self, rows: np.ndarray) -> np.ndarray:
        """Return what the model answers, ``(n, ...)`` numbers.

        Raises:
            ModelError: It answers something else, labels for instance.
            DataError: It fails on these rows.
        """
        given: Any = rows
        if self._columns is not None:
            given = pd.DataFrame(rows, columns=self._columns)
            kinds = dict(zip(self._columns, self._kinds or (), strict=True))
            given = given.astype(kinds)
        elif self._kind is not None:
            given = rows.astype(self._kind)
        try:
            said = self._loaded.predict(given)
        except Exception as error:  # other people's code fails in any way it likes
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DataError(f"The model cannot read these rows ({reason})") from error
        answers = np.asarray(said)
        if answers.dtype.kind not in "fiub" or answers.ndim not in (1, 2):
            raise ModelError(
                "The model answers labels or texts, and not how sure it is: log one whose predict "
                "gives probabilities (for scikit-learn: pyfunc_predict_fn='predict_proba')."
            )
        if len(answers) != len(rows):
            raise ModelError(
                f"The model answers {len(answers)} rows where {len(rows)} were asked: log one that "
                "answers each row."
            )
        return answers
