"""Examine: everything that an audit computes, from a posed problem to verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from forward_inf_mlflow import halves, trainers
from forward_inf_mlflow.detect.duplicates import Duplicates, duplicates
from forward_inf_mlflow.detect.experts import Expert, of_logits
from forward_inf_mlflow.detect.leakage import Leaked, ModelView, feature_copies, leaked
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.membership import Membership, membership
from forward_inf_mlflow.detect.memorization import Memorized, memorized_classes, memorized_targets
from forward_inf_mlflow.detect.mislabeled import (
    Mislabeled,
    mislabeled_classes,
    mislabeled_targets,
    undecided,
)
from forward_inf_mlflow.detect.neighbours import row_keys
from forward_inf_mlflow.detect.worth import LeakWorth, worth
from forward_inf_mlflow.directions import Direction
from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.planner import Plan, plan
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.probe import Which
from forward_inf_mlflow.scores import InfluenceScores
from forward_inf_mlflow.survey import survey
from forward_inf_mlflow.sweep import outputs, read
from forward_inf_mlflow.views import Views, experts, read_views
from forward_inf_mlflow.work import KEEP_NOTHING, Work

#: Gradients that an audit draws for the curvature: its influence names no row by itself, so a
#: quarter of what an explanation draws will do.
_GRADIENTS = 1000
Effort = Literal["quick", "standard", "thorough"]
#: How often the training rows are halved.
_REPEATS = {"quick": 0, "standard": 2, "thorough": 8}
_NO_HALVES = "no half-models were trained (take the effort 'standard')"
#: Called as progress(stage, done, total).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What changes the numbers of an audit, beside model and data.

    Attributes:
        seed: Of the halves and their training.
        effort: "quick" trains nothing, "standard" halves the training rows twice, "thorough" eight
            times.
        fdr: Largest expected share of innocent rows among those that are certainly mislabeled.
        influence_queries: How many queries are asked about one by one: suspected copies first,
            then those with the largest loss. All queries are asked about together anyway.
        top: Proponents and opponents that are kept of each of them.
        direction: How queries move the model; None leaves it to the planner.
        readout: What is read of a training row; None leaves it to the planner.
        weight_decay: The training objective's penalty; None for the model's own, or none.
        compiled: Whether a sweep's passes run through ``torch.compile``.
        recipe: How half-models are trained.
    """

    seed: int = 0
    effort: Effort = "standard"
    fdr: float = 0.1
    influence_queries: int = 100
    top: int = 10
    direction: Direction | None = None
    readout: Which | None = None
    weight_decay: float | None = None
    compiled: bool = False
    recipe: trainers.Recipe = field(default_factory=trainers.Recipe)

    def __post_init__(self) -> None:
        """Check the effort.

        Raises:
            ForwardInfError: There is none of that name.
        """
        if self.effort not in _REPEATS:
            raise ForwardInfError(f"effort is one of {', '.join(_REPEATS)}, not {self.effort!r}")

    @property
    def repeats(self) -> int:
        """Return how often the training rows are halved."""
        return _REPEATS[self.effort]

    def describe(self) -> dict[str, Any]:
        """Return the settings as ``audit.json`` keeps them."""
        return {
            "seed": self.seed,
            "effort": self.effort,
            "fdr": self.fdr,
            "influence_queries": self.influence_queries,
            "top": self.top,
            "weight_decay": self.weight_decay,
            "compiled": self.compiled,
            "halves": trainers.describe(self.recipe),
        }


@dataclass(frozen=True)
class Findings:
    """What an audit found, in the order of the problem's rows.

    Attributes:
        loss: ``(n,)`` the training rows' own losses.
        given_probability: ``(n,)`` the audited model's probability of the given label; NaN for
            regression.
        influence: ``(n,)`` of each training row on all queries together.
        single: Influence on the queries that were asked about one by one, ``(p, n)``.
        mislabeled, leaked, memorized: The verdicts.
        duplicates: Copies inside the training set.
        membership: What an attack on the model learns of its rows; None where it cannot be told.
        leak_worth: What the leaks do for the accuracy; None for regression.
        forward_passes: Rows passed forward without training on them.
        facts: What was found on the way: damping, reliability, how rows were read and why.
    """

    loss: np.ndarray
    given_probability: np.ndarray
    influence: np.ndarray
    single: InfluenceScores
    mislabeled: Mislabeled
    leaked: Leaked
    memorized: Memorized
    duplicates: Duplicates
    membership: Membership | None
    leak_worth: LeakWorth | None
    forward_passes: int
    facts: Mapping[str, object]

    @property
    def measures(self) -> dict[str, Measure]:
        """Return the summaries of the verdicts by name."""
        return {
            "mislabeled": self.mislabeled.measure,
            "leaked": self.leaked.measure,
            "inflated": (
                self.leak_worth.measure
                if self.leak_worth is not None
                else Measure.none(self.leaked.measure.total, "regression has no accuracy")
            ),
            "memorized": self.memorized.measure,
        }


def plan_influence(model: AuditedModel, problem: Problem, settings: Settings) -> Plan:
    """Return how the influence on the queries will be computed: on all together, and on some."""
    single = min(settings.influence_queries, len(problem.queries))
    job = survey(
        model,
        problem,
        groups=1 + single,
        queries=len(problem.queries) + single,
        weight_decay=settings.weight_decay,
    )
    return plan(
        job,
        direction=settings.direction,
        readout=settings.readout,
        gradients=_GRADIENTS,
        seed=settings.seed,
    )


def halves_cost(model: AuditedModel, problem: Problem, settings: Settings) -> int:
    """Return the forward-equivalents of training and reading the half-models, about."""
    n, m = len(problem.train), len(problem.queries)
    fits, recipe = 2 * settings.repeats, settings.recipe
    if not fits:
        return 0
    if model.estimator is not None:  # fits on its own terms; count the reading
        return fits * (n + m)
    tries = fits + len(recipe.rates)
    return tries * (3 * recipe.epochs * n // 2 + n + m)


def examine(
    model: AuditedModel,
    problem: Problem,
    planned: Plan,
    settings: Settings,
    progress: Progress,
    work: Work = KEEP_NOTHING,
) -> Findings:
    """Run the influence engine and the detectors.

    What is costly is kept in ``work``: shards of the sweep, moves and half-models.

    Raises:
        ModelError: The model's loss on some row is not a number.
    """
    n, m = len(problem.train), len(problem.queries)

    # The model as it stands: the queries' losses, and which rows its features confuse.
    query_loss = read(problem.module, problem.task, problem.queries).loss.numpy()
    require_numbers(query_loss, problem.query_rows.ids, "query")
    seen = read_views(model, problem)
    suspects = _feature_copies(seen, m)

    # Mirrored influence: of all queries together, and of some one by one.
    asked = _whom_to_ask(suspects, query_loss, settings.influence_queries)
    each = [problem.queries.take(np.array([i])) for i in asked]
    ids, query_ids = problem.train_rows.ids, problem.query_rows.ids
    engine = ForwardInfluence(
        task=problem.task,
        direction=planned.direction,
        readout=planned.readout,
        compiled=settings.compiled,
    )
    found = engine.influence(
        problem.module,
        QueryGroups([problem.queries, *each], np.array(["all queries", *query_ids[asked]])),
        problem.train,
        ids,
        work=work,
        progress=stage(progress, "influence of the training rows", planned.costs["sweep"]),
    )
    loss, scores = found.loss, found.scores
    require_numbers(loss, ids, "training")
    together = scores.values[0]
    single = InfluenceScores(scores.values[1:], query_ids[asked], ids, scores.provenance)

    leaks = leaked(
        problem.queries.inputs.numpy(),
        problem.train.inputs.numpy(),
        ModelView(suspects, asked, single.values),
        encodings=None
        if seen.encodings is None
        else (seen.encodings.queries, seen.encodings.train),
    )

    # Half-models: what is said of a row by models that never saw it.
    held_out = _held_out(model, problem, settings, progress, work)
    if problem.classes is not None:
        given = np.exp(-loss)  # the loss is minus the logarithm of the given label's probability
        itself = _itself(problem)
        right = itself.queries.argmax(1) == problem.queries.targets.numpy()
        value = worth(right, query_loss, leaks.flags)
        wrong = _wrong_classes(problem, seen, itself, held_out, leaks, settings.fdr)
        known = memorized_classes(held_out, labels_of(problem), given, wrong.suspicion)
        truth = problem.queries.targets.numpy()
        attacked = membership(loss, query_loss, held_out, labels_of(problem), truth, leaks.flags)
    else:
        given, value, attacked = np.full(n, np.nan), None, None
        wrong = _wrong_targets(problem, held_out, leaks, settings.fdr)
        known = memorized_targets(n)

    return Findings(
        loss=loss,
        given_probability=given,
        influence=together,
        single=single,
        mislabeled=wrong,
        leaked=leaks,
        memorized=known,
        duplicates=duplicates(
            problem.train.inputs.numpy(),
            labels_of(problem),
            None if seen.encodings is None else seen.encodings.train,
        ),
        membership=attacked,
        leak_worth=value,
        forward_passes=(
            m
            + found.forward_passes
            + (n + m) * ((seen.features is not None) + (seen.encodings is not None))
            + (n + m) * (problem.classes is not None)
            + (n + m) * 2 * settings.repeats
        ),
        facts={**found.facts, "read_by": found.choice.method, "read_why": found.choice.note},
    )


def _held_out(
    model: AuditedModel, problem: Problem, settings: Settings, progress: Progress, work: Work
) -> halves.HeldOut | None:
    """Train the half-models and read all rows under them; None where the effort trains nothing."""
    if not settings.repeats:
        return None
    return halves.read_halves(
        _fit(model, problem, settings, work),
        _strata(problem),
        repeats=settings.repeats,
        seed=settings.seed,
        groups=row_keys(problem.train.inputs.numpy()),
        progress=stage(progress, "models trained on half of the rows", 2 * settings.repeats),
    )


def _wrong_classes(
    problem: Problem,
    seen: Views,
    itself: Expert,
    held_out: halves.HeldOut | None,
    leaks: Leaked,
    fdr: float,
) -> Mislabeled:
    """Ask everybody who has an opinion of the rows' classes."""
    assert problem.classes is not None, "rows have classes here"
    labels, truth = labels_of(problem), problem.queries.targets.numpy()
    if held_out is not None and held_out.diverged is not None:
        return undecided(len(labels), held_out.diverged)
    groups = row_keys(problem.train.inputs.numpy())
    naive, learned = experts(seen, labels, groups, truth, ~leaks.flags, len(problem.classes))
    if held_out is not None:
        naive.insert(0, of_logits("half-models", held_out.train_out, held_out.queries))
    if not naive:
        return undecided(len(labels), f"nobody can be asked about the labels: {_NO_HALVES}")
    return mislabeled_classes(
        naive,
        labels,
        truth,
        ~leaks.flags,
        learned=[itself, *learned],
        apart=leaks.train_flags,
        fdr=fdr,
        note=_NO_HALVES if held_out is None else held_out.note,
    )


def _wrong_targets(
    problem: Problem, held_out: halves.HeldOut | None, leaks: Leaked, fdr: float
) -> Mislabeled:
    """Hold targets against the half-models' predictions."""
    targets, truth = problem.train.targets.numpy(), problem.queries.targets.numpy()
    if held_out is None:
        return undecided(len(targets), _NO_HALVES)
    return mislabeled_targets(
        held_out, targets, truth, ~leaks.flags, apart=leaks.train_flags, fdr=fdr
    )


def labels_of(problem: Problem) -> np.ndarray:
    """Return the training rows' class indices, or their targets, ``(n,)``."""
    return np.asarray(problem.train.targets.numpy())


def stage(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    """Return a counter of steps done that reports them under one name."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        progress(name, done, total)

    progress(name, 0, total)
    return advance


def require_numbers(loss: np.ndarray, ids: np.ndarray, what: str) -> None:
    """Raise a `ModelError` that names the first row whose loss is not a number."""
    bad = np.flatnonzero(~np.isfinite(loss))
    if len(bad):
        raise ModelError(
            f"the model's loss on {what} row {ids[bad[0]]} is not a number ({len(bad)} such rows): "
            "log a model that is trained, or take these rows out"
        )


def _feature_copies(seen: Views, queries: int) -> np.ndarray:
    """Return for each query the training row that the model's features take it for, or -1."""
    if seen.features is None:
        return np.full(queries, -1)
    return feature_copies(seen.features.queries, seen.features.train)


def _itself(problem: Problem) -> Expert:
    """Return what the audited model says of rows that it learned and of queries."""

    said = [outputs(problem.module, rows).numpy() for rows in (problem.train, problem.queries)]
    return of_logits("the audited model", said[0][None], said[1][None])


def _whom_to_ask(suspects: np.ndarray, loss: np.ndarray, most: int) -> np.ndarray:
    """Return the queries to ask about one by one: suspected copies, then the largest losses."""
    order = np.lexsort((-loss, suspects < 0))
    return np.sort(order[:most])


def _fit(model: AuditedModel, problem: Problem, settings: Settings, work: Work) -> halves.Fit:
    if model.estimator is not None:
        targets = problem.train.targets.numpy()
        return trainers.Refitted(
            model.estimator,
            problem.train_rows.features,
            targets if problem.classes is None else problem.classes[targets],
            problem.query_rows.features,
            problem.classes,
            work,
        )
    return trainers.Continued(
        problem.module, problem.task, problem.train, problem.queries, settings.recipe, work
    )


def _strata(problem: Problem) -> np.ndarray:
    """Return what both halves should hold alike: the classes, or tenths of the target."""
    targets = problem.train.targets.numpy()
    if problem.classes is not None:
        return targets
    return np.searchsorted(np.quantile(targets, np.linspace(0, 1, 11)[1:-1]), targets)
