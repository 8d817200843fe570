"""Portraits: what a reader recognizes a row by, its picture or its most telling values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from forward_inf_mlflow.data.rows import Rows, as_table
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.report import Portraits
from forward_inf_mlflow.report.thumbnails import image_shape, thumbnail
from forward_inf_mlflow.tensors import Tensors

#: Values that are shown of a row without a picture.
_VALUES = 6
#: Values that are kept of such a row, so that it can be compared with a copy; characters of one.
_KEPT, _TEXT = 40, 2000


def portraits_of(problem: Problem, wanted: Mapping[str, Sequence[str]]) -> Portraits:
    """Return what some rows are recognized by: pictures, and values of those without.

    Args:
        problem: Model and rows.
        wanted: Ids of training rows (``train``) and of query rows (``query``).
    """
    pictures: dict[str, bytes] = {}
    values: dict[str, list[tuple[str, object]]] = {}
    columns = _columns(problem.train_rows)
    for role, tensors, rows in (
        ("train", problem.train, problem.train_rows),
        ("query", problem.queries, problem.query_rows),
    ):
        where = np.flatnonzero(np.isin(rows.ids, list(wanted.get(role, ()))))
        shown = _told(rows, where, columns)
        for position, (_, told) in zip(where, shown.iterrows(), strict=True):
            key = f"{role}:{rows.ids[position]}"
            if (png := picture(tensors, int(position), rows)) is not None:
                pictures[key] = png
            elif len(told):
                values[key] = [(str(name), _short(value)) for name, value in told.items()]
    return Portraits(pictures, values)


def _columns(rows: Rows) -> list[str]:
    """Return the columns that rows are told apart by: texts, then others that the model reads.

    Where texts stand beside what the model reads, that is what was made of them: it is left out.
    """
    if rows.texts is not None:
        return list(rows.texts.columns)[:_KEPT]
    frame = as_table(rows.features)
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    others = [name for name in frame.columns if name not in texts]
    return [str(name) for name in (*texts, *others)][:_KEPT]


def _told(rows: Rows, where: np.ndarray, columns: list[str]) -> pd.DataFrame:
    """Return some columns of some rows; those that are not there are left out."""
    some = rows.take(where)
    table = as_table(some.features) if some.texts is None else some.texts
    table = table.set_axis([str(name) for name in table.columns], axis="columns")
    return table[[name for name in columns if name in table.columns]].astype(object)


def _short(value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and len(value) > _TEXT:
        return value[: _TEXT - 1] + "…"
    return value


def picture(inputs: Tensors, position: int, rows: Rows | None = None) -> bytes | None:
    """Return a PNG thumbnail of a row, or None where rows are no images.

    Of ``rows`` that are pictures there is one even where the model reads them flat.
    """
    if image_shape(inputs.inputs.shape[1:]):
        return thumbnail(inputs.inputs[position].numpy())
    if rows is None or rows.decoded is None or not isinstance(rows.features, np.ndarray):
        return None
    return thumbnail(rows.features[position])


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
