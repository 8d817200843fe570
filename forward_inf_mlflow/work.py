"""Work: pieces of a computation that are done once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Work(Protocol):
    """Where finished pieces are kept, so that an interrupted computation goes on."""

    def once(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the piece of that name: as it was kept, else made now and kept."""
        ...


class KeepNothing:
    """Work that is lost when it is interrupted."""

    done = 0

    def once(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Make the piece."""
        return make()

    def remove(self) -> None:
        """Do nothing."""


KEEP_NOTHING = KeepNothing()


@dataclass(frozen=True)
class Within:
    """Pieces whose names begin alike."""

    work: Work
    prefix: str

    def once(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the piece of that name with the prefix before it."""
        return self.work.once(f"{self.prefix}/{name}", make)
