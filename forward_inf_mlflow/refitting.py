"""Refitting: the mirrored question at its word, by a trainer that fits with queries and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.detect.leakage import Leaked
from forward_inf_mlflow.directions import Refit
from forward_inf_mlflow.directions.reliability import reliability_of
from forward_inf_mlflow.influence import Influence
from forward_inf_mlflow.mirror import ALL
from forward_inf_mlflow.moved import MIN_QUERIES, Parts
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.probe import Choice, Which
from forward_inf_mlflow.progress import Progress, silent, stage
from forward_inf_mlflow.scores import InfluenceScores
from forward_inf_mlflow.singles import Asked, Rest
from forward_inf_mlflow.sweep import read
from forward_inf_mlflow.task import Batch, Readout
from forward_inf_mlflow.training_function import NEVER, Trained

#: The least that a probability of zero is read as.
_LEAST = float(np.log(1e-6))
_NOBODY = np.empty(0, np.int64)
#: What seeds that disagree do to the scores.
DISAGREE = (
    "where seeds disagree, a row's score is the difference of two random trainings more than "
    "anything of the row, and another seed would put other rows first"
)


@dataclass(frozen=True)
class Group:
    """What is added to the rows: positions of queries, and of training rows once more."""

    name: str
    queries: np.ndarray = field(default_factory=lambda: _NOBODY)
    rows: np.ndarray = field(default_factory=lambda: _NOBODY)


@dataclass(frozen=True)
class Scored:
    """What refits say of one group.

    Attributes:
        values: ``(n,)`` nats per added copy; NaN where they are refused.
        reliability: Of the mean over seeds.
        seeds: How many.
    """

    values: np.ndarray
    reliability: float
    seeds: int


class ByRefits:
    """Fits the model anew with queries and without, over several seeds."""

    def __init__(
        self,
        trained: Trained,
        problem: Problem,
        refit: Refit,
        readout: Which,
        *,
        most: int,
        answers: bool,
        progress: Progress = silent,
    ) -> None:
        """Take who trains.

        Args:
            trained: Trains on some rows and reads all.
            problem: The rows.
            refit: How often, and how far seeds must agree.
            readout: What is read of a row.
            most: Rows that may be asked about one by one, at most.
            answers: Whether the answers of the refitted model are asked for too.
            progress: Told of every fit.
        """
        self._trained, self._problem, self._refit = trained, problem, refit
        self._readout, self._most, self._answers = readout, most, answers
        self._progress = progress
        self._all = np.arange(len(problem.train))

    @property
    def most(self) -> int:
        """Return how many rows are asked about one by one: each costs a fit a seed."""
        return min(self._most, self._refit.singles)

    def influence(self, asked: np.ndarray) -> Influence:
        """Return the influence on all queries together and on some, those that are refused NaN."""
        ids, everyone = self._problem.query_rows.ids, np.arange(len(self._problem.queries))
        groups = [
            Group(ALL, everyone),
            *(Group(str(ids[one]), np.array([one])) for one in asked),
        ]
        found, passed = self._score(groups, "fitted anew with queries and without")
        own = read(self._problem.module, self._problem.task, self._problem.train)
        facts = {
            "seeds": found[0].seeds,
            "reliability": found[0].reliability,
            "refused": int(sum(np.isnan(one.values).all() for one in found)),
        }
        return Influence(
            self._as_scores(groups, found),
            own.loss.numpy(),
            own.margin.numpy(),
            Choice("difference", note=self._told(found)),
            facts,
            passed + len(self._all),
        )

    def moved(self, trusted: np.ndarray) -> Expert | None:
        """Return how three quarters of the queries change the answers to all other rows."""
        if not self._answers or trusted.sum() < MIN_QUERIES:
            return None
        parts = Parts.drawn(trusted, len(self._all), self._refit.seed)
        advance = self._advance(
            "answers of the refitted model", self._refit.least_seeds * len(parts.others(trusted))
        )
        train: list[np.ndarray] = []
        queries: list[np.ndarray] = []
        for others in parts.others(trusted):
            changes = []
            for seed in self._seeds[: self._refit.least_seeds]:
                with_them = self._trained.with_queries(self._all, others, seed)
                without = self._trained(self._all, seed)
                changes.append(
                    [
                        self._floored(a) - self._floored(b)
                        for a, b in zip(with_them, without, strict=True)
                    ]
                )
                advance(1)
            for into, both in zip((train, queries), zip(*changes, strict=True), strict=True):
                into.append(np.mean(both, axis=0))
        return parts.expert(
            "the model refitted with the queries", np.stack(train), np.stack(queries)
        )

    def margin_changes(self, leaks: Leaked) -> np.ndarray:
        """Fit without all training rows that leaked, and read the queries that they leaked to."""
        found = np.full(len(self._problem.queries), np.nan)
        flagged = np.flatnonzero(leaks.flags)
        kept = np.setdiff1d(self._all, leaks.train_index[flagged])
        targets = self._problem.train.targets
        if not len(flagged) or not set(targets.tolist()) <= set(targets[kept].tolist()):
            return found  # without a class it would be another model
        changes = []
        for seed in self._seeds[: self._refit.least_seeds]:
            without, whole = (self._trained(index, seed)[1] for index in (kept, self._all))
            margins = [
                self._read(said, self._problem.queries.targets).margin for said in (without, whole)
            ]
            changes.append((margins[0] - margins[1]).numpy())
        found[flagged] = np.mean(changes, axis=0)[flagged]
        return found

    def ask(self, rest: Rest) -> tuple[Asked, int]:
        """Return the influence on some training rows, once more each, and on some queries."""
        rows, queries = self._problem.train_rows.ids, self._problem.query_rows.ids
        own = [Group(str(rows[i]), rows=np.array([i])) for i in rest.rows]
        others = [Group(str(queries[i]), np.array([i])) for i in rest.queries]
        found, passed = self._score([*own, *others], "fitted anew with judged rows and without")
        scores = [
            self._as_scores(g, f)
            for g, f in ((own, found[: len(own)]), (others, found[len(own) :]))
        ]
        scores[0].values[np.arange(len(own)), rest.rows] = np.nan  # a row speaks for itself
        return Asked(scores[1], scores[0]), passed

    @property
    def _seeds(self) -> list[int]:
        first = self._refit.seed
        return list(range(first, first + self._refit.most_seeds))

    def _score(self, groups: Sequence[Group], what: str) -> tuple[list[Scored], int]:
        """Return the scores of every group, and how many rows were read."""
        fits = self._refit.most_seeds * len(groups)
        advance = self._advance(what, fits)
        found = [self._score_one(group, advance) for group in groups]
        done = sum(one.seeds for one in found)
        advance(fits - done)
        rows = len(self._all) + len(self._problem.queries)
        controls = max((one.seeds for one in found), default=0)
        return found, (done + controls) * rows

    def _score_one(self, group: Group, advance: Callable[[int], None]) -> Scored:
        changes: list[np.ndarray] = []
        reliability = 0.0
        for seed in self._seeds:
            changes.append(self._change(group, seed))
            advance(1)
            if len(changes) < self._refit.least_seeds:
                continue
            reliability = _agreement(np.stack(changes))
            if reliability >= self._refit.reliable or self._refit.hopeless(
                reliability, len(changes)
            ):
                break
        mean = np.mean(changes, axis=0)
        shown = reliability >= self._refit.floor
        return Scored(mean if shown else np.full_like(mean, np.nan), reliability, len(changes))

    def _change(self, group: Group, seed: int) -> np.ndarray:
        """Return how far every training row's loss falls, per added copy, ``(n,)``."""
        index = np.concatenate([self._all, group.rows])
        treated, _ = self._trained.with_queries(index, group.queries, seed)
        control, _ = self._trained(self._all, seed)
        targets = self._problem.train.targets
        before, after = self._read(control, targets), self._read(treated, targets)
        if self._readout == "margin":
            change = after.margin - before.margin
        else:
            change = before.loss - after.loss
        return np.asarray(change.numpy() / (len(group.rows) + len(group.queries)))

    def _read(self, answers: np.ndarray, targets: torch.Tensor) -> Readout:
        task, said = self._problem.task, torch.as_tensor(self._floored(answers))
        return task.readout_of(said, Batch(said, targets))

    def _floored(self, answers: np.ndarray) -> np.ndarray:
        """Return answers in which a probability of zero is half of the least that was given.

        A vote more or less is then no matter of life and death: a row whose last neighbour of its
        class goes would outweigh all others.
        """
        values = answers.astype(np.float64)
        return np.where(answers == NEVER, self._least, values)

    @property
    def _least(self) -> float:
        control, _ = self._trained(self._all, self._seeds[0])
        given = control[control != NEVER]
        return max(_LEAST, float(given.min(initial=0.0) - np.log(2)))

    def _as_scores(self, groups: Sequence[Group], found: Sequence[Scored]) -> InfluenceScores:
        values = np.stack([one.values for one in found]) if found else np.empty((0, len(self._all)))
        return InfluenceScores(
            values.astype(np.float32),
            np.array([group.name for group in groups], dtype=str),
            self._problem.train_rows.ids,
            {"readout": self._readout, **self._refit.describe()},
        )

    def _told(self, found: Sequence[Scored]) -> str:
        """Return one sentence on how far the seeds agree."""
        whole, floor = found[0], self._refit.floor
        singles = sum(bool(np.isnan(one.values).all()) for one in found[1:])
        said = (
            f"over {whole.seeds} seeds the scores on all queries together have a reliability of "
            f"{whole.reliability:.2f}"
        )
        if whole.reliability < floor:
            said += f", below {floor:.2f}, so they are not shown"
        if singles:
            said += f"; those on {singles} of {len(found) - 1} single queries lie below {floor:.2f}"
            said += " and are not shown"
        if singles or whole.reliability < floor:
            said += (
                f": {DISAGREE}. Let the seed decide less, train longer, or average several models "
                "in the trainer"
            )
        return said

    def _advance(self, what: str, total: int) -> Callable[[int], None]:
        return stage(self._progress, what, total)


def _agreement(changes: np.ndarray) -> float:
    """Return the reliability of the mean of ``(s, n)`` changes; 1 where all seeds say the same."""
    if (changes == changes[0]).all():
        return 1.0
    found = reliability_of(changes[:, None])
    return found if np.isfinite(found) else 0.0
