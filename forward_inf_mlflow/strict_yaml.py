"""YAML that a person wrote, read so that a slip is named with its line."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forward_inf_mlflow.errors import ForwardInfError

#: Bytes of a file; nobody writes as much by hand.
_LARGEST = 2**20
#: What YAML's own constructors raise for a value that does not fit its type.
BROKEN = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def read_text(path: Path) -> str:
    """Read a file's text.

    Raises:
        OSError: It cannot be read; for what is no regular file or too large, with a sentence alone.
        UnicodeDecodeError: It is not UTF-8.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # a device may have no end, a pipe no beginning
        raise OSError("it is not a regular file")
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise OSError("it is larger than 1 MiB")
    return content.decode("utf-8")


def find_trick(text: str) -> tuple[int, str] | None:
    """Return the first line with a merge key or an explicit type, and what is wrong with it.

    Either can make a value something else than it looks like: ``!!null 2026-01-01`` is null.

    Raises:
        yaml.YAMLError: The text is not YAML.
    """
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        line = token.start_mark.line + 1
        if isinstance(token, yaml.TagToken):
            return line, "an explicit type such as '!!str' is not read here: leave it out"
        if isinstance(token, yaml.ScalarToken) and token.plain and token.value == "<<":
            return line, "the merge key '<<' is not read here: write the lines out"
    return None


@dataclass(frozen=True)
class Reader:
    """Reads one file's text.

    Attributes:
        name: What the file is called in messages.
        error: What is raised for a slip.
    """

    name: str
    error: type[ForwardInfError]

    def root(self, text: str, what: str) -> yaml.MappingNode | None:
        """Return the file's content, which must be a mapping; None for an empty file.

        Raises:
            ForwardInfError: It is not YAML, or not a mapping; ``what`` says what it should be.
        """
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            trick = find_trick(text)
        except RecursionError:
            raise self.error(f"{self.name}: {what}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or "not YAML"
            raise self.error(f"{self.name}{where}: {problem}") from error
        if trick is not None:
            raise self.error(f"{self.name}, line {trick[0]}: {trick[1]}")
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise self.error(f"{self.name}, line 1: {what}")
        return root

    def where(self, node: yaml.Node) -> str:
        """Return the file and the line of a node."""
        return f"{self.name}, line {node.start_mark.line + 1}"

    def entries(
        self, node: yaml.MappingNode, known: Collection[str]
    ) -> dict[str, tuple[str, yaml.Node]]:
        """Return by key where it stands, and its value.

        Raises:
            ForwardInfError: A key is unknown or stands there twice.
        """
        found: dict[str, tuple[str, yaml.Node]] = {}
        for key_node, value in node.value:
            where = self.where(key_node)
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                listed = f"known: {', '.join(sorted(known))}"
                hint = f"did you mean '{close[0]}'?" if close else listed
                raise self.error(f"{where}: unknown key '{_short(key)}'; {hint}")
            if key in found:
                raise self.error(f"{where}: '{key}' stands here a second time")
            found[key] = (where, value)
        return found


def is_empty(node: yaml.Node) -> bool:
    """Return whether nothing stands behind a key, which YAML reads as null."""
    return isinstance(node, yaml.ScalarNode) and not node.value and node.style is None


def scalar(node: yaml.Node) -> Any:
    """Return the plain value of a node; the node itself where it has none, for the checks."""
    if not isinstance(node, yaml.ScalarNode):
        return node
    try:
        return yaml.SafeLoader("").construct_object(node)
    except BROKEN:
        return node


def repeated(root: yaml.Node | None) -> int | None:
    """Return the first line where a key stands a second time in its mapping, None if there is none.

    YAML's own reader takes the last one without a word.
    """
    open_nodes, seen = [root], set()
    lines = []
    while open_nodes:
        node = open_nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))  # an alias may lead back
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            lines += [
                key.start_mark.line + 1 for key, _ in node.value if keys.count(key.value) > 1
            ][1:2]
            open_nodes += [item for pair in node.value for item in pair]
        else:
            open_nodes += node.value
    return min(lines, default=None)


def _short(key: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in key)
    return line if len(line) <= 40 else line[:39] + "…"
