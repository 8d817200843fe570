"""Moves and refusals of a version's aliases, as one of its tags remembers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.clock import now
from forward_inf_mlflow.mlflow_errors import impatient
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.verdicts.events import HISTORY, Event, read_events, with_event

_FIELDS = {"at", "event", "alias", "from", "why", "by"}


def remember(
    version: Version,
    event: Literal["moved", "refused"],
    *,
    alias: str,
    before: str | None,
    why: str,
    by: str | None,
) -> None:
    """Write down what happened to an alias, if the server lets us: one with a gate does it itself.

    Args:
        version: What the alias was moved to, or was not.
        event: What happened.
        alias: Which.
        before: The version that it pointed to.
        why: One sentence.
        by: The name of the key that counted, None where none was asked for.
    """
    new = Event(at=now(), event=event, alias=alias, before=before, why=why, by=by)
    client = MlflowClient()
    try:
        with impatient():
            tags = client.get_model_version(version.name, version.version).tags
            text = with_event(tags.get(HISTORY), new)
            client.set_model_version_tag(version.name, version.version, HISTORY, text)
    except (MlflowException, OSError):
        return  # what was done stands


def find_moves(version: Version, tags: Mapping[str, str]) -> tuple[list[Event], list[str]]:
    """Return the moves and refusals in a version's tags, newest first, and what is passed over.

    On a server without a gate anybody may have written them.
    """
    entries = read_events(tags.get(HISTORY))
    events = [event for entry in entries if (event := _parse(entry)) is not None]
    # MLflow copies tags with a version; what is older than the version happened to another.
    own = [event for event in events if event.at >= version.creation_timestamp]
    notes = []
    if len(events) < len(entries) or (not entries and tags.get(HISTORY, "[]") != "[]"):
        notes.append(f"{HISTORY} holds what is no move or refusal, and is passed over")
    if len(own) < len(events):
        notes.append(f"{HISTORY} holds {len(events) - len(own)} entries of another version")
    return sorted(own, key=lambda event: -event.at), notes


def _parse(entry: Mapping[str, Any]) -> Event | None:
    if set(entry) != _FIELDS:
        return None
    at, event, alias, before, why, by = (
        entry[key] for key in ("at", "event", "alias", "from", "why", "by")
    )
    if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < 2**53:
        return None
    if event not in ("moved", "refused") or not isinstance(alias, str) or not isinstance(why, str):
        return None
    if not all(value is None or isinstance(value, str) for value in (before, by)):
        return None
    return Event(at=at, event=event, alias=alias, before=before, why=why, by=by)
