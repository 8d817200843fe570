"""From stored features to the numbers a model takes; says which row and column cannot be one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from forward_inf_mlflow.errors import DataError


@dataclass(frozen=True)
class InputSpec:
    """What a torch module takes.

    Attributes:
        dtype: NumPy type of its input.
        shape: Shape of one row, None for a size that varies; None if nothing is known.
    """

    dtype: np.dtype
    shape: tuple[int | None, ...] | None

    def prepare(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Turn features into the module's input, ``(n, ...)``.

        Raises:
            DataError: A value is no finite number, or the rows have another shape.
        """
        values = numeric_array(features)
        require_finite(values, features)
        if np.issubdtype(self.dtype, np.integer):
            require_whole(values, features)
        with np.errstate(over="ignore"):  # 1e300 is infinite in float32: refused in the next line
            values = self._shaped(values).astype(self.dtype)
        require_finite(values, features)
        return np.ascontiguousarray(values)

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        rows = values.shape[1:]
        if self.shape is None or _fits(rows, self.shape):
            return values
        known = [size for size in self.shape if size is not None]
        # Reading order must be the same: flat on either side, or apart only in sizes of one.
        same_order = min(len(rows), len(self.shape)) <= 1 or _long(rows) == _long(known)
        if len(known) == len(self.shape) and math.prod(known) == math.prod(rows) and same_order:
            return values.reshape(len(values), *known)
        wanted = ", ".join("any" if size is None else str(size) for size in self.shape)
        raise DataError(
            f"The model takes rows of shape ({wanted}) and these rows have shape {rows}: give it "
            "the data it was trained on."
        )


def numeric_array(features: pd.DataFrame | np.ndarray) -> np.ndarray:
    """Return the features as an array of numbers, ``(n, d)`` for a frame.

    Raises:
        DataError: A column holds something else; the message names it and its first bad row.
    """
    if isinstance(features, np.ndarray):
        if features.ndim == 0:
            raise DataError("The features are a single number: give an array with one row each.")
        if features.dtype.kind in "biuf":
            return features[:, None] if features.ndim == 1 else features
        if features.dtype.kind == "c":
            raise DataError("The features are complex numbers: give real ones.")
        flat = pd.DataFrame(features.reshape(len(features), -1) if len(features) else features)
        return numeric_array(flat).reshape(flat.shape[:1] + features.shape[1:])
    columns = [_numbers(features.iloc[:, i], features.columns[i]) for i in range(features.shape[1])]
    if not columns:
        raise DataError("There are no feature columns: say which columns are features.")
    return np.stack(columns, axis=1)


def require_finite(values: np.ndarray, features: pd.DataFrame | np.ndarray) -> None:
    """Refuse NaN and infinity.

    Args:
        values: ``(n, ...)`` numbers.
        features: What they were made from, to name the column.

    Raises:
        DataError: A value is not finite; the message names its row and column.
    """
    _require(np.isfinite(values), values, features, "remove or fill it")


def require_whole(values: np.ndarray, features: pd.DataFrame | np.ndarray) -> None:
    """Refuse fractions where the model takes whole numbers.

    Raises:
        DataError: A value is not whole; the message names its row and column.
    """
    if values.dtype.kind == "f":
        _require(values == np.floor(values), values, features, "the model takes whole numbers")


def _require(
    good: np.ndarray, values: np.ndarray, features: pd.DataFrame | np.ndarray, advice: str
) -> None:
    if good.all():
        return
    bad = np.argwhere(~good)[0]
    row, place = int(bad[0]), [int(i) for i in bad[1:]]
    if isinstance(features, pd.DataFrame) and features.shape == values.shape:
        column = repr(str(features.columns[place[0]]))
    else:
        column = ", ".join(map(str, place))
    raise DataError(f"Row {row}, column {column}, is {values[tuple(bad)]}: {advice}.")


def _numbers(column: pd.Series, name: object) -> np.ndarray:
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        if pd.api.types.is_complex_dtype(column.dtype):
            raise DataError(f"Column {str(name)!r} holds complex numbers: give real ones.")
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        raise DataError(f"Column {str(name)!r} holds dates: turn them into numbers or drop it.")
    as_objects = column.astype(object)
    numbers = pd.to_numeric(as_objects, errors="coerce")
    bad = (numbers.isna() & as_objects.notna()).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"Column {str(name)!r} holds text where numbers are expected, first in row {row} "
            f"({str(as_objects.iloc[row])[:40]!r}): encode it or drop it."
        )
    return np.asarray(numbers, dtype=np.float64)


def _fits(rows: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(rows) == len(shape) and all(
        wanted is None or wanted == size for size, wanted in zip(rows, shape, strict=True)
    )


def _long(sizes: tuple[int, ...] | list[int]) -> list[int]:
    return [size for size in sizes if size != 1]
