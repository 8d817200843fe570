"""Album: the pictures of a page, each held once, until the page would become too heavy."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from forward_inf_mlflow.report.formats import label

#: Bytes of PNG as base64, so that the page opens at once.
BUDGET = 3_500_000


class Album:
    """Pictures as classes of a style sheet: a row that is shown five times is held once.

    Attributes:
        full: Whether some picture was left out.
    """

    def __init__(self, pictures: Mapping[str, bytes]) -> None:
        self._pictures = pictures
        self._names: dict[bytes, str] = {}
        self._left = BUDGET
        self.full = False

    def find(self, kind: str, row: Any) -> str | None:
        """Return the class that shows a training row (``train``) or a query (``query``), if any."""
        png = self._pictures.get(f"{kind}:{label(row)}")
        if png is None:
            return None
        if png in self._names:
            return self._names[png]
        size = 4 * -(-len(png) // 3)
        if size > self._left:
            self.full = True
            return None
        self._left -= size
        self._names[png] = f"p{len(self._names)}"
        return self._names[png]

    @property
    def css(self) -> Markup:
        """Return the rules of the classes; nothing in them is text from data."""
        rules = (
            f".{name}{{background-image:url(data:image/png;base64,{_encoded(png)})}}"
            for png, name in self._names.items()
        )
        return Markup("\n".join(rules))  # noqa: S704  base64 of bytes that we were given


def _encoded(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")
