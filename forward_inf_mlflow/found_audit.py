"""A finished audit, found again by its version's tags, and held against what is known of it.

Whoever may write to the server may change what it holds of an audit. Three things tell: the
version's tag has the SHA-256 of ``audit.json``, that file has those of the tables beside it, and
a person or a pipeline may know its SHA-256 from the audit itself, past the server.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.description import describe_version
from forward_inf_mlflow.errors import DataError, NoAuditError, TrackingError, VerdictError
from forward_inf_mlflow.mlflow_errors import impatient, is_missing, translate_errors
from forward_inf_mlflow.record import read_record
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.sealed_tags import tags_of
from forward_inf_mlflow.tracking import FOLDER, AuditRun, identity, identity_of, tag_version
from forward_inf_mlflow.verdicts.claims import AUDIT_TAG, RUN_TAG

_RUN = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class FoundAudit:
    """A finished audit: its run, its ``audit.json``, and the SHA-256 of that file."""

    run_id: str
    record: dict[str, Any]
    sha256: str

    def fetch(self, name: str) -> bytes | None:
        """Return one of the audit's files, None where it is gone.

        Raises:
            TrackingError: It is not the one that the audit wrote.
        """
        content = fetch_artifact(self.run_id, name)
        if content is not None:
            self.require_written(name, content)
        return content

    def require_written(self, name: str, content: bytes) -> None:
        """Refuse a file that is not the one that the audit wrote, as far as ``audit.json`` says.

        Raises:
            TrackingError: It was changed since.
        """
        files = self.record.get("files")
        written = files.get(name) if isinstance(files, dict) else None
        if written is not None and hashlib.sha256(content).hexdigest() != written:
            raise TrackingError(
                f"{name} of run {self.run_id} is not the one that the audit wrote, it was changed "
                "since: find out by whom, and audit the version again"
            )

    def require_pinned(self, version: Version, audit_sha256: str | None) -> None:
        """Refuse an ``audit.json`` of another SHA-256 than the one that is known of it.

        Args:
            version: Whose audit it is.
            audit_sha256: As whoever made the audit gave it; None where that is not known.

        Raises:
            TrackingError: It is another.
        """
        if audit_sha256 is not None and audit_sha256.lower() != self.sha256:
            raise TrackingError(
                f"audit.json of run {self.run_id} has the SHA-256 {self.sha256[:12]}, not "
                f"{audit_sha256[:12].lower()}: it is another audit, or was changed since; find "
                f"out by whom, and run 'forward-inf audit {version.uri}'"
            )


def require_sha256(audit_sha256: str | None) -> None:
    """Refuse what is no SHA-256, before anything else is asked.

    Raises:
        VerdictError: It is none.
    """
    if audit_sha256 is not None and not _SHA256.fullmatch(audit_sha256):
        raise VerdictError(
            "the SHA-256 of audit.json has 64 hexadecimal digits: give what 'forward-inf audit' "
            "says"
        )


def find_audit(version: Version) -> FoundAudit:
    """Return the newest finished audit of exactly this version.

    An audit finishes by naming its run and the SHA-256 of its ``audit.json`` in the version's
    tags. Only that run counts: any other could be made by whoever may log a run, and an older
    pass would come back when a newer refusal is deleted. The run's own status says nothing, since
    MLflow marks a refused ``mlflow run`` FAILED.

    Raises:
        NoAuditError: There is none, it is gone, it was changed, or it is of another version.
    """
    again = f"run 'forward-inf audit {version.uri}'"
    tags = tags_of(version)
    run_id = tags.get(RUN_TAG)
    if not run_id:
        raise NoAuditError(f"there is no finished audit of {version.uri}: {again}")
    content = fetch_artifact(run_id, "audit.json")
    if content is None:
        raise NoAuditError(f"the audit of {version.uri} is gone with its run {run_id}: {again}")
    record = read_record(content, where=f"audit.json of run {run_id}")
    if identity_of(record["model"]) != identity(version):
        # Tags are copied with a version, and numbers are given again after a deletion.
        of = str(record["model"].get("uri"))[:200]
        other = "another version of that number" if of == version.uri else of
        raise NoAuditError(
            f"there is no finished audit of {version.uri}, its tags name that of {other}, with "
            f"which they may have been copied: {again}"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != tags.get(AUDIT_TAG):
        raise NoAuditError(
            f"audit.json of run {run_id} is not the one that {version.uri} was tagged with, it was "
            f"changed after the audit: {again}"
        )
    return FoundAudit(run_id, record, digest)


def audit_of_run(run_id: str) -> tuple[Version, FoundAudit]:
    """Return the audit of a run, and the version that it is of; it need not be the newest.

    Raises:
        TrackingError: The run has no finished audit, or its version is gone or another one.
    """
    content = fetch_artifact(run_id, "audit.json")
    if content is None:
        raise TrackingError(
            f"run {run_id} has no finished audit: give the run that 'forward-inf audit' names"
        )
    record = read_record(content, where=f"audit.json of run {run_id}")
    model = record["model"]
    version = resolve(f"models:/{model.get('name')}/{model.get('version')}")
    if identity_of(model) != identity(version):
        raise TrackingError(
            f"run {run_id} audited another version of the address {version.uri}, registered at "
            f"another time or from another source: run 'forward-inf audit {version.uri}'"
        )
    return version, FoundAudit(run_id, record, hashlib.sha256(content).hexdigest())


def show_again(version: Version, audit: FoundAudit) -> None:
    """Name an audit in its version's tags and description, where these name another by now."""
    if tags_of(version).get(AUDIT_TAG) == audit.sha256:
        return
    decision = audit.record["decision"]
    with translate_errors():
        info = MlflowClient().get_run(audit.run_id).info
    run = AuditRun(audit.run_id, info.experiment_id)
    tag_version(version, str(decision["outcome"]), run, audit.sha256)
    describe_version(version, decision, run)


def audit_of_file(table: pd.DataFrame, file: Path) -> tuple[Version, FoundAudit]:
    """Return the version and the audit that a file of rows belongs to, by its ``audit_run``.

    Only the newest audit of a version counts, also after the answers to a sample were counted.

    Raises:
        DataError: The file does not say which audit it is of.
        TrackingError: That audit is not on this server, or not the newest one of its version.
    """
    runs = sorted(set(table["audit_run"])) if "audit_run" in table else []
    if len(runs) != 1:
        raise DataError(
            f"{file} does not say which audit it belongs to, in one value of the column "
            "'audit_run': give flagged.csv, or the file of 'review sample', with that column whole"
        )
    run_id = runs[0]
    content = fetch_artifact(run_id, "audit.json") if _RUN.fullmatch(run_id) else None
    if content is None:
        raise TrackingError(
            f"{file} belongs to the audit run '{run_id[:40]}', and this server has no such audit: "
            "check the tracking URI, or give the file of another audit"
        )
    record = read_record(content, where=f"audit.json of run {run_id}")
    version = resolve(str(record["model"].get("uri")))
    audit = find_audit(version)
    review = audit.record.get("review")
    counted = review.get("of_run") if isinstance(review, dict) else None
    if run_id not in (audit.run_id, counted):
        raise TrackingError(
            f"{file} belongs to another audit than the newest one of {version.uri} "
            f"({audit.run_id}): give the file of that one"
        )
    return version, audit


def fetch_artifact(run_id: str, name: str) -> bytes | None:
    """Return the bytes of one of an audit's artifacts, None if the run has none of that name."""
    client = MlflowClient()
    with translate_errors(), impatient():
        try:
            names = {Path(f.path).name for f in client.list_artifacts(run_id, FOLDER)}
        except MlflowException as error:
            if is_missing(error):
                return None
            raise
        if name not in names:
            return None
        with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
            path = client.download_artifacts(run_id, f"{FOLDER}/{name}", folder)
            return Path(path).read_bytes()
