"""Rewriting: a copy of a data set with some labels changed and some rows left out, else as it was.

Format, columns, order, values and types stay. A csv file is cut into its fields, and what is not
changed is copied byte for byte, as are the lines of JSON lines; of a npz file, arrays that do not
change are copied as they lie.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forward_inf_mlflow.data.pictures import leads_out, picture_files
from forward_inf_mlflow.data.reading import (
    Columns,
    data_format,
    label_column,
    read_table,
    readable,
    rows_array,
)
from forward_inf_mlflow.errors import DataError

#: One field, quoted or not; what follows is a comma, the end of the line or of the file.
_FIELD = re.compile(rb'"(?:[^"]|"")*"[^,\r\n]*|[^,\r\n]*')
_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


def rewrite(
    source: Path, target: Path, *, columns: Columns, labels: Mapping[int, Any], drop: np.ndarray
) -> None:
    """Write a changed copy of a csv, parquet, npz or JSON-lines file, or of a folder.

    A folder is of parquet files or of pictures; one whose label changes moves to that folder.

    Args:
        source: What is copied; it must be readable by `reading.read_rows`.
        target: A path that does not exist.
        columns: Which column is what, as the rows were read.
        labels: New labels by position, in the type of the labels that were read.
        drop: ``(n,)`` bool, the rows that are left out.

    Raises:
        DataError: The copy cannot be made as promised.
    """
    uri, kind = source.name, data_format(source, source.name)
    if kind == "csv":
        _csv(source, target, uri, columns, labels, drop)
    elif kind == "npz":
        _npz(source, target, uri, columns, labels, drop)
    elif kind == "pictures":
        _folder(source, target, uri, labels, drop)
    elif kind == "jsonl":
        _jsonl(source, target, uri, columns, labels, drop)
    elif source.is_dir():
        target.mkdir()
        start = 0
        parts = sorted(part for part in source.iterdir() if part.suffix in {".parquet", ".pq"})
        for part in parts:
            start += _parquet(part, target / part.name, uri, columns, labels, drop, start)
    else:
        _parquet(source, target, uri, columns, labels, drop, 0)


def _folder(
    source: Path, target: Path, uri: str, labels: Mapping[int, Any], drop: np.ndarray
) -> None:
    files = picture_files(source, uri)
    folders = {file.parent.relative_to(source).as_posix() for file in files}
    moved: dict[Path, Path | None] = {}
    for position, file in enumerate(files):
        if drop[position]:
            moved[file] = None
        elif position in labels:
            label = str(labels[position])
            if label not in folders:
                raise DataError(f"{uri}: the new label {label[:80]!r} is no folder with pictures")
            moved[file] = target / label / file.name
    taken = {target / file.relative_to(source) for file in files if file not in moved}
    for file in [file for file in source.rglob("*") if file.is_file() or file.is_symlink()]:
        to = moved.get(file, target / file.relative_to(source))
        if to is None:
            continue
        if file in moved and (to in taken or to.exists()):  # two folders may use one name
            to = to.with_stem(f"{to.stem}-{file.parent.name}")
        if to.exists() or (file in moved and to in taken):
            raise DataError(f"{uri}: two pictures would be called {to.name!r}; rename one of them")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, to, follow_symlinks=not leads_out(file, source))


def _label(names: list[str], uri: str, columns: Columns) -> str:
    """Return the label's column; of rows without labels any, since no label changes."""
    return names[0] if columns.unlabelled else label_column(names, uri, columns.label)


def _csv(
    source: Path,
    target: Path,
    uri: str,
    columns: Columns,
    labels: Mapping[int, Any],
    drop: np.ndarray,
) -> None:
    before = _texts(source, uri)
    label = _label([str(name) for name in before.columns], uri, columns)
    at = list(before.columns).index(label)
    data = source.read_bytes()
    records = list(_records(data))
    texts = before[label].to_numpy(dtype=object, copy=True)
    if len(records) != len(before) + 1 or any(
        len(record) <= at or _plain(data[slice(*record[at])]) != text.encode()
        for record, text in zip(records[1:], texts, strict=True)
    ):
        raise DataError(
            f"{uri}: its lines cannot be told apart surely enough to change some and copy the "
            "others; save it as parquet"
        )
    known = {value: raw for raw, value in zip(texts, _values(source, uri, label), strict=True)}
    out, copied = [], 0
    for position, record in enumerate(records[1:]):
        start, stop = record[0][0], record[-1][1]
        if drop[position]:
            end = _END.match(data, stop)
            out.append(data[copied:start])
            copied = end.end() if end else len(data)
        elif position in labels:
            begin, finish = record[at]
            # As the file writes that label elsewhere, else as Python does.
            value = labels[position]
            text = str(known.get(value, value))
            out += [data[copied:begin], _quoted(text)]
            copied = finish
            texts[position] = text
    out.append(data[copied:])
    target.write_bytes(b"".join(out))
    expected = before.assign(**{label: texts})[~drop].reset_index(drop=True)
    if not _texts(target, uri).equals(expected):
        target.unlink()
        raise DataError(f"{uri}: a changed copy would not read as it should; save it as parquet")


def _jsonl(
    source: Path,
    target: Path,
    uri: str,
    columns: Columns,
    labels: Mapping[int, Any],
    drop: np.ndarray,
) -> None:
    names = list(read_table(source, uri=uri).columns)
    label = _label([str(name) for name in names], uri, columns)
    out, position = [], -1
    for line in source.read_bytes().splitlines(keepends=True):
        if not line.strip():
            out.append(line)
            continue
        position += 1
        if position in labels and not drop[position]:
            value = labels[position]
            row = json.loads(line) | {label: value.item() if hasattr(value, "item") else value}
            apart = None if b'": ' in line else (",", ":")  # as that line writes it
            text = json.dumps(row, ensure_ascii=False, separators=apart)
            line = text.encode() + line[len(line.rstrip()) :]
        if not drop[position]:
            out.append(line)
    if position + 1 != len(drop):
        raise DataError(f"{uri}: its lines cannot be told apart; write one object a line")
    target.write_bytes(b"".join(out))


def _texts(path: Path, uri: str) -> pd.DataFrame:
    with readable(uri, "csv"):
        return pd.read_csv(path, dtype=str, keep_default_na=False, low_memory=False)


def _values(path: Path, uri: str, label: str) -> list[Any]:
    with readable(uri, "csv"):
        column = pd.read_csv(path, usecols=[label], low_memory=False)[label]
    return list(column.tolist())


def _records(data: bytes) -> Iterator[list[tuple[int, int]]]:
    """Yield where the fields of each line lie, the names' first; blank lines are none."""
    at = len(_BOM) if data.startswith(_BOM) else 0
    fields: list[tuple[int, int]] = []
    while at < len(data) or fields:
        found = _FIELD.match(data, at)
        assert found is not None  # it matches nothing, too
        fields.append(found.span())
        at = found.end()
        if data[at : at + 1] == b",":
            at += 1
            continue
        end = _END.match(data, at)
        at = end.end() if end else len(data)
        if len(fields) > 1 or data[slice(*fields[0])].strip(b" \t"):
            yield fields
        fields = []


def _plain(field: bytes) -> bytes:
    """Return a field without its quotes."""
    if not field.startswith(b'"'):
        return field
    body, _, rest = field[1:].rpartition(b'"')
    return body.replace(b'""', b'"') + rest


def _quoted(text: str) -> bytes:
    raw = text.encode()
    if any(c in raw for c in b',"\r\n') or raw != raw.strip():
        return b'"' + raw.replace(b'"', b'""') + b'"'
    return raw


def _parquet(
    source: Path,
    target: Path,
    uri: str,
    columns: Columns,
    labels: Mapping[int, Any],
    drop: np.ndarray,
    start: int,
) -> int:
    """Write one file, whose first row has the position ``start``; return how many rows it has."""
    with readable(uri, "parquet"), pq.ParquetFile(source) as file:
        table, shape = file.read(), file.metadata
    here = {p - start: v for p, v in labels.items() if start <= p < start + table.num_rows}
    schema, count = table.schema, table.num_rows
    label = _label([str(name) for name in schema.names], uri, columns)
    at = schema.get_field_index(label)
    if here:
        values = table.column(at).to_pylist()
        for position, value in here.items():
            values[position] = value.item() if hasattr(value, "item") else value
        try:
            changed = pa.chunked_array([pa.array(values, type=schema.field(at).type)])
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise DataError(
                f"{uri}: a new label does not fit the column {label!r} of type "
                f"{schema.field(at).type}"
            ) from error
        table = table.set_column(at, schema.field(at), changed)
    table = table.filter(pa.array(~drop[start : start + count])).replace_schema_metadata(
        schema.metadata
    )
    first = shape.row_group(0) if shape.num_row_groups else None
    codec = first.column(0).compression.lower() if first is not None else "snappy"
    pq.write_table(
        table,
        target,
        compression="none" if codec == "uncompressed" else codec,
        row_group_size=max(1, first.num_rows) if first is not None else None,
    )
    return int(count)


def _npz(
    source: Path,
    target: Path,
    uri: str,
    columns: Columns,
    labels: Mapping[int, Any],
    drop: np.ndarray,
) -> None:
    with readable(uri, "npz"), np.load(source, allow_pickle=False) as arrays:
        names = list(arrays.files)
        label = _label(names, uri, columns)
        rows = {
            *(columns.features or (rows_array(names, uri),)),
            label,
            columns.id or "ids",
            columns.source or "sources",
        }
        changed = {}
        for name in names if drop.any() else [label]:
            if name not in rows:
                if _length(source, name) == len(drop):
                    raise DataError(
                        f"{uri}: the array {name!r} has as many entries as there are rows, and "
                        "nobody says whether rows are to be dropped from it too: store it in a "
                        "file of its own"
                    )
                continue
            array = arrays[name]
            if name == label:
                for position, value in labels.items():
                    array[position] = value
            by_column = array.flags.f_contiguous and not array.flags.c_contiguous
            lay = np.asfortranarray if by_column else np.ascontiguousarray
            changed[name] = lay(array[~drop])
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            name = member.filename.removesuffix(".npy")
            info = zipfile.ZipInfo(member.filename, member.date_time)
            info.compress_type = member.compress_type
            with new.open(info, "w", force_zip64=True) as file:
                if name in changed:
                    np.lib.format.write_array(file, changed[name], allow_pickle=False)
                else:
                    file.write(old.read(member))


def _length(source: Path, name: str) -> int:
    """Return how many entries an array has that is not read, for it may hold anything."""
    with zipfile.ZipFile(source) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape = read(file)[0]
    return int(shape[0]) if shape else 0
