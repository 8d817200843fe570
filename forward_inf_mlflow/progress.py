"""Progress: what long work says of itself."""

from __future__ import annotations

from collections.abc import Callable

#: Called as progress(stage, done, total).
Progress = Callable[[str, int, int], None]


def stage(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    """Return a counter of steps done that reports them under one name."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        progress(name, done, total)

    progress(name, 0, total)
    return advance


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
