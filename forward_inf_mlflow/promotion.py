"""Gate and promote: decide from the newest finished audit of exactly this version."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.decision import Decision, decide
from forward_inf_mlflow.errors import (
    DataError,
    NoAuditError,
    RefusedError,
    TrackingError,
    VerdictError,
)
from forward_inf_mlflow.mlflow_errors import impatient, is_missing, refusal, translate_errors
from forward_inf_mlflow.moves import remember
from forward_inf_mlflow.policy import Policy, load_policy
from forward_inf_mlflow.record import facts_of, measures_of, policy_of, read_record
from forward_inf_mlflow.registry import Version, content_of, resolve
from forward_inf_mlflow.sealed_tags import find_approvals, tags_of
from forward_inf_mlflow.tracking import AUDIT_TAG, FOLDER, RUN_TAG, identity, identity_of
from forward_inf_mlflow.verdicts.events import HISTORY
from forward_inf_mlflow.verdicts.keys import Ring, read_ring
from forward_inf_mlflow.verdicts.names import fold
from forward_inf_mlflow.verdicts.seal import Sealed, signer_of
from forward_inf_mlflow.verdicts.statement import Override, as_dict

_RUN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class FoundAudit:
    """A finished audit: its run, its ``audit.json``, and the SHA-256 of that file."""

    run_id: str
    record: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class GateResult:
    """What the gate decided, about which version, from which audit, under which policy.

    Attributes:
        run_id: The audit's run; None for a version without an audit, of which only an approval
            can make more than a refusal.
    """

    version: Version
    decision: Decision
    run_id: str | None
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
    """A gate's result, and where the alias pointed before and points now.

    Attributes:
        approval: A person's approval that moved the alias although the gate refuses.
        notes: What else to tell, sentences.
    """

    gate: GateResult
    alias: str
    before: str | None
    now: str | None
    approval: Override | None = None
    notes: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        """Return whether the alias points to the version now."""
        return self.gate.decision.allowed or self.approval is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {
            **self.gate.as_dict(),
            "alias": self.alias,
            "before": self.before,
            "now": self.now,
            "approval": None if self.approval is None else as_dict(self.approval),
            "notes": list(self.notes),
        }


def gate(model_uri: str, *, policy: Policy | str | Path | None = None) -> GateResult:
    """Decide whether a version may be promoted; needs neither its model nor its data.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        policy: A policy or its file; None for the policy that the audit was made under.

    Raises:
        NoAuditError: There is no finished audit of exactly this version, or it was changed.
    """
    given = _given(policy)
    version = resolve(model_uri)
    return _judge(version, find_audit(version), given)


def promote(
    model_uri: str,
    *,
    alias: str,
    policy: Policy | str | Path | None = None,
    ring: str | Path | None = None,
) -> PromotionResult:
    """Move an alias to the version if the gate passes it; leave the alias alone if not.

    The version's files are downloaded, and held against those that the audit saw. If a person
    approved this move, it is tried although the gate refuses: a server with a gate of its own
    judges the approval, on any other it counts if a key of ``ring`` signed it.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        alias: The alias to move.
        policy: As for :func:`gate`.
        ring: The file of the public keys that may approve, for a server without a gate.

    Raises:
        NoAuditError: There is neither an audit nor an approval, or the files are others.
        RefusedError: The server's own gate refuses.
    """
    given = _given(policy)
    keys = None if ring is None else read_ring(Path(ring))
    version = resolve(model_uri)
    approvals = [
        one
        for one in find_approvals(version, tags_of(version))
        if isinstance(one.statement, Override) and fold(one.statement.alias) == fold(alias)
    ]
    try:
        audit = find_audit(version)
        result, record = _judge(version, audit, given), audit.record
    except NoAuditError as error:
        if not approvals:
            raise
        nothing = Decision("undecided", (str(error),))
        result, record = GateResult(version, nothing, None, given or load_policy(None)), None
    before = _pointed_to(version, alias)
    approval, by, why = None, None, result.decision.reasons[0]
    notes: list[str] = []
    if not result.decision.allowed:
        approval, by, said = _approved(version, alias, approvals, keys)
        notes += [said] if said else []
        if approval is None:
            remember(version, "refused", alias=alias, before=before, why=why, by=None)
            return PromotionResult(result, alias, before, before, None, tuple(notes))
        why = f"approved: {approval.reason}"
    if record is not None and require_same_content(version, record) is None:
        notes.append(
            "whether the files are still those that were audited was not checked, because the "
            "audit is of an older release and does not name them: audit again"
        )
    _move(version, alias)
    remember(version, "moved", alias=alias, before=before, why=why, by=by)
    return PromotionResult(result, alias, before, version.version, approval, tuple(notes))


def require_same_content(version: Version, record: Mapping[str, Any]) -> str | None:
    """Download the version's files and hold them against those that the audit saw.

    Returns:
        Their digest; None if the audit does not name it, as those of older releases.

    Raises:
        NoAuditError: They are others.
    """
    audited = record["model"].get("sha256")
    if audited is None:
        return None
    found = content_of(version)
    if found != audited:
        raise NoAuditError(
            f"the files of {version.uri} are not those that were audited, somebody replaced them: "
            f"run 'forward-inf audit {version.uri}'"
        )
    return found


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
        raise NoAuditError(
            f"there is no finished audit of {version.uri}, its tags name one of another version: "
            f"{again}"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != tags.get(AUDIT_TAG):
        raise NoAuditError(
            f"audit.json of run {run_id} is not the one that {version.uri} was tagged with, it was "
            f"changed after the audit: {again}"
        )
    return FoundAudit(run_id, record, digest)


def _given(policy: Policy | str | Path | None) -> Policy | None:
    return policy if policy is None or isinstance(policy, Policy) else load_policy(Path(policy))


def _judge(version: Version, audit: FoundAudit, given: Policy | None) -> GateResult:
    chosen = given or policy_of(audit.record)
    decision = decide(measures_of(audit.record), facts_of(audit.record), chosen)
    return GateResult(version, decision, audit.run_id, chosen)


def _approved(
    version: Version, alias: str, approvals: Sequence[Sealed], keys: Ring | None
) -> tuple[Override | None, str | None, str | None]:
    """Return the approval to go by, the name of its key, and what to tell of it."""
    if not approvals:
        return None, None, None
    what = f"an approval of alias '{alias}'"
    if keys is None:
        first = approvals[0]
        assert isinstance(first.statement, Override)  # promote() chose them
        if _is_gated(version):
            return first.statement, None, f"the server judges {what}, by key {first.key_id}"
        return None, None, f"{what} counts only if its key is known here: name a --ring"
    reasons = []
    for sealed in approvals:
        try:
            signer = signer_of(sealed, keys)
        except VerdictError as error:
            reasons.append(str(error))
        else:
            assert isinstance(sealed.statement, Override)  # promote() chose them
            return sealed.statement, signer.name, f"approved by '{signer.name}'"
    return None, None, f"{what} does not count: {reasons[0]}"


def _is_gated(version: Version) -> bool:
    """Return whether the server has a gate: it lets nobody else write what it remembers."""
    try:
        with impatient():
            MlflowClient().set_model_version_tag(
                version.name, version.version, HISTORY, tags_of(version).get(HISTORY, "[]")
            )
    except MlflowException as error:
        return refusal(error) is not None
    return False


def _pointed_to(version: Version, alias: str) -> str | None:
    with translate_errors(), impatient():
        found = MlflowClient().get_registered_model(version.name).aliases.get(alias)
    return None if found is None else str(found)  # a SQL store says it as a number


def _move(version: Version, alias: str) -> None:
    with translate_errors(), impatient():
        try:
            MlflowClient().set_registered_model_alias(version.name, alias, version.version)
        except MlflowException as error:
            if (said := refusal(error)) is None:
                raise
            raise RefusedError(f"the server refuses alias '{alias}': {said}") from None


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
