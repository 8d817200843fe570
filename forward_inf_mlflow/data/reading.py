"""From files to rows: csv, parquet, npz and JSON lines. Pictures: `picture_rows`."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forward_inf_mlflow.command_line import split_names
from forward_inf_mlflow.data.acceptance import accept, check_named_once
from forward_inf_mlflow.data.pictures import PictureForm, picture_files
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError

#: What the array of rows is called in npz files where nobody names it, the likeliest first.
ROWS_NAMES = ("x", "images", "image", "samples", "arr_0")
#: What a label column is called where nobody names it.
LABEL_NAMES = frozenset({"label", "target", "y", "class"})
_FORMATS = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npz": "npz",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
#: Columns of JSON lines, at most: a new name on every line would make a square of it.
_MOST_NAMES = 10_000
_FIRST_BYTES = {"parquet": b"PAR1", "npz": b"PK"}
#: What the readers raise for a file that is damaged, encrypted, or larger than memory.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    pa.ArrowException,
)


@dataclass(frozen=True)
class Columns:
    """Which column (or array of an npz file) is what; None where the default is meant.

    Attributes:
        label: Default: the only one called label, target, y or class. Several of a table, of a row
            with several labels: names as `command_line.split_names` reads them.
        id: Default: the row's position; in an npz file the array ``ids``, if there is one.
        features: Default: all columns but label, id and source; in an npz file the array ``x``.
        source: Default: none; in an npz file the array ``sources``, if there is one.
        lenient: Do without an id or source column that is not there; query rows need none.
        labelled: Whether rows have labels. Where not, no column is taken for one unless it is
            named, and all labels are 0.
        pictures: How pictures become rows.
    """

    label: str | None = None
    id: str | None = None
    features: tuple[str, ...] | None = None
    source: str | None = None
    lenient: bool = False
    labelled: bool = True
    pictures: PictureForm = field(default_factory=PictureForm)

    @property
    def unlabelled(self) -> bool:
        """Return whether no column is the label."""
        return not self.labelled and self.label is None

    def among(self, names: list[str]) -> Columns:
        """Return the columns with those that ``lenient`` allows to be missing left out."""
        if not self.lenient:
            return self
        here = {None, *names}
        return replace(
            self,
            id=self.id if self.id in here else None,
            source=self.source if self.source in here else None,
        )


def read_rows(path: Path, *, uri: str, columns: Columns) -> Rows:
    """Read a csv, parquet, npz or JSON-lines file, or a folder of parquet files in sorted order.

    Args:
        path: The local file or folder; its name's ending says the format.
        uri: What the user calls it, without credentials; for messages and ``Rows.uri``.
        columns: Which column is what.

    Raises:
        DataError: The file is missing, of an unknown format, damaged or not what its ending says;
            a column is missing; or its rows are not acceptable (see ``acceptance.accept``).
    """
    if data_format(path, uri) == "npz":
        return _npz_rows(path, uri, columns)
    names_only = {columns.id, columns.source} - {None, *(columns.features or ())}
    return _table_rows(read_table(path, uri=uri, as_text=names_only), uri, columns)


def read_table(path: Path, *, uri: str, as_text: Iterable[str | None] = ()) -> pd.DataFrame:
    """Read a csv, parquet or JSON-lines file, or a folder of parquet files, as a frame ``(n, d)``.

    Args:
        path: The local file or folder.
        uri: What the user calls it.
        as_text: Columns of a csv file whose values are names: ``007`` is not 7.

    Raises:
        DataError: The file cannot be read.
    """
    kind = data_format(path, uri)
    if kind == "parquet":
        return parquet_table(path, uri)
    if kind == "jsonl":
        with readable(uri, "JSON lines"), path.open(encoding="utf-8-sig") as file:
            return _json_lines((line for line in file if line.strip()), uri)
    with readable(uri, "csv"):
        frame = pd.read_csv(
            path,
            dtype={name: str for name in as_text if name is not None},
            low_memory=False,  # a column has one type, wherever pandas would have cut the file
        )
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"{uri}: its rows have more fields than its first line has names")
    return frame


def _json_lines(lines: Iterable[str], uri: str) -> pd.DataFrame:
    """Return a table of JSON objects, one a line; each new name is a column of all rows."""
    rows, names = [], set[str]()
    for line in lines:
        rows.append(_json_object(line))
        names.update(rows[-1])
        if len(names) > _MOST_NAMES:
            raise DataError(
                f"{uri}: its objects have more than {_MOST_NAMES:,} names between them: write the "
                "same names on every line"
            )
    return pd.DataFrame(rows)


def _json_object(line: str) -> dict[str, object]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a line holds no object: {line.strip()[:40]}")
    if "\\ud" in line.lower():  # half a character, which no other format holds
        json.dumps(row, ensure_ascii=False).encode()
    return row


def data_format(path: Path, uri: str) -> str:
    """Return csv, parquet, npz or jsonl, by the name's ending and the first bytes.

    A folder is parquet, or, where it holds none, pictures.

    Raises:
        DataError: It is none of them, or not there.
    """
    with readable(uri, "a file"):
        if path.is_dir():
            return "parquet" if parquet_parts(path) or not picture_files(path, uri) else "pictures"
        if not path.exists():
            raise DataError(f"no such file: {uri}; check the path")
        found = _FORMATS.get(path.suffix.lower())
        if found is None:
            raise DataError(
                f"{uri}: its name does not end in a known format; save it as .csv, .parquet, .npz "
                "or .jsonl (a JSON object a line)"
            )
        with path.open("rb") as file:
            start = file.read(4096)
        if not start:
            raise DataError(f"{uri} is empty; write the data again")
        expected = _FIRST_BYTES.get(found)
        is_text = not start.startswith(tuple(_FIRST_BYTES.values())) and b"\0" not in start
        if not (is_text if expected is None else start.startswith(expected)):
            raise DataError(f"{uri} is not a {found} file, whatever its name says; save it as one")
        return found


def parquet_parts(path: Path) -> list[Path]:
    """Return the parquet files of a folder, in sorted order; of a file itself."""
    if not path.is_dir():
        return [path]
    return sorted(part for part in path.iterdir() if part.suffix in {".parquet", ".pq"})


def parquet_table(path: Path, uri: str, names: list[str] | None = None) -> pd.DataFrame:
    """Read some columns, or all, of one file or of a folder's files.

    Hive-style folder names do not become columns.

    Raises:
        DataError: A file cannot be read, or has other columns than the first.
    """
    parts = parquet_parts(path)
    if not parts:
        raise DataError(f"{uri}: no .parquet file and no picture in this folder; name a file")
    frames: list[pd.DataFrame] = []
    for part in parts:
        name = uri if part == path else f"{uri}/{part.name}"
        data_format(part, name)
        with readable(name, "parquet"), pq.ParquetFile(part) as file:
            frame = file.read(columns=names).to_pandas()
        indices = [index for index in frame.index.names if index is not None]
        frame = frame.reset_index(indices).reset_index(drop=True)  # named ones are columns
        if frames and list(frame.columns) != list(frames[0].columns):
            raise DataError(f"{name}: its columns differ from those of {parts[0].name}")
        frames.append(frame)
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def _table_rows(frame: pd.DataFrame, uri: str, columns: Columns) -> Rows:
    names = [str(name) for name in frame.columns]
    check_named_once(names, uri)
    frame, columns = frame.set_axis(names, axis="columns"), columns.among(names)
    labels = [] if columns.unlabelled else label_columns(names, uri, columns.label)
    for option, wanted in (("--id", columns.id), ("--group-by", columns.source)):
        if wanted is not None and wanted not in names:
            raise missing(wanted, names, uri, option)
    features = columns.features
    if features is None:
        features = tuple(n for n in names if n not in {*labels, columns.id, columns.source})
    for wanted in features:
        if wanted not in names:
            raise missing(wanted, names, uri, "--features")
    if named := [label for label in labels if label in features]:
        raise DataError(f"{uri}: --features names the label {named[0]!r}; leave it out")
    rows = accept(
        frame[list(features)],
        labels_of(frame, labels),
        ids=None if columns.id is None else frame[columns.id],
        sources=None if columns.source is None else frame[columns.source],
        uri=uri,
    )
    used = {*labels, columns.id, columns.source, *features}
    return replace(rows, texts=_texts(frame[[name for name in names if name not in used]]))


def labels_of(frame: pd.DataFrame, labels: list[str]) -> pd.Series | pd.DataFrame | np.ndarray:
    """Return the column of labels, or several; zeros where the rows have none."""
    if not labels:
        return np.zeros(len(frame), np.int64)
    return frame[labels[0]] if len(labels) == 1 else frame[labels]


def _npz_rows(path: Path, uri: str, columns: Columns) -> Rows:
    if columns.features is not None and len(columns.features) != 1:
        raise DataError(f"{uri}: --features of an npz file is one array, such as x")
    with readable(uri, "npz"), np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.files)
        features = columns.features or (rows_array(names, uri),)
        columns = columns.among(names)
        label = None if columns.unlabelled else label_column(names, uri, columns.label)
        wanted = {
            "--features": features[0],
            "--label": label,
            "--id": columns.id or ("ids" if "ids" in names else None),
            "--group-by": columns.source or ("sources" if "sources" in names else None),
        }
        read: dict[str, np.ndarray | None] = {}
        for option, name in wanted.items():
            if name is not None and name not in names:
                raise missing(name, names, uri, option)
            read[option] = None if name is None else _array(arrays, name, uri)
        others = [name for name in names if name not in wanted.values()]
        texts = {name: arrays[name] for name in others if _is_text(arrays, name)}
    x, y = read["--features"], read["--label"]
    assert x is not None
    if y is None:
        y = np.zeros(len(x), np.int64)
    rows = accept(x, y, ids=read["--id"], sources=read["--group-by"], uri=uri)
    whole = {name: text for name, text in texts.items() if text.shape == (len(rows),)}
    return replace(rows, texts=_texts(pd.DataFrame(whole)))


def rows_array(names: list[str], uri: str) -> str:
    """Return the array of the rows where nobody names it: x, a usual name, or the only one.

    Raises:
        DataError: There are several, and none has a usual name.
    """
    if found := [name for name in ROWS_NAMES if name in names]:
        return found[0]
    left = [name for name in names if name.lower() not in {*LABEL_NAMES, "ids", "sources"}]
    if len(left) == 1:
        return left[0]
    raise DataError(f"{uri}: which array holds the rows? Name it with --features: {listing(names)}")


def _is_text(arrays: np.lib.npyio.NpzFile, name: str) -> bool:
    """Say whether an array holds text, by its head alone: others may be large."""
    if arrays.zip is None or f"{name}.npy" not in arrays.zip.namelist():
        return False
    with arrays.zip.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        heads = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        return version in heads and heads[version](file)[2].kind == "U"


def _texts(frame: pd.DataFrame) -> pd.DataFrame | None:
    """Return the columns of text that the model does not read, or None where there are none."""
    held = {
        str(name): pd.Series([value if isinstance(value, str) else "" for value in frame[name]])
        for name in frame.columns
        if pd.api.types.infer_dtype(frame[name], skipna=True) == "string"
    }
    return pd.DataFrame(held) if held else None


def _array(arrays: np.lib.npyio.NpzFile, name: str, uri: str) -> np.ndarray:
    try:
        array = arrays[name]
    except ValueError as error:
        raise DataError(
            f"{uri}: array {name!r} cannot be read ({one_line(error)}); store numbers or text: "
            "arrays of Python objects are pickles, which are never loaded"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise DataError(f"{uri}: {name!r} is not an array with one entry a row; use np.savez")
    return array


def label_columns(names: list[str], uri: str, wanted: str | None) -> list[str]:
    """Return the columns of the labels: one, as `label_column`, or several that are named ``A,B``.

    Raises:
        DataError: One is not there, or several could be the only one.
    """
    if wanted is None or wanted in names or len(several := split_names(wanted)) < 2:
        return [label_column(names, uri, wanted)]
    check_named_once(several, f"{uri}: --label")
    return [label_column(names, uri, name) for name in several]


def label_column(names: list[str], uri: str, wanted: str | None) -> str:
    """Return the label's column: the one that is wanted, or the only one with a usual name.

    Raises:
        DataError: There is none, or several could be it.
    """
    if wanted is not None:
        if wanted not in names:
            raise missing(wanted, names, uri, "--label")
        return wanted
    found = [name for name in names if name.lower() in LABEL_NAMES]
    if len(found) != 1:
        count = "several columns could be the label" if found else "no label column found"
        raise DataError(f"{uri}: {count}; name it with --label, one of {listing(found or names)}")
    return found[0]


def missing(wanted: str, names: list[str], uri: str, option: str) -> DataError:
    """Return the error that a column which an option names is not there."""
    return DataError(f"{uri}: {option} names {wanted!r}, which is not one of {listing(names)}")


def listing(names: list[str], most: int = 20) -> str:
    """Return names, quoted (they are other people's), the first ``most`` of them."""
    shown = ", ".join(repr(name[:80]) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "(nothing)"


def one_line(error: BaseException, most: int = 200) -> str:
    """Return what an error says on one line of at most ``most`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


@contextmanager
def readable(uri: str, kind: str) -> Iterator[None]:
    """Turn what readers raise for a damaged file into a `DataError` that names it."""
    try:
        yield
    except _UNREADABLE as error:
        raise DataError(
            f"{uri} cannot be read as {kind} ({one_line(error)}); check the file or write it again"
        ) from error
