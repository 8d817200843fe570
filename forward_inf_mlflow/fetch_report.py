"""Fetch the report of an audit, or rebuild it from the audit's other artifacts."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pandas as pd

from forward_inf_mlflow.errors import ForwardInfError, TrackingError
from forward_inf_mlflow.promotion import fetch_artifact, find_audit
from forward_inf_mlflow.registry import resolve
from forward_inf_mlflow.sealed_tags import find_approvals, tags_of


def fetch_report(model_uri: str, file: str | Path) -> bool:
    """Write the report of the newest finished audit to ``file``.

    Returns:
        Whether it had to be rebuilt, without pictures.

    Raises:
        TrackingError: There is no finished audit, or its tables are gone too.
        ForwardInfError: The file cannot be written.
    """
    version = resolve(model_uri)
    audit = find_audit(version)
    html = fetch_artifact(audit.run_id, "report.html")
    rebuilt = html is None
    if html is None:
        from forward_inf_mlflow.report import render

        flagged = fetch_artifact(audit.run_id, "flagged.csv")
        scores = fetch_artifact(audit.run_id, "scores.parquet")
        if flagged is None or scores is None:
            raise TrackingError(
                f"run {audit.run_id} has no report and no tables to rebuild it from: audit "
                f"{model_uri} again"
            )
        html = render(
            audit.record,
            pd.read_csv(io.BytesIO(flagged), dtype={"row_id": str, "query_id": str}),
            pd.read_parquet(io.BytesIO(scores)),
            {},
            approvals=find_approvals(version, tags_of(version)),
        ).encode()
    aside = Path(f"{file}.{os.getpid()}.part")
    try:
        aside.write_bytes(html)
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ForwardInfError(f"cannot write {file}: {error.strerror}") from error
    return rebuilt
