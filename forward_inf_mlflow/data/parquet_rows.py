"""Rows of parquet files, a batch at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from forward_inf_mlflow.data.acceptance import check_named_once
from forward_inf_mlflow.data.reading import listing, readable
from forward_inf_mlflow.errors import DataError

#: Bytes of each column that are read at a time; a row group may be larger than memory.
_BUFFER = 2**16


class ParquetBatch(NamedTuple):
    """Some rows: the number of the first, features ``(B, d)`` or ``(B, ...)``, labels ``(B,)``."""

    first: int
    features: pd.DataFrame | np.ndarray
    labels: np.ndarray


class ParquetRows:
    """The rows of a parquet file, or of a folder's parquet files in sorted order.

    Memory holds one batch and a small buffer for each column, however large a row group is.
    """

    def __init__(self, path: Path, *, features: Sequence[str], label: str, uri: str) -> None:
        """Open the files and read how many rows they hold.

        Args:
            path: The file or folder.
            features: Columns of numbers or text, which become a frame; or one column of lists of
                numbers, of lists of such lists and so on, all of one length, which becomes an
                array.
            label: The label's column.
            uri: What messages call it.

        Raises:
            DataError: A file cannot be read, or a column is missing.
        """
        if not features:
            raise DataError(f"{uri}: no feature column is named; name at least one")
        self._features, self._label = list(features), label
        with readable(uri, "parquet"):
            self._files = {path: uri}
            if path.is_dir():
                parts = sorted(p for p in path.iterdir() if p.suffix in {".parquet", ".pq"})
                self._files = {part: f"{uri}/{part.name}" for part in parts}
        self._count = 0
        for part, name in self._files.items():
            with readable(name, "parquet"), pq.ParquetFile(part) as file:
                self._check(file.schema_arrow, name)
                self._count += file.metadata.num_rows

    def __len__(self) -> int:
        return self._count

    def batches(self, row: int, size: int) -> Iterator[ParquetBatch]:
        """Yield batches of at most ``size`` rows in order, from the row group that holds ``row``.

        Raises:
            DataError: A file is damaged, or lists are not all of one length.
        """
        first = 0
        for path, name in self._files.items():
            with readable(name, "parquet"), _opened(path) as file:
                group, groups = 0, file.num_row_groups
                while group < groups and first + file.metadata.row_group(group).num_rows <= row:
                    first += file.metadata.row_group(group).num_rows
                    group += 1
                for batch in file.iter_batches(
                    size,
                    row_groups=list(range(group, groups)),
                    columns=[*self._features, self._label],
                    use_threads=False,
                ):
                    if len(batch):
                        yield self._batch(batch, first, name)
                    first += len(batch)

    def _check(self, schema: pa.Schema, uri: str) -> None:
        check_named_once(schema.names, uri)
        for name in (*self._features, self._label):
            if name not in schema.names:
                raise DataError(f"{uri}: no column {name!r}; name one of {listing(schema.names)}")
            if _is_list(schema.field(name).type) and [name] != self._features:
                raise DataError(f"{uri}: {name!r} holds lists; make it the only feature column")

    def _batch(self, batch: pa.RecordBatch, first: int, uri: str) -> ParquetBatch:
        labels = np.array(batch.column(self._label).to_pandas())
        column = batch.column(self._features[0])
        if _is_list(column.type):
            name = f"{uri}: column {self._features[0]!r}"
            return ParquetBatch(first, _stacked(column, name, first), labels)
        table = pa.Table.from_batches([batch]).select(self._features)
        # What pandas noted in the file might make a feature the index.
        return ParquetBatch(first, table.to_pandas(ignore_metadata=True), labels)


def _opened(path: Path) -> pq.ParquetFile:
    """Open a file so that its batches are given back to the system as soon as they are gone.

    Arrow's own allocators keep what one thread took and another freed: measured, up to 200 MB for
    batches of 1 MB, more the more rows there are. A reader keeps the allocator it was made under.
    """
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        return pq.ParquetFile(
            path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
        )
    finally:
        pa.set_memory_pool(usual)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _stacked(column: pa.Array, name: str, first: int) -> np.ndarray:
    """Return lists of one length, of numbers or such lists, as an array ``(B, ...)``."""
    shape = [len(column)]

    def refuse(bad: np.ndarray, why: str) -> None:
        if bad.any():
            row = first + int(np.argmax(bad)) // math.prod(shape[1:])
            raise DataError(f"{name} {why} in row {row}; store numbers in lists of one length")

    while True:
        refuse(column.is_null().to_numpy(zero_copy_only=False), "has a gap")
        if not _is_list(column.type):
            break
        lengths = pc.list_value_length(column).to_numpy()
        refuse(lengths != lengths[0], f"has another length than {lengths[0]}")
        shape.append(int(lengths[0]))
        column = column.flatten()
    refuse(np.array([not pa.types.is_primitive(column.type)]), f"holds {column.type}")
    return np.array(column.to_numpy(zero_copy_only=False)).reshape(shape)
