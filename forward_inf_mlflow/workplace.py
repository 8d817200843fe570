"""Workplace: which pieces belong to one audit, where they are kept, and which are used again."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from importlib.metadata import version as installed
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
from forward_inf_mlflow.shards import WorkFolder, digest_arrays, digest_module, prune
from forward_inf_mlflow.training_function import code_digest
from forward_inf_mlflow.version import __version__
from forward_inf_mlflow.work import Arrays, KeepNothing, Work

if TYPE_CHECKING:
    from forward_inf_mlflow.preparation import Problem
    from forward_inf_mlflow.registry import Version
    from forward_inf_mlflow.settings import Settings

#: What pieces are, and what the names of those begin with that have a folder of their own.
_INFLUENCE, _HALVES, _SEARCHES = "pieces of influence", "half-models", "searches of rows"
_KINDS = {"halves": _HALVES, "trained": _HALVES, "values": _SEARCHES}


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


class AuditWork:
    """The pieces of an audit, in three folders: each is kept as long as what it depends on stays.

    Half-models depend on the model, the rows and how they are trained, not on which queries are
    asked and how; searches of the rows as they are on the rows alone, whatever the model; all else
    on everything.

    Attributes:
        found: How many pieces of each kind were there already and were used.
    """

    def __init__(
        self,
        root: str | Path | None,
        version: Version,
        problem: Problem,
        settings: Settings,
        *,
        fresh: bool,
    ) -> None:
        """Open the folders; see `open_work`."""
        self._most = _most_kept()  # a slip is told before anything long begins
        keys = {
            _INFLUENCE: work_key(version, problem, settings),
            _HALVES: halves_key(version, problem, settings),
            _SEARCHES: values_key(problem),
        }
        self._folders = {kind: open_work(root, key, fresh=fresh) for kind, key in keys.items()}
        self.found = dict.fromkeys(keys, 0)
        self._mine: set[str] = set()  # what was asked for before is no find
        whole = self._folders[_INFLUENCE]
        self._finished_by = whole.finished_by if isinstance(whole, WorkFolder) else None
        self._runs = 0
        # What a trainer's module imports may change unseen: its models wait for this audit alone.
        self._kept = [kind for kind in keys if kind != _HALVES or settings.trainer is None]

    def once(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Return a piece from the folder that it belongs to."""
        made = False

        def made_now() -> Arrays:
            nonlocal made
            made = True
            return make()

        part = name.split("/", 1)[0]
        kind = _KINDS.get(part, _INFLUENCE)
        piece = self._folders[kind].once(name, made_now)
        if part == "run":
            self._runs += 1
        elif not made and name not in self._mine:
            self.found[kind] += 1
        self._mine.add(name)
        return piece

    def reused(self) -> dict[str, Any] | None:
        """Return what the record says of pieces that an earlier audit had kept; None for none."""
        used = {kind: count for kind, count in self.found.items() if count}
        if not used:
            return None
        run = f", all that audit run {self._finished_by} did" if self._finished_by else ""
        named = ", ".join(f"{count:,} {kind}" for kind, count in used.items())
        return {
            "pieces": dict(self.found),
            "of_run": self._finished_by,
            "sentence": f"used again, bit for bit, what was kept: {named}{run} (--fresh makes all "
            "anew)",
        }

    def finish(self, run_id: str) -> None:
        """Keep the pieces for the next audit, as far as they may take up room; else remove them."""
        for kind, folder in self._folders.items():
            if not self._most or kind not in self._kept or not isinstance(folder, WorkFolder):
                folder.remove()
                continue
            folder.finish(run_id)
            for number in range(self._runs):
                folder.forget(f"run/{number}")
            prune(folder.folder.parent, self._most)


def _most_kept() -> int:
    """Return how many bytes of finished pieces are kept.

    Raises:
        ForwardInfError: The environment names no such number.
    """
    text = os.environ.get("FORWARD_INF_KEEP_MIB", "1024")
    if not text.isdigit():
        raise ForwardInfError(
            f"FORWARD_INF_KEEP_MIB is '{text[:20]}': write how many MiB of finished pieces to keep"
        )
    return int(text) * 2**20


def earlier_runs(work: Work, run_id: str) -> list[str]:
    """Return the MLflow runs that worked in this folder before this one, and note this one."""
    found: list[str] = []
    for number in count():
        kept = work.once(f"run/{number}", lambda: {"id": np.array(run_id)})
        if (name := str(kept["id"])) == run_id:
            break
        found.append(name)
    return found


def _versions() -> list[str]:
    """Return what else may change the last bits of a result."""
    packages = ("torch", "numpy", "scipy", "scikit-learn")
    return [__version__, *(installed(name) for name in packages), platform.machine()]


def _digest_texts(texts: np.ndarray) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


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
        # Also as they are stored: an estimator is fitted to rows that its own steps have not seen.
        "rows": [_digest_texts(rows.digests) for rows in (problem.train_rows, problem.query_rows)],
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
        "versions": _versions(),
    }


def halves_key(version: Version, problem: Problem, settings: Settings) -> dict[str, object]:
    """Return all that half-models depend on; their seed is part of a piece's name."""
    every = work_key(version, problem, settings)
    told = {name: settings.describe()[name] for name in ("seed", "halves", "trainer")}
    ignored = ("direction", "readout")
    return {
        **{name: value for name, value in every.items() if name not in ignored},
        "settings": told,
        "pieces": "half-models",
    }


def values_key(problem: Problem) -> dict[str, object]:
    """Return all that searches of the rows as they are depend on."""
    return {
        "train": digest_arrays(problem.train.inputs),
        "queries": digest_arrays(problem.queries.inputs),
        "texts": None if problem.texts is None else [_digest_texts(t) for t in problem.texts],
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "pieces": "searches",
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
