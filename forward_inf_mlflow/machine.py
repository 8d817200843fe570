"""The machine: how much memory it has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

#: Where Linux says what a container may take, in bytes or "max".
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def total_memory() -> int:
    """Return the bytes that are installed, or that a container may take where that is less."""
    return min([_installed(), *_allowed()])


def _installed() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a system that says so
        return 2**33


def _allowed() -> Iterator[int]:
    for path in _LIMITS:
        try:
            said = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if said.isdecimal():
            yield int(said)
