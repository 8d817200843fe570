"""Blocks: what is ours in a version's description, between marks that no reader sees."""

from __future__ import annotations

import re

#: What the marks of a block say: the verdict of an audit, and what people approved.
VERDICT, APPROVALS = "forward-inf", "forward-inf approvals"


def block(name: str, text: str) -> str:
    """Return a text between the marks of a block."""
    begin, end = _marks(name)
    return f"{begin}\n{text}\n{end}"


def without_block(description: str, name: str) -> str:
    """Return a description without the blocks of a name, as people wrote it."""
    begin, end = map(re.escape, _marks(name))
    return re.sub(f"{begin}.*?{end}", "", description, flags=re.DOTALL).rstrip()


def without_blocks(description: str) -> str:
    """Return a description without anything of ours."""
    return without_block(without_block(description, VERDICT), APPROVALS)


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- /{name} -->"
