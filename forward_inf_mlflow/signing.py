"""Signing: an audit becomes a verdict that a registry can check, without loading the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from forward_inf_mlflow.clock import now
from forward_inf_mlflow.decision import Decision, decide
from forward_inf_mlflow.errors import TrackingError, VerdictError
from forward_inf_mlflow.found_audit import (
    FoundAudit,
    audit_of_run,
    fetch_artifact,
    find_audit,
    require_sha256,
    show_again,
)
from forward_inf_mlflow.policy import Policy, load_policy
from forward_inf_mlflow.promotion import require_same_content
from forward_inf_mlflow.record import facts_of, measures_of, policy_of, read_record
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.sealed_tags import attach, subject_of, tags_of
from forward_inf_mlflow.verdicts.claims import read_claims
from forward_inf_mlflow.verdicts.gate_file import Gate, load_gate
from forward_inf_mlflow.verdicts.keys import PrivateKey, PublicKey, Ring
from forward_inf_mlflow.verdicts.names import fits, is_text
from forward_inf_mlflow.verdicts.seal import Sealed
from forward_inf_mlflow.verdicts.statement import Verdict


@dataclass(frozen=True)
class Signed:
    """A verdict that was signed, and why it says what it says.

    Attributes:
        version: The version that has it as a tag.
        decision: What was decided, and signed whatever it is.
        policy: Under which policy.
        sealed: The verdict and its signature.
        kept: How many rows count as kept by people, a sentence; None where none do.
    """

    version: Version
    decision: Decision
    policy: Policy
    sealed: Sealed
    kept: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        verdict = self.sealed.statement
        assert isinstance(verdict, Verdict)  # what sign() signs
        return {
            "model": self.version.uri,
            **self.decision.as_dict(),
            "run_id": verdict.audit_run,
            "audit_sha256": verdict.audit_sha256,
            "kept": self.kept,
            "policy": self.policy.as_dict(),
            "key": self.sealed.key_id,
            "tag": self.sealed.tag,
            "issued": verdict.issued,
            "expires": verdict.expires,
        }


def sign(
    audit: str,
    *,
    key: PrivateKey,
    policy: Policy | str | Path | None = None,
    gate: str | Path | None = None,
    expires: timedelta = timedelta(days=30),
    audit_sha256: str | None = None,
    on_kept: Callable[[str], None] | None = None,
) -> Signed:
    """Decide from an audit under a policy, sign that, and set it as a tag of the version.

    Whoever ran the audit loaded the model; nothing of it runs here. Its files are downloaded anew
    and held against what the audit saw, and nothing is taken over from what the audit decided.

    Where another audit was made since, such as a laptop's, the version's tags name the signed one
    again, which `gate` and `promote` read.

    Args:
        audit: The audit's run, which must be the newest finished audit of its version if
            ``audit_sha256`` does not say that it is known; or the version, ``models:/name/3`` or
            ``models:/name@alias``, for its newest finished audit.
        key: Signs.
        policy: The policy that the server asks for, or its file; None for the default policy, or
            for the one that ``gate`` asks for.
        gate: The server's gate file. The key must count there.
        expires: For how long the verdict counts.
        audit_sha256: SHA-256 of ``audit.json`` as whoever made the audit gave it, past the server:
            another content is not signed. None trusts everybody who may write to the server.
        on_kept: Called before anything is signed, with a sentence, where rows count as kept by
            people, and so against no version.

    Raises:
        TrackingError: The audit is not the newest, was changed, or saw other files.
        VerdictError: ``audit_sha256`` is no SHA-256, or the audit holds something that
            cannot be signed.
    """
    given = policy if isinstance(policy, Policy) else load_policy(Path(policy) if policy else None)
    asked = None if gate is None else load_gate(Path(gate))
    require_sha256(audit_sha256)
    if not is_text(audit):
        raise VerdictError("the run or the model's address is not UTF-8 text")
    version, found = _chosen(audit, audit_sha256, key)
    record, kept = found.record, _kept_in(found.record)
    if kept is not None and on_kept is not None:
        on_kept(kept)
    content = require_same_content(version, record)
    if content is None:
        raise TrackingError(
            f"the audit of {version.uri} does not say which files it saw, it was made by an older "
            f"release: run 'forward-inf audit {version.uri}'"
        )
    chosen = given
    if asked is not None and policy is None:
        chosen = _asked_for(asked, version, (policy_of(record), given))
    decision = decide(measures_of(record), facts_of(record), chosen)
    issued = now()
    verdict = Verdict(
        subject=subject_of(version),
        outcome=decision.outcome,
        policy_sha256=chosen.sha256,
        model_sha256=content,
        train_sha256=_digest_of(record, "train"),
        queries_sha256=_digest_of(record, "queries"),
        audit_sha256=found.sha256,
        audit_run=found.run_id,
        issued=issued,
        expires=issued + int(expires.total_seconds() * 1000),
    )
    sealed = attach(version, verdict, key, asked.ring if asked else None)
    show_again(version, found)
    return Signed(version, decision, chosen, sealed, kept)


def _kept_in(record: Mapping[str, Any]) -> str | None:
    """Return how many rows people kept, and in which reviews; None where none were."""
    count = facts_of(record).kept
    if not count:
        return None
    reviews = record["kept"].get("reviews")
    runs = [str(one.get("run_id")) for one in reviews or [] if isinstance(one, Mapping)]
    more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
    return (
        f"{count:,} training row{'s count' if count > 1 else ' counts'} as looked at and kept by "
        f"a person, in review run "
        f"{', '.join(runs[:5]) or 'unknown'}{more}; a policy with 'kept: false' takes no such audit"
    )


def _asked_for(gate: Gate, version: Version, known: Sequence[Policy]) -> Policy:
    """Return the policy under which a gate takes verdicts on a model, of those that we have.

    A gate names policies by their hashes. So where the policy itself comes from does not matter,
    even from whoever ran the audit.
    """
    asked = {
        policy
        for rule in gate.rules
        if any(fits(version.name, glob) for glob in rule.models)
        for policy in rule.policies
    }
    if not asked:
        raise VerdictError(
            f"the gate protects no alias of '{version.name}': name the policy with --policy"
        )
    for policy in known:
        if policy.sha256 in asked:
            return policy
    hashes = " or ".join(sorted(policy[:12] for policy in asked))
    raise VerdictError(
        f"the gate asks for the policy {hashes}, and this audit was made under another: audit "
        "under that policy, or name its file with --policy"
    )


def _chosen(audit: str, audit_sha256: str | None, key: PrivateKey) -> tuple[Version, FoundAudit]:
    """Return the version and the audit that is meant: the newest one, or a run's that is known."""
    if not audit.startswith("models:"):
        version, found = audit_of_run(audit)
        if audit_sha256 is not None:
            found.require_pinned(version, audit_sha256)
            _require_not_older(version, found, key)
            return version, found
        newest = find_audit(version)
        if audit != newest.run_id:
            raise TrackingError(
                f"run {audit} is not the newest audit of {version.uri}, that is {newest.run_id}: "
                "sign that one, or say with --audit-sha256 that you know this one"
            )
        return version, newest
    version = resolve(audit)
    newest = find_audit(version)
    if audit_sha256 is not None and audit_sha256.lower() != newest.sha256:
        raise TrackingError(
            f"the newest audit of {version.uri}, run {newest.run_id}, has the SHA-256 "
            f"{newest.sha256[:12]}, not {audit_sha256[:12].lower()}: sign the one that you know by "
            "its run instead of its address, or find out who changed it"
        )
    return version, newest


def _require_not_older(version: Version, found: FoundAudit, key: PrivateKey) -> None:
    """Refuse an audit that was finished before one on which this key signed a verdict.

    Else a pipeline that is run again would put an older pass back after a refusal: the verdict that
    is signed last counts.
    """
    ring = Ring((PublicKey(name="this", public=key.public, may=("verdict",)),))
    claims = read_claims(subject_of(version), "", tags_of(version), ring, now=now())
    for verdict, _ in claims.verdicts:
        if verdict.audit_sha256 == found.sha256:
            continue
        content = fetch_artifact(verdict.audit_run, "audit.json")
        known = content is not None and hashlib.sha256(content).hexdigest() == verdict.audit_sha256
        other = read_record(content, where="audit.json") if content and known else {}
        if not _finished(other) < _finished(found.record):
            raise TrackingError(
                f"this key has signed a verdict on another audit of {version.uri}, run "
                f"{verdict.audit_run}, that was not finished before this one: audit the version "
                "again"
            )


def _finished(record: Mapping[str, Any]) -> float:
    """Return when an audit was finished, in milliseconds; infinity where nobody can say."""
    at = record.get("finished_at")
    return float(at) if isinstance(at, int) else float("inf")


def _digest_of(record: dict[str, Any], role: str) -> str:
    """Return the digest of the rows, as the record keeps it."""
    data = record["data"][role]  # facts_of() found both
    digest = data.get("sha256")
    if not isinstance(digest, str):
        raise VerdictError(f"audit.json has no valid 'data.{role}.sha256': audit the version again")
    return digest
