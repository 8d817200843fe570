"""Moments, in milliseconds since 1970 as MLflow counts them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

_LAST = 4_000_000_000_000  # in the year 2096; beyond it somebody wrote nonsense


def now() -> int:
    """Return the present moment."""
    return int(time.time() * 1000)


def moment(at: int) -> str:
    """Write a moment as a date and a time of day."""
    if not 0 < at < _LAST:
        return "–"
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
