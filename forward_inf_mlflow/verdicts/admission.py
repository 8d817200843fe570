"""May an alias move to a version? Decided from the version's tags and what the gate asks for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from forward_inf_mlflow.errors import SignerError
from forward_inf_mlflow.verdicts.claims import (
    RUN_TAG,
    Claims,
    ElsewhereError,
    Rejected,
    read_claims,
)
from forward_inf_mlflow.verdicts.gate_file import Rule
from forward_inf_mlflow.verdicts.keys import Ring
from forward_inf_mlflow.verdicts.names import shown
from forward_inf_mlflow.verdicts.statement import Subject, Verdict

#: Later counts more.
_OUTCOMES = ("pass", "undecided", "fail")
_DAY = 86_400_000


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Whether an alias may move, and why.

    Attributes:
        allowed: Whether it may.
        why: One sentence; where it may not, with what to run.
        by: The name of the key that opened the alias, None where none did.
        model_sha256: The digest that the version's files must have; None where an override opened
            the alias, which says nothing of files, or where it may not move.
    """

    allowed: bool
    why: str
    by: str | None = None
    model_sha256: str | None = None


def admit(
    subject: Subject,
    target: str,
    tags: Mapping[str, str],
    rule: Rule,
    ring: Ring,
    *,
    now: int,
    stage: bool = False,
    model_sha256: str | None = None,
) -> Admission:
    """Decide whether a protected alias may move to a version.

    The newest verdict on exactly this version under one of the rule's policies decides; of two of
    the same millisecond the worse one. Where it does not open the alias, an override for this
    alias does.

    Args:
        subject: The version, as the registry knows it now.
        target: The alias or stage.
        tags: All tags of the version, which anybody may have written.
        rule: What the alias needs.
        ring: Whose signatures count.
        now: Milliseconds since 1970.
        stage: Whether ``target`` is a stage.
        model_sha256: Digest of the version's files as they are now; None where nobody looked.
    """
    claims = read_claims(subject, target, tags, ring, now=now)
    counted = [entry for entry in claims.verdicts if entry[0].policy_sha256 in rule.policies]
    newest = max(counted, key=_newness, default=None)
    if newest is None:
        problem = _why_none_counts(subject, claims, rule)
    else:
        verdict, name = newest
        problem = _what_is_wrong(verdict, rule, now, model_sha256)
        if not problem:
            return Admission(
                allowed=True,
                why=f"its verdict of {_day(verdict.issued)} is a pass",
                by=name,
                model_sha256=verdict.model_sha256,
            )
    for override, name in claims.overrides:
        if rule.overrides and not _is_over(override.issued, override.expires, rule, now):
            return Admission(allowed=True, why=f"overridden: {shown(override.reason)}", by=name)
    what = f"enter the stage '{shown(target)}'" if stage else f"become '{shown(target)}'"
    uri = shown(f"models:/{subject.name}/{subject.version}", 300)
    address = shlex.quote(uri)
    if newest is not None and newest[0].outcome != "pass":
        remedy = f"see 'forward-inf report {address}' for what to mend"
    else:
        replaced = newest is not None and model_sha256 not in (None, newest[0].model_sha256)
        audited = bool(tags.get(RUN_TAG)) and not replaced
        remedy = _how_to_sign(address, claims, audited=audited, counted=newest is not None)
    if rule.overrides:
        remedy += f", or ask for 'forward-inf approve' by a person who may{_hindered(claims)}"
    elif claims.overrides:
        remedy += "; an approval is there, and this gate takes none for it"
    return Admission(allowed=False, why=f"{uri} may not {what}: {problem}; {remedy}")


def _how_to_sign(address: str, claims: Claims, *, audited: bool, counted: bool) -> str:
    """Return the shortest way to a verdict that counts.

    Args:
        address: The version's, for a command line.
        claims: What the version's tags claim.
        audited: Whether they name an audit, which still fits the files.
        counted: Whether there is a verdict under the right policy.
    """
    false = None if counted or claims.verdicts else _newest_false(claims)
    why = None if false is None else false.error
    sign = f"forward-inf sign {address} --key KEY --audit-sha256 SHA256"
    if not counted and claims.verdicts:
        sign += " --policy FILE"  # the server's
    # With the verdict of another version came the name of its audit.
    audited = audited and not isinstance(why, ElsewhereError)
    audit = "" if audited else f"'forward-inf audit {address}', then "
    ring = " with a key of the server's ring" if isinstance(why, SignerError) else ""
    return f"run {audit}'{sign}'{ring}"


def _newest_false(claims: Claims) -> Rejected | None:
    return max(claims.false_verdicts, key=lambda claim: claim.issued, default=None)


def _newness(entry: tuple[Verdict, str]) -> tuple[int, int]:
    return entry[0].issued, _OUTCOMES.index(entry[0].outcome)


def _why_none_counts(subject: Subject, claims: Claims, rule: Rule) -> str:
    """Return why there is no verdict on the version under the right policy."""
    stale = max(claims.verdicts, key=_newness, default=None)
    if stale is not None:
        needed = " or ".join(policy[:12] for policy in rule.policies)
        return (
            f"its verdict is under another policy ({stale[0].policy_sha256[:12]}) than the alias "
            f"needs ({needed})"
        )
    if (claim := _newest_false(claims)) is not None:
        return f"its verdict does not count, {claim.reason}"
    return "it has no signed verdict"


def _what_is_wrong(verdict: Verdict, rule: Rule, now: int, model_sha256: str | None) -> str:
    """Return what keeps the newest verdict from opening the alias, nothing where it does."""
    day = _day(verdict.issued)
    if verdict.outcome == "fail":
        return f"its newest verdict, of {day}, is a refusal"
    if verdict.outcome != "pass":
        return f"its newest verdict, of {day}, is undecided"
    if verdict.expires <= now:
        return f"its verdict expired on {_day(verdict.expires)}"
    if _is_over(verdict.issued, verdict.expires, rule, now):
        return f"its verdict of {day} is older than the {rule.max_age_days:g} days that count here"
    if model_sha256 not in (None, verdict.model_sha256):
        return "its files were replaced after the audit"
    return ""


def _is_over(issued: int, expires: int, rule: Rule, now: int) -> bool:
    """Return whether a statement no longer counts, by itself or by the rule."""
    too_old = rule.max_age_days is not None and now - issued > rule.max_age_days * _DAY
    return expires <= now or too_old


def _hindered(claims: Claims) -> str:
    """Return why an override that is there opened nothing."""
    if claims.overrides:
        return " (the one that is there is over)"
    if claims.false_overrides:
        claim = max(claims.false_overrides, key=lambda claim: claim.issued)
        return f" (the one that is there does not count: {claim.reason})"
    return ""


def _day(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return "a day that no calendar has"
