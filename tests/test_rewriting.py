"""A cleaned copy of a data set: what is not changed stays as it was, byte for byte."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forward_inf_mlflow.data.reading import Columns, read_rows
from forward_inf_mlflow.data.rewriting import rewrite
from forward_inf_mlflow.errors import DataError

#: What spreadsheets and people write: marks, quotes, line ends within cells, blank lines.
CSV = (
    b'\xef\xbb\xbfa,"label",note\r\n'
    b'1.50,"cat","say ""hi"", now"\r\n'
    b"\r\n"
    b'2,dog,"two\nlines"\n'
    b"  \n"
    b'0003, a b ,=1+1\r\n'
    b'4,"d,og",'
)  # fmt: skip


def none(n: int, *dropped: int) -> np.ndarray:
    return np.isin(np.arange(n), dropped)


def copied(source: Path, labels: dict[int, Any], drop: np.ndarray, **columns: Any) -> Path:
    target = source.with_name(f"new{source.suffix}")
    rewrite(source, target, columns=Columns(**columns), labels=labels, drop=drop)
    return target


def test_a_csv_file_that_nothing_changes_is_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(CSV)
    assert copied(tmp_path / "t.csv", {}, none(4)).read_bytes() == CSV


def test_a_csv_file_keeps_every_byte_but_the_labels_and_rows_that_change(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(CSV)
    found = copied(tmp_path / "t.csv", {0: "d,og", 2: 'new "one"'}, none(4, 1)).read_bytes()
    expected = (
        CSV.replace(b'2,dog,"two\nlines"\n', b"")
        .replace(b'"cat"', b'"d,og"')
        .replace(b" a b ", b'"new ""one"""')
    )
    assert found == expected
    last = copied(tmp_path / "t.csv", {}, none(4, 3))
    assert last.read_bytes() == CSV.removesuffix(b'4,"d,og",')


def test_json_lines_keep_every_byte_but_the_labels_and_rows_that_change(tmp_path: Path) -> None:
    lines = '{"a": "\\u00e9", "label": "x"}\r\n\n{"label":"y","a":"é"}\n{"a": null, "label": "x"}'
    (tmp_path / "t.jsonl").write_bytes(lines.encode())
    assert copied(tmp_path / "t.jsonl", {}, none(3)).read_bytes() == lines.encode()
    found = copied(tmp_path / "t.jsonl", {1: "ü"}, none(3, 0)).read_bytes()
    assert found.decode() == '\n{"label":"ü","a":"é"}\n{"a": null, "label": "x"}'


def test_a_label_is_written_as_the_csv_file_writes_it_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n1,1.00\n2,2.00\n3,1.00\n")
    assert copied(tmp_path / "t.csv", {0: 2.0, 1: 7.5}, none(3)).read_text() == (
        "x,y\n1,2.00\n2,7.5\n3,1.00\n"
    )


@pytest.mark.parametrize("lines", ["\r\n", "\n", "\r"])
def test_random_csv_files_read_as_they_should(lines: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(len(lines))
    cells = ["", "a", 'q"q', "c,d", "  e ", "1.0", "é", "l\nm", "'x"]
    n = 60
    frame = pd.DataFrame(
        {name: rng.choice(cells, n) for name in ("u", "v")}
        | {"label": rng.choice(["p", "q,r", 's"t'], n), "k": np.arange(n)}
    )
    written: dict[str, Any] = {"index": False, "lineterminator": lines, "quoting": csv.QUOTE_ALL}
    frame.to_csv(tmp_path / "t.csv", **written)
    labels = {int(i): str(rng.choice(["p", "q,r"])) for i in rng.choice(n, 10, replace=False)}
    drop = rng.random(n) < 0.3
    found = copied(tmp_path / "t.csv", labels, drop)
    expected = frame.copy()
    for position, label in labels.items():
        expected.loc[position, "label"] = label
    expected[~drop].to_csv(tmp_path / "expected.csv", **written)
    texts = [
        pd.read_csv(path, dtype=str, keep_default_na=False)
        for path in (found, tmp_path / "expected.csv")
    ]
    pd.testing.assert_frame_equal(*texts)


def test_a_csv_file_that_pandas_reads_otherwise_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_bytes(CSV)
    monkeypatch.setattr(
        "forward_inf_mlflow.data.rewriting._plain", lambda field: field.strip(b'"').strip()
    )
    with pytest.raises(DataError, match="cannot be told apart"):
        copied(tmp_path / "t.csv", {}, none(4, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


TABLE = pa.table(
    {
        "i": pa.array([1, 2, 3, 4], pa.int8()),
        "when": pa.array([1, 2, 3, None], pa.timestamp("us")),
        "label": pa.array(["a", "b", "a", "b"]).dictionary_encode(),
        "tags": pa.array([["x"], [], None, ["y", "z"]]),
    }
)


def test_a_parquet_file_keeps_schema_values_and_compression(tmp_path: Path) -> None:
    table = TABLE.replace_schema_metadata({"who": "me"})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd")
    found = copied(tmp_path / "t.parquet", {0: "b"}, none(4, 2))
    read = pq.read_table(found)
    before = pq.read_table(tmp_path / "t.parquet").schema
    assert read.schema.equals(before, check_metadata=True)
    assert read.schema.metadata == {b"who": b"me"}
    assert read.column("label").to_pylist() == ["b", "b", "b"]
    for name in ("i", "when", "tags"):
        assert read.column(name).to_pylist() == table.take([0, 1, 3]).column(name).to_pylist()
    assert pq.ParquetFile(found).metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_folder_of_parquet_files_stays_one(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for number in range(2):
        frame = pd.DataFrame({"x": np.arange(3) + 3 * number, "y": [0, 1, 0]}).astype("int16")
        frame.to_parquet(tmp_path / "t" / f"part-{number}.parquet", index=False)
    rewrite(
        tmp_path / "t",
        tmp_path / "new",
        columns=Columns(),
        labels={4: np.int16(7)},
        drop=none(6, 0, 5),
    )
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "part-0.parquet",
        "part-1.parquet",
    ]
    rows = read_rows(tmp_path / "new", uri="new", columns=Columns())
    assert rows.features["x"].tolist() == [1, 2, 3, 4]
    assert rows.labels.tolist() == [1, 0, 0, 7]
    assert rows.labels.dtype == np.int16


def test_a_label_that_a_parquet_column_cannot_hold_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"x": [1, 2], "y": pa.array([0, 1], pa.int8())}), tmp_path / "t.parquet"
    )
    with pytest.raises(DataError, match="does not fit the column 'y' of type int8"):
        copied(tmp_path / "t.parquet", {0: 3000}, none(2))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_npz_file_keeps_arrays_order_and_compression(save: Any, tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(4, 6))
    y = np.array([[0], [1], [0], [1]], dtype=np.uint8)
    save(tmp_path / "t.npz", x=x, y=y, ids=np.array(list("abcd")), scale=np.ones(3))
    found = copied(tmp_path / "t.npz", {1: 0}, none(4, 3))
    with (
        np.load(found) as read,
        zipfile.ZipFile(found) as new,
        zipfile.ZipFile(tmp_path / "t.npz") as old,
    ):
        assert read.files == ["x", "y", "ids", "scale"]
        np.testing.assert_array_equal(read["x"], x[:3])
        assert read["x"].flags.f_contiguous
        assert read["x"].dtype == np.float32
        assert read["y"].tolist() == [[0], [0], [0]]
        assert read["y"].dtype == np.uint8
        assert read["ids"].tolist() == list("abc")
        assert new.read("scale.npy") == old.read("scale.npy")
        assert {m.compress_type for m in new.infolist()} == {
            m.compress_type for m in old.infolist()
        }


def test_a_npz_array_that_may_or_may_not_belong_to_the_rows_is_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, x=np.ones((4, 2)), y=np.arange(4), weight=np.arange(4))
    with pytest.raises(DataError, match="'weight' has as many entries as there are rows"):
        copied(path, {}, none(4, 1))
    with np.load(copied(path, {0: 9}, none(4))) as read:
        assert read["y"].tolist() == [9, 1, 2, 3]
