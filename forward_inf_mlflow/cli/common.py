"""What all commands share: their options, how they talk, and quiet libraries."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forward_inf_mlflow.cli.bars import Bars, Silent
from forward_inf_mlflow.decision import WORDS
from forward_inf_mlflow.errors import VerdictError

if TYPE_CHECKING:
    from forward_inf_mlflow.verdicts.keys import PrivateKey

#: The decision's exit code.
EXIT = {"pass": 0, "fail": 1, "undecided": 2}
#: Holds a private key as PEM text.
KEY_VARIABLE = "FORWARD_INF_SIGNING_KEY"
_COLOURS = {"pass": "green", "fail": "red", "undecided": "yellow"}


@dataclass(frozen=True)
class Console:
    """How a command talks: as JSON, little, or much."""

    json: bool
    quiet: bool
    verbose: bool

    def say(self, text: str = "", *, wrap: bool = True, **style: Any) -> None:
        """Print a line for a person; nothing with ``--json`` or ``--quiet``.

        On a terminal it is wrapped between words, with what follows indented like its beginning;
        ``wrap=False`` is for what people copy.
        """
        if not (self.json or self.quiet):
            click.echo(_styled(_wrapped(printable(text)) if wrap else printable(text), **style))

    def verdict(self, outcome: str, reasons: Sequence[str], what: str) -> None:
        """Print a decision and why; the verdict itself also with ``--quiet``."""
        if self.json:
            return
        word = _styled(WORDS[outcome], fg=_COLOURS[outcome], bold=True)
        click.echo(f"{word}  {printable(what)}")
        for reason in reasons:
            self.say(f"  - {reason}")

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print rows in aligned columns under a title; nothing where there are none."""
        if not rows:
            return
        lines = [[printable(str(cell)) for cell in row] for row in (header, *rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        self.say()
        self.say(f"  {title}", bold=True)
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            text = "    " + "  ".join(cells).rstrip()
            self.say(text if len(text) <= _width() else f"{text[: _width() - 1]}…", wrap=False)

    def result(self, content: dict[str, Any]) -> None:
        """Print the result for machines if that was asked for, in plain ASCII."""
        if self.json:
            from forward_inf_mlflow.record import write_record

            click.echo(json.dumps(json.loads(write_record(content))))

    @contextmanager
    def progress(self, first: str) -> Iterator[Silent]:
        """Yield a ``progress(stage, done, total)`` that draws bars on a terminal's stderr.

        Args:
            first: What is done until the first stage begins.
        """
        watched = sys.stderr.isatty() and not (self.quiet or self.json)
        bars = Bars() if watched else Silent()
        bars.wait(first)
        try:
            yield bars
        finally:
            bars.close()


def printable(text: str) -> str:
    """Return one line that is safe to print: names and labels are other people's, and could
    otherwise move the cursor or turn a refusal green.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _styled(text: str, **style: Any) -> str:
    return click.style(text, **style) if style and not os.environ.get("NO_COLOR") else text


def _width() -> int:
    """Return the terminal's width; unlimited where the output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def _wrapped(text: str) -> str:
    if len(text) <= _width():
        return text
    body = text.lstrip(" ")
    indent = " " * (len(text) - len(body) + 2)
    return textwrap.fill(
        text,
        _width(),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``, ``-q``, ``-v`` and ``--debug``; pass the command a `Console` first."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
    @click.option("-q", "--quiet", is_flag=True, help="Print the verdict only.")
    @click.option("-v", "--verbose", is_flag=True, help="Also print what MLflow and torch log.")
    @click.option("--debug", is_flag=True, help="As -v; print a traceback with an error.")
    @functools.wraps(function)
    def wrapped(
        *args: Any, as_json: bool, quiet: bool, verbose: bool, debug: bool, **kwargs: Any
    ) -> Any:
        if not (verbose or debug):
            hush()
        return function(Console(as_json, quiet, verbose), *args, **kwargs)

    return wrapped


def hush() -> None:
    """Silence what other libraries log; what goes wrong is raised too, and said in one line."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    warnings.simplefilter("ignore")
    ours = "forward_inf_mlflow.plugins"  # which says on a server what it does
    others = ("mlflow", "alembic", "torch", "torch.export", "torch._export", "urllib3")
    for name in (ours, *others):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def policy_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--policy FILE``."""
    return click.option(
        "--policy",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help="Policy file (see 'forward-inf policy init').",
    )(function)


def ring_option(default: str | None = None) -> Callable[..., Any]:
    """Add ``--ring FILE``."""
    return click.option(
        "--ring",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        default=default,
        show_default=default is not None,
        help="Public keys that count (see 'forward-inf keys').",
    )


def key_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--key FILE``."""
    return click.option(
        "--key",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help="Private key (see 'forward-inf keys new'); default: FORWARD_INF_SIGNING_KEY.",
    )(function)


def signing_key(file: str | None) -> PrivateKey:
    """Return the key of a file, else of the environment, where a CI job finds its secrets.

    Raises:
        VerdictError: There is none, or it is no key; never says what it is.
    """
    from forward_inf_mlflow.verdicts.keys import parse_private_key, read_private_key

    if file:
        return read_private_key(Path(file))
    if pem := os.environ.get(KEY_VARIABLE):
        return parse_private_key(pem.encode("utf-8", "surrogateescape"), name=KEY_VARIABLE)
    raise VerdictError(
        f"there is no key to sign with: name its file with --key, or put its text into the "
        f"environment as {KEY_VARIABLE}; make one with 'forward-inf keys new'"
    )
