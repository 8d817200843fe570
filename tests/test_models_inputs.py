"""Stored features become the numbers a model takes, or a sentence that names what cannot."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.inputs import InputSpec

FLAT = InputSpec(np.dtype(np.float32), (64,))
SQUARE = InputSpec(np.dtype(np.float32), (1, 8, 8))


@pytest.mark.parametrize(
    ("spec", "shape"),
    [(SQUARE, (64,)), (SQUARE, (8, 8)), (SQUARE, (8, 8, 1)), (FLAT, (1, 8, 8)), (FLAT, (64,))],
)
def test_rows_keep_their_order_when_they_are_reshaped(spec: InputSpec, shape: tuple[int]) -> None:
    rows = np.arange(128, dtype=np.float64).reshape(2, *shape)
    prepared = spec.prepare(rows)
    assert prepared.shape == (2, *(spec.shape or ()))
    np.testing.assert_array_equal(prepared.ravel(), rows.ravel())


@pytest.mark.parametrize("shape", [(63,), (8, 4, 2), (4, 16)])
def test_rows_of_another_shape_are_refused_naming_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"\(1, 8, 8\).*" + re.escape(str(shape))):
        SQUARE.prepare(np.zeros((2, *shape)))


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (["1", "x", "y"], "'b' holds text.*row 1.*'x'"),
        ([1.0, 2.0, np.nan], "Row 2, column 'b', is nan"),
        ([1.0, -np.inf, np.nan], "Row 1, column 'b', is -inf"),
        ([1.0, 2.0, 1e300], "Row 2, column 'b', is inf"),
        (pd.array([1, None, 2], dtype="Int64"), "Row 1, column 'b', is nan"),
        (pd.to_datetime(["2020-01-01"] * 3), "'b' holds dates"),
        ([1j, 2j, 3j], "'b' holds complex"),
    ],
    ids=["text", "nan", "inf", "too large", "missing", "dates", "complex"],
)
def test_what_is_no_finite_number_is_named_by_row_and_column(column: object, reason: str) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": column})
    with pytest.raises(DataError, match=reason):
        InputSpec(np.dtype(np.float32), (2,)).prepare(frame)


def test_frames_of_numbers_in_any_dress_become_one_array() -> None:
    frame = pd.DataFrame(
        {"a": [1, 2], "b": ["3", "4.5"], "c": [True, False], "d": pd.array([5, 6], dtype="Int64")}
    )
    prepared = InputSpec(np.dtype(np.float32), None).prepare(frame)
    np.testing.assert_array_equal(prepared, [[1, 3, 1, 5], [2, 4.5, 0, 6]])
    assert prepared.dtype == np.float32
