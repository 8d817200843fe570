"""Rebuild: the report again, from the files that an audit left."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.report.portraits import Portraits
from forward_inf_mlflow.report.render import render
from forward_inf_mlflow.verdicts.seal import Sealed


def rebuild(
    record: Mapping[str, Any],
    read: Callable[[str], bytes | None],
    approvals: Sequence[Sealed] = (),
) -> str:
    """Render the report of an audit again.

    Args:
        record: The content of ``audit.json``.
        read: Returns one of the audit's files by name, or None where it is gone.
        approvals: Overrides of the version, newest first.

    Raises:
        DataError: The tables are gone without which there is nothing to report.
    """
    flagged, scores = read("flagged.csv"), read("scores.parquet")
    if flagged is None or scores is None:
        raise DataError("the tables flagged.csv and scores.parquet are gone")
    influence, portraits = read("influence.parquet"), read("portraits.parquet")
    return render(
        record,
        pd.read_csv(io.BytesIO(flagged), dtype={"row_id": str, "query_id": str}),
        pd.read_parquet(io.BytesIO(scores)),
        Portraits()
        if portraits is None
        else Portraits.read(pd.read_parquet(io.BytesIO(portraits))),
        None if influence is None else pd.read_parquet(io.BytesIO(influence)),
        approvals=approvals,
    )
