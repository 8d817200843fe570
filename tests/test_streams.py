"""Streams: the same rows as reading everything at once, and never more memory than a part."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from stored_rows import (
    CPU,
    SOURCES,
    WHOLE,
    N,
    X,
    as_tensors,
    check,
    compressed,
    npz,
    one_file,
    parquet,
    peak,
    stored,
    table,
)
from torch import Tensor

from forward_inf_mlflow.streams import IterableStream
from forward_inf_mlflow.tensors import Stream


@pytest.fixture(params=SOURCES, ids=[source.__name__ for source in SOURCES])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Stream:
    made: Stream = request.param(tmp_path)
    return made


@pytest.mark.parametrize("size", [1, 7, 8, 16, 52, N, 1000])
def test_parts_of_any_size_are_the_rows_that_are_stored(stream: Stream, size: int) -> None:
    assert len(stream) == N
    assert stream.batch_size == 8
    for start in range(0, N, size):
        check(stream, start, start + size)


def test_parts_may_be_asked_for_in_any_order_and_again(stream: Stream) -> None:
    rng = np.random.default_rng(0)
    for start in rng.integers(0, N, size=40):
        check(stream, int(start), int(start + rng.integers(0, 20)))
    check(stream, 0, N)
    check(stream, 0, N)


def test_a_part_beyond_the_end_or_without_rows_is_what_memory_gives(stream: Stream) -> None:
    for start, stop in ((50, 99), (N, N + 5), (99, 200), (5, 5), (6, 5), (-3, N)):
        check(stream, start, stop)


def test_a_part_may_be_changed_without_changing_the_next(stream: Stream) -> None:
    stream.part(0, 5).inputs.zero_()
    check(stream, 0, 5)


def test_text_labels_and_mixed_columns_reach_prepare_as_they_are_stored(tmp_path: Path) -> None:
    seen: list[tuple[Any, Any]] = []

    def keep(features: Any, labels: Any) -> tuple[Tensor, Tensor]:
        seen.append((features, labels))
        return torch.zeros(len(labels), 1), torch.zeros(len(labels))

    frame = pd.DataFrame({"n": [1, 2, 3], "t": ["a", "b", "c"], "class": ["x", "y", "x"]})
    frame["kind"] = frame["t"].astype("category")
    frame.to_parquet(tmp_path / "a.parquet")
    parquet(tmp_path / "a.parquet", ["t", "n", "kind"], prepare=keep).part(0, 3)
    np.savez(tmp_path / "a.npz", x=X[:3], y=np.array(["x", "y", "x"]))
    npz(tmp_path / "a.npz", prepare=keep).part(0, 3)
    assert list(seen[0][0].columns) == ["t", "n", "kind"]
    assert seen[0][0].to_numpy().tolist() == [["a", 1, "a"], ["b", 2, "b"], ["c", 3, "c"]]
    assert [list(labels) for _, labels in seen] == [["x", "y", "x"]] * 2


@pytest.mark.parametrize(("device", "pinned"), [("cuda", 2), ("cpu", 0)])
def test_a_batch_is_pinned_where_it_goes_to_a_cuda_device_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, pinned: int
) -> None:
    pins: list[Tensor] = []
    moves: list[tuple[torch.device, bool]] = []

    def pin(rows: Tensor) -> Tensor:
        pins.append(rows)
        return rows

    def to(rows: Tensor, where: torch.device, *, non_blocking: bool) -> Tensor:
        moves.append((where, non_blocking))
        return rows

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    batch = replace(WHOLE, device=torch.device(device)).batch(slice(3, 5))
    assert len(pins) == pinned
    assert moves == [(torch.device(device), True)] * 2
    assert torch.equal(batch.inputs, WHOLE.inputs[3:5])


def tall(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)


def tall_parquet(path: Path, n: int) -> Callable[[], Stream]:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(tall(n).ravel()), 64)
    data = pa.table({"x": lists, "class": np.arange(n)})
    pq.write_table(data, path, row_group_size=n, data_page_size=2**14, use_dictionary=False)
    return lambda: parquet(path, ["x"], prepare=as_tensors, batch_size=64)


def tall_stored(path: Path, n: int) -> Callable[[], Stream]:
    with path.open("wb") as file:
        np.savez(file, x=tall(n), y=np.arange(n))
    return lambda: npz(path, prepare=as_tensors, batch_size=64)


def tall_compressed(path: Path, n: int) -> Callable[[], Stream]:
    with path.open("wb") as file:
        np.savez_compressed(file, x=tall(n), y=np.arange(n))
    return lambda: npz(path, prepare=as_tensors, batch_size=64)


@pytest.mark.parametrize("make", [tall_parquet, tall_stored, tall_compressed])
def test_ten_times_the_rows_take_the_same_memory(
    tmp_path: Path, make: Callable[[Path, int], Callable[[], Stream]]
) -> None:
    def read(opened: Callable[[], Stream]) -> int:
        stream, total = opened(), 0.0
        for start in range(0, len(stream), 256):
            total += float(stream.part(start, start + 256).inputs[0, 0])
        return len(stream)

    few, many = make(tmp_path / "few", 2_000), make(tmp_path / "many", 20_000)
    read(few)  # what is only imported once
    peaks = [peak(lambda opened=opened: read(opened)) for opened in (few, many)]  # type: ignore[misc]
    assert peaks[1] < 1.1 * peaks[0] + 2**16, peaks
    assert peaks[1] < 20_000 * 64 * 4 / 3, "nor is that everything"


def test_no_more_of_an_iterable_is_read_than_the_part_needs() -> None:
    given = []

    def make() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, 1000, 10):
            given.append(start)
            yield torch.arange(start, start + 10.0), torch.zeros(10)

    stream = IterableStream(make, 1000, device=CPU, batch_size=10)
    assert given == []
    stream.part(0, 25)
    stream.part(25, 30)
    assert given == [0, 10, 20]
    stream.part(500, 501)
    assert given == list(range(0, 510, 10))
    assert torch.equal(stream.part(3, 5).inputs, torch.tensor([3.0, 4.0]))
    assert given[-2:] == [500, 0], "going back begins anew"


def test_a_parquet_file_is_read_from_the_row_group_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(table(), tmp_path / "a.parquet", row_group_size=10)
    stream = parquet(tmp_path / "a.parquet")
    groups: list[list[int]] = []
    real = pq.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, row_groups: list[int], **rest: Any) -> Any:
        groups.append(row_groups)
        return real(self, *args, row_groups=row_groups, **rest)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    check(stream, 41, 45)
    check(stream, 45, 47)
    check(stream, 20, 22)
    assert groups == [[4, 5], [2, 3, 4, 5]]


def test_files_are_closed_when_a_stream_is_gone(tmp_path: Path) -> None:
    # As an error it would be swallowed where files are collected: so it is recorded.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        for i, source in enumerate((one_file, stored, compressed)):
            (tmp_path / str(i)).mkdir()
            stream = source(tmp_path / str(i))
            stream.part(0, 20)
            del stream
            gc.collect()
    assert not [one for one in told if issubclass(one.category, ResourceWarning)]
