"""The digest of a model's files: what changes it, what does not, and what has none."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from forward_inf_mlflow.errors import ModelError
from forward_inf_mlflow.models import content
from forward_inf_mlflow.models.content import content_sha256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "data").mkdir(parents=True)
    (root / "MLmodel").write_text("flavors: {}")
    (root / "data" / "model.pt2").write_bytes(b"weights")
    return root


def test_the_digest_is_the_one_that_the_docs_describe(folder: Path) -> None:
    expected = hashlib.sha256()
    for name, data in ((b"MLmodel", b"flavors: {}"), (b"data/model.pt2", b"weights")):
        expected.update(len(name).to_bytes(8, "big") + name + len(data).to_bytes(8, "big"))
        expected.update(hashlib.sha256(data).digest())
    assert content_sha256(folder) == expected.hexdigest()


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": lambda f: (f / "data" / "model.pt2").write_bytes(b"weightz"),
    "a byte more": lambda f: (f / "data" / "model.pt2").write_bytes(b"weights\0"),
    "a name": lambda f: (f / "data" / "model.pt2").rename(f / "data" / "model.pth"),
    "a place": lambda f: (f / "data" / "model.pt2").rename(f / "model.pt2"),
    "a file more": lambda f: (f / "empty").write_bytes(b""),
    "a hidden file": lambda f: (f / ".hidden").write_bytes(b""),
    "a file less": lambda f: (f / "MLmodel").unlink(),
    "such a name elsewhere": lambda f: (f / "data" / "registered_model_meta").write_text("x"),
    "two files in one": lambda f: (f / "MLmodel").write_bytes(b"flavors: {}weights"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_changes_the_content_changes_the_digest(
    change: Callable[[Path], object], folder: Path
) -> None:
    before = content_sha256(folder)
    change(folder)
    assert content_sha256(folder) != before


def test_what_is_no_content_does_not_change_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content_sha256(folder)
    (folder / "registered_model_meta").write_text("model_name: m")
    (folder / "nothing").mkdir()
    os.utime(folder / "MLmodel", (0, 0))
    (folder / "MLmodel").chmod(0o600)
    assert content_sha256(folder) == before
    monkeypatch.setattr(content, "_BLOCK", 3)
    assert content_sha256(folder) == before
    moved = folder.rename(folder.with_name("elsewhere"))
    link = folder.with_name("link")
    link.symlink_to(moved)
    assert content_sha256(link) == before


def test_a_link_within_counts_as_its_file(folder: Path) -> None:
    (folder / "again").write_bytes(b"weights")
    before = content_sha256(folder)
    (folder / "again").unlink()
    (folder / "again").symlink_to(Path("data", "model.pt2"))
    assert content_sha256(folder) == before


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link out": (lambda f: (f / "x").symlink_to("/etc/passwd"), "leads out"),
    "a link up": (lambda f: (f / "data" / "x").symlink_to("../.."), "leads out"),
    "a link to nowhere": (lambda f: (f / "x").symlink_to("gone"), "cannot be read"),
    "a link to a folder": (lambda f: (f / "x").symlink_to("data"), "to a folder"),
    "a link to itself": (lambda f: (f / "x").symlink_to("x"), "cannot be read"),
    "a pipe": (lambda f: os.mkfifo(f / "x"), "no file"),
    "nothing": (lambda f: [p.unlink() for p in (f / "MLmodel", f / "data/model.pt2")], "no files"),
}


@pytest.mark.parametrize(("spoil", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_folder_of_files_is_refused(
    spoil: Callable[[Path], object], said: str, folder: Path
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=said) as caught:
        content_sha256(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="cannot be read"):
        content_sha256(folder / "none")


def test_it_needs_neither_torch_nor_mlflow() -> None:
    code = (
        "import sys, forward_inf_mlflow.models.content; "
        "sys.exit(bool({'torch', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
