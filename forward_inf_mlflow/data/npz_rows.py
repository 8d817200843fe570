"""Rows of one array in a npz file, without reading the whole of it."""

from __future__ import annotations

import math
import struct
import weakref
import zipfile
from pathlib import Path
from typing import IO, Literal

import numpy as np

from forward_inf_mlflow.data.reading import listing, readable
from forward_inf_mlflow.errors import DataError

#: Bytes that are skipped at a time.
_SKIP = 2**20


class NpzArray:
    """One array of a npz file, read by rows.

    Stored (``np.savez``), it is read where it lies, and zip's checksum is not compared. Compressed
    (``np.savez_compressed``), it is read forward; going back begins anew. What a file claims is
    never believed with memory: no more is held than the rows that were asked for.
    """

    def __init__(self, path: Path, name: str, *, uri: str) -> None:
        """Open the file and read what the array is.

        Args:
            path: The file.
            name: The array.
            uri: What messages call the file.

        Raises:
            DataError: The file cannot be read, or holds no such array of numbers or text.
        """
        self._path, self._uri = path, f"{uri}: array {name!r}"
        with readable(uri, "npz"), zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            names = [n.removesuffix(".npy") for n in members if n.endswith(".npy")]
            if name not in names:
                raise DataError(f"{uri}: no array {name!r}; name one of {listing(names)}")
            self._info = archive.getinfo(f"{name}.npy")
            with archive.open(self._info) as file:
                self._shape, self._fortran, self._dtype = _header(file)
                self._start = file.tell()
            with path.open("rb") as whole:
                whole.seek(self._info.header_offset)
                name_length, extra_length = struct.unpack("<26xHH", whole.read(30))
        self._offset = self._info.header_offset + 30 + name_length + extra_length + self._start
        size = math.prod(self._shape) * self._dtype.itemsize
        if self._dtype.hasobject:
            raise DataError(
                f"{self._uri} holds Python objects, which are pickles and never loaded; store "
                "numbers or text"
            )
        if not self._shape or min(self._shape) < 1 or self._start + size != self._info.file_size:
            raise DataError(
                f"{self._uri} claims the shape {self._shape}, but there are "
                f"{self._info.file_size - self._start} bytes; write it again with np.savez"
            )
        self._stored = self._info.compress_type == zipfile.ZIP_STORED
        if self._fortran and len(self._shape) > 1 and not self._stored:
            raise DataError(
                f"{self._uri} is compressed column by column, and rows are wanted; store "
                "np.ascontiguousarray of it, or use np.savez"
            )
        self._file: IO[bytes] | None = None
        self._at = 0  # bytes of the array that have been read from the file

    def __len__(self) -> int:
        return self._shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return these rows, ``(stop - start, ...)``, in memory of their own.

        Raises:
            DataError: The file is damaged or was changed.
        """
        with readable(self._uri, "an array"):
            some = self._mapped(start, stop) if self._stored else self._unpacked(start, stop)
            return np.array(some, dtype=self._dtype.newbyteorder("="), order="C")

    def _mapped(self, start: int, stop: int) -> np.ndarray:
        # Mapped for these rows alone: what stays mapped counts as the process's memory.
        order: Literal["F", "C"] = "F" if self._fortran else "C"
        whole = np.memmap(
            self._path, self._dtype, mode="r", offset=self._offset, shape=self._shape, order=order
        )
        return whole[start:stop]

    def _unpacked(self, start: int, stop: int) -> np.ndarray:
        width = math.prod(self._shape[1:]) * self._dtype.itemsize
        if self._file is None or self._at > start * width:
            archive = zipfile.ZipFile(self._path)
            weakref.finalize(self, archive.close)
            self._file, self._at = archive.open(self._info), -self._start
        while self._at < start * width:
            self._take(min(_SKIP, start * width - self._at))
        data = self._take((stop - start) * width)
        return np.frombuffer(data, self._dtype).reshape(-1, *self._shape[1:])

    def _take(self, size: int) -> bytes:
        assert self._file is not None
        data = self._file.read(size)
        self._at += len(data)
        if len(data) < size:
            raise EOFError("it ends too early")
        return data


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether it lies column by column, and dtype; no data are read."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"its format has version {version}")
