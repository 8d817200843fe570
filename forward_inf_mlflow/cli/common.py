"""What all commands share: their options, quiet libraries, progress bars and colours."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

#: The decision's exit code.
EXIT = {"pass": 0, "fail": 1, "undecided": 2}
_COLOURS = {"pass": "green", "fail": "red", "undecided": "yellow"}
_WORDS = {"pass": "PASS", "fail": "REFUSED", "undecided": "UNDECIDED"}


@dataclass(frozen=True)
class Console:
    """How a command talks: as JSON, little, or much."""

    json: bool
    quiet: bool
    verbose: bool

    def say(self, text: str = "", **style: Any) -> None:
        """Print a line for a person; nothing with ``--json`` or ``--quiet``."""
        if not (self.json or self.quiet):
            colour = not os.environ.get("NO_COLOR")
            click.echo(click.style(text, **style) if style and colour else text)

    def verdict(self, outcome: str, reasons: list[str], what: str) -> None:
        """Print a decision and why; the verdict itself also with ``--quiet``."""
        if self.json:
            return
        colour = not os.environ.get("NO_COLOR")
        word = _WORDS[outcome]
        click.echo(
            f"{click.style(word, fg=_COLOURS[outcome], bold=True) if colour else word}  {what}"
        )
        for reason in reasons:
            self.say(f"  - {reason}")

    def result(self, content: dict[str, Any]) -> None:
        """Print the result for machines if that was asked for."""
        if self.json:
            from forward_inf_mlflow.record import write_record

            click.echo(json.dumps(json.loads(write_record(content)), ensure_ascii=False))

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """Yield a ``progress(stage, done, total)`` that draws bars on a terminal's stderr."""
        if self.quiet or self.json or not sys.stderr.isatty():
            yield lambda stage, done, total: None
            return
        bars = _Bars()
        try:
            yield bars
        finally:
            bars.close()


class _Bars:
    """One progress bar after the other, a new one for every stage."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None
        self._done = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._done = stage, 0
            self._bar = click.progressbar(
                length=total, label=stage.ljust(36), file=sys.stderr, width=24
            )
            self._bar.__enter__()
        self._bar.update(done - self._done)
        self._done = done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``, ``-q``, ``-v`` and ``--debug``; pass the command a `Console` first."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
    @click.option("-q", "--quiet", is_flag=True, help="Print the verdict only.")
    @click.option("-v", "--verbose", is_flag=True, help="Also print what MLflow and torch log.")
    @click.option("--debug", is_flag=True, help="Print a traceback with an error.")
    @functools.wraps(function)
    def wrapped(
        *args: Any, as_json: bool, quiet: bool, verbose: bool, debug: bool, **kwargs: Any
    ) -> Any:
        if not (verbose or debug):
            hush()
        return function(Console(as_json, quiet, verbose), *args, **kwargs)

    return wrapped


def hush() -> None:
    """Silence what other libraries print about their own affairs."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    warnings.simplefilter("ignore")
    for name in ("mlflow", "alembic", "torch", "torch.export", "torch._export", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def policy_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--policy FILE``."""
    return click.option(
        "--policy", type=click.Path(dir_okay=False), help="Policy file (see 'policy init')."
    )(function)
