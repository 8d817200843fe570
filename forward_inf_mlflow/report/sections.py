"""Sections: parts of an audit that anybody may have written, read without trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from forward_inf_mlflow.errors import TrackingError
from forward_inf_mlflow.report.formats import number


class Section(dict[str, Any]):
    """A part of an audit; what an older audit lacks reads as None."""

    def __missing__(self, key: str) -> None:
        return None


def section(value: Any, name: str) -> Section:
    """Return a mapping as a section, nothing as an empty one.

    Raises:
        TrackingError: It is something else.
    """
    if value is None:
        return Section()
    if not isinstance(value, Mapping):
        raise TrackingError(
            f"the audit cannot be read: {name} is a {type(value).__name__}, not a mapping; "
            "audit the version again"
        )
    return Section({str(key): content for key, content in value.items()})


def strings(value: Any) -> list[str]:
    """Return a list of sentences; a lone one counts as a list."""
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def floats(values: Any) -> np.ndarray:
    """Return numbers ``(n,)``; what is none becomes NaN."""
    return np.array([np.nan if (v := number(value)) is None else v for value in values], float)
