"""Several labels a row: numbers for who learns them, and one text for who reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from forward_inf_mlflow.errors import DataError

#: What is written where no label is set.
NONE = "(none)"


def several_labels(labels: Any, uri: str) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Return targets ``(n, k)`` float64 and the names of the k; None for one label a row.

    Args:
        labels: ``(n, k)`` frame or array, or anything else.
        uri: Where the rows come from; every message begins with it.

    Raises:
        DataError: A value is no finite number, or each row has exactly one 1 (one-hot).
    """
    if np.ndim(labels) != 2 or np.shape(labels)[1] < 2:
        return None
    names = [str(name) for name in getattr(labels, "columns", range(np.shape(labels)[1]))]
    columns = labels if isinstance(labels, pd.DataFrame) else pd.DataFrame(np.asarray(labels))
    try:
        values = columns.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{uri}: several labels a row ({', '.join(names[:5])}) must be numbers: 0 and 1, or "
            "targets"
        ) from error
    if (bad := ~np.isfinite(values)).any():
        row, column = np.argwhere(bad)[0]
        raise DataError(
            f"{uri}: the label {names[column]!r} of row {row} (counted from 0) is missing or no "
            "finite number; fill or drop such rows"
        )
    if are_flags(values) and (values.sum(1) == 1).all():
        raise DataError(
            f"{uri}: labels have shape {values.shape}; store one label a row (the class itself, "
            "not one-hot)"
        )
    return values, tuple(names)


def are_flags(targets: np.ndarray) -> bool:
    """Return whether all values are 0 or 1."""
    return bool(np.isin(targets, (0.0, 1.0)).all())


def written(targets: np.ndarray, names: Sequence[str], *, flags: bool) -> np.ndarray:
    """Return targets ``(n, k)`` as ``(n,)`` text: the names of those that are set, or the numbers.

    Args:
        targets: Finite numbers.
        names: Of the k columns.
        flags: Whether they are 0 and 1.
    """
    if flags:
        each = [[name for name, one in zip(names, row, strict=True) if one] for row in targets]
        return np.array([", ".join(some) or NONE for some in each], dtype=str)
    return np.array([", ".join(f"{value:.6g}" for value in row) for row in targets], dtype=str)
