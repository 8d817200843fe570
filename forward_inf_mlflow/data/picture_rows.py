"""From pictures to rows: folders of them, and parquet files that hold them beside their labels.

What is stored is listed and digested as it lies; only the rows that are asked for are decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forward_inf_mlflow.data.acceptance import accept, check_named_once
from forward_inf_mlflow.data.pictures import (
    Decoder,
    PictureForm,
    leads_out,
    picture_files,
    require_room,
)
from forward_inf_mlflow.data.reading import (
    Columns,
    data_format,
    label_columns,
    labels_of,
    listing,
    missing,
    parquet_parts,
    parquet_table,
    read_rows,
    readable,
)
from forward_inf_mlflow.data.rows import Decoded, Rows
from forward_inf_mlflow.errors import DataError

#: The share of pictures that may be left out, and how many of them are named.
_LOST, _NAMED = 0.05, 5
#: Pictures that are held undecoded at a time.
_HELD = 16
_OUT, _BROKEN, _EMPTY = "lead out of the folder", "do not decode", "hold no bytes"


@dataclass(frozen=True)
class _Stored:
    """Pictures as they are stored.

    Attributes:
        listed: Ids, labels and sources of all; the one feature is the SHA-256 of each as it is.
        contents: From positions, ascending, to each with its content, or why there is none.
        folders: As in `Decoded`.
    """

    listed: Rows
    contents: Callable[[np.ndarray], Iterator[tuple[int, Path | BytesIO | str]]]
    folders: np.ndarray | None = None


def read_data(path: Path, *, uri: str, columns: Columns) -> Rows:
    """Read rows from any file or folder: pictures here, all else by `reading.read_rows`.

    Args:
        path: The local file or folder.
        uri: What the user calls it, without credentials.
        columns: Which column is what, and how pictures become rows.

    Returns:
        The rows; of pictures those that were drawn and could be decoded, with the digest of all.

    Raises:
        DataError: As `reading.read_rows`; or a picture is not what the model takes, or too many of
            them cannot be read.
    """
    kind = data_format(path, uri)
    if kind == "pictures":
        return _decoded(_in_folder(path, uri, columns), columns.pictures, uri)
    if kind == "parquet" and (name := picture_column(path, uri, columns)) is not None:
        return _decoded(_in_parquet(path, uri, columns, name), columns.pictures, uri)
    return read_rows(path, uri=uri, columns=columns)


def picture_column(path: Path, uri: str, columns: Columns) -> str | None:
    """Return the column of a parquet file that holds pictures, None if none does.

    Pictures are bytes, or structs with a field ``bytes``, as Hugging Face's data sets write them.

    Raises:
        DataError: Several do, and nobody says which is meant.
    """
    parts = parquet_parts(path)
    if not parts:
        return None
    with readable(uri, "parquet"):
        schema = pq.read_schema(parts[0])
    found = [field.name for field in schema if _holds_pictures(field.type)]
    if columns.features is not None:
        found = [name for name in columns.features if name in found]
    else:
        found = [n for n in found if n not in {columns.label, columns.id, columns.source}]
    if len(found) > 1 or (found and columns.features is not None and len(columns.features) > 1):
        raise DataError(
            f"{uri}: a model reads one column of pictures; name it alone with --features, one of "
            f"{listing(found)}"
        )
    return found[0] if found else None


def lost_notes(rows: Rows, what: str) -> list[str]:
    """Return what to say of pictures that were left out or changed; ``what`` they are."""
    if rows.decoded is None:
        return []
    notes = [
        f"{len(names):,} {what} picture(s) {why} and were left out: {listing(list(names), _NAMED)}"
        for why, names in rows.decoded.lost.items()
    ]
    if rows.decoded.faded:
        notes.append(
            f"{rows.decoded.faded:,} {what} picture(s) lost their colours or transparency, which "
            "the model does not take"
        )
    return notes


def _in_folder(path: Path, uri: str, columns: Columns) -> _Stored:
    """List a folder whose pictures lie in a folder for each class, if they have classes."""
    if not columns.lenient and (named := columns.id or columns.source or columns.features):
        raise DataError(
            f"{uri} is a folder of pictures and has no column {named!r}: leave --id, --features "
            "and --group-by out; a picture's id is its path, its label the folder that it lies in"
        )
    files = picture_files(path, uri)
    ids = np.array([file.relative_to(path).as_posix() for file in files])
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        raise DataError(f"{uri}: a picture's name is not UTF-8; rename it") from None
    labels = np.array([Path(name).parent.as_posix() for name in ids])
    if columns.unlabelled:
        labels = np.zeros(len(ids), np.int64)
    elif "." in labels:
        top = str(ids[labels == "."][0])
        raise DataError(
            f"{uri}: {top!r} lies in no folder that says its class: make a "
            "folder for each class, as in cat/001.png"
        )
    out = np.array([leads_out(file, path) for file in files])
    with readable(uri, "pictures"):
        digests = ["" if o else _digest(file) for file, o in zip(files, out, strict=True)]

    def contents(wanted: np.ndarray) -> Iterator[tuple[int, Path | str]]:
        for position in wanted.tolist():
            yield position, _OUT if out[position] else files[position]

    listed = accept(pd.DataFrame({"picture": digests}), labels, ids=ids, uri=uri)
    return _Stored(listed, contents, None if columns.unlabelled else np.unique(labels))


def _in_parquet(path: Path, uri: str, columns: Columns, picture: str) -> _Stored:
    """List a parquet file, or a folder of them, with a column of pictures."""
    with readable(uri, "parquet"):
        names = pq.read_schema(parquet_parts(path)[0]).names
    check_named_once(names, uri)
    columns = columns.among(names)
    labels = [] if columns.unlabelled else label_columns(names, uri, columns.label)
    for option, wanted in (("--id", columns.id), ("--group-by", columns.source)):
        if wanted is not None and wanted not in names:
            raise missing(wanted, names, uri, option)
    digests = [
        "" if content is None else hashlib.sha256(content).hexdigest()
        for content in _bytes(path, uri, picture)
    ]
    said = [name for name in names if name in {*labels, columns.id, columns.source}]
    table = parquet_table(path, uri, said) if said else pd.DataFrame(index=range(len(digests)))

    def contents(wanted: np.ndarray) -> Iterator[tuple[int, BytesIO | str]]:
        chosen = set(wanted.tolist())
        for position, content in enumerate(_bytes(path, uri, picture)):
            if position in chosen:
                yield position, _EMPTY if content is None else BytesIO(content)

    listed = accept(
        pd.DataFrame({"picture": digests}),
        labels_of(table, labels),
        ids=None if columns.id is None else table[columns.id],
        sources=None if columns.source is None else table[columns.source],
        uri=uri,
    )
    return _Stored(listed, contents)


def _bytes(path: Path, uri: str, column: str) -> Iterator[bytes | None]:
    """Yield what each row holds; a path in its place is not followed."""
    for part in parquet_parts(path):
        name = uri if part == path else f"{uri}/{part.name}"
        data_format(part, name)
        with readable(name, "parquet"), pq.ParquetFile(part) as file:
            if column not in file.schema_arrow.names:
                raise missing(column, file.schema_arrow.names, name, "--features")
            for batch in file.iter_batches(_HELD, columns=[column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    yield value.get("bytes") if isinstance(value, dict) else value


def _decoded(stored: _Stored, form: PictureForm, uri: str) -> Rows:
    """Decode the pictures that are drawn, one at a time, into one array."""
    decoder, listed = Decoder(form, uri), stored.listed
    wanted = form.drawn(len(listed))
    rows: np.ndarray | None = None
    read: list[int] = []
    lost: dict[str, list[str]] = {}
    for position, content in stored.contents(wanted):
        name = str(listed.ids[position])
        why = content if isinstance(content, str) else _BROKEN
        if not isinstance(content, str):
            try:
                row = decoder.row(content, name, None if rows is None else rows.shape[1:])
                if rows is None:
                    rows = _room(len(wanted), row, form, uri)
                rows[len(read)] = row
                read.append(position)
                continue
            except DataError:
                raise
            except MemoryError as error:  # which is no fault of the picture's
                raise DataError(
                    f"{uri}: out of memory at {name!r}: read some of the {len(wanted):,} pictures "
                    "with --max-rows, or give smaller ones"
                ) from error
            except Exception:  # noqa: BLE001, S110 - other people's files fail in any way they like
                pass
        lost.setdefault(why, []).append(name)
        if sum(map(len, lost.values())) > _LOST * len(wanted):
            raise _too_many(lost, len(wanted), uri)
    if rows is None or len(read) < 2:
        raise DataError(f"{uri} holds fewer than two pictures that decode; an audit needs more")
    positions = np.array(read)
    decoded = Decoded(
        whole=len(listed),
        positions=np.arange(len(listed)),
        lost={why: tuple(names) for why, names in lost.items()},
        faded=decoder.faded,
        folders=stored.folders,
        told=decoder.told,
    )
    found = replace(listed, decoded=decoded).take(positions)
    return replace(found, features=rows[: len(read)])


def _room(count: int, row: np.ndarray, form: PictureForm, uri: str) -> np.ndarray:
    """Return an array for so many rows ``(count, ...)``.

    Raises:
        DataError: They would take too much of the memory, with what a model is given of them.
    """
    require_room(count, row.size * (row.itemsize + np.dtype(form.dtype).itemsize), uri)
    return np.empty((count, *row.shape), row.dtype)


def _too_many(lost: dict[str, list[str]], count: int, uri: str) -> DataError:
    said = "; ".join(f"{listing(names, _NAMED)} {why}" for why, names in lost.items())
    return DataError(
        f"{uri}: more than {_LOST:.0%} of its {count:,} pictures cannot be read ({said}): write "
        "them again or remove them"
    )


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names: Sequence[str] = [field.name for field in kind]
        return "bytes" in names and _holds_pictures(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
