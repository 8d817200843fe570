"""Gate and promote: decide from the newest finished audit of exactly this version."""

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

from forward_inf_mlflow.decision import Decision, decide
from forward_inf_mlflow.errors import DataError, TrackingError
from forward_inf_mlflow.mlflow_errors import impatient, is_missing, translate_errors
from forward_inf_mlflow.policy import Policy, load_policy
from forward_inf_mlflow.record import facts_of, measures_of, policy_of, read_record
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.tracking import AUDIT_TAG, FOLDER, RUN_TAG, identity, identity_of

_RUN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class FoundAudit:
    """A finished audit: its run and its ``audit.json``."""

    run_id: str
    record: dict[str, Any]


@dataclass(frozen=True)
class GateResult:
    """What the gate decided, about which version, from which audit, under which policy."""

    version: Version
    decision: Decision
    run_id: str
    policy: Policy

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {
            "model": self.version.uri,
            **self.decision.as_dict(),
            "run_id": self.run_id,
            "policy": self.policy.as_dict(),
        }


@dataclass(frozen=True)
class PromotionResult:
    """A gate's result, and where the alias pointed before and points now."""

    gate: GateResult
    alias: str
    before: str | None
    now: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {
            **self.gate.as_dict(),
            "alias": self.alias,
            "before": self.before,
            "now": self.now,
        }


def gate(model_uri: str, *, policy: Policy | str | Path | None = None) -> GateResult:
    """Decide whether a version may be promoted; needs neither its model nor its data.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        policy: A policy or its file; None for the policy that the audit was made under.

    Raises:
        TrackingError: There is no finished audit of exactly this version, or it was changed.
    """
    given = policy if policy is None or isinstance(policy, Policy) else load_policy(Path(policy))
    version = resolve(model_uri)
    audit = find_audit(version)
    chosen = given or policy_of(audit.record)
    decision = decide(measures_of(audit.record), facts_of(audit.record), chosen)
    return GateResult(version, decision, audit.run_id, chosen)


def promote(
    model_uri: str, *, alias: str, policy: Policy | str | Path | None = None
) -> PromotionResult:
    """Move an alias to the version if the gate passes it; leave the alias alone if not.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        alias: The alias to move.
        policy: As for :func:`gate`.
    """
    result = gate(model_uri, policy=policy)
    name, client = result.version.name, MlflowClient()
    with translate_errors(), impatient():
        found = client.get_registered_model(name).aliases.get(alias)
        before = None if found is None else str(found)  # a SQL store says it as a number
        if not result.decision.allowed:
            return PromotionResult(result, alias, before, before)
        client.set_registered_model_alias(name, alias, result.version.version)
    return PromotionResult(result, alias, before, result.version.version)


def find_audit(version: Version) -> FoundAudit:
    """Return the newest finished audit of exactly this version.

    An audit finishes by naming its run and the SHA-256 of its ``audit.json`` in the version's
    tags. Only that run counts: any other could be made by whoever may log a run, and an older
    pass would come back when a newer refusal is deleted. The run's own status says nothing, since
    MLflow marks a refused ``mlflow run`` FAILED.

    Raises:
        TrackingError: There is none, it is gone, it was changed, or it is of another version.
    """
    again = f"run 'forward-inf audit {version.uri}'"
    with translate_errors(), impatient():
        tags = MlflowClient().get_model_version(version.name, version.version).tags
    run_id = tags.get(RUN_TAG)
    if not run_id:
        raise TrackingError(f"there is no finished audit of {version.uri}: {again}")
    content = fetch_artifact(run_id, "audit.json")
    if content is None:
        raise TrackingError(f"the audit of {version.uri} is gone with its run {run_id}: {again}")
    record = read_record(content, where=f"audit.json of run {run_id}")
    if identity_of(record["model"]) != identity(version):
        # Tags are copied with a version, and numbers are given again after a deletion.
        raise TrackingError(
            f"there is no finished audit of {version.uri}, its tags name one of another version: "
            f"{again}"
        )
    if hashlib.sha256(content).hexdigest() != tags.get(AUDIT_TAG):
        raise TrackingError(
            f"audit.json of run {run_id} is not the one that {version.uri} was tagged with, it was "
            f"changed after the audit: {again}"
        )
    return FoundAudit(run_id, record)


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
