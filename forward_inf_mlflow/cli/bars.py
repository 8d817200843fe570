"""Progress on a terminal: what is being done, and how far it is."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

_LABEL, _BAR = 30, 12  # with percentage and remaining time they fit into 80 columns
_STEPS = 100  # stages of more steps than this count rows
_ERASE = "\r\x1b[K"


class Silent:
    """Progress that nobody watches."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` steps are made."""

    def wait(self, text: str) -> None:
        """Say what is being done, where nobody knows how long it takes."""

    def say(self, text: str, *, always: bool = False) -> None:
        """Say something that stays; ``always`` also where nobody watches, as in a log."""
        if always:
            click.echo(text, err=True)

    def close(self) -> None:
        """End the line that is being drawn."""


class Bars(Silent):
    """One progress bar after the other, a new one for every stage, on stderr."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._bar: Any = None
        self._done = 0
        self._began = 0.0
        self._waiting = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Draw ``done`` of ``total`` steps."""
        if stage != self._stage:
            self.close()
            self._stage, self._done, self._began = stage, 0, time.monotonic()
            self._bar = click.progressbar(
                length=total,
                label=stage.ljust(_LABEL),
                file=sys.stderr,
                width=_BAR,
                item_show_func=lambda speed: speed,
            )
            self._bar.__enter__()
        self._bar.update(done - self._done, current_item=self._speed(done, total))
        self._done = done
        if done >= total:  # what follows may take a while before it can say how far it is
            self.wait("working")

    def _speed(self, done: int, total: int) -> str | None:
        """Return rows a second; nothing for stages of a few long steps."""
        passed = time.monotonic() - self._began
        return f"{done / passed:,.0f} rows/s" if total > _STEPS and passed > 0 else None

    def wait(self, text: str) -> None:
        """Show a line that the next one replaces."""
        self.close()
        click.echo(f"{text} ...", nl=False, err=True)
        self._waiting = True

    def say(self, text: str, *, always: bool = False) -> None:
        """Print a line above what follows."""
        self.close()
        click.echo(text, err=True)

    def close(self) -> None:
        """End the line that is being drawn; one that only says that one waits is erased."""
        if self._waiting:
            click.echo(_ERASE, nl=False, err=True)
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._stage, self._bar, self._waiting = None, None, False
