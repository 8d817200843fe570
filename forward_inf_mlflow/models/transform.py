"""From stored features to what a pipeline's last estimator sees, by the steps fitted before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.compose import ColumnTransformer

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.inputs import numeric_array, require_finite
from forward_inf_mlflow.models.scored import odds_of

_DENSE_LIMIT = 4 << 30  # bytes


@dataclass(frozen=True)
class Transform:
    """A fitted estimator or pipeline, and its steps before the last.

    Attributes:
        estimator: The whole.
        steps: What transforms the rows, in order.
    """

    estimator: Any
    steps: tuple[Any, ...]

    def prepare(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return what the last step sees, ``(n, d)`` dense float64.

        Raises:
            DataError: Columns are missing, or a value cannot be used.
        """
        aligned = self.aligned(features)
        values: Any = aligned
        try:
            for step in self.steps:
                values = step.transform(values)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            self._explain(aligned)
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"The pipeline cannot transform these rows: {reason}") from error
        if sparse.issparse(values):
            if values.shape[0] * values.shape[1] * 8 > _DENSE_LIMIT:
                raise DataError(
                    f"The transformed rows are a sparse {values.shape[0]} x {values.shape[1]} "
                    "matrix, too large to be dense: audit fewer rows (--max-rows), or log a "
                    "pipeline with fewer columns (max_features, n_features)."
                )
            values = values.toarray()
        dense = numeric_array(values).astype(np.float64)
        if not np.isfinite(dense).all():
            self._explain(aligned)
            require_finite(dense, values)
        return dense

    @property
    def reads_texts(self) -> bool:
        """Return whether the first step takes one column of texts."""
        return bool(self.steps) and _first(self.estimator, "n_features_in_") is None

    def texts(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return the texts that the first step takes, ``(n,)``."""
        return np.array([str(text) for text in self.aligned(features)], dtype=object)

    def predict(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return the estimator's own predictions, ``(n,)``."""
        return np.asarray(self.estimator.predict(self.aligned(features)))

    def predict_proba(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return the estimator's own probabilities, ``(n, K)``."""
        return np.asarray(self.estimator.predict_proba(self.aligned(features)))

    def label_odds(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return the log-odds of the estimator's probabilities of several labels, ``(n, k)``."""
        return odds_of(self.estimator, self.aligned(features), 1e-300)

    def aligned(self, features: pd.DataFrame | np.ndarray) -> Any:
        """Return the features with the columns that the estimator was fitted on, in its order.

        A frame or an array; for an estimator that takes texts, the one column of them.

        Raises:
            DataError: The columns are others.
        """
        names = _first(self.estimator, "feature_names_in_")
        count = _first(self.estimator, "n_features_in_")
        if isinstance(features, pd.DataFrame):
            return self._aligned_frame(features, names, count)
        rows = features.reshape(len(features), -1) if len(features) else features
        if count is None:  # a text vectoriser takes one text a row
            return rows[:, 0] if rows.ndim == 2 and rows.shape[1] == 1 else features
        if rows.ndim != 2 or rows.shape[1] != count:
            raise DataError(
                f"The model takes {count} columns and these rows have shape {features.shape[1:]}: "
                "give it the data it was trained on."
            )
        return rows if names is None else pd.DataFrame(rows, columns=names)

    def _aligned_frame(
        self, frame: pd.DataFrame, names: np.ndarray | None, count: int | None
    ) -> Any:
        if names is not None:
            if missing := [str(name) for name in names if name not in frame.columns]:
                raise DataError(
                    f"The data lacks the model's columns {', '.join(map(repr, missing[:5]))}"
                    f"{' and more' if len(missing) > 5 else ''}: give the data it was trained on."
                )
            return frame[list(names)]
        if count is None:
            if frame.shape[1] != 1:
                raise DataError(
                    f"The model takes one column of text and the data has {frame.shape[1]}: choose "
                    "it with --features."
                )
            return frame.iloc[:, 0]
        if frame.shape[1] != count:
            raise DataError(
                f"The model takes {count} columns and the data has {frame.shape[1]}: choose them "
                "with --features."
            )
        return frame.to_numpy()

    def _explain(self, aligned: Any) -> None:
        """Name the stored row and column to blame, where text cannot be meant by the model."""
        if not self.reads_texts and not (
            self.steps and isinstance(self.steps[0], ColumnTransformer)
        ):
            require_finite(numeric_array(aligned), aligned)


def _first(estimator: Any, name: str) -> Any:
    """Return an attribute that a pipeline takes from its first step, None where it has none."""
    return getattr(estimator, name, None)
