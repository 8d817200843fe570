"""Labels of images, as a class-conditional diffusion model knows them: by number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError

#: Labels that a message names.
_NAMED = 5


def label_numbers(names: np.ndarray, classes: int | None) -> dict[object, int]:
    """Return which number a conditional model knows each label by.

    Whole numbers are what they are; names, such as folders', are numbered in their order, as image
    folders are.

    Args:
        names: ``(n,)`` the training images' labels.
        classes: How many the model knows; None if it does not say.

    Raises:
        DataError: They are numbers that no model knows.
    """
    if names.dtype.kind in "iuf" and not (np.abs(names.astype(np.float64)) < 2**31).all():
        raise DataError("labels of images are whole numbers below two billion, or names")
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
