"""Command lines: how lists of names are written on them, and one that repeats what was done."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable, Mapping


def split_names(text: str) -> list[str]:
    """Return the names in ``A,B,C``; one that has a comma stands in double quotes, as in csv."""
    fields = next(csv.reader([text], skipinitialspace=True), [])
    return [name.strip() for name in fields if name.strip()]


def join_names(names: Iterable[object]) -> str:
    """Return what `split_names` reads as these names."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([str(name) for name in names])
    return text.getvalue()


def command_line(command: str, model_uri: str, options: Mapping[str, object]) -> str:
    """Return what repeats a command in a shell.

    Args:
        command: Such as "audit".
        model_uri: The version.
        options: By name, ``group_by`` for ``--group-by``; None and False are left out, and several
            values are joined.
    """
    words = ["forward-inf", command, model_uri]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, str):
            words += [option, value]
        elif isinstance(value, Iterable):
            words += [option, join_names(value)]
        elif value is not None and value is not False:
            words += [option, str(value)]
    return shlex.join(words)
