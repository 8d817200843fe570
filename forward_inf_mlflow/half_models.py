"""Half-models: who trains them for an audited model, what that costs, and what they say."""

from __future__ import annotations

import numpy as np

from forward_inf_mlflow import halves, trainers
from forward_inf_mlflow.detect.receipt import Receipt, receipt
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.trees import Forest
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.progress import Progress, stage
from forward_inf_mlflow.settings import Settings
from forward_inf_mlflow.several_outputs import coded
from forward_inf_mlflow.tasks import MultiLabel
from forward_inf_mlflow.training_function import Trained, load_trainer, skill
from forward_inf_mlflow.work import Work

#: Added to an audit's seed, for trainings on all rows.
RECEIPT_SEED = 9_000


def halves_cost(model: AuditedModel, problem: Problem, settings: Settings) -> int:
    """Return the forward-equivalents of training and reading the half-models, about."""
    n, m = len(problem.train), len(problem.queries)
    fits, recipe = 2 * settings.repeats, settings.recipe
    if not fits:
        return 0
    if settings.trainer is not None or model.estimator is not None:
        return fits * (n + m)  # trained on their own terms: count the reading
    tries = fits + len(recipe.rates) - 1
    read = (n + m) * problem.task.passes
    return tries * (3 * recipe.epochs_of(problem.task) * n // 2 + read)


def trainings(model: AuditedModel, settings: Settings) -> int:
    """Return how often a model is trained on its own terms: by the trainer, or an estimator's fit.

    Half-models, on half of the rows each, and with a trainer also what the receipt takes at most:
    with all rows, without the mislabeled ones and without as many others.
    """
    halves = 2 * settings.repeats
    if settings.trainer is not None:
        return halves + 3 * settings.receipt_seeds
    return 0 if model.estimator is None else halves


def timed(problem: Problem, settings: Settings, more: int, work: Work) -> float | None:
    """Return how many seconds a trainer's fits will take at most, from one on all rows.

    A half-model takes half of that. None without a trainer, or where it has nothing to do.

    Args:
        problem: The rows.
        settings: Who trains, and how often.
        more: Fits on all rows beside those of half-models and receipt.
        work: Where the fit is kept: it will be asked for again.
    """
    if settings.trainer is None:
        return None
    trained = Trained(load_trainer(settings.trainer), problem, work)
    one = trained.seconds(settings.seed + RECEIPT_SEED)
    return one * (settings.repeats + 3 * settings.receipt_seeds + more)


def read_held_out(
    model: AuditedModel,
    problem: Problem,
    settings: Settings,
    groups: np.ndarray,
    progress: Progress,
    work: Work,
) -> halves.HeldOut | None:
    """Train the half-models and read all rows under them; None where the effort trains nothing.

    Args:
        model: What is audited.
        problem: Its rows.
        settings: Effort, seed, who trains.
        groups: ``(n,)`` the same number for rows that are the same example, which stay together.
        progress: Told of every training.
        work: Where finished trainings are kept.
    """
    if not settings.repeats:
        return None
    return halves.read_halves(
        _fit(model, problem, settings, work),
        _strata(problem),
        repeats=settings.repeats,
        seed=settings.seed,
        groups=groups,
        progress=stage(progress, "models trained on half of the rows", 2 * settings.repeats),
    )


def _fit(model: AuditedModel, problem: Problem, settings: Settings, work: Work) -> halves.Fit:
    if settings.trainer is not None:
        if not problem.task.labelled:
            raise DataError(
                "a trainer trains on rows and labels, and these rows have none: leave --trainer out"
            )
        return Trained(load_trainer(settings.trainer), problem, work)
    if model.estimator is not None:
        module = model.module
        return trainers.Refitted(
            model.estimator,
            problem.train_rows.features,
            _fitted_to(problem),
            problem.query_rows.features,
            problem.classes,
            work,
            # Where no tree has seen a class it has half a vote, not the probability zero.
            least=0.5 / module.count if isinstance(module, Forest) else None,
            odds=isinstance(problem.task, MultiLabel),
        )
    return trainers.Continued(
        problem.module, problem.task, problem.train, problem.queries, settings.recipe, work
    )


def _fitted_to(problem: Problem) -> np.ndarray:
    """Return what an estimator is fitted to: classes, or numbers ``(n,)`` or ``(n, k)``."""
    targets: np.ndarray = problem.train.targets.numpy()
    if problem.classes is not None:
        return np.asarray(problem.classes[targets])
    return targets.astype(np.int64) if isinstance(problem.task, MultiLabel) else targets


def _strata(problem: Problem) -> np.ndarray:
    """Return what both halves should hold alike: the classes, or tenths of the target, if any."""
    if not problem.task.labelled:
        return np.zeros(len(problem.train), dtype=np.int64)
    targets = problem.train.targets.numpy()
    if problem.classes is not None:
        return targets
    if isinstance(problem.task, MultiLabel):
        return coded(problem.train.targets, problem.queries.targets)[0]
    if targets.ndim == 2:  # what they have in common
        targets = ((targets - targets.mean(0)) / (targets.std(0) + 1e-12)).sum(1)
    return np.searchsorted(np.quantile(targets, np.linspace(0, 1, 11)[1:-1]), targets)


def train_receipt(
    problem: Problem,
    flagged: np.ndarray,
    leaked: np.ndarray,
    settings: Settings,
    progress: Progress,
    work: Work,
) -> Receipt | None:
    """Train with and without the mislabeled rows, if the user says how a model is trained.

    Args:
        problem: Model and rows.
        flagged: ``(n,)`` bool.
        leaked: ``(m,)`` bool, queries that do not count.
        settings: Trainer, seeds.
        progress: Told of every training.
        work: Where finished trainings are kept.
    """
    if settings.trainer is None or not problem.task.labelled:
        return None
    trained = Trained(load_trainer(settings.trainer), problem, work)
    truth, classes = problem.queries.targets.numpy()[~leaked], problem.classes is not None
    advance = stage(progress, "trained with and without flagged rows", 3 * settings.receipt_seeds)

    several = isinstance(problem.task, MultiLabel)

    def train(index: np.ndarray, seed: int) -> np.ndarray:
        answers = trained(index, seed)[1][~leaked]
        advance(1)
        if several:
            return np.asarray(((answers > 0) == (truth > 0.5)).mean(1))
        return skill(answers, truth, classes=classes)

    return receipt(
        train,
        flagged,
        _strata(problem),
        metric="accuracy" if classes or several else "mean squared error",
        seeds=settings.receipt_seeds,
        seed=settings.seed + RECEIPT_SEED,
    )
