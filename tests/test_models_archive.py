from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from forward_inf_mlflow.errors import ModelError, UnsafeModelError
from forward_inf_mlflow.models.archive import check_archive

PAYLOAD = "__import__('os').system('true')"


class Custom(nn.Module):
    """Its input bears the name of a key that holds free text elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, custom: torch.Tensor) -> torch.Tensor:
        return self.layer(custom)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = torch.export.Dim("rows")
    exported = torch.export.export(Custom(), (torch.randn(3, 4),), dynamic_shapes=({0: rows},))
    path = tmp_path_factory.mktemp("archive") / "model.pt2"
    torch.export.save(exported, path)
    return path


def crafted(source: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Copy an archive with its model description edited."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.infolist():
            content = old.read(record)
            if record.filename.endswith("models/model.json"):
                description = json.loads(content)
                edit(description)
                content = json.dumps(description).encode()
            new.writestr(record.filename, content)
    return target


def size_of(name: str, expression: str) -> Callable[[dict[str, Any]], None]:
    def edit(description: dict[str, Any]) -> None:
        values = description["graph_module"]["graph"]["tensor_values"]
        values[name]["sizes"][0]["as_expr"]["expr_str"] = expression

    return edit


def context(value: object) -> Callable[[dict[str, Any]], None]:
    def edit(description: dict[str, Any]) -> None:
        leaf = {"type": "builtins.dict", "context": json.dumps(value), "children_spec": []}
        signature = description["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = json.dumps([1, leaf])

    return edit


def test_an_archive_that_was_not_touched_is_read(archive: Path) -> None:
    check_archive(archive)


@pytest.mark.parametrize(
    "edit",
    [
        size_of("linear", PAYLOAD),
        size_of("custom", PAYLOAD),
        size_of("linear", "9**9**9"),
        size_of("linear", "1 << 10"),
        size_of("linear", "Pow(10, Pow(10, 9))"),
        size_of("linear", "Pow(Integer(10), Integer(1000000000))"),
        context([{"__enum__": True, "fqn": "this:x", "name": "y"}]),
        context({"a": 1}),
    ],
    ids=[
        "code in a size",
        "under a name of free text",
        "a tower of powers",
        "a shift",
        "nested powers",
        "a large power",
        "a context that imports a module",
        "a context that names a class",
    ],
)
def test_a_text_that_could_run_code_or_never_end_is_refused(
    archive: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    with pytest.raises(UnsafeModelError, match="could run code on loading"):
        check_archive(crafted(archive, tmp_path / "model.pt2", edit))


def test_an_archive_with_two_directories_is_refused(archive: Path, tmp_path: Path) -> None:
    # Python's reader takes the last directory for the real one, PyTorch's the one that is named.
    good = archive.read_bytes()
    shifted = bytearray(b"\0" * 64 + good)
    (tmp_path / "shifted.pt2").write_bytes(shifted)
    with zipfile.ZipFile(tmp_path / "shifted.pt2") as seen:
        assert seen.namelist(), "Python reads it without a word"
    with pytest.raises(ModelError, match="damaged"):
        check_archive(tmp_path / "shifted.pt2")


def test_bytes_after_the_directory_are_refused(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[-2:] = struct.pack("<H", 5)  # an archive comment
    (tmp_path / "model.pt2").write_bytes(bytes(content) + b"hello")
    with pytest.raises(ModelError, match="damaged"):
        check_archive(tmp_path / "model.pt2")
