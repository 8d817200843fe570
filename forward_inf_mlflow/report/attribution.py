"""Render an attribution: one HTML file with generated images beside those that they are made from.

It stands behind the same walls as the report of an audit, in the same style; see ``page``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forward_inf_mlflow.report.album import Album
from forward_inf_mlflow.report.page import template

#: Generated images, and training images of each kind beside one; the table has them all.
MAX_ANSWERS, MAX_ROWS = 40, 20
SIDES = ("proponents", "opponents")


def render_attribution(record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Render the page.

    Args:
        record: The content of ``attribution.json``.
        pictures: PNG bytes by ``train:<id>`` and ``query:<id>``.

    Returns:
        A whole HTML document.
    """
    album = Album(pictures)
    answers = []
    for answer in record["answers"][:MAX_ANSWERS]:
        sides = []
        for side in SIDES:
            rows = answer[side]
            shown = [{**r, "picture": album.find("train", r["id"])} for r in rows[:MAX_ROWS]]
            sides.append((side, shown, max(0, len(rows) - MAX_ROWS)))
        made = album.find("query", answer["query_id"])
        answers.append({**answer, "picture": made, "sides": sides})
    return template("attribution.html.j2").render(
        record=record,
        answers=answers,
        more_answers=max(0, len(record["answers"]) - MAX_ANSWERS),
        how=record["attribution"],
        album=album,
    )
