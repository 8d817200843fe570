"""The SHA-256 of content, however it is stored: of a whole data set, and of each row by itself."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd

#: Values hashed at a time: bounds the memory of the copies, never changes the digest.
_BLOCK = 1 << 20
#: Digits of a row's digest: enough that nobody finds two rows that share one.
_DIGITS = 40
#: Whole numbers up to here are the same as floating-point numbers.
_EXACT = 2**53


def fingerprint(
    features: pd.DataFrame | np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray,
    sources: np.ndarray | None,
) -> str:
    """Hash all rows, unlike MLflow's own digest, which stops at the first 10,000.

    The digest depends on values, dtypes, shapes and feature names, in order. It does not depend on
    the file format, on compression, on how rows were split into files, on byte order or on memory
    layout. Text is hashed as UTF-8 with its length in front, whatever the width of its array; any
    NaN is hashed alike.

    Args:
        features: ``(n, d)`` frame of plain columns (numbers or text), or ``(n, ...)`` numbers.
        labels: ``(n,)`` numbers or text, or ``(n, k)`` numbers.
        ids: ``(n,)`` text.
        sources: ``(n,)`` text, or None.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if isinstance(features, pd.DataFrame):
        for name in features.columns:
            _add(digest, ("column", str(name)), features[name].to_numpy())
    else:
        _add(digest, ("features",), features)
    _add(digest, ("labels",), labels)
    _add(digest, ("ids",), ids)
    if sources is not None:
        _add(digest, ("sources",), sources)
    return digest.hexdigest()


def row_digests(
    features: pd.DataFrame | np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hash each row by itself, wherever it stands and whatever its id and source are.

    A number is the same in any type that holds it, since a column's type changes with other rows
    (a gap turns whole numbers into fractions); any NaN is hashed alike. Names of columns count, the
    shape of a row does not.

    Args:
        features: ``(n, d)`` frame of plain columns (numbers or text), or ``(n, ...)`` numbers.
        labels: ``(n,)`` numbers or text, or ``(n, k)`` numbers.

    Returns:
        ``(n,)`` of the features alone and ``(n,)`` of features and label, text of 40 hexadecimal
        digits.
    """
    names: list[list[str]] = [[], []]
    parts: list[np.ndarray] = []
    if isinstance(features, pd.DataFrame):
        numbers = [name for name in features.columns if features[name].dtype.kind in "biuf"]
        texts = [name for name in features.columns if name not in set(numbers)]
        names = [[str(name) for name in some] for some in (numbers, texts)]
        parts = [features[name].to_numpy() for name in (*numbers, *texts)]
    else:
        parts = [features.reshape(len(features), -1)]
    head, n = _prefixed(json.dumps(names)), len(labels)
    step = max(1, _BLOCK // max(1, sum(part[:1].size for part in parts)))
    whole, bare = np.empty(n, dtype=object), np.empty(n, dtype=object)
    for start in range(0, n, step):
        cells = [_cells(part[start : start + step]) for part in (*parts, labels)]
        for i, (*row, label) in enumerate(zip(*cells, strict=True), start):
            of_row = hashlib.sha256(head + b"".join(row))
            bare[i] = of_row.hexdigest()[:_DIGITS]
            of_row.update(b"label" + label)
            whole[i] = of_row.hexdigest()[:_DIGITS]
    return bare, whole


def _cells(values: np.ndarray) -> list[bytes]:
    """Return what is hashed of each row of a column ``(n,)`` or of numbers ``(n, d)``."""
    if values.dtype.kind in "OUT":
        return [b"t" + _prefixed(text) for text in values.tolist()]
    whole = values.dtype.kind in "iu" and values.dtype.itemsize == 8 and values.size
    if whole and (int(values.max()) > _EXACT or int(values.min()) < -_EXACT):
        return [b"w" + _prefixed(str(row)) for row in values.tolist()]
    plain = np.ascontiguousarray(values, dtype="<f8") + 0.0  # minus zero is zero
    plain[np.isnan(plain)] = np.nan
    data, width = plain.tobytes(), plain[:1].nbytes
    return [b"n" + data[i * width : (i + 1) * width] for i in range(len(values))]


def _add(digest: hashlib._Hash, name: tuple[str, ...], values: np.ndarray) -> None:
    """Add a header that says what follows, so that no value can pass for another part, and values.

    ``values`` is ``(n, ...)``.
    """
    is_text = values.dtype.kind in "OUT"
    kind = "text" if is_text else f"{values.dtype.kind}{values.dtype.itemsize}"
    digest.update(_prefixed(json.dumps([*name, kind, values.shape])))
    little_endian = values.dtype.newbyteorder("<")
    step = max(1, _BLOCK * len(values) // max(1, values.size))
    for start in range(0, len(values), step):
        block = values[start : start + step]
        if is_text:
            digest.update(b"".join(map(_prefixed, block.tolist())))
        else:
            plain = np.ascontiguousarray(block, dtype=little_endian)
            if plain.dtype.kind == "f" and (nan := np.isnan(plain)).any():
                plain = plain.copy()
                plain[nan] = np.nan  # there are many
            digest.update(plain.tobytes())


def _prefixed(text: str | None) -> bytes:
    if text is None:  # no text is so long
        return b"\xff" * 8
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded
