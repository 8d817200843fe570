"""Render the rows of a sample: one HTML file, to look at while the csv file beside it is filled in.

It stands behind the same three walls as the report of an audit, in the same style; see ``page``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from forward_inf_mlflow.report.album import Album
from forward_inf_mlflow.report.formats import label, whole
from forward_inf_mlflow.report.page import template

#: Characters of one text that are shown, the data have the rest; and of what is no text yet.
_LONGEST, _WORDS = 4000, 40


def render_sample(
    model: str,
    file: str,
    ids: Sequence[object],
    labels: Sequence[object],
    pictures: Sequence[bytes | None],
    values: pd.DataFrame,
) -> str:
    """Render the page.

    Args:
        model: The version's address.
        file: Name of the csv file that is filled in.
        ids: Of the rows, in the file's order, ``(k,)``.
        labels: Their labels, ``(k,)``.
        pictures: PNG bytes, None of rows that are no images, ``(k,)``.
        values: Texts and values of the rows, ``(k, columns)``.

    Returns:
        A whole HTML document.
    """
    album = Album(
        {
            f"train:{label(row)}": png
            for row, png in zip(ids, pictures, strict=True)
            if png is not None
        }
    )
    rows = []
    for i, (row, given) in enumerate(zip(ids, labels, strict=True)):
        told = [(str(name), values[name].iloc[i]) for name in values.columns]
        rows.append(
            {
                "id": row,
                "label": given,
                "picture": album.find("train", row),
                "texts": [(name, _lines(value)) for name, value in told if _is_text(value)],
                "values": [(name, value) for name, value in told if not _is_text(value)],
            }
        )
    command = shlex.join(["forward-inf", "review", "apply", file])
    return template("sample.html.j2").render(
        model=model, file=file, rows=rows, album=album, apply=command
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) > _WORDS


def _lines(text: str) -> Markup:
    """Return a text with its lines apart, everything in it made printable."""
    return Markup("<br>").join(whole(line) for line in text[:_LONGEST].splitlines())
