"""Render an explanation: one HTML file that shows a query beside the rows that speak for it.

It stands behind the same three walls as the report of an audit, in the same style; see ``page``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forward_inf_mlflow.report.album import Album
from forward_inf_mlflow.report.page import template

#: Answers, rows of each kind in an answer, and sources that are shown; the tables have them all.
MAX_ANSWERS, MAX_ROWS, MAX_SOURCES = 20, 25, 25
SIDES = ("proponents", "opponents")


def render_influence(
    record: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    values: Sequence[Mapping[str, Sequence[tuple[str, object]]]],
) -> str:
    """Render the page.

    Args:
        record: The content of ``influence.json``.
        pictures: PNG bytes by ``train:<row id>`` and ``query:<query id>``.
        values: For every answer the names and values, by the same keys, that tell rows without a
            picture apart.

    Returns:
        A whole HTML document.
    """
    album = Album(pictures)
    answers = [
        _answer(answer, shown, album)
        for answer, shown in zip(record["answers"][:MAX_ANSWERS], values, strict=False)
    ]
    return template("influence.html.j2").render(
        record=record,
        answers=answers,
        more_answers=max(0, len(record["answers"]) - MAX_ANSWERS),
        regression=record["task"] == "regression",
        how=record["influence"],
        album=album,
    )


def _answer(
    answer: Mapping[str, Any],
    shown: Mapping[str, Sequence[tuple[str, object]]],
    album: Album,
) -> dict[str, Any]:
    def with_portraits(kind: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for row in rows[:MAX_ROWS]:
            picture = album.find(kind, row["id"])
            values = [] if picture else shown.get(f"{kind}:{row['id']}", [])
            found.append({**row, "picture": picture, "values": values})
        return found

    queries = with_portraits("query", answer["queries"])
    return {
        "name": answer["query_id"],
        "queries": queries,
        "values_shown": any(query["values"] for query in queries),
        "more_queries": max(0, len(answer["queries"]) - MAX_ROWS),
        "sides": [
            (kind, with_portraits("train", answer[kind]), max(0, len(answer[kind]) - MAX_ROWS))
            for kind in SIDES
        ],
        "sources": (answer["sources"] or [])[:MAX_SOURCES],
        "more_sources": max(0, len(answer["sources"] or []) - MAX_SOURCES),
    }
