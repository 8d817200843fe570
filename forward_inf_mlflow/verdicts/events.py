"""What a gate did to a version's aliases: the events that it keeps in one of the version's tags."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from forward_inf_mlflow.verdicts.names import shown

#: The tag; only the gate writes it.
HISTORY = "fi.history"
#: Events; characters of the whole, which a column of MySQL holds; and of an alias, as in MLflow.
_MOST, _LONGEST, _LONGEST_ALIAS = 50, 50_000, 255


@dataclass(frozen=True, kw_only=True)
class Event:
    """A protected alias moved to the version, or was refused.

    Attributes:
        at: Milliseconds since 1970.
        event: "moved" or "refused".
        alias: The alias or stage.
        before: The version that it pointed to; "from" in the tag.
        why: The gate's sentence.
        by: The name of the key that opened it, None where none did.
    """

    at: int
    event: Literal["moved", "refused"]
    alias: str
    before: str | None
    why: str
    by: str | None


def with_event(text: str | None, event: Event) -> str:
    """Return a history with one event more: the newest fifty in 50,000 characters.

    Where there are more, the oldest refusals go first, and then the oldest moves.

    A refusal that repeats the last event takes its place: asking again and again must not push out
    what happened.

    Args:
        text: The tag's value, None where there is none yet; what is not a history is begun anew.
        event: What happened.
    """
    entry = asdict(event)
    entry["from"] = entry.pop("before")
    entry["why"] = shown(event.why, 500)
    entry["alias"] = event.alias[:_LONGEST_ALIAS]
    events = read_events(text)
    if events and event.event == "refused" and _same(events[-1], entry):
        events.pop()
    events.append(entry)
    lengths = [len(_text(event)) + 1 for event in events]
    while len(events) > 1 and (len(events) > _MOST or sum(lengths) + 1 > _LONGEST):
        refused = (i for i, e in enumerate(events[:-1]) if e.get("event") == "refused")
        oldest = next(refused, 0)
        del events[oldest], lengths[oldest]
    return _text(events)


def read_events(text: str | None) -> list[dict[str, Any]]:
    """Return the events of a history, the oldest first; what is not one is empty."""
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other[key] for key in ("event", "alias", "why"))
