"""The SHA-256 of a data set's content: every value of every row, however it is stored."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd

#: Values hashed at a time: bounds the memory of the copies, never changes the digest.
_BLOCK = 1 << 20


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
        labels: ``(n,)`` numbers or text.
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
