"""flagged.json: the flagged rows as MLflow's UI shows a table, with a column of pictures.

The format is that of ``mlflow.log_table``. It is written here because ``log_table`` appends to the
table that an earlier audit left in the same run, and uploads every picture twice by itself.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from PIL import Image

#: Folder of the pictures among the run's artifacts; where ``log_table`` puts them too.
PICTURES = "table_images/forward_inf"


@dataclass(frozen=True)
class UITable:
    """A table as JSON, and the pictures that its cells name.

    Attributes:
        json: Columns and rows.
        pictures: PNG bytes by file name; to be logged into the folder ``PICTURES``.
    """

    json: str
    pictures: Mapping[str, bytes]


def ui_table(flagged: pd.DataFrame, thumbnails: Mapping[str, bytes]) -> UITable:
    """Return the flagged rows as a table; every row, in order.

    Args:
        flagged: One row per verdict.
        thumbnails: PNG bytes by ``train:<row id>``; where there are none, no column holds pictures.
    """
    pictures: dict[str, bytes] = {}
    table = flagged
    if thumbnails:
        # The UI takes a column for pictures only if every cell is one.
        shown = [thumbnails.get(f"train:{row}") or _nothing() for row in flagged["row_id"]]
        names = [f"{hashlib.sha256(png).hexdigest()[:32]}.png" for png in shown]
        pictures = dict(zip(names, shown, strict=True))
        table = flagged.copy()
        table.insert(0, "image", [_cell(name) for name in names])
    text = table.to_json(orient="split", index=False, date_format="iso", default_handler=str)
    return UITable(str(text), pictures)


def _cell(name: str) -> dict[str, str]:
    path = f"{PICTURES}/{name}"
    return {"type": "image", "filepath": path, "compressed_filepath": path}


def _nothing() -> bytes:
    """Return a picture of one transparent pixel."""
    png = io.BytesIO()
    Image.new("LA", (1, 1)).save(png, "PNG")
    return png.getvalue()
