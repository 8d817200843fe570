"""Fetch the report of an audit, or rebuild it from the audit's other artifacts."""

from __future__ import annotations

import os
from pathlib import Path

from forward_inf_mlflow.errors import DataError, ForwardInfError, TrackingError
from forward_inf_mlflow.found_audit import fetch_artifact, find_audit
from forward_inf_mlflow.registry import resolve
from forward_inf_mlflow.sealed_tags import find_approvals, tags_of


def fetch_report(model_uri: str, file: str | Path) -> bool:
    """Write the report of the newest finished audit to ``file``.

    Returns:
        Whether it had to be rebuilt.

    Raises:
        TrackingError: There is no finished audit, or its tables are gone too.
        ForwardInfError: The file cannot be written.
    """
    version = resolve(model_uri)
    audit = find_audit(version)
    html = fetch_artifact(audit.run_id, "report.html")
    rebuilt = html is None
    if html is None:
        from forward_inf_mlflow.report import rebuild

        try:
            html = rebuild(
                audit.record,
                audit.fetch,
                find_approvals(version, tags_of(version)),
            ).encode()
        except DataError as error:
            raise TrackingError(
                f"run {audit.run_id} has no report, and {error}: audit {model_uri} again"
            ) from error
    aside = Path(f"{file}.{os.getpid()}.part")
    try:
        aside.write_bytes(html)
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ForwardInfError(f"cannot write {file}: {error.strerror}") from error
    return rebuilt
