"""Asking: which query rows, by which direction, at what cost; nothing is computed yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from forward_inf_mlflow.errors import DataError, ForwardInfError
from forward_inf_mlflow.influence import QueryGroups
from forward_inf_mlflow.planner import Plan, plan
from forward_inf_mlflow.planning import require_positive
from forward_inf_mlflow.posing import Posed, pose
from forward_inf_mlflow.settings import Settings
from forward_inf_mlflow.survey import survey
from forward_inf_mlflow.workplace import named_direction, work_key

#: What names every query row, unless one is called so.
ALL = "all"
#: Ids that an error shows.
_SHOWN = 5

DirectionName = Literal["auto", "gradient", "optimizer", "replay", "curvature"]
ReadoutName = Literal["auto", "loss", "margin"]


@dataclass(frozen=True)
class Question:
    """What is asked, and how it will be answered.

    Attributes:
        posed: Version, model and rows.
        index: Positions of the query rows that are asked about.
        groups: The same rows, alone or together.
        settings: What the user said about how.
        planned: What the planner made of it.
        candidates: Rows of each kind that each query is swept over; None for all.
    """

    posed: Posed
    index: np.ndarray
    groups: QueryGroups
    settings: Settings
    planned: Plan
    candidates: int | None = None

    def key(self) -> dict[str, object]:
        """Return all that the pieces of the answer depend on, for their folder."""
        return {
            **work_key(self.posed.version, self.posed.problem, self.settings),
            "what": "influence",
            "asked": self.index.tolist(),
            "groups": len(self.groups.ids),
            "candidates": self.candidates,
        }


def ask(
    model_uri: str,
    *,
    query_rows: Sequence[str | int],
    together: bool = False,
    direction: DirectionName = "auto",
    readout: ReadoutName = "auto",
    weight_decay: float | None = None,
    candidates: int | None = None,
    compiled: bool = False,
    **where: Any,
) -> Question:
    """Bring version, rows and question together, and plan.

    The arguments are those of `explaining.explain`.

    Raises:
        ForwardInfError: That cannot be asked; the message says what to do.
    """
    most = {name: where.get(name) for name in ("batch_size", "max_rows")}
    require_positive(candidates=candidates, **most)
    if candidates and (together or where.get("group_by")):
        which = "together" if together else "group-by"
        raise ForwardInfError(
            f"candidates are rows for single queries: leave out --candidates or --{which}"
        )
    if isinstance(query_rows, str) or not len(query_rows):
        raise DataError("no query rows are named: give a list of ids (--query-rows 3,17)")
    seed = where.get("seed", 0)
    settings = Settings(
        seed=seed,
        direction=named_direction(direction, weight_decay, seed),
        readout=None if readout == "auto" else readout,
        weight_decay=weight_decay,
        compiled=compiled,
    )
    posed = pose(model_uri, **where)
    if not posed.problem.task.labelled:
        raise ForwardInfError(
            "this model's rows have no labels to speak for: ask a language model which texts made "
            "it say something with forward-inf trace, and a diffusion model which images made it "
            "generate one with forward-inf attribute"
        )
    problem = posed.problem
    _require_readable(query_rows, posed)
    index = _positions(query_rows, problem.query_rows.ids, problem.query_rows.uri)
    ids, rows = problem.query_rows.ids[index], problem.queries.take(index)
    groups = QueryGroups.each(rows, ids)
    if together and len(ids) > 1:
        groups = QueryGroups.together(rows, f"{len(ids)} rows together")
    job = survey(
        posed.model,
        problem,
        groups=len(groups.ids),
        queries=len(ids),
        weight_decay=weight_decay,
    )
    planned = plan(
        job,
        direction=settings.direction,
        readout=settings.readout,
        candidates=candidates,
        seed=seed,
    )
    return Question(posed, index, groups, settings, planned, candidates)


def require_room_for(top: int, candidates: int | None) -> None:
    """Refuse to look for the top rows among fewer candidates.

    Raises:
        ForwardInfError: There are fewer.
    """
    if candidates is not None and candidates < top:
        raise ForwardInfError(
            f"{candidates} candidates cannot hold the top {top}: take more (--candidates)"
        )


def _require_readable(wanted: Sequence[str | int], posed: Posed) -> None:
    """Refuse to be asked about a row that could not be read."""
    stored, kept = posed.queries.rows.ids, posed.problem.query_rows.ids
    lost = set(stored.tolist()) - set(kept.tolist())
    if named := [str(name) for name in wanted if str(name) in lost]:
        raise DataError(
            f"query row {named[0]} cannot be asked about: a value of it is missing or the model's "
            "answer is no number; fill it, or name another with --query-rows"
        )


def _positions(wanted: Sequence[str | int], ids: np.ndarray, uri: str) -> np.ndarray:
    """Return where the wanted ids are, each once, in the order in which they were named."""
    names = list(dict.fromkeys(str(name) for name in wanted))
    if names == [ALL] and ALL not in ids:
        return np.arange(len(ids))
    found: np.ndarray = pd.Index(ids).get_indexer(pd.Index(names))
    unknown = [repr(name) for name, at in zip(names, found, strict=True) if at < 0]
    if unknown:
        more = ", ..." if len(unknown) > _SHOWN else ""
        shown = ", ".join(repr(str(name)) for name in ids[:_SHOWN])
        raise DataError(
            f"no query row is called {' or '.join(unknown[:_SHOWN])}{more}: the {len(ids):,} ids "
            f"of {uri} look like {shown}; name others with --query-rows, or other data with "
            "--queries"
        )
    return found
