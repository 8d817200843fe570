"""What is signed: a verdict on one model version, or one person's override for one alias."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from forward_inf_mlflow.errors import VerdictError
from forward_inf_mlflow.verdicts.names import is_text

#: Stands before the signed bytes, so that no signature made for anything else fits.
_DOMAIN = b"forward-inf-mlflow statement 1\n"
_OUTCOMES = ("pass", "fail", "undecided")
_DIGEST = frozenset("0123456789abcdef")
#: Longest text in a statement; a tag holds the whole.
_LONGEST = 2000


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The one model version that a statement is about.

    A name and a number are given again after a deletion, and tags are copied with a version; all
    five together are not.

    Attributes:
        name: The registered model's name.
        version: The version's number, without leading zeros.
        creation_timestamp: Milliseconds since 1970.
        source: Where it was registered from.
        model_id: The logged model behind it, found through copies; None where there is none.
    """

    name: str
    version: str
    creation_timestamp: int
    source: str
    model_id: str | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an audit says of a version under one policy.

    Attributes:
        subject: The version.
        outcome: "pass", "fail" or "undecided".
        policy_sha256: The policy's hash.
        model_sha256: Digest of the model's files.
        train_sha256: Digest of the training rows.
        queries_sha256: Digest of the query rows.
        audit_sha256: SHA-256 of ``audit.json``.
        audit_run: The run that holds it.
        issued: When it was signed, in milliseconds since 1970.
        expires: From when on it no longer counts, likewise.
    """

    subject: Subject
    outcome: str
    policy_sha256: str
    model_sha256: str
    train_sha256: str
    queries_sha256: str
    audit_sha256: str
    audit_run: str
    issued: int
    expires: int


@dataclass(frozen=True, kw_only=True)
class Override:
    """One person's permission to move one alias to a version, whatever its verdict says.

    Attributes:
        subject: The version.
        alias: The alias, or a stage.
        reason: Why, in the person's words.
        issued: When it was signed, in milliseconds since 1970.
        expires: From when on it no longer counts, likewise.
    """

    subject: Subject
    alias: str
    reason: str
    issued: int
    expires: int


Statement = Verdict | Override
_KINDS: dict[str, type[Verdict] | type[Override]] = {"verdict": Verdict, "override": Override}


def kind_of(statement: Statement) -> str:
    """Return "verdict" or "override"."""
    return "verdict" if isinstance(statement, Verdict) else "override"


def as_dict(statement: Statement) -> dict[str, Any]:
    """Return the statement in JSON's types, with its kind."""
    return {"kind": kind_of(statement), **asdict(statement)}


def signed_bytes(statement: Statement) -> bytes:
    """Return the bytes that a signature covers: every field, in one order and one spelling."""
    text = json.dumps(as_dict(statement), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return _DOMAIN + text.encode("ascii")


def parse_statement(value: Any) -> Statement:
    """Read a statement that anybody may have written.

    Raises:
        VerdictError: A field is missing, unknown, or of another type.
    """
    if not isinstance(value, Mapping):
        raise VerdictError("it is not a statement")
    values = dict(value)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise VerdictError("it is neither a verdict nor an override")
    made = _KINDS[kind]
    _require_fields(values, made)
    subject = values.pop("subject")
    if not isinstance(subject, Mapping):
        raise VerdictError("its 'subject' is not a model version")
    _require_fields(subject, Subject)
    statement = made(
        subject=Subject(**{key: _checked(key, item) for key, item in subject.items()}),
        **{key: _checked(key, item) for key, item in values.items()},
    )
    if statement.expires <= statement.issued:
        raise VerdictError("it expires before it was issued")
    return statement


def _require_fields(values: Mapping[str, Any], of: type) -> None:
    known = {field.name for field in fields(of)}
    if wrong := sorted(known ^ set(values), key=str):
        raise VerdictError(f"its field '{wrong[0]}' is missing or unknown")


def _checked(key: str, value: Any) -> Any:
    """Return a field's value if it has the field's type."""
    if key in ("issued", "expires", "creation_timestamp"):
        fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    elif key == "model_id" and value is None:
        fits = True
    elif not isinstance(value, str) or len(value) > _LONGEST or not is_text(value):
        fits = False
    elif key == "outcome":
        fits = value in _OUTCOMES
    elif key.endswith("_sha256"):
        fits = len(value) == 64 and set(value) <= _DIGEST
    else:
        fits = bool(value) or key == "source"
    if not fits:
        raise VerdictError(f"its field '{key}' has a value that it cannot have")
    return value
