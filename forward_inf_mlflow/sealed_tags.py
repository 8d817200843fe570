"""Sealed statements on a version: set as its tags, and read from tags that anybody may have set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient

from forward_inf_mlflow.clock import now
from forward_inf_mlflow.errors import SignerError, VerdictError
from forward_inf_mlflow.mlflow_errors import impatient, translate_errors
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.verdicts.keys import PrivateKey, Ring
from forward_inf_mlflow.verdicts.seal import PREFIXES, Sealed, read_sealed, seal, signer_of
from forward_inf_mlflow.verdicts.statement import Override, Statement, Subject

#: Statements of one version that are read; an honest one has a few.
_MOST = 500


@dataclass(frozen=True)
class Found:
    """What a version's tags hold.

    Attributes:
        sealed: Statements about this version, newest first; no signature was checked.
        notes: A sentence for each tag that is passed over.
    """

    sealed: tuple[Sealed, ...]
    notes: tuple[str, ...]


def subject_of(version: Version) -> Subject:
    """Return the version as statements name it."""
    return Subject(
        name=version.name,
        version=version.version,
        creation_timestamp=version.creation_timestamp,
        source=version.source,
        model_id=version.model_id,
    )


def attach(
    version: Version, statement: Statement, key: PrivateKey, ring: Ring | None = None
) -> Sealed:
    """Sign a statement and set it as a tag of the version.

    Args:
        version: What the statement is about.
        statement: What is said.
        key: Signs.
        ring: The keys that count where it will be read; None where that is not known.

    Raises:
        VerdictError: No reader would take it: a field has a value that it cannot have, or the key
            does not count.
        TrackingError: The server cannot be reached or refuses.
    """
    sealed = seal(statement, key)
    try:
        read_sealed(sealed.text)
        if ring is not None:
            signer_of(sealed, ring)
    except VerdictError as error:
        remedy = f"; {error.remedy}" if isinstance(error, SignerError) else ""
        raise VerdictError(f"this signature would not count: {error}{remedy}") from error
    with translate_errors(), impatient():
        MlflowClient().set_model_version_tag(version.name, version.version, sealed.tag, sealed.text)
    return sealed


def tags_of(version: Version) -> dict[str, str]:
    """Return the version's tags as they are now."""
    with translate_errors(), impatient():
        return dict(MlflowClient().get_model_version(version.name, version.version).tags)


def find_statements(version: Version, tags: Mapping[str, str]) -> Found:
    """Return the statements in a version's tags; what is none, or of another version, is noted."""
    sealed, notes = [], []
    ours = sorted(key for key in tags if key.startswith(tuple(PREFIXES.values())))
    if len(ours) > _MOST:
        notes.append(f"{len(ours) - _MOST} of {len(ours)} signed tags were not read")
    for key in ours[:_MOST]:
        try:
            found = read_sealed(tags[key])
            if found.tag != key:
                raise VerdictError("it has the name of another tag")
            if found.statement.subject != subject_of(version):
                raise VerdictError("it is about another version")  # copied with a version's tags
        except VerdictError as error:
            notes.append(f"the tag {key} is passed over: {error}")
        else:
            sealed.append(found)
    sealed.sort(key=lambda one: -one.statement.issued)
    return Found(tuple(sealed), tuple(notes))


def find_approvals(version: Version, tags: Mapping[str, str]) -> tuple[Sealed, ...]:
    """Return the overrides among a version's tags that have not expired, newest first.

    That they are genuine, and by whom, is not checked.
    """
    return tuple(
        one
        for one in find_statements(version, tags).sealed
        if isinstance(one.statement, Override) and now() < one.statement.expires
    )
