"""What a diffusion model takes of stored images: their axes in its order, labels as its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError

#: Labels that a message names.
_NAMED = 5


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


def label_numbers(names: np.ndarray, classes: int | None) -> dict[object, int]:
    """Return which number a conditional model knows each label by.

    Whole numbers are what they are; names, such as folders', are numbered in their order, as image
    folders are.

    Args:
        names: ``(n,)`` the training images' labels.
        classes: How many the model knows; None if it does not say.
    """
    whole = names.dtype.kind in "biu" or (names.dtype.kind == "f" and (names % 1 == 0).all())
    if not whole:
        return {label: i for i, label in enumerate(np.unique(names).tolist())}
    if classes is not None:
        return {label: label for label in range(classes)}
    return {label: int(label) for label in np.unique(names).tolist()}


def numbered(rows: Rows, known: Mapping[object, int], what: str) -> np.ndarray:
    """Return the rows' labels as the model knows them, ``(n,)`` int64.

    Raises:
        DataError: It does not know one; the message names it.
    """
    labels = rows.labels.tolist()
    unknown = [i for i, label in enumerate(labels) if label not in known]
    if unknown:
        shown = ", ".join(map(str, list(known)[:_NAMED]))
        raise DataError(
            f"the label {labels[unknown[0]]!r:.60} of {what} image {str(rows.ids[unknown[0]])!r} "
            f"is not known to the model ({shown}, ...): {len(unknown):,} are like that"
        )
    return np.array([known[label] for label in labels], np.int64)
