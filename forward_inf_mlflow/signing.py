"""Signing: an audit becomes a verdict that a registry can check, without loading the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from forward_inf_mlflow.clock import now
from forward_inf_mlflow.decision import Decision, decide
from forward_inf_mlflow.errors import TrackingError, VerdictError
from forward_inf_mlflow.policy import Policy, load_policy
from forward_inf_mlflow.promotion import fetch_artifact, find_audit, require_same_content
from forward_inf_mlflow.record import facts_of, measures_of, policy_of, read_record
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.sealed_tags import attach, subject_of
from forward_inf_mlflow.verdicts.gate_file import Gate, load_gate
from forward_inf_mlflow.verdicts.keys import PrivateKey
from forward_inf_mlflow.verdicts.names import fits
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
    """

    version: Version
    decision: Decision
    policy: Policy
    sealed: Sealed

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        verdict = self.sealed.statement
        assert isinstance(verdict, Verdict)  # what sign() signs
        return {
            "model": self.version.uri,
            **self.decision.as_dict(),
            "run_id": verdict.audit_run,
            "policy": self.policy.as_dict(),
            "key": self.sealed.key_id,
            "tag": self.sealed.tag,
            "issued": verdict.issued,
            "expires": verdict.expires,
        }


def sign(
    run_id: str,
    *,
    key: PrivateKey,
    policy: Policy | str | Path | None = None,
    gate: str | Path | None = None,
    expires: timedelta = timedelta(days=30),
) -> Signed:
    """Decide from an audit under a policy, sign that, and set it as a tag of the version.

    Whoever ran the audit loaded the model; nothing of it runs here. Its files are downloaded anew
    and held against what the audit saw, and nothing is taken over from what the audit decided.

    Args:
        run_id: The audit's run; it must be the newest finished audit of its version.
        key: Signs.
        policy: The policy that the server asks for, or its file; None for the default policy, or
            for the one that ``gate`` asks for.
        gate: The server's gate file. The key must count there.
        expires: For how long the verdict counts.

    Raises:
        TrackingError: The audit is not the newest, was changed, or saw other files.
        VerdictError: The audit holds something that cannot be signed.
    """
    given = policy if isinstance(policy, Policy) else load_policy(Path(policy) if policy else None)
    asked = None if gate is None else load_gate(Path(gate))
    version = _version_of(run_id)
    audit = find_audit(version)
    if audit.run_id != run_id:
        raise TrackingError(
            f"run {run_id} is not the newest audit of {version.uri}, that is {audit.run_id}: sign "
            "that one"
        )
    content = require_same_content(version, audit.record)
    if content is None:
        raise TrackingError(
            f"the audit of {version.uri} does not say which files it saw, it was made by an older "
            f"release: run 'forward-inf audit {version.uri}'"
        )
    chosen = given
    if asked is not None and policy is None:
        chosen = _asked_for(asked, version, (policy_of(audit.record), given))
    decision = decide(measures_of(audit.record), facts_of(audit.record), chosen)
    issued = now()
    verdict = Verdict(
        subject=subject_of(version),
        outcome=decision.outcome,
        policy_sha256=chosen.sha256,
        model_sha256=content,
        train_sha256=_digest_of(audit.record, "train"),
        queries_sha256=_digest_of(audit.record, "queries"),
        audit_sha256=audit.sha256,
        audit_run=run_id,
        issued=issued,
        expires=issued + int(expires.total_seconds() * 1000),
    )
    return Signed(
        version, decision, chosen, attach(version, verdict, key, asked.ring if asked else None)
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


def _version_of(run_id: str) -> Version:
    """Return the version that a run says it audited; `find_audit` checks that."""
    content = fetch_artifact(run_id, "audit.json")
    if content is None:
        raise TrackingError(
            f"run {run_id} has no finished audit: give the run that 'forward-inf audit' names"
        )
    model = read_record(content, where=f"audit.json of run {run_id}")["model"]
    return resolve(f"models:/{model.get('name')}/{model.get('version')}")


def _digest_of(record: dict[str, Any], role: str) -> str:
    """Return the digest of the rows, as the record keeps it."""
    data = record["data"][role]  # facts_of() found both
    digest = data.get("sha256")
    if not isinstance(digest, str):
        raise VerdictError(f"audit.json has no valid 'data.{role}.sha256': audit the version again")
    return digest
