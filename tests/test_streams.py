"""Streams: the same rows as reading everything at once, and never more memory than a part."""

from __future__ import annotations

import gc
import io
import math
import pickle
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from forward_inf_mlflow.errors import DataError
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


@pytest.fixture(params=SOURCES, ids=[source.__name__ for source in SOURCES])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Stream:
    made: Stream = request.param(tmp_path)
    return made


def check(stream: Stream, start: int, stop: int) -> None:
    found, wanted = stream.part(start, stop), WHOLE.part(start, stop)
    assert torch.equal(found.inputs, wanted.inputs), (start, stop)
    assert torch.equal(found.targets, wanted.targets), (start, stop)
    assert found.inputs.dtype == wanted.inputs.dtype
    assert found.targets.dtype == wanted.targets.dtype
    assert (found.device, found.batch_size) == (CPU, 8)


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


# ---------------------------------------------------------------- memory


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


def tall(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)


def as_tensors(features: Any, labels: Any) -> tuple[Tensor, Tensor]:
    HELD.append(pa.total_allocated_bytes() + pa.system_memory_pool().bytes_allocated())
    numbers = np.array(features, dtype=np.float32)
    return torch.as_tensor(numbers), torch.as_tensor(np.array(labels))


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


# ---------------------------------------------------------------- bad input


def refused(work: Callable[[], object], *words: str) -> None:
    """Check that the work is refused in one line with these words."""
    with pytest.raises(DataError) as error:
        work()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return path


def test_a_missing_column_or_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", c0=[1.0], **{"class": [0]})
    refused(lambda: parquet(path, ["c0", "c9"]), "a.parquet: no column 'c9'", "'c0', 'class'")
    refused(lambda: parquet(path, []), "a.parquet: no feature column")
    refused(lambda: ParquetStream(path, features=["c0"], label="y", prepare=prepare, device=CPU, batch_size=1), "no column 'y'")  # fmt: skip  # noqa: E501
    refused(lambda: parquet(tmp_path / "b.parquet"), "b.parquet cannot be read")
    (tmp_path / "empty").mkdir()
    refused(lambda: parquet(tmp_path / "empty"), "empty holds no rows")
    (tmp_path / "two").mkdir()
    write(tmp_path / "two" / "0.parquet", c0=[1.0], **{"class": [0]})
    write(tmp_path / "two" / "1.parquet", c1=[1.0], **{"class": [0]})
    refused(lambda: parquet(tmp_path / "two", ["c0"]), "two/1.parquet: no column 'c0'")


def test_rows_of_another_shape_in_one_row_group_are_refused(tmp_path: Path) -> None:
    lists = [[1.0, 2.0]] * 4 + [[1.0, 2.0, 3.0]] * 4
    path = write(tmp_path / "a.parquet", x=lists, **{"class": range(8)})
    stream = parquet(path, ["x"], prepare=as_tensors, batch_size=4)
    assert len(stream.part(0, 4)) == 4
    for _ in range(2):
        refused(lambda: stream.part(4, 8), "a.parquet, counted from row 4", "(3,)", "(2,)")
    assert len(stream.part(0, 4)) == 4, "the rows before can still be read"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.0], "has another length than 2 in row 5"),
        (None, "has a gap in row 5"),
        ([1.0, None], "has a gap in row 5"),
    ],
)
def test_a_list_that_is_not_like_the_others_is_named(
    tmp_path: Path, value: Any, words: str
) -> None:
    lists = [[1.0, 2.0]] * 5 + [value] + [[1.0, 2.0]] * 2
    path = write(tmp_path / "a.parquet", x=lists, **{"class": range(8)})
    stream = parquet(path, ["x"], prepare=as_tensors, batch_size=4)
    refused(lambda: stream.part(0, 8), "a.parquet: column 'x'", words)


def test_lists_of_text_and_lists_beside_columns_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=[["a"]] * 2, c0=[1, 2], **{"class": [0, 1]})
    refused(lambda: parquet(path, ["x"]).part(0, 2), "holds string")
    refused(lambda: parquet(path, ["c0", "x"]), "'x' holds lists; make it the only feature")


def test_a_bad_value_is_named_with_its_file_and_place(tmp_path: Path) -> None:
    x = X.copy()
    x[20, 1, 0] = np.nan
    pq.write_table(table(x), tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", x=x, y=Y)
    for stream in (parquet(tmp_path / "a.parquet"), npz(tmp_path / "a.npz")):
        check(stream, 0, 16)
        refused(lambda stream=stream: stream.part(0, N), "a.", "counted from row 16: Row 4, column")  # type: ignore[misc]
        check(stream, 0, 16)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("source", [one_file, stored, compressed])
def test_a_truncated_file_is_refused(
    tmp_path: Path, source: Callable[[Path], Stream], keep: float
) -> None:
    source(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refused(lambda: parquet(path) if path.suffix == ".parquet" else npz(path), path.name)


@pytest.mark.parametrize("source", [one_file, stored])
def test_a_file_that_is_cut_while_it_is_read_is_refused(
    tmp_path: Path, source: Callable[[Path], Stream]
) -> None:
    stream = source(tmp_path)
    (path,) = tmp_path.iterdir()
    with path.open("r+b") as file:
        file.truncate(100)
    refused(lambda: stream.part(0, N), path.name, "check the file or write it again")


def test_a_compressed_array_whose_bits_have_changed_is_refused(tmp_path: Path) -> None:
    compressed(tmp_path)
    path = tmp_path / "a.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    refused(lambda: npz(path, features="data", label="label").part(0, N), "a.npz")


def test_arrays_that_are_missing_or_do_not_match_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y[1:], scalar=np.array(1))
    refused(lambda: npz(path), "'x' has 53 rows, but 'y' 52")
    refused(lambda: npz(path, label="z"), "a.npz: no array 'z'", "'x', 'y', 'scalar'")
    refused(lambda: npz(path, label="scalar"), "claims the shape ()")
    np.savez_compressed(path, x=np.asfortranarray(X), y=Y)
    refused(lambda: npz(path), "a.npz: array 'x' is compressed column by column")
    path.write_bytes(b"no zip")
    refused(lambda: npz(path), "a.npz cannot be read as npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"1")
        archive.writestr("y.npy", b"1")
    refused(lambda: npz(path), "no array 'x'")
    refused(lambda: npz(path, features="y"), "a.npz cannot be read as npz")


def test_an_array_of_objects_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "exploded",)

    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([Bomb()] * 3, dtype=object), y=Y[:3])
    refused(lambda: npz(path), "a.npz: array 'x' holds Python objects")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Bomb()))
    refused(lambda: npz(path), "a.npz")
    assert not (tmp_path / "exploded").exists()


def npy(shape: tuple[int, ...], content: bytes) -> bytes:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(10**13,), (2, 10**13), (10**13, 10**13), (-2, -40)])
@pytest.mark.parametrize("lying", [False, True], ids=["header", "directory"])
def test_a_file_that_claims_a_huge_array_gets_no_memory_for_it(
    tmp_path: Path, method: int, shape: tuple[int, ...], lying: bool
) -> None:
    path = tmp_path / "a.npz"
    data = npy(shape, bytes(320))
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("x", "y"):
            archive.writestr(f"{name}.npy", data)
            if lying:  # as far as the directory goes, the bytes are there
                size = len(data) - 320 + 4 * min(math.prod(shape), 2**60)
                archive.getinfo(f"{name}.npy").file_size = size
                if method == zipfile.ZIP_STORED:
                    archive.getinfo(f"{name}.npy").compress_size = size
    held = peak(lambda: refused(lambda: npz(path).part(0, 2), "a.npz"))
    assert held < 2**21


def test_a_wrong_number_of_rows_is_refused() -> None:
    def make() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, 50, 10):
            yield torch.arange(start, start + 10.0), torch.zeros(10)

    for announced, word in ((60, "fewer"), (51, "fewer"), (49, "more"), (40, "more"), (1, "more")):
        stream = IterableStream(make, announced, device=CPU, batch_size=10, uri="my rows")
        for _ in range(2):
            refused(lambda s=stream: s.part(0, len(s)), f"my rows holds {word} rows than")  # type: ignore[misc]
    refused(lambda: IterableStream(make, 0, device=CPU, batch_size=10), "holds no rows")
    stream = IterableStream(make, 50, device=CPU, batch_size=10)
    assert len(stream.part(0, 50)) == 50


def test_an_iterable_of_something_else_is_refused() -> None:
    def stream(value: Any) -> IterableStream:
        return IterableStream(lambda: [value], 2, device=CPU, batch_size=2, uri="my rows")

    refused(lambda: stream(3).part(0, 2), "my rows gives int objects")
    refused(lambda: stream((X, Y, Y)).part(0, 2), "my rows gives tuple objects")
    refused(lambda: stream((X[:2], Y[:2])).part(0, 2), "does not return two tensors of 2 rows")
    refused(lambda: stream((torch.zeros(1), torch.zeros(2))).part(0, 2), "two tensors of 2 rows")


def test_errors_of_the_callers_own_code_pass_as_they_are(tmp_path: Path) -> None:
    def fails(features: Any, labels: Any) -> tuple[Tensor, Tensor]:
        raise RuntimeError("out of memory")

    def stops() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.zeros(1), torch.zeros(1)
        raise OSError("the network is down")

    np.savez(tmp_path / "a.npz", x=X, y=Y)
    pq.write_table(table(), tmp_path / "a.parquet")
    for stream in (
        npz(tmp_path / "a.npz", prepare=fails),
        parquet(tmp_path / "a.parquet", prepare=fails),
    ):
        with pytest.raises(RuntimeError, match="out of memory"):
            stream.part(0, 5)
    with pytest.raises(OSError, match="the network is down"):
        IterableStream(stops, 2, device=CPU, batch_size=1).part(0, 2)


def test_files_are_closed_when_a_stream_is_gone(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for i, source in enumerate((one_file, stored, compressed)):
            (tmp_path / str(i)).mkdir()
            stream = source(tmp_path / str(i))
            stream.part(0, 20)
            del stream
            gc.collect()
