"""Every command and option is in docs/cli.md, has help, and what the docs show can be typed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import mlflow.models
import pytest

import forward_inf_mlflow
from forward_inf_mlflow.cli import cli, run
from forward_inf_mlflow.cli.common import EXIT

DOCS = (Path(__file__).parents[1] / "docs" / "cli.md").read_text("utf-8")
README = Path(__file__).parents[1] / "README.md"
COMMON = {"--json", "--quiet", "--verbose", "--debug", "--help"}


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def find(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def section(path: tuple[str, ...]) -> str:
    """Return what docs/cli.md says of one command."""
    start = re.search(rf"^## `forward-inf {' '.join(path)}\b.*$", DOCS, re.MULTILINE)
    assert start, f"docs/cli.md has no section of {' '.join(path)}"
    return DOCS[start.start() :].split("\n## ", 1)[0]


def options(path: tuple[str, ...]) -> set[str]:
    found = (p for p in find(path).params if isinstance(p, click.Option))
    return {max(option.opts, key=len) for option in found}


ALL = pytest.mark.parametrize("path", list(commands()), ids=" ".join)


@ALL
def test_the_docs_name_every_option_of_a_command_and_no_other(path: tuple[str, ...]) -> None:
    rows = re.findall(r"^\| (`-.*?) \|", section(path), re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"--[a-z0-9-]+", row)}
    assert named == options(path) - COMMON


def test_the_docs_name_the_options_that_all_commands_share() -> None:
    shared = set.intersection(*(options(path) for path in commands()))
    assert shared | {"--help"} == COMMON
    assert all(f"`{option}`" in DOCS for option in COMMON)


@ALL
def test_every_command_and_option_has_help_with_an_example(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"Example:\n    forward-inf {' '.join(path)}" in out
    command = find(path)
    assert command.short_help
    assert all(p.help for p in command.params if isinstance(p, click.Option))
    assert all(len(line) <= 80 for line in out.splitlines())


@ALL
def test_the_list_of_commands_says_the_whole_of_each(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path[:-1], "--help"]) == 0
    listed = capsys.readouterr().out
    assert str(find(path).short_help) in listed


def shown() -> Iterator[list[str]]:
    """Yield every command line that the docs and the help texts show."""
    helps = "\n".join(str(find(path).help) for path in commands()).replace("\\\n", " ")
    for line in (DOCS + "\n" + helps).splitlines():
        if line.strip().startswith("forward-inf "):
            yield shlex.split(line.split(" > ")[0])[1:]


@pytest.mark.parametrize("words", list(shown()), ids=" ".join)
def test_every_command_line_that_is_shown_can_be_parsed(words: list[str]) -> None:
    with cli.make_context("forward-inf", list(words)) as context:
        command: click.Command = cli
        rest = list(words)
        while isinstance(command, click.Group):
            name, found, rest = command.resolve_command(context, rest)
            assert found is not None, name
            command = found
        command.make_context(command.name, rest, parent=context).close()


def test_the_docs_name_every_exit_code() -> None:
    assert set(re.findall(r"^\| (\d+) \|", DOCS, re.MULTILINE)) == {
        *map(str, EXIT.values()),
        "130",
    }


@pytest.mark.parametrize("number", [0, 1])
def test_a_snippet_of_the_readme_imports_what_it_takes_from_mlflow_and_from_us(number: int) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    tree = ast.parse(blocks[number])
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    known = {alias.asname or alias.name for node in imports for alias in node.names}
    known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    theirs = {"mlflow", *mlflow.models.__all__, *forward_inf_mlflow.__all__}
    assert {node.id for node in names} & theirs <= known
    assert known & theirs, "else this tests nothing"
