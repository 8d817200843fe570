"""What stored rows must be before a model sees them, and their one plain form in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from forward_inf_mlflow.data.fingerprint import fingerprint
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.several import are_flags, several_labels, written
from forward_inf_mlflow.errors import DataError

#: Longest label, id or source: numpy gives every row of a text array the room of the longest.
_MAX_TEXT = 512
#: The source of rows that name none.
_NO_SOURCE = "(missing)"
#: Values checked at a time.
_BLOCK = 1 << 20
#: What a column of Python objects is called when all that it holds are numbers.
_NUMBERS = frozenset({"boolean", "integer", "floating", "mixed-integer-float"})


def accept(
    features: pd.DataFrame | np.ndarray,
    labels: Any,
    *,
    ids: Any = None,
    sources: Any = None,
    uri: str,
    least: int = 2,
) -> Rows:
    """Check stored rows and bring them into one plain form, the same from any file format.

    Nullable and categorical columns become plain numbers or text, numbers get the machine's byte
    order, ``(n, 1)`` labels become ``(n,)``, ids and sources become text. Features may have gaps,
    NaN among numbers and None among text: whether they can be read is the model's affair. Rows
    without a source have one in common, "(missing)".

    Args:
        features: ``(n, d)`` frame, or ``(n, ...)`` array with at least two dimensions.
        labels: ``(n,)`` or ``(n, 1)`` numbers or text; ``(n, k)`` numbers are several labels a row.
        ids: ``(n,)``, unique; None numbers the rows from "0".
        sources: ``(n,)``, or None.
        uri: Where the rows come from, without credentials; every message begins with it.
        least: How many rows are needed.

    Raises:
        DataError: Fewer rows, lengths that differ, a label or id that is missing, a
            type that is neither number nor text, or an id that occurs twice.
    """
    _check_lengths(features, labels, ids, sources, uri, least)
    plain_features: pd.DataFrame | np.ndarray
    if isinstance(features, pd.DataFrame):
        features = features.set_axis([str(name) for name in features.columns], axis="columns")
        check_named_once(features.columns, uri)
        if not len(features.columns):
            raise DataError(f"{uri}: no feature column is left; name them with --features")
        plain_features = pd.DataFrame(
            {name: _plain(features[name], f"column {name!r}", uri) for name in features.columns}
        )
    else:
        if features.ndim < 2:
            raise DataError(
                f"{uri}: features have shape {features.shape}; give them as (rows, features)"
            )
        plain_features = _native(features, "features", uri)
    several = several_labels(labels, uri)
    targets, names = (None, ()) if several is None else several
    plain_labels = (
        _plain_labels(labels, uri)
        if targets is None
        else written(targets, names, flags=are_flags(targets))
    )
    plain_ids = np.arange(len(plain_labels)).astype(str) if ids is None else _texts(ids, "id", uri)
    _check_unique(plain_ids, uri)
    plain_sources = None if sources is None else _sources(sources, uri)
    return Rows(
        features=plain_features,
        labels=plain_labels,
        ids=plain_ids,
        sources=plain_sources,
        uri=uri,
        sha256=fingerprint(
            plain_features,
            plain_labels if targets is None else targets,
            plain_ids,
            plain_sources,
        ),
        targets=targets,
        label_names=names,
    )


def has_gap(features: pd.DataFrame | np.ndarray) -> np.ndarray:
    """Return which rows hold a value that is missing, NaN or infinite, ``(n,)`` bool.

    Args:
        features: ``(n, d)`` frame or ``(n, ...)`` numbers, as `accept` returns them.
    """
    if isinstance(features, pd.DataFrame):
        gaps = features.isna().to_numpy().any(1)
        numbers = features.select_dtypes("floating").to_numpy()
        found: np.ndarray = gaps | np.isinf(numbers).any(1)
        return found
    if features.dtype.kind != "f":
        return np.zeros(len(features), dtype=bool)
    step = max(1, _BLOCK * len(features) // max(1, features.size))
    blocks = (features[i : i + step] for i in range(0, len(features), step))
    return np.concatenate([~np.isfinite(b.reshape(len(b), -1)).all(1) for b in blocks])


def check_named_once(names: Iterable[str], what: str) -> None:
    """Refuse a column name that occurs twice: nobody could say which one is meant."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{what}: two columns are called {name!r}; rename one")
        seen.add(name)


def _check_lengths(
    features: Any, labels: Any, ids: Any, sources: Any, uri: str, least: int
) -> None:
    rows = len(features)
    for name, values in (("labels", labels), ("ids", ids), ("sources", sources)):
        if values is not None and np.ndim(values) == 0:
            raise DataError(f"{uri}: {name} are a single value; give one for each row")
        if values is not None and len(values) != rows:
            raise DataError(f"{uri}: {rows} rows of features but {len(values)} {name}")
    if rows < least:
        found = "one row only" if rows else "no rows"
        wanted = "an audit needs at least two" if least > 1 else "give at least one"
        raise DataError(f"{uri} holds {found}; {wanted}")


def _plain_labels(labels: Any, uri: str) -> np.ndarray:
    """Return ``(n,)`` numbers, booleans or text."""
    if not isinstance(labels, pd.Series):
        labels = np.asarray(labels)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise DataError(
                f"{uri}: labels have shape {labels.shape}; store one label a row "
                "(the class itself, not one-hot)"
            )
        labels = pd.Series(labels.astype(labels.dtype.newbyteorder("=")))
    _refuse_first(labels.isna(), "is missing or NaN", "the label", uri)
    plain = _plain(labels, "the label", uri).to_numpy()
    if plain.dtype.kind == "f":
        _refuse_first(np.isinf(plain), "is infinite", "the label", uri)
    return plain if plain.dtype.kind in "biuf" else _texts(plain, "label", uri)


def _plain(column: pd.Series, name: str, uri: str) -> pd.Series:
    """Return a column as plain numbers, booleans or text, numbered from 0.

    A gap makes numbers and booleans floating-point, and is None among text.
    """
    column = column.reset_index(drop=True)
    gaps = column.isna()
    if isinstance(column.dtype, pd.CategoricalDtype):
        kind = column.cat.categories.dtype
        column = column.astype(object if gaps.any() else kind)
    column = column.infer_objects()
    numbers = np.dtype(getattr(column.dtype, "numpy_dtype", object))  # of a nullable dtype
    if isinstance(column.dtype, np.dtype):
        numbers = column.dtype
    held = pd.api.types.infer_dtype(column, skipna=True)
    if gaps.any() and (numbers.kind in "biu" or (numbers.kind == "O" and held in _NUMBERS)):
        return pd.Series(column.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan))
    if numbers.kind in "biuf":
        values = column.to_numpy(dtype=numbers, **({"na_value": np.nan} if gaps.any() else {}))
        return pd.Series(_native(values, name, uri))
    if held == "string":
        return (
            column.astype(str).astype(object).where(~gaps, None)
            if gaps.any()
            else (column.astype(str))
        )
    if gaps.all():
        raise DataError(f"{uri}: {name} is empty; leave it out with --features")
    raise DataError(
        f"{uri}: {name} holds {pd.api.types.infer_dtype(column)} values; store numbers or text, "
        "or leave it out with --features"
    )


def _native(values: np.ndarray, name: str, uri: str) -> np.ndarray:
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise DataError(
            f"{uri}: {name} are of type {values.dtype}; store real numbers of at most 64 bits, "
            "and text as columns of a csv or parquet file"
        )
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _texts(values: Any, name: str, uri: str) -> np.ndarray:
    """Return ``(n,)`` text; ``name`` is what one value is called."""
    series = pd.Series(values if isinstance(values, pd.Series | list) else np.asarray(values))
    _refuse_first(series.isna(), "is missing", f"the {name}", uri)
    texts = [str(value) for value in series]
    longest = max(range(len(texts)), key=lambda row: len(texts[row]))
    if len(texts[longest]) > _MAX_TEXT:
        raise DataError(
            f"{uri}: row {longest} has a {name} of {len(texts[longest])} characters; "
            f"use a column of at most {_MAX_TEXT}"
        )
    return np.array(texts, dtype=str)


def _sources(values: Any, uri: str) -> np.ndarray:
    """Return ``(n,)`` text; a gap, which turns whole numbers into fractions, is named."""
    series = pd.Series(values if isinstance(values, pd.Series | list) else np.asarray(values))
    series, gaps = series.reset_index(drop=True), np.asarray(series.isna())
    known = series[~gaps]
    if known.dtype.kind == "f" and (known % 1 == 0).all():
        known = known.astype("Int64")
    return _texts(known.astype(str).reindex(series.index, fill_value=_NO_SOURCE), "source", uri)


def _check_unique(ids: np.ndarray, uri: str) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        double = str(values[np.argmax(counts > 1)])
        rows = np.flatnonzero(ids == double)[:2]
        raise DataError(
            f"{uri}: the id {double!r} occurs in rows {rows[0]} and {rows[1]}; "
            "ids must be unique (without an id column, rows are numbered)"
        )


def _refuse_first(bad: pd.Series | np.ndarray, is_bad: str, name: str, what: str) -> None:
    mask = np.asarray(bad)
    if mask.any():
        _refuse(int(np.argmax(mask)), is_bad, name, what)


def _refuse(row: int, is_bad: str, name: str, what: str) -> None:
    raise DataError(
        f"{what}: {name} of row {row} (counted from 0) {is_bad}; fill or drop such rows"
    )
