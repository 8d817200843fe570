"""What changed since the previous version, as the template shows it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from forward_inf_mlflow.report.formats import number

_TITLES = {"mislabeled": "Mislabeled", "leaked": "Leaked", "memorized": "Memorized"}
_WORDS = {"higher": "higher beyond chance", "lower": "lower beyond chance", "no": "not told apart"}


def since_section(value: Any, uri: str) -> dict[str, Any] | None:
    """Return the section of a record's comparison; None where there is none, or not a whole one.

    Every number is taken as one, and text stays text: the record may be anybody's.

    Args:
        value: What the record holds.
        uri: The audited version.
    """
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("problem"), str):
        return {"version": None, "problem": value["problem"]}
    old, rows, verdicts = (_mapping(value, key) for key in ("old", "rows", "verdicts"))
    if not old or not rows:
        return None
    counts = ("same", "relabelled", "removed", "added")
    return {
        "version": str(old.get("version")),
        "command": shlex.join(["forward-inf", "compare", str(old.get("model")), uri]),
        "problem": None,
        "declared": old.get("declared") is True,
        "rows": {key: number(rows.get(key)) for key in counts},
        "known_by": str(value.get("rows_known_by")),
        "verdicts": [_verdict(title, _mapping(verdicts, name)) for name, title in _TITLES.items()],
        "settings": [str(name) for name in _list(value.get("settings"))[:20]],
    }


def _verdict(title: str, found: Mapping[str, Any]) -> dict[str, Any]:
    rate = _mapping(found, "rate")
    return {
        "title": title,
        "stayed": number(found.get("stayed")),
        **{
            key: {
                "rows": number(_mapping(found, key).get("rows")),
                "ids": [str(row) for row in _list(_mapping(found, key).get("ids"))[:3]],
            }
            for key in ("went", "came")
        },
        "rates": [
            [number(end) for end in _list(rate.get(key))]
            if len(_list(rate.get(key))) == 3
            else None
            for key in ("old", "new")
        ],
        "differs": _WORDS.get(str(rate.get("differs")), ""),
    }


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
