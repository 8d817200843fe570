"""Streams of files that are damaged, lie or do not fit: refused in one line, with the place."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from stored_rows import (
    CPU,
    N,
    X,
    Y,
    as_tensors,
    check,
    compressed,
    npz,
    one_file,
    parquet,
    peak,
    prepare,
    stored,
    table,
)
from torch import Tensor

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.streams import IterableStream, ParquetStream
from forward_inf_mlflow.tensors import Stream


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
