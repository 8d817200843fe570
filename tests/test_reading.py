"""Files to rows: the same content gives the same rows, and a bad file says what to do."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forward_inf_mlflow.data.acceptance import accept, has_gap
from forward_inf_mlflow.data.fingerprint import fingerprint
from forward_inf_mlflow.data.reading import Columns, read_rows
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError


def table(n: int = 6) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": np.arange(n) + 20,
            "height": np.arange(n) / 3 + 1.6,
            "town": [f"tôwn {i % 2}" for i in range(n)],
            "label": [["yes", "no"][i % 2] for i in range(n)],
            "key": [f"{i:03d}" for i in range(n)],
            "team": ["red", "blue"] * (n // 2),
        }
    )


def read(path: Path, **columns: object) -> Rows:
    return read_rows(path, uri=path.name, columns=Columns(**columns))  # type: ignore[arg-type]


def write_npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


NAMED = {"id": "key", "source": "team"}


def test_the_same_table_gives_the_same_rows_from_any_format(tmp_path: Path) -> None:
    frame = table()
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "b.parquet")
    frame.set_index("key").to_parquet(tmp_path / "indexed.pq", compression="gzip")
    folder = tmp_path / "parts"
    folder.mkdir()
    frame.iloc[:2].to_parquet(folder / "part-0.parquet")
    frame.iloc[2:].to_parquet(folder / "part-1.parquet", row_group_size=2)
    (folder / "_SUCCESS").touch()

    lines = [json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records")]
    (tmp_path / "lines.jsonl").write_text("\n".join(["", *lines, ""]), encoding="utf-8")

    paths = ("a.csv", "b.parquet", "indexed.pq", "parts", "lines.jsonl")
    first, *others = (read(tmp_path / name, **NAMED) for name in paths)

    assert isinstance(first.features, pd.DataFrame)
    assert list(first.features.columns) == ["age", "height", "town"]
    assert first.ids.tolist() == frame["key"].tolist()
    assert first.labels.tolist() == frame["label"].tolist()
    assert first.sources is not None
    assert first.sources.tolist() == frame["team"].tolist()
    for other in others:
        assert isinstance(other.features, pd.DataFrame)
        pd.testing.assert_frame_equal(first.features, other.features)
        assert other.sha256 == first.sha256


def test_numbers_survive_csv_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(500, 3)) * 10.0 ** np.arange(-3, 6, 3)
    frame = pd.DataFrame(values, columns=list("abc")).assign(y=0)
    frame.to_csv(tmp_path / "a.csv", index=False)
    features = read(tmp_path / "a.csv").features
    assert isinstance(features, pd.DataFrame)
    assert np.array_equal(features.to_numpy(), values)


def test_nullable_and_categorical_columns_become_the_plain_ones() -> None:
    frame = table()
    features, labels = frame[["age", "height", "town"]], frame["label"]
    fancy = features.astype({"age": "Int64", "height": "Float64", "town": "category"})
    plain = accept(features, labels, uri="a")
    assert accept(fancy, labels.astype("category"), uri="a").sha256 == plain.sha256
    assert accept(features.set_index(np.arange(6) * 2), list(labels), uri="a").sha256 == (
        plain.sha256
    )


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 2), (5, 3, 2, 1), (5, 1, 3, 2)], ids=str)
def test_arrays_are_kept_as_stored(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    rows = read(write_npz(tmp_path / "a.npz", x=x, y=np.arange(5)))
    assert isinstance(rows.features, np.ndarray)
    assert rows.features.dtype == np.float32
    assert np.array_equal(rows.features, x)
    assert rows.ids.tolist() == ["0", "1", "2", "3", "4"]
    assert rows.sources is None


def test_npz_arrays_may_have_other_names(tmp_path: Path) -> None:
    x, y = np.eye(3), np.arange(3)
    usual = write_npz(tmp_path / "a.npz", x=x, y=y, ids=["a", "b", "c"], sources=[7, 7, 8])
    other = write_npz(tmp_path / "b.npz", inputs=x, out=y, k=["a", "b", "c"], s=[7, 7, 8])
    named = read(other, features=("inputs",), label="out", id="k", source="s")
    assert named.sha256 == read(usual).sha256
    assert named.sources is not None
    assert named.sources.tolist() == ["7", "7", "8"]


def test_the_digest_ignores_byte_order_layout_and_text_width() -> None:
    x, y = np.arange(12.0).reshape(4, 3), np.array(["a", "b", "a", "b"])
    ids = np.array(["0", "1", "2", "3"])
    first = fingerprint(x, y, ids, None)
    assert fingerprint(np.asfortranarray(x), y.astype("U50"), ids, None) == first
    assert fingerprint(x.astype(">f8"), y.astype(object), ids, None) == first


def changed(part: str) -> str:
    """Return the digest of a data set with one thing changed."""
    n = 20_000
    x = np.zeros((n, 2))
    labels = np.zeros(n, dtype=np.int64)
    ids = np.arange(n).astype(str)
    sources = np.full(n, "s")
    columns = ["a", "b"]
    if part == "feature":
        x[15_000, 1] = 1
    elif part == "label":
        labels[15_000] = 1
    elif part == "id":
        ids[15_000] = "x"
    elif part == "source":
        sources[15_000] = "t"
    elif part == "name":
        columns = ["a", "c"]
    elif part == "dtype":
        x = x.astype(np.float32)
    elif part == "array":
        return fingerprint(x, labels, ids, sources)
    elif part == "shape":
        return fingerprint(x.reshape(n, 2, 1), labels, ids, sources)
    elif part == "sources":
        return fingerprint(pd.DataFrame(x, columns=columns), labels, ids, None)
    return fingerprint(pd.DataFrame(x, columns=columns), labels, ids, sources)


def test_any_change_changes_the_digest() -> None:
    parts = ["nothing", "feature", "label", "id", "source", "name", "dtype", "array", "shape"]
    parts.append("sources")
    assert len({changed(part) for part in parts}) == len(parts)


def test_text_cannot_move_between_rows_unseen() -> None:
    ids = np.array(["0", "1"])
    one = fingerprint(np.eye(2), np.array(["ab", "c"]), ids, None)
    assert one != fingerprint(np.eye(2), np.array(["a", "bc"]), ids, None)


def npz_bytes(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("y.npy", content)
    return buffer.getvalue()


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


X, Y = np.eye(3), np.arange(3)
HOLE = np.array([[0, 0], [0, np.nan], [0, 0]])
CSV = b"a,b,y\n1,2,0\n3,4,1\n"

BAD_FILES: dict[str, tuple[str, bytes, dict[str, object], str]] = {
    "unknown format": ("a.pkl", b"x", {}, r"as .csv, .parquet, .npz or .jsonl"),
    "no lines": ("a.jsonl", b"[1\n", {}, "cannot be read as JSON lines"),
    "nested lines": ("a.jsonl", b'{"a": [1], "y": 1}\n{"a": [2], "y": 2}\n', {}, "holds mixed"),
    "empty": ("a.csv", b"", {}, "is empty"),
    "no rows": ("a.csv", b"a,y\n", {}, "holds no rows"),
    "one row": ("a.csv", b"a,y\n1,2\n", {}, "one row only"),
    "no label": ("a.csv", b"a,b\n1,2\n3,4\n", {}, "--label, one of 'a', 'b'"),
    "two labels": ("a.csv", b"a,Label,y\n1,2,3\n3,4,5\n", {}, "--label, one of 'Label', 'y'"),
    "other label": ("a.csv", CSV, {"label": "z"}, "--label names 'z', which is not one of 'a'"),
    "other id": ("a.csv", CSV, {"id": "z"}, "--id names 'z'"),
    "other source": ("a.csv", CSV, {"source": "z"}, "--group-by names 'z'"),
    "other feature": ("a.csv", CSV, {"features": ("a", "z")}, "--features names 'z'"),
    "label as feature": ("a.csv", CSV, {"features": ("a", "y")}, "names the label 'y'"),
    "feature twice": ("a.csv", CSV, {"features": ("a", "a")}, "two columns are called 'a'"),
    "only a label": ("a.csv", b"y\n1\n2\n", {}, "no feature column"),
    "label gap": ("a.csv", b"a,y\n1,2\n3,\n", {}, "label of row 1 .* is missing"),
    "infinite label": ("a.csv", b"a,y\n1,inf\n3,3\n", {}, "label of row 0 .* is infinite"),
    "id twice": ("a.csv", b"a,y,k\n1,2,q\n2,2,r\n3,3,q\n", {"id": "k"}, "'q' occurs in rows 0"),
    "id gap": ("a.csv", b"a,y,k\n1,2,q\n2,2,\n", {"id": "k"}, "id of row 1 .* is missing"),
    "long id": ("a.csv", b"a,y,k\n1,2,q\n2,2," + b"z" * 600, {"id": "k"}, "600 characters"),
    "ragged": ("a.csv", b"a,y\n1,2\n1,2,3,4\n", {}, "cannot be read as csv"),
    "wide": ("a.csv", b"a,y\n1,2,3\n1,2,4\n", {}, "more fields than"),
    "not utf-8": ("a.csv", b"a,y\n\xff,2\n\xfe,3\n", {}, "cannot be read as csv"),
    "parquet as csv": ("a.csv", parquet_bytes(table()), {}, "is not a csv file"),
    "npz as parquet": ("a.parquet", npz_bytes(x=X, y=Y), {}, "is not a parquet file"),
    "csv as npz": ("a.npz", CSV, {}, "is not a npz file"),
    "cut npz": ("a.npz", npz_bytes(x=X, y=Y)[:200], {}, "cannot be read as npz"),
    "cut parquet": ("a.parquet", parquet_bytes(table())[:200], {}, "cannot be read as parquet"),
    "pickled": (
        "a.npz",
        npz_bytes(x=X, y=np.array([1, "a", None], dtype=object)),
        {},
        "array 'y' .*never loaded",
    ),
    "not arrays": ("a.npz", zipped("x.npy", b"hello"), {}, "'x' is not an array"),
    "lengths": ("a.npz", npz_bytes(x=X, y=np.arange(4)), {}, "3 rows of features but 4 labels"),
    "ids": ("a.npz", npz_bytes(x=X, y=Y, ids=["a"]), {}, "3 rows of features but 1 ids"),
    "scalar": ("a.npz", npz_bytes(x=X, y=3), {}, "not an array with one entry a row"),
    "flat x": ("a.npz", npz_bytes(x=Y, y=Y), {}, r"\(rows, features\)"),
    "one-hot": ("a.npz", npz_bytes(x=X, y=X), {}, "not one-hot"),
    "text x": ("a.npz", npz_bytes(x=X.astype(str), y=Y), {}, "real numbers"),
    "complex x": ("a.npz", npz_bytes(x=X * 1j, y=Y), {}, "real numbers"),
    "no x": ("a.npz", npz_bytes(a=X, b=X, y=Y), {}, "Name it with --features: 'a', 'b'"),
    "no such x": ("a.npz", npz_bytes(a=X, y=Y), {"features": ("x",)}, "--features names 'x'"),
    "two x": ("a.npz", npz_bytes(x=X, y=Y), {"features": ("x", "y")}, "is one array"),
    "dates": (
        "a.parquet",
        parquet_bytes(pd.DataFrame({"a": pd.to_datetime(["2020", "2021"]), "y": [0, 1]})),
        {},
        "column 'a' holds datetime64 values",
    ),
    "lists": (
        "a.parquet",
        parquet_bytes(pd.DataFrame({"a": [[1], [2]], "y": [0, 1]})),
        {},
        "column 'a' holds mixed values",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_line_that_says_what_to_do(tmp_path: Path, case: str) -> None:
    name, content, columns, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, **columns)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_and_a_folder_without_parquet_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: gone\.csv"):
        read(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"no \.parquet file and no picture"):
        read(tmp_path)
    with pytest.raises(DataError, match="cannot be read as a file"):
        read(tmp_path / ("n" * 300 + ".csv"))


def test_parts_of_a_folder_must_agree(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "0.parquet")
    table().drop(columns="age").to_parquet(tmp_path / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet: its columns differ"):
        read(tmp_path)


def test_hostile_names_stay_on_one_line(tmp_path: Path) -> None:
    pd.DataFrame({"a\nallowed: yes": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)


def test_gaps_are_found_beyond_the_first_block() -> None:
    images = np.zeros((3000, 1, 30, 30), dtype=np.float32)
    assert not has_gap(images).any()
    images[2500, 0, 3, 4] = np.inf
    assert np.flatnonzero(has_gap(images)).tolist() == [2500]


GAPS: dict[str, tuple[pd.Series, list[object]]] = {
    "numbers": (pd.Series([1.5, np.nan, np.inf]), [1.5, np.nan, np.inf]),
    "whole": (pd.Series([1, None, 3], dtype="Int64"), [1.0, np.nan, 3.0]),
    "truth": (pd.Series([True, None, False], dtype="boolean"), [1.0, np.nan, 0.0]),
    "objects": (pd.Series([1, None, 2.5], dtype=object), [1.0, np.nan, 2.5]),
    "text": (pd.Series(["a", None, "b"]), ["a", None, "b"]),
    "categories": (pd.Series(["a", None, "b"], dtype="category"), ["a", None, "b"]),
}


@pytest.mark.parametrize("kind", GAPS)
def test_features_may_have_gaps_which_are_plain_and_found(kind: str) -> None:
    column, expected = GAPS[kind]
    rows = accept(pd.DataFrame({"a": column, "b": 1}), [0, 1, 0], uri="a")
    assert isinstance(rows.features, pd.DataFrame)
    np.testing.assert_array_equal(rows.features["a"].to_numpy(), np.array(expected))
    missing = [value is None or not np.isfinite(value) if value != "a" and value != "b" else False
               for value in expected]  # fmt: skip
    assert has_gap(rows.features).tolist() == missing


def test_an_empty_column_is_refused() -> None:
    with pytest.raises(DataError, match="column 'a' is empty; leave it out"):
        accept(pd.DataFrame({"a": [None, None], "b": 1}), [0, 1], uri="u")


def test_gaps_have_one_digest_in_any_format_and_another_than_the_word_for_them(
    tmp_path: Path,
) -> None:
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None], "y": [0, 1]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    digests = {read(tmp_path / f"a.{ending}").sha256 for ending in ("csv", "parquet")}
    frame.assign(b=["x", "None"]).to_parquet(tmp_path / "word.parquet")
    assert len(digests) == 1
    assert read(tmp_path / "word.parquet").sha256 not in digests


def test_every_nan_has_one_digest() -> None:
    x = np.array([[1.0], [np.nan]])
    other = x.copy()
    other.view(np.uint64)[1] |= 1  # another payload, as another library writes it
    assert accept(x, [0, 1], uri="a").sha256 == accept(other, [0, 1], uri="a").sha256


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("ending", ["csv", "npz"])
def test_query_rows_may_have_or_lack_the_columns_that_only_name_rows(
    tmp_path: Path, there: bool, ending: str
) -> None:
    # A source column that the queries have too is no feature; one that they lack is not missed.
    path = tmp_path / f"queries.{ending}"
    extra = {"team": ["red", "blue"], "key": ["a", "b"]} if there else {}
    if ending == "csv":
        pd.DataFrame({"age": [1, 2], "label": [0, 1], **extra}).to_csv(path, index=False)
    else:
        arrays = {k: np.array(v) for k, v in extra.items()}
        np.savez(path, x=np.array([[1.0], [2.0]]), y=np.array([0, 1]), **arrays)
    columns = Columns(id="key", source="team", lenient=True)
    rows = read_rows(path, uri=str(path), columns=columns)
    assert rows.features.shape == (2, 1)
    assert rows.ids.tolist() == (["a", "b"] if there else ["0", "1"])
    if not there:
        with pytest.raises(DataError, match="--id"):
            read_rows(path, uri=str(path), columns=Columns(id="key"))


def test_rows_without_a_source_have_one_in_common(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y,crawl\n1,0,7\n2,1,\n3,0,8\n")
    rows = read(path, source="crawl")
    assert rows.sources is not None
    assert rows.sources.tolist() == ["7", "(missing)", "8"]


def test_texts_that_the_model_does_not_read_are_kept_for_readers(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.5, 2, 3], "note": ["x", None, "z"], "n": [1, 2, 3]})
    table = table.assign(y=[0, 1, 0], id=["p", "q", "r"], source=["s", "s", "t"])
    table.to_parquet(tmp_path / "rows.parquet")
    columns = Columns(label="y", id="id", features=("a",), source="source")
    rows = read_rows(tmp_path / "rows.parquet", uri="rows", columns=columns)
    assert rows.texts is not None
    assert rows.texts.to_dict("list") == {"note": ["x", "", "z"]}
    some = rows.take(np.array([False, False, True]))
    assert some.texts is not None
    assert some.texts.to_dict("list") == {"note": ["z"]}
    table.drop(columns="note").to_parquet(tmp_path / "fewer.parquet")
    fewer = read_rows(tmp_path / "fewer.parquet", uri="rows", columns=columns)
    assert fewer.texts is None
    assert fewer.sha256 == rows.sha256, "what nobody computes with changes no digest"


def test_texts_of_an_npz_file_are_kept_and_other_arrays_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    x, y = np.ones((3, 4)), np.array([0, 1, 0])
    np.savez(path, x=x, y=y, text=np.array(["a b", "c", "d"]), short=np.array(["e"]), more=x)
    rows = read_rows(path, uri="rows", columns=Columns())
    assert rows.texts is not None
    assert rows.texts.to_dict("list") == {"text": ["a b", "c", "d"]}


def test_a_new_name_on_every_line_is_refused_before_it_is_a_table(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(f'{{"label": 1, "c{i}": 2}}' for i in range(10_001)))
    with pytest.raises(DataError, match="more than 10,000 names between them"):
        read_rows(file, uri="rows", columns=Columns())


@pytest.mark.parametrize("name", ["x", "images", "samples"])
def test_rows_of_an_npz_file_have_a_usual_name(name: str, tmp_path: Path) -> None:
    rows, labels = np.ones((4, 2)), np.arange(4)
    np.savez(tmp_path / "rows.npz", **{name: rows, "y": labels})
    found = read_rows(tmp_path / "rows.npz", uri="rows.npz", columns=Columns())
    np.testing.assert_array_equal(found.features, rows)


def test_the_only_array_of_a_file_without_labels_holds_the_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", pictures=np.ones((4, 2)))
    columns = Columns(labelled=False)
    found = read_rows(tmp_path / "rows.npz", uri="rows.npz", columns=columns)
    assert found.features.shape == (4, 2)
