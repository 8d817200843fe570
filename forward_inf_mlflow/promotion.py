"""Gate and promote: decide from the newest finished audit of exactly this version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.decision import Decision, decide
from forward_inf_mlflow.errors import NoAuditError, RefusedError, VerdictError
from forward_inf_mlflow.found_audit import FoundAudit, find_audit
from forward_inf_mlflow.mlflow_errors import impatient, refusal, translate_errors
from forward_inf_mlflow.moves import remember
from forward_inf_mlflow.policy import Policy, load_policy
from forward_inf_mlflow.record import facts_of, measures_of, policy_of
from forward_inf_mlflow.registry import Version, content_of, resolve
from forward_inf_mlflow.sealed_tags import find_approvals, tags_of
from forward_inf_mlflow.verdicts.events import HISTORY
from forward_inf_mlflow.verdicts.keys import Ring, read_ring
from forward_inf_mlflow.verdicts.names import fold
from forward_inf_mlflow.verdicts.seal import Sealed, signer_of
from forward_inf_mlflow.verdicts.statement import Override, as_dict


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
