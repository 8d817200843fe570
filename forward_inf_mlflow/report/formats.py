"""Formats: numbers, labels and other people's text, as a reader should see them."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

_MAX_TEXT = 400  # characters of one label, id or sentence
_MAX_WHOLE = 4_000
DASH = "–"  # where there is no value
# Spaces and joiners that ordinary text in some scripts needs.
_ALLOWED = "\u00a0\u202f\u200c\u200d"


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, np.integer | np.floating):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # The comparison is false for NaN, and an integer too long for a float does not overflow it.
    return float(value) if abs(value) <= sys.float_info.max else None


def label(value: Any) -> str:
    """Write a label or an id: whole numbers as such, since a gap in a column makes them floats."""
    if value is None or value is pd.NA or value is pd.NaT:
        return DASH
    if isinstance(value, np.floating):
        value = float(value)
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return DASH
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else figure(value)


def figure(value: Any, digits: int = 3) -> str:
    """Write a number with a few significant digits, thousands apart."""
    known = number(value)
    if known is None:
        return DASH
    if known != 0 and not 1e-4 <= abs(known) < 1e9:
        text = f"{known:.1e}"
    elif abs(known) >= 10**digits:
        text = f"{known:,.0f}"
    else:
        text = f"{known:#.{digits}g}".rstrip(".")
    return text.replace("-", "\N{MINUS SIGN}")


def count(value: Any) -> str:
    """Write how many, thousands apart."""
    known = number(value)
    return DASH if known is None else f"{known:,.0f}"


def percent(value: Any) -> str:
    """Write a share (0 to 1) as a percentage; what is not nothing does not read as nothing."""
    known = number(value)
    if known is None:
        return DASH
    return f"{100 * known:.1f}%" if not 0 < known < 0.0005 else "< 0.1%"


def when(value: Any) -> str:
    """Write milliseconds since 1970 as a date; zero is what a server without dates says."""
    known = number(value)
    if known is None or not 0 < known < 4e12:
        return DASH
    return datetime.fromtimestamp(known / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def visible(value: Any) -> Any:
    """Make anything printable: capped, with every character that cannot be seen spelt out."""
    if hasattr(value, "__html__"):
        return value
    return _printable(label(value), _MAX_TEXT)


def whole(value: Any) -> str:
    """Make anything printable as `visible` does, and shorten nothing that somebody needs whole."""
    return _printable(label(value), _MAX_WHOLE)


def command(value: str) -> Markup:
    """Write a command line whole, since a shortened one would do something else.

    Its words are elements, so that a line breaks between them and not after the dash of an option.
    """
    words = _printable(value, _MAX_WHOLE).split(" ")
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in words)


def _printable(text: str, most: int) -> str:
    if len(text) > most:
        text = text[: most - 1] + "…"
    return "".join(
        char
        if char.isprintable() or char in _ALLOWED
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def probability(value: Any) -> str:
    """Write how likely chance alone is; the smallest are not told apart."""
    known = number(value)
    if known is None:
        return DASH
    return "< 0.001" if known < 0.001 else f"{min(1.0, known):.2g}"


def signed(value: Any) -> str:
    """Write a number with its sign."""
    known = number(value)
    return f"+{figure(known, 2)}" if known is not None and known > 0 else figure(known, 2)
