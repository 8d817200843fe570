"""From files to texts that a language model was trained on: csv, parquet and JSON lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from forward_inf_mlflow.data.acceptance import accept, check_named_once
from forward_inf_mlflow.data.reading import listing, read_table
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError

#: What the columns are called in `Rows.features`, whatever they are called in the file.
PROMPT, TEXT = "prompt", "text"
#: What columns are called where nobody names them.
_TEXTS = ("text", "texts", "content", "sentence", "document")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))


@dataclass(frozen=True)
class TextColumns:
    """Which column is what; None where the default is meant.

    Attributes:
        text: The whole text, or what comes after the prompt. Default: a usual name, or the only
            column that holds text.
        prompt: What the model is given; its tokens are not learned. Default: ``prompt`` beside
            ``completion`` and the like, else none.
        id: Default: the row's position in the file.
        source: Default: none.
    """

    text: str | None = None
    prompt: str | None = None
    id: str | None = None
    source: str | None = None


def read_texts(path: Path, *, uri: str, columns: TextColumns) -> tuple[Rows, int]:
    """Read a csv, parquet or JSON-lines file, or a folder of parquet files.

    Args:
        path: The local file or folder; its name's ending says the format.
        uri: What the user calls it, without credentials.
        columns: Which column is what.

    Returns:
        Rows whose features are the columns ``prompt`` (only where there are prompts) and ``text``,
        with all labels 0; and how many rows were left out because their text is empty.

    Raises:
        DataError: The file is missing, damaged or of another format, a column is missing or holds
            no text, or fewer than two texts are left.
    """
    frame = _table(path, uri, columns)
    names = [str(name) for name in frame.columns]
    check_named_once(names, uri)
    frame = frame.set_axis(names, axis="columns")
    options = (
        ("--text", columns.text),
        ("--prompt-column", columns.prompt),
        ("--id", columns.id),
        ("--group-by", columns.source),
    )
    for option, wanted in options:
        if wanted is not None and wanted not in names:
            raise DataError(
                f"{uri}: {option} names {wanted!r}, which is not one of {listing(names)}"
            )
    prompt, text = _which(frame, uri, columns)
    held = {TEXT: _as_text(frame[text], text, uri)}
    if prompt is not None:
        held = {PROMPT: _as_text(frame[prompt], prompt, uri), **held}
    texts = pd.DataFrame(held)
    full = (texts[TEXT].str.strip() != "").to_numpy()
    if not full.any():
        raise DataError(f"{uri}: every text in the column {text!r} is empty; name another (--text)")
    ids = pd.Series(np.arange(len(frame)).astype(str)) if columns.id is None else frame[columns.id]
    rows = accept(
        texts[full].reset_index(drop=True),
        np.zeros(int(full.sum()), np.int64),
        ids=ids[full].reset_index(drop=True),
        sources=None if columns.source is None else frame[columns.source][full],
        uri=uri,
    )
    return rows, int((~full).sum())


def _table(path: Path, uri: str, columns: TextColumns) -> pd.DataFrame:
    if path.suffix.lower() == ".npz":
        raise DataError(
            f"{uri}: its name does not end in a format of texts; save it as .csv, .parquet or "
            ".jsonl (a JSON object a line)"
        )
    named = (columns.text, columns.prompt, columns.id, columns.source)
    return read_table(path, uri=uri, as_text=named)


def _which(frame: pd.DataFrame, uri: str, columns: TextColumns) -> tuple[str | None, str]:
    """Return the columns of prompts, if there are any, and of texts."""
    if columns.text is not None:
        return columns.prompt, columns.text
    taken = {columns.id, columns.source} - {None}
    others = frame.drop(columns=list(taken)) if taken else frame
    try:
        return find_texts(others, columns.prompt)
    except DataError as error:
        raise DataError(f"{uri}: {str(error).format(option='--text')}") from None


def find_texts(frame: pd.DataFrame, prompt: str | None = None) -> tuple[str | None, str]:
    """Return the columns of prompts, if there are any, and of texts, by their usual names.

    Args:
        frame: ``(n, d)`` with names that are text.
        prompt: The column of prompts, where it is known.

    Raises:
        DataError: No column holds text, or several could be it; ``{option}`` in the message stands
            for what names one.
    """
    names = list(frame.columns)
    for usual, text in _PAIRS:
        if text in names and (prompt or usual) in names:
            return prompt or usual, text
    found = [name for name in _TEXTS if name in names]
    if not found:
        found = [name for name in names if name != prompt and _is_text(frame[name])]
    if len(found) != 1:
        count = "several columns could be the text" if found else "no column holds text"
        shown = listing(found or names).replace("{", "{{").replace("}", "}}")
        raise DataError(f"{count}; name it with {{option}}, one of {shown}")
    return prompt, found[0]


def _is_text(column: pd.Series) -> bool:
    return bool(pd.api.types.infer_dtype(column, skipna=True) == "string")


def _as_text(column: pd.Series, name: str, uri: str) -> pd.Series:
    """Return a column of texts, "" where there is none."""
    column = column.reset_index(drop=True)
    gaps = column.isna()
    if not gaps.all() and not _is_text(column):
        raise DataError(f"{uri}: the column {name!r} holds no text; name another (--text)")
    return column.where(~gaps, "").astype(str)
