"""Render a trace: one HTML file with the training texts behind a completion.

It stands behind the same walls as the report of an audit, in the same style; see ``page``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from forward_inf_mlflow.report.formats import visible
from forward_inf_mlflow.report.page import template

#: Texts that are shown; the table has them all.
MAX_ROWS = 50
#: Characters of a text that are shown, around the first word that matters.
_SHOWN, _BEFORE = 600, 200
_ELIDED = Markup("<span class=fine>…</span>")


def render_trace(record: Mapping[str, Any]) -> str:
    """Render the page from the content of ``trace.json``; returns a whole HTML document."""
    said = record["completion"]
    known = {_bare(word) for word in f"{said['prompt']} {said['text']}".split()}
    rows = [
        {**row, "shown": marked(row["text"], row["words"], known)}
        for row in record["rows"][:MAX_ROWS]
    ]
    return template("trace.html.j2").render(
        record=record, said=said, rows=rows, how=record["trace"]
    )


def marked(text: str, matter: Sequence[Sequence[int]], known: set[str]) -> Markup:
    """Return a text as markup, every word escaped.

    Words that matter stand in ``<mark>``, words that the question holds too in ``<b>``. Of a long
    text a piece is shown, around the first word that matters.
    """
    begins = min((start for start, _ in matter), default=0)
    first = max(0, begins - _BEFORE) if len(text) > _SHOWN else 0
    parts: list[Markup] = [_ELIDED] if first else []
    at = first
    for word in text[first : first + _SHOWN].split(" "):
        shown = Markup("{}").format(visible(word))
        if _bare(word) in known and _bare(word):
            shown = Markup("<b>{}</b>").format(shown)
        if any(start < at + len(word) and at < end for start, end in matter):
            shown = Markup("<mark>{}</mark>").format(shown)
        parts.append(shown)
        at += len(word) + 1
    if len(text) > first + _SHOWN:
        parts.append(_ELIDED)
    return Markup(" ").join(parts)


def _bare(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalnum())
