"""Render a recitation: one HTML file with what a language model knows word for word.

It stands behind the same walls as the report of an audit, in the same style; see ``page``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forward_inf_mlflow.report.page import template

#: What each way of finding an item is called.
WAYS = {
    "exact": "the whole item stands in a training text",
    "ngram": "its n-grams do",
    "influence": "only influence says so",
}


def render_recitation(record: Mapping[str, Any]) -> str:
    """Render the page from the content of ``recite.json``; returns a whole HTML document."""
    return template("recite.html.j2").render(
        record=record,
        extraction=record["extraction"],
        canaries=record["canaries"],
        told=record["contamination"],
        ways=WAYS,
    )
