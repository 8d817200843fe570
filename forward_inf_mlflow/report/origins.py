"""Origins: the sources of the rows, and which of them differ from the others beyond chance."""

from __future__ import annotations

from typing import Any

from forward_inf_mlflow.detect.sources import LEVEL
from forward_inf_mlflow.errors import TrackingError
from forward_inf_mlflow.report.formats import number
from forward_inf_mlflow.report.measures import BOUNDS
from forward_inf_mlflow.report.sections import Section, section


def origins(value: Any) -> list[Section]:
    """Return the sources, the one with most mislabeled rows per row first.

    To each is added ``high``, the verdicts that chance does not explain, and ``differs``: whether
    its rows' influence is ``below`` or ``above`` the others' beyond chance, else None.

    Raises:
        TrackingError: The record's sources are no list of mappings.
    """
    if not isinstance(value, list | None):
        raise TrackingError("the audit cannot be read: sources is no list; audit the version again")
    found = [section(item, "sources") for item in value or []]
    others = [number(source["influence"]) or 0.0 for source in found]
    sizes = [number(source["rows"]) or 0.0 for source in found]
    for place, source in enumerate(found):
        source["high"] = [name for name in BOUNDS if _by_chance(source, name) < LEVEL]
        source["differs"] = None
        if _by_chance(source, "influence") < LEVEL:
            weight = sum(sizes) - sizes[place]
            rest = sum(a * b for a, b in zip(others, sizes, strict=True))
            mean = (rest - others[place] * sizes[place]) / weight if weight else 0.0
            source["differs"] = "below" if others[place] < mean else "above"
    return sorted(found, key=lambda source: -(number(source["mislabeled_rate"]) or 0.0))


def guilty(sources: list[Section]) -> list[Section]:
    """Return the sources whose mislabeled rate is above the others' beyond chance."""
    return [source for source in sources if "mislabeled" in source["high"]][:3]


def _by_chance(source: Section, what: str) -> float:
    """Return how likely chance alone sets the source so far off; 1 if nobody says."""
    p = number(source[f"{what}_p"])
    return 1.0 if p is None else p
