"""Judging: from what was read of rows and half-models to verdicts about labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from forward_inf_mlflow import halves
from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.detect.gross_errors import (
    Predictor,
    half_models,
    mislabeled_targets,
    near_medians,
)
from forward_inf_mlflow.detect.leakage import Leaked
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.membership import Membership, membership
from forward_inf_mlflow.detect.memorization import Memorized, memorized_classes, memorized_targets
from forward_inf_mlflow.detect.memorized_rows import memorized_rows
from forward_inf_mlflow.detect.mislabeled import (
    MIN_QUERIES,
    Mislabeled,
    mislabeled_classes,
    undecided,
)
from forward_inf_mlflow.detect.neighbours import exact_copies, row_keys
from forward_inf_mlflow.detect.opinions import of_logits
from forward_inf_mlflow.detect.several import flag_column, target_column, together
from forward_inf_mlflow.detect.worth import LeakWorth, worth
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.several_outputs import coded
from forward_inf_mlflow.sweep import outputs
from forward_inf_mlflow.tasks import Denoising, MultiLabel
from forward_inf_mlflow.views import Views, experts

#: Rows of a class below which leaving one out makes it another class.
MIN_CLASS = 10
#: Chance below which no query of a class is no chance.
ABSENT = 1e-3
#: Queries of a class below which who was taught by queries alone does not know it.
MIN_TAUGHT = 5
#: Why nobody looks for wrong ones.
NO_LABELS = "these rows have no labels that could be wrong"
_NO_HALVES = "no half-models were trained (take the effort 'standard')"


@dataclass(frozen=True)
class Labels:
    """What is said of the rows' labels.

    Attributes:
        given_probability: ``(n,)`` the audited model's probability of the given label; NaN for
            regression.
        mislabeled, memorized: The verdicts.
        leak_worth: What the leaks do for accuracy and loss.
        membership: What an attack on the model learns of its rows; None where it cannot be told.
        passes: Rows passed forward for it.
    """

    given_probability: np.ndarray
    mislabeled: Mislabeled
    memorized: Memorized
    leak_worth: LeakWorth
    membership: Membership | None
    passes: int


def judge_labels(
    problem: Problem,
    seen: Views,
    moved: Expert | None,
    held_out: halves.HeldOut | None,
    leaks: Leaked,
    groups: np.ndarray,
    loss: np.ndarray,
    query_loss: np.ndarray,
    fdr: float,
    right: np.ndarray | None = None,
) -> Labels:
    """Judge classes, or targets.

    Args:
        problem: Model and rows.
        seen: The rows as neighbours are looked for.
        moved: What the audited model says when the queries have moved it; None if it was not.
        held_out: What half-models say; None where none were trained.
        leaks: Queries that do not count, and the rows that they copy.
        groups: ``(n,)`` the same number for rows that are the same example.
        loss: ``(n,)`` the training rows' losses under the audited model.
        query_loss: ``(m,)`` the queries'.
        fdr, right: See `mislabeled_classes`.
    """
    if not problem.task.labelled:
        return _without_labels(problem, held_out, leaks, loss, query_loss)
    labels, truth = coded(problem.train.targets, problem.queries.targets)
    vouched = vouched_for(leaks, labels, truth, groups)
    right = vouched if right is None else right | vouched
    if problem.train.targets.ndim == 2:
        return _judge_several(problem, seen, held_out, leaks, groups, loss, query_loss, fdr, right)
    if problem.classes is None:
        unknown = np.full(len(labels), np.nan)
        wrong = _wrong_targets(problem, seen, held_out, leaks, groups, fdr, right)
        lost = worth(None, query_loss, leaks.flags)
        return Labels(unknown, wrong, memorized_targets(len(labels)), lost, None, 0)
    given = np.exp(-loss)  # the loss is minus the logarithm of the given label's probability
    itself = _itself(problem)
    trusted, apart = comparable(problem, leaks, groups)
    diverged = None if held_out is None else held_out.diverged
    naive: list[Expert] = []
    learned: list[Expert] = []
    if diverged is None and trusted.sum() >= MIN_QUERIES:
        naive, learned = experts(seen, labels, groups, truth, trusted, len(problem.classes))
        if not all_taught(labels, truth[trusted]):
            moved = None
            naive, learned = ([e for e in some if not e.blind] for some in (naive, learned))
    if held_out is not None and diverged is None:
        naive.insert(0, of_logits("half-models", held_out.train_out, held_out.queries))
    if diverged is not None:
        wrong = undecided(len(labels), diverged)
    elif trusted.sum() < MIN_QUERIES:
        wrong = undecided(
            len(labels),
            f"only {int(trusted.sum())} query rows are neither leaked nor equal to a training row "
            f"nor of a class with fewer than ten; {MIN_QUERIES} are needed to calibrate what is "
            "expected of a label",
        )
    elif not naive:
        wrong = undecided(len(labels), f"nobody can be asked about the labels: {_NO_HALVES}")
    else:
        wrong = mislabeled_classes(
            naive,
            labels,
            truth,
            trusted,
            learned=[itself, *([] if moved is None else [moved]), *learned],
            apart=apart,
            right=right,
            fdr=fdr,
            note="; ".join(
                filter(
                    None,
                    [
                        _NO_HALVES if held_out is None else held_out.note,
                        _told_of_absence(unasked(labels, truth[trusted])),
                    ],
                )
            ),
        )
    taught = [itself, *(expert for expert in (*naive, *learned) if not expert.blind)]
    return Labels(
        given_probability=given,
        mislabeled=wrong,
        memorized=memorized_classes(
            held_out,
            labels,
            given,
            _ahead_of_others(itself.train, labels),
            taught,
            usual_fall(itself, held_out, truth, ~leaks.flags),
        ),
        leak_worth=worth(itself.queries.argmax(1) == truth, query_loss, leaks.flags),
        membership=membership(loss, query_loss, held_out, labels, truth, leaks.flags),
        passes=len(labels) + len(truth),
    )


def _without_labels(
    problem: Problem,
    held_out: halves.HeldOut | None,
    leaks: Leaked,
    loss: np.ndarray,
    query_loss: np.ndarray,
) -> Labels:
    """Judge what rows have that have no labels: whether they are memorized."""
    n, lost = len(problem.train), worth(None, query_loss, leaks.flags)
    none = Measure.none(len(query_loss), "without labels is no accuracy", applies=False)
    return Labels(
        given_probability=np.full(n, np.nan),
        mislabeled=undecided(n, NO_LABELS, applies=False),
        memorized=memorized_rows(
            held_out, loss, query_loss, ~leaks.flags, rough=isinstance(problem.task, Denoising)
        ),
        leak_worth=replace(lost, measure=none),
        membership=membership(loss, query_loss, held_out, None, None, leaks.flags),
        passes=0,
    )


def usual_fall(
    itself: Expert, held_out: halves.HeldOut | None, truth: np.ndarray, trusted: np.ndarray
) -> np.ndarray | None:
    """Return by how much labels that nobody saw fall from the audited model to half-models.

    Args:
        itself: What the audited model says.
        held_out: What half-models say; None where there are none.
        truth: ``(m,)`` the queries' class indices.
        trusted: ``(m,)`` bool, queries that were not trained on.

    Returns:
        One number per trusted query.
    """
    if held_out is None or held_out.diverged is not None:
        return None
    rows = np.arange(len(truth))
    without = special.softmax(held_out.queries, axis=-1)[:, rows, truth].mean(0)
    return np.asarray((np.exp(itself.queries[rows, truth]) - without)[trusted])


def vouched_for(
    leaks: Leaked, labels: np.ndarray, truth: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Return which rows are a query in every value and in its label, which is trusted ``(n,)``.

    Whatever models say, such a label is not wrong; that the row leaked is another verdict.
    """
    rows, copied = leaks.train_index, leaks.kind == "exact"
    copied &= labels[rows] == truth
    exact = set(zip(groups[rows[copied]].tolist(), truth[copied].tolist(), strict=True))
    each = zip(groups.tolist(), labels.tolist(), strict=True)
    same = np.array([one in exact for one in each], dtype=bool)
    return np.asarray(leaks.train_flags & same)


def _ahead_of_others(logs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how far each label is ahead of the likeliest other ``(n,)``, in ``(n, K)`` logs."""
    rows, others = np.arange(len(labels)), logs.copy()
    others[rows, labels] = -np.inf
    return np.asarray(logs[rows, labels] - others.max(1))


def comparable(
    problem: Problem, leaks: Leaked, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return which queries are trusted ``(m,)``, and which training rows stand apart ``(n,)``.

    Training rows are judged without themselves and without their copies, queries with all training
    rows there are. So what has copies, or is one of few of its class, is harder for the one than
    for the other: it is left out of the comparison on both sides. Of queries that are alike one
    counts. Left out are rows of classes that the queries lack, where chance does not explain that.
    """
    labels, truth = labels_of(problem), problem.queries.targets.numpy()
    classes = int(max(labels.max(), truth.max())) + 1
    few = np.bincount(labels, minlength=classes) < MIN_CLASS
    trusted, apart = without_copies(problem, leaks, groups)
    trusted &= ~few[truth]
    return trusted, apart | few[labels] | unasked(labels, truth[trusted])


def without_copies(
    problem: Problem, leaks: Leaked, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `comparable` does of any kind of labels: what has copies is left out."""
    rows, queries = problem.compared
    trusted = ~leaks.flags & (exact_copies(queries, rows) < 0)
    once = np.zeros(len(queries), dtype=bool)  # a query that stands there five times is one
    once[np.unique(row_keys(queries), return_index=True)[1]] = True
    return trusted & once, leaks.train_flags | (np.bincount(groups)[groups] > 1)


def unasked(labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return which rows have a label that the queries lack, and not by chance, ``(n,)`` bool.

    A class that is rare among the rows may lack a query by chance. To leave its rows out would
    leave the harder, common classes over-represented beside the queries.

    Args:
        labels: ``(n,)`` class indices of the training rows.
        asked: ``(m,)`` those of the queries.
    """
    classes = int(max(labels.max(), asked.max(initial=0))) + 1
    rows, queries = (np.bincount(some, minlength=classes) for some in (labels, asked))
    by_chance = (1 - rows / len(labels)) ** len(asked)
    return np.asarray(((queries == 0) & (by_chance < ABSENT))[labels])


def _told_of_absence(absent: np.ndarray) -> str:
    """Return how many rows have a label that the queries lack, one clause; "" for none."""
    count = int(absent.sum())
    return (
        f"{count:,} training rows have a label that no comparable query row has: none of them can "
        "be certain"
        if count
        else ""
    )


def all_taught(labels: np.ndarray, taught: np.ndarray) -> bool:
    """Return whether labels ``(k,)`` that are taught hold some of every class of the rows.

    Who never heard of a class finds it suspicious in every row.
    """
    classes = int(max(labels.max(), taught.max(initial=0))) + 1
    rows, known = (np.bincount(some, minlength=classes) for some in (labels, taught))
    return bool((known >= MIN_TAUGHT)[rows >= MIN_CLASS].all())


def _wrong_targets(
    problem: Problem,
    seen: Views,
    held_out: halves.HeldOut | None,
    leaks: Leaked,
    groups: np.ndarray,
    fdr: float,
    right: np.ndarray | None,
) -> Mislabeled:
    """Hold targets against what half-models and neighbours predict."""
    targets, truth = problem.train.targets.numpy(), problem.queries.targets.numpy()
    if held_out is None:
        return undecided(len(targets), _NO_HALVES)
    if held_out.diverged is not None:
        return undecided(len(targets), held_out.diverged)
    view = seen.inputs[-1]
    near = near_medians(view.train, view.queries, targets, groups)
    return mislabeled_targets(
        [half_models(held_out), *([] if near is None else [near])],
        targets,
        truth,
        ~leaks.flags,
        apart=leaks.train_flags,
        right=right,
        fdr=fdr,
        note=held_out.note,
    )


def _judge_several(
    problem: Problem,
    seen: Views,
    held_out: halves.HeldOut | None,
    leaks: Leaked,
    groups: np.ndarray,
    loss: np.ndarray,
    query_loss: np.ndarray,
    fdr: float,
    right: np.ndarray,
) -> Labels:
    """Judge rows with several labels; the arguments are those of `judge_labels`."""
    n, flags = len(problem.train), isinstance(problem.task, MultiLabel)
    given, truth = problem.train.targets.numpy(), problem.queries.targets.numpy()
    names = problem.train_rows.label_names
    if held_out is not None and held_out.diverged is not None:
        wrong = undecided(n, held_out.diverged)
    elif held_out is None and not flags:
        wrong = undecided(n, _NO_HALVES)
    else:
        trusted, apart = without_copies(problem, leaks, groups)
        columns = [
            flag_column(
                name,
                _flag_experts(seen, held_out, given[:, j], groups, truth[:, j], trusted, j),
                given[:, j].astype(np.int64),
                truth[:, j].astype(np.int64),
                trusted,
                apart=apart,
                right=right,
            )
            if flags
            else target_column(
                name,
                _predictors(seen, held_out, given[:, j], groups, j),
                given[:, j],
                truth[:, j],
                trusted,
                apart=apart,
                right=right,
                fdr=fdr / len(names),
            )
            for j, name in enumerate(names)
        ]
        note = _NO_HALVES if held_out is None else held_out.note
        wrong = together(
            columns, names, given, trusted, apart=apart, right=right, fdr=fdr, note=note
        )
    attacked = None
    if flags:
        labels = coded(problem.train.targets, problem.queries.targets)
        attacked = membership(loss, query_loss, None, *labels, leaks.flags)
    return Labels(
        given_probability=np.exp(-loss) if flags else np.full(n, np.nan),
        mislabeled=wrong if wrong.likelier.ndim == 2 else replace(wrong, likelier=given),
        memorized=memorized_targets(n, several=flags),
        leak_worth=worth(None, query_loss, leaks.flags),
        membership=attacked,
        passes=0,
    )


def _flag_experts(
    seen: Views,
    held_out: halves.HeldOut | None,
    labels: np.ndarray,
    groups: np.ndarray,
    truth: np.ndarray,
    trusted: np.ndarray,
    column: int,
) -> list[Expert]:
    """Return who did not learn a label that is set or not, and says how probable it is."""
    own, asked = labels.astype(np.int64), truth.astype(np.int64)
    # One view of the rows: each label of a row takes a judgement of its own.
    naive, _ = experts(Views(seen.inputs[-1:], None, None), own, groups, asked, trusted, 2)
    if not all_taught(own, asked[trusted]):
        naive = [one for one in naive if not one.blind]
    if held_out is not None:
        said = [
            np.stack([np.zeros_like(some[:, :, column]), some[:, :, column]], axis=2)
            for some in (held_out.train_out, held_out.queries)
        ]
        naive.insert(0, of_logits("half-models", *said))
    return naive


def _predictors(
    seen: Views,
    held_out: halves.HeldOut | None,
    targets: np.ndarray,
    groups: np.ndarray,
    column: int,
) -> list[Predictor]:
    """Return who predicts one of several targets without having seen it."""
    assert held_out is not None, "targets are judged by half-models"
    view = seen.inputs[-1]
    near = near_medians(view.train, view.queries, targets, groups)
    only = replace(
        held_out,
        train_out=held_out.train_out[:, :, [column]],
        queries=held_out.queries[:, :, [column]],
    )
    return [half_models(only), *([] if near is None else [near])]


def labels_of(problem: Problem) -> np.ndarray:
    """Return the training rows' class indices, or their targets, ``(n,)``.

    Of several labels a number that is the same where all are; zeros where there are none.
    """
    if not problem.task.labelled:
        return np.zeros(len(problem.train), dtype=np.int64)
    return coded(problem.train.targets, problem.queries.targets)[0]


def _itself(problem: Problem) -> Expert:
    """Return what the audited model says of rows that it learned and of queries."""

    said = [outputs(problem.module, rows).numpy() for rows in (problem.train, problem.queries)]
    return of_logits("the audited model", said[0][None], said[1][None])
