"""Reviewing: what a person says of the rows that were drawn for them counts in the gate."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forward_inf_mlflow import output, tracking
from forward_inf_mlflow.decision import Decision, decide
from forward_inf_mlflow.decisions import read_filled, unquoted
from forward_inf_mlflow.description import describe_version
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.verified import Verified, draw
from forward_inf_mlflow.errors import DataError, TrackingError
from forward_inf_mlflow.found_audit import FoundAudit, audit_of_file, require_sha256
from forward_inf_mlflow.metrics import metrics_of
from forward_inf_mlflow.mlflow_errors import translate_errors
from forward_inf_mlflow.record import facts_of, measures_of, policy_of, write_record
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.report import rebuild
from forward_inf_mlflow.sampling import COLUMNS, scores_of, strata_of
from forward_inf_mlflow.sealed_tags import find_approvals, tags_of
from forward_inf_mlflow.ui_table import PICTURES

#: What a person may answer, and what it means.
ANSWERS = {"wrong": 1.0, "right": 0.0, "unsure": np.nan}


@dataclass(frozen=True)
class Reviewed:
    """What was made of a person's answers.

    Attributes:
        version: The version.
        run_id: The run that holds the audit as it is now.
        audit_sha256: SHA-256 of its ``audit.json``, for `sign`.
        verified: What the answers say.
        decision: What the gate says now.
    """

    version: Version
    run_id: str
    audit_sha256: str
    verified: Verified
    decision: Decision

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {
            "model": self.version.uri,
            "run_id": self.run_id,
            "audit_sha256": self.audit_sha256,
            **self.decision.as_dict(),
            "review": asdict(self.verified),
        }


def apply_review(
    file: str | Path, *, by: str | None = None, audit_sha256: str | None = None
) -> Reviewed:
    """Count a person's answers, decide again, and log the audit anew with what they say.

    Args:
        file: From `sampling.sample_review`, with "wrong", "right" or "unsure" in every row of
            "answer". It says itself which audit it was drawn from.
        by: Who looked; it stands in the record.
        audit_sha256: SHA-256 of ``audit.json`` as the audit gave it, past the server; nothing is
            counted in another. None takes what the file was drawn from.

    Raises:
        DataError: An answer is missing or unknown, or rows are not those that were drawn.
        TrackingError: The file belongs to another audit, or that was changed since.
    """
    require_sha256(audit_sha256)
    table = read_filled(Path(file))
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise DataError(f"{file} lacks the column '{missing[0]}': give the file of 'review sample'")
    version, audit = audit_of_file(table, Path(file))
    if "review" in audit.record:
        raise TrackingError(
            f"the audit of {version.uri} counts a review already: audit the version again first"
        )
    audit.require_pinned(version, audit_sha256)
    if set(table["audit_sha256"]) != {audit.sha256}:
        raise TrackingError(
            f"{file} was drawn from another audit.json than run {audit.run_id} has now, or its "
            f"column 'audit_sha256' was changed: find out by whom, and audit {version.uri} again"
        )
    scores = scores_of(audit)
    positions, wrong = _answers(table, Path(file), scores)
    verified = Verified.of(strata_of(scores), positions, wrong)
    measures = measures_of(audit.record)
    measures["mislabeled"] = _measured(measures["mislabeled"], verified, len(positions), by)
    decision = decide(measures, facts_of(audit.record), policy_of(audit.record))
    with tracking.audit_run(version, experiment=None, run_id=None) as run:
        record = {
            **audit.record,
            "finished_at": int(time.time() * 1000),
            "run": asdict(run),
            "measures": {n: {**asdict(m), "rate": m.rate} for n, m in measures.items()},
            "decision": decision.as_dict(),
            "review": {
                **asdict(verified),
                "by": by,
                "of_run": audit.run_id,
                "of_sha256": audit.sha256,
            },
        }
        digest = _log(run, version, audit, record)
    describe_version(version, record["decision"], run)
    return Reviewed(version, run.run_id, digest, verified, decision)


def _measured(before: Measure, verified: Verified, looked: int, by: str | None) -> Measure:
    """Return the measure with what a person saw: their bounds, which assume nothing.

    Their upper bound is wide after a few rows. Where the audit's own is narrower, and not
    contradicted, it stays.
    """
    rate = verified.rate
    contradicted = before.abstained or rate.estimate > before.rate_high
    high = rate.high if contradicted else min(rate.high, before.rate_high)
    unsure = f", {verified.unsure} of them unsure" if verified.unsure else ""
    seen = f"{sum(verified.wrong.values())} of {looked} rows that {by or 'a person'} looked at"
    return replace(
        before,
        estimate=rate.estimate,
        rate_low=rate.low,
        rate_high=max(high, rate.estimate),
        note=f"{seen} are wrong{unsure}: bounds from these answers; {before.note}",
        abstained=None,
    )


def _answers(
    table: pd.DataFrame, file: Path, scores: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that were looked at and what was said of them, both ``(k,)``."""
    drawn = set(table["draw"])
    try:
        (rows, seed), *others = [tuple(map(int, text.split("-"))) for text in drawn]
    except ValueError:
        raise DataError(f"{file}: the column 'draw' was changed: draw again") from None
    positions = draw(strata_of(scores), rows, seed)
    ids = pd.Series(scores["id"].astype(str).to_numpy()[positions])
    given = table["row_id"].map(unquoted)
    if others or sorted(given) != sorted(ids):
        raise DataError(
            f"{file} does not hold exactly the {len(ids)} rows that were drawn: rows that somebody "
            "chose say nothing about the others; draw again"
        )
    said = table.assign(row_id=given).set_index("row_id")["answer"].str.strip().str.lower()[ids]
    unknown = said[~said.isin(ANSWERS)]
    if len(unknown):
        what = f"has the answer '{unknown.iloc[0][:20]}'" if unknown.iloc[0] else "has no answer"
        raise DataError(
            f"row {unknown.index[0]} of {file} {what} ({len(unknown)} such rows): write "
            f"{', '.join(ANSWERS)}"
        )
    return positions, said.map(ANSWERS).to_numpy(dtype=np.float64)


def _log(
    run: tracking.AuditRun,
    version: Version,
    audit: FoundAudit,
    record: Mapping[str, Any],
) -> str:
    """Log the audit's files again, with the new record and a report that says what it says.

    Returns:
        The SHA-256 of the new ``audit.json``.
    """
    client = MlflowClient()
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as name:
        with translate_errors():
            folder = Path(client.download_artifacts(audit.run_id, tracking.FOLDER, name))
        for file in folder.iterdir():
            if file.is_file():
                audit.require_written(file.name, file.read_bytes())
        names = _picture_names(folder / output.FLAGGED)
        pictures = _pictures(audit.run_id, set(names.values()))
        approvals = find_approvals(version, tags_of(version))
        html = rebuild(record, lambda file: _read(folder / file), approvals)
        (folder / "report.html").write_text(html, encoding="utf-8")
        content = write_record(record)
        (folder / output.RECORD).write_bytes(content)
        metrics = metrics_of(record)
        with translate_errors():
            for values in metrics.values():
                for key, value in values.items():
                    client.log_metric(run.run_id, f"forward_inf/{key}", value)
        table = f"{tracking.FOLDER}/{output.FLAGGED}"
        tracking.log_table(run, table, pictures, PICTURES)
        tracking.log_files(run, folder, last=output.RECORD)
    digest = hashlib.sha256(content).hexdigest()
    tracking.tag_version(version, record["decision"]["outcome"], run, digest)
    return digest


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _picture_names(table: Path) -> dict[str, str]:
    """Return the file names of the training rows' pictures, by ``train:<id>``."""
    try:
        content = json.loads(table.read_text("utf-8"))
        columns, rows = content["columns"], content["data"]
        image, row_id = columns.index("image"), columns.index("row_id")
        return {f"train:{row[row_id]}": Path(row[image]["filepath"]).name for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # rows without pictures


def _pictures(run_id: str, names: set[str]) -> dict[str, bytes]:
    """Return the pictures that an audit logged, by file name; those that are gone are left out."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
        for name in sorted(names):
            try:
                path = MlflowClient().download_artifacts(run_id, f"{PICTURES}/{name}", folder)
                found[name] = Path(path).read_bytes()
            except (MlflowException, OSError):
                continue
    return found
