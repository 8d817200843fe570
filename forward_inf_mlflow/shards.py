"""Shards: the finished pieces of a long computation, kept so that a killed one goes on.

    <root>/                               what --work-dir names
      <32 hexadecimal digits>/            the SHA-256 of the key: what is computed
        key.json                          the key, to be read by people
        finished.json                     who finished it, where it is kept to be used again
        shards%2F00012-<16 digits>.npz    one piece: its name, a digest of that; plain arrays
        .<host>.<pid>.<random>.tmp        a piece that is being written
      .<host>.<pid>.<random>.removed/     a folder that is being removed

A piece is a pure function of key and name. It is written aside, synced and renamed, so that it is
there whole or not at all: whoever is killed repeats at most the piece it was making. For the same
reason processes may share a folder: what the last one renames is what was there. A piece carries
its SHA-256 and never a pickle; one that is damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor, nn

from forward_inf_mlflow.errors import ForwardInfError

#: Makes the arrays of one piece.
Make = Callable[[], Mapping[str, np.ndarray]]

_KEY, _FINISHED = "key.json", "finished.json"
#: Seconds after which a temporary file is nobody's, whatever wrote it on whichever machine.
_DAY = 86400.0


class WorkFolder:
    """Finished pieces of one computation, each a whole file, in a folder named by what it computes.

    Attributes:
        folder: Where the pieces are.
        done: How many were there when the folder was opened.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self.folder, self.done = folder, done

    @classmethod
    def open(cls, root: Path, key: Mapping[str, object], *, fresh: bool = False) -> WorkFolder:
        """Find the folder of a computation, or make it.

        Args:
            root: Where all computations have their folders.
            key: Everything that the results depend on, as JSON: model, rows, settings, batch size,
                threads, versions.
            fresh: Begin again, whatever is there.

        Raises:
            ForwardInfError: The folder cannot be used, or is that of another computation.
        """
        text = _canonical(key)
        folder = root / hashlib.sha256(text.encode()).hexdigest()[:32]
        with _usable(root):
            root.mkdir(parents=True, exist_ok=True)
            if fresh:
                _discard(folder)
            folder.mkdir(exist_ok=True)
            _clean(root, folder)
            found = _read_key(folder)
            if found is None:
                readable = json.dumps(key, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
                _write(folder / _KEY, readable.encode())
            elif found != text:
                raise ForwardInfError(
                    f"{folder / _KEY} does not say what is computed here: begin again with "
                    "--fresh, or name another folder with --work-dir"
                )
            return cls(folder, len(_listed(folder, "*.npz")))

    def once(self, name: str, make: Make) -> dict[str, np.ndarray]:
        """Return a piece: read if it is there, else made, stored and returned as it would be read.

        Args:
            name: Any text; it becomes a file's name.
            make: Makes the arrays, of numbers or text; its errors pass.

        Raises:
            ForwardInfError: The piece cannot be written; those before it are kept.
        """
        path = self._path(name)
        found = _read(path)
        if found is None:
            data = _pack(name, make())
            with _usable(self.folder):
                _write(path, data)
            found = _unpack(data)
        return found

    def finished(self, name: str) -> bool:
        """Say whether the piece is there; a damaged one is, until it is asked for."""
        return self._path(name).exists()

    def finish(self, by: str) -> None:
        """Say that all pieces are there, and who made the last; they may be used again.

        Raises:
            ForwardInfError: That cannot be written.
        """
        with _usable(self.folder):
            _write(self.folder / _FINISHED, json.dumps({"by": by}).encode())

    @property
    def finished_by(self) -> str | None:
        """Return who finished it last, None if nobody has."""
        try:
            found = json.loads((self.folder / _FINISHED).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return str(found["by"]) if isinstance(found, dict) and "by" in found else None

    def forget(self, name: str) -> None:
        """Remove one piece, if it is there."""
        with _usable(self.folder):
            self._path(name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder. Another process at work in it goes on, but keeps nothing more.

        Raises:
            ForwardInfError: It cannot be removed.
        """
        with _usable(self.folder):
            _discard(self.folder)

    def _path(self, name: str) -> Path:
        # The digest tells names apart that are long, or that a file system takes for one (A, a).
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self.folder / f"{quote(name, safe='', errors='replace')[:100]}-{digest}.npz"


def prune(root: Path, most: int) -> None:
    """Remove finished folders, the one that was used longest ago first, down to so many bytes.

    Folders of interrupted computations stay: they are waited for.
    """
    found = []
    for note in root.glob(f"*/{_FINISHED}"):
        with contextlib.suppress(OSError):  # another process removes it just now
            size = sum(file.stat().st_size for file in note.parent.iterdir())
            found.append((note.stat().st_mtime_ns, size, note.parent))
    total = sum(size for _, size, _ in found)
    for _, size, folder in sorted(found):
        if total <= most:
            return
        _discard(folder)
        total -= size


def digest_arrays(*arrays: np.ndarray | Tensor) -> str:
    """Return the SHA-256 of dtypes, shapes and bytes, for a key; an array and its tensor are equal.

    Args:
        arrays: Numbers or text of any shape; not Python objects.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for array in arrays:
        _add(digest, "", array)
    return digest.hexdigest()


def digest_module(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, for a key.

    Names, dtypes, shapes, bytes, and which parameters are trainable; it does not depend on the
    device. The code that uses them is not part of it: the key needs the model's version too.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        _add(digest, f"{'trainable' if parameter.requires_grad else 'frozen'} {name}", parameter)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        _add(digest, f"buffer {name}", buffer)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, array: np.ndarray | Tensor) -> None:
    """Add a header that says what follows, so that no value can pass for another, and bytes."""
    shape = list(array.shape)
    if isinstance(array, Tensor):
        kind = str(array.dtype).removeprefix("torch.")
        # As bytes: numpy has no bfloat16.
        flat = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        if array.dtype.hasobject:
            raise TypeError("an array of Python objects has no digest: give numbers or text")
        kind = array.dtype.name
        flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    header = json.dumps([name, kind, shape]).encode()
    digest.update(len(header).to_bytes(8, "little") + header)
    digest.update(flat.data)


def _pack(name: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return a npz file with its SHA-256 behind: zip's checksums do not cover its table."""
    for key, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"array {key!r} of piece {name!r} holds Python objects")
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its flag allow_pickle is no array's name
    data = file.getvalue()
    return data + hashlib.sha256(data).digest()


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a piece, C or Fortran ordered as they were packed, writable.

    Raises:
        ValueError: The piece is damaged or holds a pickle.
    """
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise ValueError("not what was written")
    arrays: np.lib.npyio.NpzFile = np.load(io.BytesIO(data), allow_pickle=False)
    with arrays:
        return {name: arrays[name] for name in arrays.files}


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """Return a piece, or None if it is not there or damaged."""
    try:
        return _unpack(path.read_bytes())
    except (OSError, ValueError):
        return None


def _canonical(key: object) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read_key(folder: Path) -> str | None:
    """Return the canonical text of the folder's key, "" if it has none; None if no key is there."""
    try:
        return _canonical(json.loads((folder / _KEY).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return ""


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(_name("tmp"))
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a machine that stops might keep the name and no content
        aside.replace(path)
    except FileNotFoundError:
        # The folder is gone: another process has finished the same computation.
        return
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _discard(folder: Path) -> None:
    """Remove a folder: renamed first, so that nobody sees a part of it.

    Another process may just be putting a file there; then the rest goes when a folder is opened.
    """
    aside = folder.with_name(_name("removed"))
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Return what is in a folder; nothing if another process has just finished and removed it."""
    try:
        return list(folder.glob(pattern))
    except FileNotFoundError:
        return []


def _clean(root: Path, folder: Path) -> None:
    """Remove what killed processes have left behind."""
    for path in (*_listed(folder, ".*.tmp"), *_listed(root, ".*.removed")):
        if _abandoned(path):
            if path.suffix == ".tmp":
                path.unlink(missing_ok=True)
            else:
                shutil.rmtree(path, ignore_errors=True)  # another may be at it


def _name(ending: str) -> str:
    return f".{quote(platform.node(), safe='')}.{os.getpid()}.{uuid.uuid4().hex}.{ending}"


def _abandoned(path: Path) -> bool:
    """Say whether the process that made a temporary file is gone.

    Should that be wrong (containers may share a host's name but not its processes), its owner finds
    the file gone and stores one piece less.
    """
    host, process, *_ = path.name.rsplit(".", 3)
    here = _name("").rsplit(".", 3)[0]
    if host == here and process.isdigit() and not _lives(process):
        return True
    try:
        return time.time() - path.stat().st_mtime > _DAY
    except FileNotFoundError:
        return False


def _lives(process: str) -> bool:
    if os.name != "posix":  # elsewhere a signal of 0 is no question
        return True
    try:
        os.kill(int(process), 0)
    except PermissionError:  # it is another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ForwardInfError(
            f"cannot write to the work folder {folder}: {error.strerror or error}; make room or "
            "name another with --work-dir (finished pieces are kept: the same command goes on)"
        ) from error
