"""Pixels: stored images in the shape and on the scale that a diffusion model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError

#: How numbers become what the model was trained on; see `scaled`.
Pixels = Literal["auto", "signed", "unit"]
#: Numbers below this are not from 0 to 1.
SIGNED = -0.25


def shaped(values: np.ndarray, shape: tuple[int | None, ...] | None, what: str) -> np.ndarray:
    """Return images as a model takes them, ``(n, C, H, W)`` for a model of pictures.

    Args:
        values: ``(n, H, W)``, ``(n, H, W, C)`` or ``(n, C, H, W)``; or flat on either side.
        shape: Of one image as the model takes it, None in it for a size that varies; None if
            nobody knows.
        what: What holds them, for a message.

    Raises:
        DataError: They have another size.
    """
    found = values.shape[1:]
    if shape is None:
        return values[:, None] if values.ndim == 3 else values
    if _fits(found, shape):
        return values
    if len(shape) == 3:
        if len(found) == 2 and _fits((1, *found), shape):
            return values[:, None]
        if len(found) == 3 and _fits((found[2], *found[:2]), shape):
            return np.moveaxis(values, -1, 1)
    known = [size for size in shape if size is not None]
    flat = len(known) == len(shape) and 1 in (len(found), len(shape))  # on either side
    if flat and np.prod(known) == np.prod(found):
        return values.reshape(len(values), *known)
    wanted = " x ".join("any" if size is None else str(size) for size in shape)
    raise DataError(
        f"{what} holds images of {' x '.join(map(str, found))}, and the model takes {wanted}: "
        "give images of its own size, as (n, h, w), (n, h, w, c) or (n, c, h, w)"
    )


def _fits(found: Sequence[int], shape: tuple[int | None, ...]) -> bool:
    return len(found) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(found, shape, strict=True)
    )


def scaled(
    train: np.ndarray, queries: np.ndarray, pixels: Pixels, train_rows: Rows, query_rows: Rows
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return both in float32 on the model's scale, and the sentence that says how.

    Whole numbers are pixels from 0 to 255 and are scaled to -1 to 1, as diffusion models are
    trained; "unit" scales them to 0 to 1. Other numbers are taken as they are, but "signed" takes
    those from 0 to 1 for pixels that are still to be scaled to -1 to 1.

    Raises:
        DataError: They are no pixels, no numbers, or look like two scales.
    """
    x, q = _pixels(train, pixels, train_rows), _pixels(queries, pixels, query_rows)
    ranges = [(float(values.min()), float(values.max())) for values in (x, q)]
    if (ranges[0][0] < SIGNED) != (ranges[1][0] < SIGNED):
        train_range, query_range = (f"{low:.2g} to {high:.2g}" for low, high in ranges)
        raise DataError(
            f"the training images lie in {train_range} and the generated ones in {query_range}, "
            "which looks like two scales: say which one the model takes with --pixels signed "
            "(-1 to 1) or unit (0 to 1)"
        )
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    return x, q, f"images are given to the model as numbers from {low:.2g} to {high:.2g}"


def _pixels(values: np.ndarray, pixels: Pixels, rows: Rows) -> np.ndarray:
    whole = values.dtype.kind in "iu"
    found = values.astype(np.float32)
    _require_numbers(found, rows)
    low, high = found.min(), found.max()
    if whole:
        if low < 0 or high > 255:
            raise DataError(
                f"{rows.uri}: whole numbers from {low:.0f} to {high:.0f} are no pixels from 0 to "
                "255: store what the model was trained on"
            )
        found /= 255
    elif pixels == "unit" and low < SIGNED:
        raise DataError(
            f"{rows.uri}: numbers from {low:.2g} to {high:.2g} do not lie in 0 to 1: leave "
            "--pixels unit out"
        )
    if (pixels == "auto" and whole) or (pixels == "signed" and (whole or 0 <= low <= high <= 1)):
        found = 2 * found - 1
    return np.ascontiguousarray(found)


def _require_numbers(values: np.ndarray, rows: Rows) -> None:
    fine = np.isfinite(values).reshape(len(values), -1).all(1)
    if not fine.all():
        bad = rows.ids[np.argmin(fine)]
        raise DataError(
            f"{rows.uri}: image {str(bad)!r} holds a value that is no number: remove it"
        )
