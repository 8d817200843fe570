"""Held: one curvature for several plans of the same model, which is most of what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from forward_inf_mlflow.directions.curvature import Curvature, Prepared
from forward_inf_mlflow.directions.moves import Direction, Moves, at_rest
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Stream, Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Work


@dataclass
class Held:
    """A curvature whose inverse is kept in memory until this object is dropped.

    The numbers are those of the curvature alone, bit by bit. Only the first plan says how reliable
    they are: that is the same for all, and takes two more inverses.

    Attributes:
        curvature: The settings.
    """

    curvature: Curvature
    _of: tuple[Task, Stream, Prepared] | None = field(default=None, repr=False)

    def plan(
        self,
        module: nn.Module,
        task: Task,
        groups: Sequence[Tensors],
        train: Stream,
        work: Work = KEEP_NOTHING,
    ) -> Moves:
        """Return the moves of these query groups; see `Curvature.plan`."""
        first = self._of is None or not self._same(self._of, module, task, train)
        if first:
            self._of = task, train, self.curvature.prepare(module, task, train, work)
        assert self._of is not None, "it was just made"
        return self.curvature.moves(self._of[2], task, groups, work, compared=first)

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these moves."""
        return self.curvature.describe()

    @staticmethod
    def _same(
        of: tuple[Task, Stream, Prepared], module: nn.Module, task: Task, train: Stream
    ) -> bool:
        """Return whether what is held is of this model and these rows."""
        known, rows, prepared = of
        mine, held = at_rest(module).parameters, prepared.base.parameters
        return (
            known is task
            and rows is train
            and mine.keys() == held.keys()
            and all(torch.equal(mine[name], held[name]) for name in mine)
        )


def held(direction: Direction) -> Direction:
    """Return a direction that computes once what its plans have in common, where there is any."""
    return Held(direction) if isinstance(direction, Curvature) else direction
