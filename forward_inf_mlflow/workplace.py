"""Workplace: which pieces belong to one audit, and where they wait for its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from forward_inf_mlflow.directions import (
    Direction,
    GradientStep,
    OptimizerSteps,
    Replay,
)
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.memory import room
from forward_inf_mlflow.shards import WorkFolder, digest_arrays, digest_module
from forward_inf_mlflow.training_function import code_digest
from forward_inf_mlflow.version import __version__
from forward_inf_mlflow.work import KeepNothing, Work

if TYPE_CHECKING:
    from forward_inf_mlflow.preparation import Problem
    from forward_inf_mlflow.registry import Version
    from forward_inf_mlflow.settings import Settings


class Kept(Work, Protocol):
    """Work that knows what it found, and can be cleared away."""

    @property
    def done(self) -> int:
        """Return how many pieces an interrupted run had left."""
        ...

    def remove(self) -> None:
        """Remove all pieces: the work is finished."""
        ...


def open_work(root: str | Path | None, key: dict[str, object], *, fresh: bool) -> Kept:
    """Return the folder of a computation.

    Args:
        root: Where; None for the user's cache folder, or nowhere if that cannot be written.
        key: All that the pieces depend on.
        fresh: Forget what is there.

    Raises:
        ForwardInfError: ``root`` was named and cannot be used.
    """
    place = Path(root) if root else _cache()
    try:
        place.mkdir(
            parents=True, exist_ok=True, mode=0o700
        )  # the pieces tell of other people's rows
        return WorkFolder.open(place, key, fresh=fresh)
    except OSError as error:
        if root is None:
            return KeepNothing()
        raise ForwardInfError(
            f"--work-dir {root} cannot be used ({error.strerror}): name a folder you may write to"
        ) from error
    except ForwardInfError:
        if root is None:
            return KeepNothing()
        raise


def earlier_runs(work: Work, run_id: str) -> list[str]:
    """Return the MLflow runs that worked in this folder before this one, and note this one."""
    found: list[str] = []
    for number in count():
        kept = work.once(f"run/{number}", lambda: {"id": np.array(run_id)})
        if (name := str(kept["id"])) == run_id:
            break
        found.append(name)
    return found


def _cache() -> Path:
    if named := os.environ.get("FORWARD_INF_WORK_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forward-inf"


def work_key(version: Version, problem: Problem, settings: Settings) -> dict[str, object]:
    """Return all that the pieces of an audit depend on.

    Threads and batch size belong to it: they change the last bits of a result.
    """
    train, queries = problem.train, problem.queries
    return {
        "model": [version.uri, version.creation_timestamp, digest_module(problem.module)],
        "train": digest_arrays(train.inputs, train.targets),
        "queries": digest_arrays(queries.inputs, queries.targets),
        "task": problem.task.describe(),
        "settings": settings.describe(),
        "trainer": code_digest(settings.trainer) if settings.trainer else None,
        "direction": settings.direction.describe() if settings.direction else "auto",
        "readout": settings.readout or "auto",
        "batch_size": train.batch_size,
        "device": [str(train.device), room(train.device)],
        "threads": torch.get_num_threads(),
        "versions": [__version__, torch.__version__],
    }


def named_direction(name: str, weight_decay: float | None, seed: int) -> Direction | None:
    """Return the direction that a user names, with its usual settings; None for the planner's.

    Raises:
        ForwardInfError: There is none of that name.
    """
    penalty = weight_decay or 0.0
    known: dict[str, Callable[[], Direction | None]] = {
        "auto": lambda: None,
        "gradient": GradientStep,
        "optimizer": OptimizerSteps,
        "replay": lambda: Replay(penalty=penalty, seed=seed),
        "curvature": lambda: None,  # what the planner takes, with its settings
    }
    if name not in known:
        raise ForwardInfError(f"there is no direction '{name}': use {', '.join(known)}")
    return known[name]()
