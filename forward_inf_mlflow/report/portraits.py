"""Portraits: what a reader recognizes rows by, kept beside an audit so that its report can be
written again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

#: Names and values of a row.
Values = Sequence[tuple[str, object]]


@dataclass(frozen=True)
class Portraits:
    """Pictures and values of some rows, by ``train:<row id>`` and ``query:<query id>``.

    Attributes:
        pictures: PNG bytes, of rows that are images.
        values: Columns and values that tell rows apart; texts whole, as far as they were kept.
    """

    pictures: Mapping[str, bytes] = field(default_factory=dict)
    values: Mapping[str, Values] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return them as ``portraits.parquet`` holds them: row, picture, values (as JSON)."""
        keys = sorted({*self.pictures, *self.values})
        return pd.DataFrame(
            {
                "row": pd.Series(keys, dtype=str),
                "picture": pd.Series([self.pictures.get(key) for key in keys], dtype=object),
                "values": pd.Series(
                    [json.dumps(self.values.get(key, []), default=str) for key in keys], dtype=str
                ),
            }
        )

    @classmethod
    def read(cls, table: pd.DataFrame) -> Portraits:
        """Return what such a table holds, whoever wrote it; what is not of its kind is left out."""
        if not {"row", "picture", "values"} <= set(table.columns):
            return cls()
        rows = list(zip(table["row"], table["picture"], table["values"], strict=True))
        return cls(
            {str(key): png for key, png, _ in rows if isinstance(png, bytes)},
            {str(key): found for key, _, text in rows if (found := _values(text))},
        )


def _values(text: Any) -> Values:
    try:
        pairs = json.loads(text)
        return [(str(name), value) for name, value in pairs]
    except (TypeError, ValueError, RecursionError):
        return []
