"""How names of models, aliases and tags are compared where somebody would like them to differ."""

from __future__ import annotations

import unicodedata
from fnmatch import fnmatchcase


def fold(name: str) -> str:
    """Return what is left of a name without case, accents, width, control letters and outer space.

    So that ``Champion``, ``ＣＨＡＭＰＩＯＮ`` and ``chámpion`` (which some databases take for
    ``champion``) are one name.
    """
    letters = unicodedata.normalize("NFKD", name)
    bare = "".join(c for c in letters if unicodedata.category(c)[0] not in "CM")  # control, mark
    return unicodedata.normalize("NFKC", bare.casefold()).strip()


def fits(name: str, glob: str, *, loose: bool = False) -> bool:
    """Return whether a name fits a pattern with ``*``, ``?`` and ``[...]``.

    Args:
        name: Anybody's.
        glob: The pattern.
        loose: Whether the names live in a database that compares them in ways of its own (MySQL,
            SQL Server): there a name with letters beyond ASCII may be taken for any other, and
            fits everything.
    """
    folded = fold(name)
    return (loose and not folded.isascii()) or fnmatchcase(folded, fold(glob))


def is_text(text: str) -> bool:
    """Return whether a text can be written as UTF-8; what stood on a command line may not."""
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def shown(text: str, longest: int = 100) -> str:
    """Return somebody's text as part of one line."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= longest else line[: longest - 1] + "…"
