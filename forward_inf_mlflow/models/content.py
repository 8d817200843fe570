"""A digest of a model's files: the same bytes under the same names have the same, and no others."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from forward_inf_mlflow.errors import ModelError

#: What MLflow writes beside a registered model's files while it downloads them.
_MLFLOWS_OWN = "registered_model_meta"
_BLOCK = 1 << 20


def content_sha256(folder: Path) -> str:
    """Return the SHA-256 over all files of a model's folder, as hexadecimal digits.

    Files are taken in the order of their POSIX paths within the folder; of each, the path behind
    its length, the size, and the SHA-256 of the bytes. Empty folders, times and permissions do not
    count. A link to a file of the folder counts as that file.

    Raises:
        ModelError: The folder has no files, a link leads out of it or to a folder, something in it
            is no file, or it cannot be read.
    """
    total = hashlib.sha256()
    try:
        root = folder.resolve(strict=True)
        found = {os.fsencode(path.relative_to(root).as_posix()): path for path in _files(root)}
        for name in sorted(found):
            size, digest = _read(found[name])
            total.update(len(name).to_bytes(8, "big") + name + size.to_bytes(8, "big") + digest)
    except (OSError, RuntimeError) as error:  # the latter for links in a circle
        reason = getattr(error, "strerror", None) or "links in a circle"
        raise ModelError(f"the model's files cannot be read: {reason}") from error
    if not found:
        raise ModelError("the model has no files: log it again")
    return total.hexdigest()


def _files(root: Path) -> list[Path]:
    """Return the paths of all files that count; links are checked and not followed by folders."""
    found = []
    for place, folders, names in os.walk(root, onerror=_raise):
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ModelError("a link among the model's files leads out: do not use this model")
            if path.is_symlink() and path.is_dir():
                raise ModelError("a link among the model's files is to a folder: log it again")
        found += [Path(place, name) for name in names]
    return [path for path in found if path != root / _MLFLOWS_OWN]


def _read(path: Path) -> tuple[int, bytes]:
    """Return a file's size in bytes and the SHA-256 of its content."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be read for ever
        raise ModelError("one of the model's files is no file: do not use this model")
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            digest.update(block)
    return size, digest.digest()


def _raise(error: OSError) -> None:
    raise error  # else a folder that cannot be read would count as empty
