"""Moves and refusals of a version's aliases, remembered in one of its tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.clock import now
from forward_inf_mlflow.mlflow_errors import impatient
from forward_inf_mlflow.registry import Version

#: A server with a gate writes it itself and lets nobody else; on others `promotion` does.
TAG = "fi.history"
_MOST, _LONGEST = 50, 300
_FIELDS = {"at", "event", "alias", "from", "why", "by"}


@dataclass(frozen=True, kw_only=True)
class Event:
    """An alias was moved to a version, or was not.

    Attributes:
        at: Milliseconds since 1970.
        event: "moved" or "refused".
        alias: The alias, or a stage.
        before: The version that had it before; None if none had.
        why: One sentence.
        by: The name of the key that counted; None where none was asked for.
    """

    at: int
    event: str
    alias: str
    before: str | None
    why: str
    by: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the event as the tag keeps it."""
        return {
            "at": self.at,
            "event": self.event,
            "alias": self.alias,
            "from": self.before,
            "why": self.why,
            "by": self.by,
        }


def read_events(tags: Mapping[str, str]) -> tuple[list[Event], int]:
    """Return the events in a version's tags, oldest first, and how many entries are none.

    Anybody may have written them, on a server without a gate.
    """
    text = tags.get(TAG)
    if text is None:
        return [], 0
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        return [], 1
    events = [event for entry in entries if (event := _parse(entry)) is not None]
    return sorted(events, key=lambda event: event.at), len(entries) - len(events)


def remember(
    version: Version, event: str, *, alias: str, before: str | None, why: str, by: str | None
) -> None:
    """Add an event to the version's tag, if the server lets us; else it writes its own."""
    client = MlflowClient()
    new = Event(
        at=now(),
        event=event,
        alias=alias,
        before=before,
        why=why if len(why) <= _LONGEST else f"{why[: _LONGEST - 1]}…",
        by=by,
    )
    try:
        with impatient():
            tags = client.get_model_version(version.name, version.version).tags
            events = [*read_events(tags)[0], new][-_MOST:]
            text = json.dumps([one.as_dict() for one in events])
            client.set_model_version_tag(version.name, version.version, TAG, text)
    except (MlflowException, OSError):
        return


def _parse(entry: Any) -> Event | None:
    if not isinstance(entry, Mapping) or set(entry) != _FIELDS:
        return None
    at, before, by = entry["at"], entry["from"], entry["by"]
    texts = (entry["event"], entry["alias"], entry["why"])
    optional = (before, by)
    if (
        not isinstance(at, int)
        or isinstance(at, bool)
        or not 0 <= at < 2**53
        or not all(isinstance(text, str) for text in texts)
        or not all(value is None or isinstance(value, str) for value in optional)
        or entry["event"] not in ("moved", "refused")
    ):
        return None
    event, alias, why = texts
    return Event(at=at, event=event, alias=alias, before=before, why=why, by=by)
