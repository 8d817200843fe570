"""Portraits: what a reader recognizes a row by, its picture or its most telling values."""

from __future__ import annotations

import numpy as np
import pandas as pd

from forward_inf_mlflow.report.thumbnails import image_shape, thumbnail
from forward_inf_mlflow.tensors import Tensors

#: Values that are shown of a row without a picture.
_VALUES = 6


def picture(rows: Tensors, position: int) -> bytes | None:
    """Return a PNG thumbnail of a row, or None where rows are no images."""
    if not image_shape(rows.inputs.shape[1:]):
        return None
    return thumbnail(rows.inputs[position].numpy())


def as_table(features: pd.DataFrame | np.ndarray) -> pd.DataFrame:
    """Return stored features ``(n, d)`` as a table; one without columns for any other shape."""
    if isinstance(features, pd.DataFrame):
        return features
    return pd.DataFrame(features if features.ndim == 2 else np.empty((len(features), 0)))


def telling_columns(train: pd.DataFrame, queries: pd.DataFrame, most: int = _VALUES) -> list[str]:
    """Return the columns in which some queries are most unlike the training rows.

    A number counts by its distance to the training rows' mean in their standard deviations, a text
    by that of the indicator "is this text"; over several queries the mean counts.

    Args:
        train: ``(n, d)``.
        queries: ``(m, d)``, with the same columns.
        most: Bounds how many; they stand in the order of the table.
    """
    unlike = np.array([_unlikeness(train[name], queries[name]) for name in train.columns])
    chosen = np.sort(np.argsort(-unlike, kind="stable")[:most])
    return [train.columns[i] for i in chosen]


def _unlikeness(train: pd.Series, queries: pd.Series) -> float:
    if pd.api.types.is_numeric_dtype(train):
        column = train.to_numpy(np.float64)
        column, asked = (
            values[np.isfinite(values)] for values in (column, queries.to_numpy(float))
        )
        if not len(column) or not len(asked):
            return 0.0
        spread = float(column.std())
        return float(np.abs(asked - column.mean()).mean() / spread) if spread > 0 else 0.0
    texts = train.astype(str)
    shares = [max((texts == str(value)).mean(), 1 / len(texts)) for value in queries]
    return float(np.mean([((1 - share) / share) ** 0.5 for share in shares]))
