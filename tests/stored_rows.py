"""The same rows in memory and in every form that a stream reads, and what reading them holds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from forward_inf_mlflow.models.inputs import InputSpec
from forward_inf_mlflow.streams import IterableStream, NpzStream, ParquetStream
from forward_inf_mlflow.tensors import Stream, Tensors

CPU = torch.device("cpu")
N = 53
X = np.random.default_rng(0).normal(size=(N, 2, 3)).astype(np.float32)
Y = np.arange(N) % 4
WHOLE = Tensors(inputs=torch.as_tensor(X), targets=torch.as_tensor(Y), device=CPU, batch_size=8)


def prepare(features: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Do as an audit does: a model says which numbers it takes, and labels become classes."""
    inputs = InputSpec(np.dtype(np.float32), (2, 3)).prepare(features)
    return torch.as_tensor(inputs), torch.as_tensor(np.asarray(labels, dtype=np.int64))


def table(x: np.ndarray = X, y: np.ndarray = Y) -> pa.Table:
    flat = x.reshape(len(x), 6)
    columns = {f"c{i}": flat[:, i] for i in range(flat.shape[1])}
    return pa.table({"key": [f"r{i}" for i in range(len(x))], **columns, "class": y})


COLUMNS = [f"c{i}" for i in range(6)]


def parquet(path: Path, columns: Iterable[str] = COLUMNS, **changes: Any) -> ParquetStream:
    settings: dict[str, Any] = {"prepare": prepare, "device": CPU, "batch_size": 8} | changes
    return ParquetStream(path, features=list(columns), label="class", **settings)


def npz(path: Path, **changes: Any) -> NpzStream:
    settings: dict[str, Any] = {"prepare": prepare, "device": CPU, "batch_size": 8} | changes
    return NpzStream(path, **settings)


def one_file(folder: Path) -> Stream:
    pq.write_table(table(), folder / "a.parquet", row_group_size=11)
    return parquet(folder / "a.parquet")


def one_row_group(folder: Path) -> Stream:
    pq.write_table(table(), folder / "a.parquet")
    return parquet(folder / "a.parquet")


def with_an_index(folder: Path) -> Stream:
    frame = table().to_pandas().set_index("c2")
    frame.to_parquet(folder / "a.pq", row_group_size=20)
    return parquet(folder / "a.pq")


def several_files(folder: Path) -> Stream:
    (folder / "parts").mkdir()
    for i, (start, stop) in enumerate([(0, 10), (10, 10), (10, 40), (40, N)]):
        path = folder / "parts" / f"{i}.parquet"
        pq.write_table(table(X[start:stop], Y[start:stop]), path, row_group_size=7)
    (folder / "parts" / "_SUCCESS").touch()
    return parquet(folder / "parts")


def fixed_lists(folder: Path) -> Stream:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 6)
    pq.write_table(pa.table({"x": lists, "class": Y}), folder / "a.parquet", row_group_size=9)
    return parquet(folder / "a.parquet", ["x"])


def lists_of_lists(folder: Path) -> Stream:
    lists = pa.array(X.tolist(), pa.large_list(pa.list_(pa.float32())))
    pq.write_table(pa.table({"x": lists, "class": Y}), folder / "a.parquet", row_group_size=9)
    return parquet(folder / "a.parquet", ["x"])


def stored(folder: Path) -> Stream:
    np.savez(folder / "a.npz", x=X, other=np.zeros(3), y=Y)
    return npz(folder / "a.npz")


def stored_by_column(folder: Path) -> Stream:
    np.savez(folder / "a.npz", y=Y, x=np.asfortranarray(X))
    return npz(folder / "a.npz")


def stored_the_other_way_round(folder: Path) -> Stream:
    np.savez(folder / "a.npz", y=Y.astype(">i2"), x=X.astype(">f8"))
    return npz(folder / "a.npz")


def compressed(folder: Path) -> Stream:
    np.savez_compressed(folder / "a.npz", data=X, label=Y)
    return npz(folder / "a.npz", features="data", label="label")


def loader(folder: Path) -> Stream:
    rows = TensorDataset(torch.as_tensor(X), torch.as_tensor(Y))
    return IterableStream(lambda: DataLoader(rows, batch_size=10), N, device=CPU, batch_size=8)


def generator(folder: Path) -> Stream:
    def make() -> Iterator[tuple[np.ndarray, list[int]]]:
        for start, stop in [(0, 1), (1, 30), (30, 30), (30, N)]:
            yield X[start:stop].reshape(-1, 6), Y[start:stop].tolist()

    return IterableStream(make, N, prepare=prepare, device=CPU, batch_size=8)


SOURCES = [
    one_file,
    one_row_group,
    with_an_index,
    several_files,
    fixed_lists,
    lists_of_lists,
    stored,
    stored_by_column,
    stored_the_other_way_round,
    compressed,
    loader,
    generator,
]


def check(stream: Stream, start: int, stop: int) -> None:
    found, wanted = stream.part(start, stop), WHOLE.part(start, stop)
    assert torch.equal(found.inputs, wanted.inputs), (start, stop)
    assert torch.equal(found.targets, wanted.targets), (start, stop)
    assert found.inputs.dtype == wanted.inputs.dtype
    assert found.targets.dtype == wanted.targets.dtype
    assert (found.device, found.batch_size) == (CPU, 8)


#: Bytes that arrow held whenever rows were prepared.
HELD: list[int] = []


def peak(work: Callable[[], object]) -> int:
    """Return the bytes that numpy held at most, and arrow while rows were prepared."""
    HELD[:] = [0]
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] + max(HELD)
    finally:
        tracemalloc.stop()


def as_tensors(features: Any, labels: Any) -> tuple[Tensor, Tensor]:
    HELD.append(pa.total_allocated_bytes() + pa.system_memory_pool().bytes_allocated())
    numbers = np.array(features, dtype=np.float32)
    return torch.as_tensor(numbers), torch.as_tensor(np.array(labels))
