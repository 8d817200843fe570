"""What a version's tags claim, and which of it counts: signed by a known key, of this version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from forward_inf_mlflow.errors import VerdictError
from forward_inf_mlflow.verdicts.keys import Ring
from forward_inf_mlflow.verdicts.names import fold, shown
from forward_inf_mlflow.verdicts.seal import PREFIXES, Sealed, read_sealed, signer_of
from forward_inf_mlflow.verdicts.statement import Override, Subject, Verdict

#: The tags in which an audit says what was decided, in which run, and the SHA-256 of its
#: ``audit.json``; anybody may write them. Short, because MLflow's version table cuts keys at about
#: 15 characters.
GATE_TAG, RUN_TAG, AUDIT_TAG = "fi.gate", "fi.run", "fi.audit"
#: Milliseconds by which two honest clocks may differ.
_SKEW = 5 * 60 * 1000


@dataclass(frozen=True)
class Rejected:
    """A claim that does not count.

    Attributes:
        error: Why not, as part of a sentence.
        issued: From when it claims to be, in milliseconds since 1970; 0 where it cannot be read.
    """

    error: VerdictError
    issued: int

    @property
    def reason(self) -> str:
        """Return why not, as part of a sentence."""
        return str(self.error)


class ElsewhereError(VerdictError):
    """A statement is about another version, with whose tags it may have come."""


@dataclass(frozen=True)
class Claims:
    """What stands in a version's tags.

    Attributes:
        verdicts: Those that count for the version, each with its key's name.
        overrides: Likewise.
        false_verdicts: Those that do not count.
        false_overrides: Likewise.
    """

    verdicts: list[tuple[Verdict, str]] = field(default_factory=list)
    overrides: list[tuple[Override, str]] = field(default_factory=list)
    false_verdicts: list[Rejected] = field(default_factory=list)
    false_overrides: list[Rejected] = field(default_factory=list)


def read_claims(
    subject: Subject, target: str, tags: Mapping[str, str], ring: Ring, *, now: int
) -> Claims:
    """Sort what a version's tags claim.

    Args:
        subject: The version.
        target: The alias or stage that is asked for; overrides for others are left out.
        tags: The version's tags, which anybody may have written.
        ring: The keys that count.
        now: Milliseconds since 1970.
    """
    claims = Claims()
    for key, text in tags.items():
        if not key.startswith(tuple(PREFIXES.values())):
            continue
        issued = 0
        try:
            sealed = read_sealed(text)
            issued = sealed.statement.issued
            name = check(sealed, key, subject, ring)
            if issued > now + _SKEW:
                raise VerdictError("it is dated in the future, compare the clocks")
        except VerdictError as error:
            false = key.startswith(PREFIXES["override"])
            (claims.false_overrides if false else claims.false_verdicts).append(
                Rejected(error, issued)
            )
            continue
        if isinstance(sealed.statement, Verdict):
            claims.verdicts.append((sealed.statement, name))
        elif fold(sealed.statement.alias) == fold(target):
            claims.overrides.append((sealed.statement, name))
    return claims


def check(sealed: Sealed, tag: str, subject: Subject, ring: Ring) -> str:
    """Return the name of the key that signed a statement, which is about this version.

    Raises:
        SignerError: The key does not count.
        ElsewhereError: The statement is about another version.
        VerdictError: The key did not sign it, or it stands under the tag of another.
    """
    signer = signer_of(sealed, ring)
    if sealed.tag != tag:
        raise VerdictError(f"it belongs under the tag {sealed.tag}")
    of = sealed.statement.subject
    if of != subject:
        uri = shown(f"models:/{of.name}/{of.version}")
        same = (of.name, of.version) == (subject.name, subject.version)
        when = ", which was registered at another time or from another source" if same else ""
        raise ElsewhereError(f"it was made for {uri}{when}")
    return signer.name
