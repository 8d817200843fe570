"""MLflow's own digest of a data set, computed again from the file that its source names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from mlflow.data.digest_utils import MAX_ROWS, compute_numpy_digest, compute_pandas_digest
from mlflow.entities import Dataset

from forward_inf_mlflow.data.reading import LABEL_NAMES, read_table
from forward_inf_mlflow.data.rows import Rows

Digest = Literal["verified", "mismatch", "unverified"]

#: What MLflow computes; a user may give any other text as the digest.
_COMPUTED = re.compile(r"[0-9a-f]{8}")


def check_digest(
    dataset: Dataset, path: Path, rows: Rows, *, label: str | None
) -> tuple[Digest, str | None]:
    """Say whether a file still has the digest that was logged for it.

    MLflow hashes a frame or a pair of arrays as they were in memory, at most the first 10,000 rows
    of a frame or values of an array, and does not say which columns. So the plausible variants are
    tried, and a digest that covers only a part proves nothing about the rest.

    Args:
        dataset: The entity logged with the run.
        path: The local file.
        rows: What was read from it.
        label: The label column of a table; None for the usual names.

    Returns:
        ``verified`` if a digest over all values is equal, ``mismatch`` if none is equal although
        the file is of a kind for which one should be, else ``unverified``; and why, in words that
        follow the file's name.
    """
    kind = _kind(dataset)
    if kind is None or not _COMPUTED.fullmatch(dataset.digest):
        return (
            "unverified",
            "cannot be compared with the digest that was logged (not of a kind computed here)",
        )
    table = None if path.suffix.lower() == ".npz" else read_table(path, uri=rows.uri)
    if kind == "pandas" and table is None:
        return "unverified", "was logged as a frame, whose digest a npz file does not determine"
    if kind == "pandas" and table is not None:
        found = [whole for digest, whole in _frames(table, label) if digest == dataset.digest]
    else:
        found = [whole for digest, whole in _arrays(rows) if digest == dataset.digest]
    if any(found):
        return "verified", None
    if found:
        return "unverified", "has the digest that was logged, but that covers only a part of it"
    return "mismatch", f"no longer has the digest that was logged ({dataset.digest})"


def _kind(dataset: Dataset) -> Literal["pandas", "numpy"] | None:
    """Tell what kind of data was hashed by the profile that MLflow logs beside the digest."""
    try:
        profile = json.loads(dataset.profile or "null")
    except ValueError:
        return None
    if not isinstance(profile, dict):
        return None
    if "features_shape" in profile:
        return "numpy"
    return "pandas" if profile.keys() == {"num_rows", "num_elements"} else None


def _frames(table: pd.DataFrame, label: str | None) -> Iterator[tuple[str, bool]]:
    """Yield digests of the plausible frames, and whether each covers every value."""
    frames = [table]
    if table.columns[0] == "Unnamed: 0":  # an index that was written to the csv file
        frames.append(table.set_index(table.columns[0]).rename_axis(None))
    for frame in frames:
        whole = len(frame) <= MAX_ROWS and all(
            pd.api.types.is_string_dtype(dtype)
            or (pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype))
            for dtype in frame.dtypes
        )
        yield compute_pandas_digest(frame), whole
        for name in frame.columns:
            if name == label or (label is None and str(name).lower() in LABEL_NAMES):
                yield compute_pandas_digest(frame.drop(columns=name)), False


def _arrays(rows: Rows) -> Iterator[tuple[str, bool]]:
    """Yield digests of the plausible pairs of arrays, and whether each covers every value."""
    features = (
        rows.features.to_numpy() if isinstance(rows.features, pd.DataFrame) else rows.features
    )
    whole = features.size <= MAX_ROWS
    shapes: list[np.ndarray] = [features]
    if features.ndim > 2:  # MLflow takes no images
        shapes.append(features.reshape(len(features), -1))
    for array in shapes:
        labels = rows.labels if rows.targets is None else rows.targets
        yield compute_numpy_digest(array, labels), whole
        yield compute_numpy_digest(array), False
