"""History: what happened to a version, from its runs and tags."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from forward_inf_mlflow.clock import now
from forward_inf_mlflow.decision import WORDS
from forward_inf_mlflow.errors import NoAuditError, TrackingError, VerdictError
from forward_inf_mlflow.found_audit import fetch_artifact, find_audit
from forward_inf_mlflow.mlflow_errors import translate_errors
from forward_inf_mlflow.moves import find_moves
from forward_inf_mlflow.record import read_record
from forward_inf_mlflow.registry import Version, copied_from, resolve
from forward_inf_mlflow.sealed_tags import find_statements, tags_of
from forward_inf_mlflow.tracking import KIND_TAG, MODEL_TAG, identity, identity_of
from forward_inf_mlflow.verdicts.claims import AUDIT_TAG, GATE_TAG, RUN_TAG
from forward_inf_mlflow.verdicts.events import HISTORY, Event
from forward_inf_mlflow.verdicts.keys import Ring, read_ring
from forward_inf_mlflow.verdicts.seal import Sealed, signer_of
from forward_inf_mlflow.verdicts.statement import Verdict

#: The newest runs whose ``audit.json`` is fetched.
_AUDITS = 50
_NOT_VERIFIED = "not verified"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something that happened.

    Attributes:
        at: Milliseconds since 1970; of a statement, as its signer says.
        kind: "audit", "verdict", "override", "moved" or "refused".
        outcome: The decision, the alias, or what became of the audit.
        by: Whose key, and whether that was verified; of an audit, who answered its sample.
        detail: One sentence, or where to look.
        id: The run or the tag.
    """

    at: int
    kind: str
    outcome: str
    by: str
    detail: str
    id: str


@dataclass(frozen=True)
class History:
    """Everything that is known, newest first, and what was passed over."""

    version: Version
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the history for ``--json``."""
        return {
            "model": self.version.uri,
            "events": [asdict(entry) for entry in self.entries],
            "notes": list(self.notes),
        }


def history(model_uri: str, *, ring: str | Path | None = None) -> History:
    """Return audits, verdicts, overrides, moves and refusals of a version.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        ring: The file of the public keys that signatures are checked with; None checks none.
    """
    keys = None if ring is None else read_ring(Path(ring))
    version = resolve(model_uri)
    tags = tags_of(version)
    audits, notes = _audits(version, tags)
    found = find_statements(version, tags)
    signed = [_signed(sealed, keys) for sealed in found.sealed]
    moves, passed_over = find_moves(version, tags)
    # Of what happened at once, what must have come last stands first.
    entries = sorted([*map(_moved, moves), *signed, *audits], key=lambda entry: -entry.at)
    said = (*_copied(version, tags), *notes, *found.notes, *passed_over)
    return History(version, tuple(entries), said)


def _copied(version: Version, tags: Mapping[str, str]) -> Iterator[str]:
    """Yield what to tell of a version that shows what is not its own."""
    if original := copied_from(version):
        yield f"{version.uri} is a copy of {original}: what is known of that does not count here"
    if RUN_TAG in tags:
        try:
            find_audit(version)
        except NoAuditError as error:
            yield f"its tags {GATE_TAG}, {RUN_TAG} and {AUDIT_TAG} count for nothing: {error}"


def _audits(version: Version, tags: Mapping[str, str]) -> tuple[list[Entry], list[str]]:
    """Return the audits of exactly this version, and what to tell of those that were not read."""
    runs = _runs(version)
    entries, notes = [], []
    if len(runs) > _AUDITS:
        notes.append(f"{len(runs) - _AUDITS} older audits are not shown")
    for run in runs[:_AUDITS]:
        try:
            entry = _audit(version, run, tags)
        except TrackingError as error:
            notes.append(f"the audit in run {run.info.run_id} is passed over: {error}")
        else:
            entries += [] if entry is None else [entry]
    return entries, notes


def _audit(version: Version, run: Run, tags: Mapping[str, str]) -> Entry | None:
    """Return what a run audited; None if that was another version, or it audited nothing."""
    run_id, began = run.info.run_id, run.info.start_time
    content = fetch_artifact(run_id, "audit.json")
    if content is None:
        if KIND_TAG in run.data.tags or began < version.creation_timestamp:
            return None
        said = f"its run is {str(run.info.status).lower()}"
        return Entry(at=began, kind="audit", outcome="not finished", by="", detail=said, id=run_id)
    record = read_record(content, where=f"audit.json of run {run_id}")
    if identity_of(record["model"]) != identity(version):
        return None  # it had this name and number before
    at, decision = record.get("finished_at"), record.get("decision")
    decision = decision if isinstance(decision, dict) else {}
    outcome, reasons = WORDS.get(str(decision.get("outcome")), "unknown"), decision.get("reasons")
    newest = run_id == tags.get(RUN_TAG)
    if newest and hashlib.sha256(content).hexdigest() != tags.get(AUDIT_TAG):
        outcome += ", changed since"
    detail = str(reasons[0]) if isinstance(reasons, list) and reasons else ""
    review = record.get("review")
    by = str(review.get("by") or "a person") if isinstance(review, dict) else ""
    return Entry(
        at=at if type(at) is int and 0 <= at < 2**53 else began,
        kind="audit",
        outcome=outcome,
        by=by,
        detail=f"with the answers to a sample; {detail}" if by else detail,
        id=run_id,
    )


def _runs(version: Version) -> list[Run]:
    """Return the runs that say they audited a version of this name and number, newest first."""
    client, runs = MlflowClient(), []
    quote = '"' if "'" in version.uri else "'"
    with translate_errors():
        experiments, page = [], None
        while True:
            some = client.search_experiments(page_token=page)
            experiments += [one.experiment_id for one in some]
            if not (page := some.token):
                break
        for begin in range(0, len(experiments), 100):
            runs += client.search_runs(
                experiments[begin : begin + 100],
                f"tags.`{MODEL_TAG}` = {quote}{version.uri}{quote}",
                max_results=4 * _AUDITS,
                order_by=["attributes.start_time DESC"],
            )
    return sorted(runs, key=lambda run: -run.info.start_time)


def _signed(sealed: Sealed, keys: Ring | None) -> Entry:
    statement = sealed.statement
    by = f"key {sealed.key_id}, {_NOT_VERIFIED}"
    if keys is not None:
        try:
            by = f"{signer_of(sealed, keys).name}, verified"
        except VerdictError as error:
            by = f"does not count: {error}"
    expired = "expired, " if statement.expires <= now() else ""
    if isinstance(statement, Verdict):
        kind, outcome = "verdict", WORDS[statement.outcome]
        detail = f"{expired}policy {statement.policy_sha256[:12]}, run {statement.audit_run}"
    else:
        kind, outcome, detail = "override", statement.alias, f"{expired}{statement.reason}"
    return Entry(
        at=statement.issued, kind=kind, outcome=outcome, by=by, detail=detail, id=sealed.tag
    )


def _moved(event: Event) -> Entry:
    before = "nowhere" if event.before is None else f"version {event.before}"
    return Entry(
        at=event.at,
        kind=event.event,
        outcome=event.alias,
        by=event.by or "",
        detail=f"from {before}; {event.why}",
        id=HISTORY,
    )
