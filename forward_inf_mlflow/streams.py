"""Streams: training rows that stay on disk, so that memory does not grow with their number.

Each is a ``tensors.Stream`` and holds no more than the part that was asked for and one batch.
Reading parts in order is fastest. ``prepare`` turns stored rows into what the model takes, batch by
batch, so it must treat each row alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forward_inf_mlflow.data.npz_rows import NpzArray
from forward_inf_mlflow.data.parquet_rows import ParquetRows
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.tensors import Tensors

#: From stored features ``(B, d)`` (a frame) or ``(B, ...)`` (an array) and labels ``(B,)`` to
#: inputs ``(B, ...)`` and targets ``(B, ...)`` on the host.
Prepare = Callable[[Any, Any], tuple[Tensor, Tensor]]


class _Chunk(NamedTuple):
    """Rows as the model takes them, and the number of the first."""

    first: int
    inputs: Tensor
    targets: Tensor

    @property
    def stop(self) -> int:
        return self.first + len(self.targets)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.inputs, self.targets


class _Stream(ABC):
    """Rows that are read in chunks."""

    def __init__(
        self, uri: str, rows: int, prepare: Prepare, device: torch.device, batch_size: int
    ) -> None:
        if rows < 1:
            raise DataError(f"{uri} holds no rows; name data that has some")
        self.uri, self.device, self.batch_size = uri, device, batch_size
        self._rows, self._prepare = rows, prepare
        self._like: tuple[object, ...] | None = None

    def __len__(self) -> int:
        return self._rows

    def part(self, start: int, stop: int) -> Tensors:
        """Return the rows from ``start`` up to ``stop``, in memory of their own.

        Raises:
            DataError: The rows cannot be read, or are not all of one shape.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        if start >= stop:
            return self.part(0, 1).part(0, 0)
        at, whole = start, None
        while at < stop:
            chunk = self._chunk(at, stop)
            if whole is None:
                whole = [x.new_empty(stop - start, *x.shape[1:]) for x in chunk.tensors]
            end = min(chunk.stop, stop)
            for all_rows, some in zip(whole, chunk.tensors, strict=True):
                all_rows[at - start : end - start] = some[at - chunk.first : end - chunk.first]
            at = end
        assert whole is not None
        inputs, targets = whole
        return Tensors(
            inputs=inputs, targets=targets, device=self.device, batch_size=self.batch_size
        )

    @abstractmethod
    def _chunk(self, row: int, stop: int) -> _Chunk:
        """Return a chunk with this row; rows from ``stop`` are not needed."""

    def _prepared(self, first: int, features: Any, labels: Any) -> _Chunk:
        where = f"{self.uri}, counted from row {first}"
        try:
            inputs, targets = self._prepare(features, labels)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if not all(isinstance(x, Tensor) and len(x) == len(labels) for x in (inputs, targets)):
            raise DataError(
                f"{where}: prepare does not return two tensors of {len(labels)} rows; make it"
            )
        like = (tuple(inputs.shape[1:]), inputs.dtype, tuple(targets.shape[1:]), targets.dtype)
        self._like = self._like or like
        if like != self._like:
            raise DataError(
                f"{where}: a row's inputs and targets are {_said(like)}, but {_said(self._like)} "
                "in other rows; give all rows the same"
            )
        return _Chunk(first, inputs, targets)


class _InOrder(_Stream):
    """Rows that can only be read forward; going back begins anew."""

    _held: _Chunk | None = None
    _unread: Iterator[tuple[int, Any, Any]] = iter(())

    @abstractmethod
    def _read(self, row: int) -> Iterator[tuple[int, Any, Any]]:
        """Yield first row, features and labels of one chunk after the other, some before ``row``.

        Nothing is read before the first is asked for.
        """

    def _chunk(self, row: int, stop: int) -> _Chunk:
        held, self._held = self._held, None  # an error on the way begins anew
        if held is None or row < held.first:
            held, self._unread = None, self._read(row)
        while held is None or row >= held.stop:
            read = next(self._unread, None)
            if read is None:
                raise self._miscounted("fewer")
            first, features, labels = read
            held = self._prepared(first, features, labels) if row < first + len(labels) else None
        if stop == len(self) <= held.stop:
            more = any(len(labels) for _, _, labels in self._unread)
            if more or held.stop > stop:
                raise self._miscounted("more")
        self._held = held
        return held

    def _miscounted(self, than: str) -> DataError:
        return DataError(
            f"{self.uri} holds {than} rows than the {len(self)} that were announced; announce the "
            "right number, or write the data again"
        )


class IterableStream(_InOrder):
    """Rows from anything that can be iterated again and again, such as a torch ``DataLoader``."""

    def __init__(
        self,
        make: Callable[[], Iterable[tuple[Any, Any]]],
        rows: int,
        *,
        device: torch.device,
        batch_size: int,
        prepare: Prepare = lambda features, labels: (features, labels),
        uri: str = "the iterable",
    ) -> None:
        """Take rows from pairs of features ``(B, ...)`` and labels ``(B, ...)``, for any B.

        Args:
            make: Begins anew, with the same rows in the same order.
            rows: How many there are.
            device: Where each batch goes.
            batch_size: Rows that the model reads at once.
            prepare: Makes tensors of a pair that holds something else.
            uri: What messages call it.
        """
        super().__init__(uri, rows, prepare, device, batch_size)
        self._make = make

    def _read(self, row: int) -> Iterator[tuple[int, Any, Any]]:
        first = 0
        for pair in self._make():
            try:
                features, labels = pair
            except (TypeError, ValueError):
                raise DataError(
                    f"{self.uri} gives {type(pair).__name__} objects; give pairs (features, labels)"
                ) from None
            yield first, features, labels
            first += len(labels)


class ParquetStream(_InOrder):
    """Rows of a parquet file, or of a folder's parquet files in sorted order."""

    def __init__(
        self,
        path: Path,
        *,
        features: Sequence[str],
        label: str,
        prepare: Prepare,
        device: torch.device,
        batch_size: int,
        uri: str | None = None,
    ) -> None:
        """Open the files and read how many rows they hold; see ``data.parquet_rows``.

        Args:
            path: The file or folder.
            features: Columns of numbers or text, or one column of lists of numbers.
            label: The label's column.
            prepare: Makes inputs and targets of a frame ``(B, d)``, or an array ``(B, ...)`` of
                lists, and labels ``(B,)``.
            device: Where each batch goes.
            batch_size: Rows that are read at once.
            uri: What messages call it; the path if None.

        Raises:
            DataError: A file cannot be read, or a column is missing.
        """
        uri = uri or str(path)
        self._source = ParquetRows(path, features=features, label=label, uri=uri)
        super().__init__(uri, len(self._source), prepare, device, batch_size)

    def _read(self, row: int) -> Iterator[tuple[int, Any, Any]]:
        return self._source.batches(row, self.batch_size)


class NpzStream(_Stream):
    """Rows of two arrays of a npz file; compressed ones are read forward only."""

    def __init__(
        self,
        path: Path,
        *,
        features: str = "x",
        label: str = "y",
        prepare: Prepare,
        device: torch.device,
        batch_size: int,
        uri: str | None = None,
    ) -> None:
        """Open the file and read what its arrays are.

        Args:
            path: The file.
            features: The array of numbers ``(n, ...)``.
            label: The array of labels ``(n, ...)``, numbers or text.
            prepare: Makes inputs and targets of both.
            device: Where each batch goes.
            batch_size: Rows that are read at once.
            uri: What messages call it; the path if None.

        Raises:
            DataError: The file cannot be read, or does not hold these arrays.
        """
        uri = uri or str(path)
        self._x, self._y = (NpzArray(path, name, uri=uri) for name in (features, label))
        if len(self._x) != len(self._y):
            raise DataError(
                f"{uri}: {features!r} has {len(self._x)} rows, but {label!r} {len(self._y)}; "
                "store one label a row"
            )
        super().__init__(uri, len(self._x), prepare, device, batch_size)

    def _chunk(self, row: int, stop: int) -> _Chunk:
        stop = min(row + self.batch_size, stop)
        return self._prepared(row, self._x.rows(row, stop), self._y.rows(row, stop))


def _said(like: tuple[object, ...]) -> str:
    return "{} {} and {} {}".format(*like)
