"""Examine: everything that an audit computes, from a posed problem to verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from forward_inf_mlflow.detect.duplicates import Duplicates, duplicates
from forward_inf_mlflow.detect.leakage import Leaked, ModelView, feature_copies, leaked
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.receipt import Receipt
from forward_inf_mlflow.directions import Refit, held
from forward_inf_mlflow.errors import ModelError
from forward_inf_mlflow.half_models import RECEIPT_SEED, read_held_out, train_receipt
from forward_inf_mlflow.influence import ForwardInfluence
from forward_inf_mlflow.judging import Labels, judge_labels, labels_of
from forward_inf_mlflow.mirror import ByMoves, Mirror
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.moved import FOLDS
from forward_inf_mlflow.planner import Plan, RefitPlan, plan, plan_refits, suited
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.progress import Progress
from forward_inf_mlflow.refitting import ByRefits
from forward_inf_mlflow.scores import InfluenceScores
from forward_inf_mlflow.settings import Settings
from forward_inf_mlflow.singles import Asked, whom_else_to_ask, whom_to_ask
from forward_inf_mlflow.survey import survey
from forward_inf_mlflow.sweep import read
from forward_inf_mlflow.training_function import Trained, load_trainer
from forward_inf_mlflow.views import Views, encoder, read_views
from forward_inf_mlflow.work import KEEP_NOTHING, Work

#: Gradients that an audit draws for the curvature: its influence names no row by itself, so a
#: quarter of what an explanation draws will do.
_GRADIENTS = 1000


@dataclass(frozen=True)
class Findings:
    """What an audit found, in the order of the problem's rows.

    Attributes:
        loss: ``(n,)`` the training rows' own losses.
        influence: ``(n,)`` of each training row on all queries together.
        asked: Influence on the rows that were asked about one by one.
        leaked: The verdict on the queries.
        margin_change: ``(m,)`` how the margin of a leaked query changes without the training row;
            NaN where that was not asked.
        labels: The verdicts on the training rows, and on their labels if they have any.
        duplicates: Copies inside the training set.
        receipt: What training without the mislabeled rows changes; None where nobody trained.
        forward_passes: Rows passed forward without training on them.
        facts: What was found on the way: damping, reliability, how rows were read and why.
    """

    loss: np.ndarray
    influence: np.ndarray
    asked: Asked
    leaked: Leaked
    margin_change: np.ndarray
    labels: Labels
    duplicates: Duplicates
    receipt: Receipt | None
    forward_passes: int
    facts: Mapping[str, object]

    @property
    def measures(self) -> dict[str, Measure]:
        """Return the summaries of the verdicts by name."""
        return {
            "mislabeled": self.labels.mislabeled.measure,
            "leaked": self.leaked.measure,
            "inflated": self.labels.leak_worth.measure,
            "memorized": self.labels.memorized.measure,
        }


def plan_influence(model: AuditedModel, problem: Problem, settings: Settings) -> Plan | RefitPlan:
    """Return how influence will be computed: on all queries together, and on single rows."""
    single = min(settings.influence_queries, len(problem.queries) + len(problem.train))
    if model.fixed:
        refit = Refit(seed=settings.seed + RECEIPT_SEED)  # whose controls are the receipt's
        return plan_refits(
            refit,
            rows=len(problem.train),
            queries=len(problem.queries),
            singles=min(single, refit.singles),
            parts=FOLDS if _answers(problem, settings) else 0,
            direction=settings.direction,
            readout=settings.readout,
        )
    job = survey(
        model,
        problem,
        groups=2 + single,  # the second sweep reads the model as it was again
        queries=len(problem.queries) + single,
        weight_decay=settings.weight_decay,
    )
    found = plan(
        job,
        direction=settings.direction,
        readout=settings.readout,
        gradients=_GRADIENTS,
        seed=settings.seed,
    )
    return suited(found, problem.task, asked=settings.direction is not None)


def _answers(problem: Problem, settings: Settings) -> bool:
    """Return whether a refitted model is asked for its answers too."""
    return problem.classes is not None and settings.effort != "quick"


def _mirror(
    problem: Problem, planned: Plan | RefitPlan, settings: Settings, progress: Progress, work: Work
) -> Mirror:
    """Return who answers the mirrored question: the model itself when moved, or its trainer."""
    if isinstance(planned, RefitPlan):
        return ByRefits(
            Trained(load_trainer(str(settings.trainer)), problem, work),
            problem,
            planned.refit,
            planned.readout,
            most=settings.influence_queries,
            answers=_answers(problem, settings),
            progress=progress,
        )
    engine = ForwardInfluence(
        task=problem.task,
        direction=held(planned.direction),  # four plans share its curvature
        readout=planned.readout,
        compiled=settings.compiled,
    )
    return ByMoves(engine, problem, settings, progress, work)


def examine(
    model: AuditedModel,
    problem: Problem,
    planned: Plan | RefitPlan,
    settings: Settings,
    progress: Progress,
    work: Work = KEEP_NOTHING,
    right: np.ndarray | None = None,
) -> Findings:
    """Run the influence engine and the detectors.

    What is costly is kept in ``work``: shards of the sweep, moves and half-models. Rows that are
    ``right``, ``(n,)`` bool, have a label that a person looked at and kept.

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
    mirror = _mirror(problem, planned, settings, progress, work)
    asked = whom_to_ask(suspects, query_loss, mirror.most)
    ids = problem.train_rows.ids
    found = mirror.influence(asked)
    loss, scores = found.loss, found.scores
    require_numbers(loss, ids, "training")
    together = scores.values[0]
    single = InfluenceScores(scores.values[1:], scores.query_ids[1:], ids, scores.provenance)

    rows, others = problem.compared
    # What a model of texts makes of them first are the words that their n-grams are made of: a
    # second search for the same would show less of what is usual.
    encodings = None if problem.texts else seen.encodings
    leaks = leaked(
        others,
        rows,
        None if seen.features is None else ModelView(suspects, asked, single.values),
        encodings=None if encodings is None else (encodings.queries, encodings.train),
        encode=encoder(model, problem, seen),
        work=work,
    )

    # Its answers once the queries have moved it, which help to rank what is wrong by a rule.
    moved = None
    if problem.classes is not None:
        moved = mirror.moved(~leaks.flags)
    margin_change = mirror.margin_changes(leaks)

    # Half-models: what is said of a row by models that never saw it, or a copy.
    copies = duplicates(rows, labels_of(problem), None if encodings is None else encodings.train)
    groups = copies.groups
    held_out = read_held_out(model, problem, settings, groups, progress, work)
    labels = judge_labels(
        problem, seen, moved, held_out, leaks, groups, loss, query_loss, settings.fdr, right
    )
    rest = whom_else_to_ask(asked, leaks.flags, query_loss, labels.mislabeled, loss, mirror.most)
    more, passed = mirror.ask(rest)
    caused = train_receipt(problem, labels.mislabeled.flags, leaks.flags, settings, progress, work)
    views = (seen.features is not None) + (seen.encodings is not None)
    return Findings(
        loss=loss,
        influence=together,
        asked=more.after(single),
        leaked=leaks,
        margin_change=margin_change,
        labels=labels,
        duplicates=copies,
        receipt=caused,
        forward_passes=(
            problem.task.passes
            * (m + found.forward_passes + passed + labels.passes + (n + m) * 2 * settings.repeats)
            + (n + m) * views
        ),
        facts={**found.facts, "read_by": found.choice.method, "read_why": found.choice.note},
    )


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
