"""Durations on the command line: 30d, 12h."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_WRITTEN = re.compile(r"([0-9]{1,6})([mhdw])")
_LONGEST = timedelta(days=3660)


class Duration(click.ParamType):  # type: ignore[type-arg]  # older ones have no argument
    """A whole number of minutes, hours, days or weeks, up to ten years."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, context: Any) -> timedelta:
        """Return the value as a `timedelta`."""
        if isinstance(value, timedelta):
            return value
        found = _WRITTEN.fullmatch(str(value).strip().lower())
        if found is None:
            self.fail(
                f"'{value}' is not a duration: write 30d, or 90m, 12h, 2w "
                "(minutes, hours, days, weeks)",
                param,
                context,
            )
        number, unit = found.groups()
        duration = timedelta(**{_UNITS[unit]: int(number)})
        if not timedelta() < duration <= _LONGEST:
            self.fail(f"'{value}' is not between a minute and ten years", param, context)
        return duration
