"""The input example that was logged with a model: how large its numbers are, a hint alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

#: Where MLflow puts it, and the largest one that is read, in bytes.
_FILE, _MOST = "input_example.json", 2**26
#: What MLflow calls the numbers inside an example that is an object, or a frame.
_KEYS = ("data", "inputs")


def example_range(folder: Path) -> tuple[float, float] | None:
    """Return the smallest and the largest number of an input example.

    Args:
        folder: A downloaded model.

    Returns:
        None where there is no example, or one that holds anything but numbers.
    """
    path = folder / _FILE
    try:
        if path.is_symlink() or path.stat().st_size > _MOST:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in _KEYS:
            found = found.get(key, found) if isinstance(found, dict) else found
        numbers = np.asarray(found, dtype=np.float64)
    except (OSError, ValueError, TypeError, RecursionError, OverflowError):
        return None
    if not numbers.size or not np.isfinite(numbers).all():
        return None
    return float(numbers.min()), float(numbers.max())
