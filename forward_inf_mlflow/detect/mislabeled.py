"""Mislabeled rows: whose given label is hard to believe for those who did not learn it?

Experts say it (`experts`): half-models and others that did not learn the row's label, joined as the
queries' trusted labels show what each is worth.

Three tiers. **Certain**: so suspicious beside the query rows, whose labels are trusted, that at
most a share ``fdr`` of them is expected to be innocent, whatever the suspicion means
(`error_control`). **Likely**: more probably wrong than right, if what follows holds. **The rest**
is ranked, with the share that is surely wrong down to each row.

Classification:

1. Calibrate on the queries: the experts' weights, and a floor for what they never expect.
2. A row's label is wrong with prior probability eta, then any other label is equally likely.
   eta and each row's posterior probability of being wrong follow by expectation-maximisation.
   Errors that follow a rule (one class for another) look less wrong: eta is then too low.

The gate's bound is the envelope's, which needs no model of the errors.

Rows are ranked by their **suspicion**, which also asks those who did learn the label, the audited
model above all. A label that was learned looks less suspicious than a query's, so that the bounds
err to the safe side.

Regression targets have a file of their own, `gross_errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from forward_inf_mlflow.detect.doubts import agreeing, blind_differ, following_another_rule
from forward_inf_mlflow.detect.error_control import Envelope, certain
from forward_inf_mlflow.detect.experts import Expert, Pool, pool, suspicions
from forward_inf_mlflow.detect.measure import Measure, binomial_high, binomial_low

#: How much more the half-models may disagree with the training labels than wrong ones explain.
UNEXPLAINED = 0.02
#: Fewer trusted rows than this cannot calibrate a posterior.
MIN_QUERIES = 20
#: A share of wrong labels beyond which nobody knows which ones are right.
MOST = 0.5
#: Fewer training rows than this show nothing beside the queries.
MIN_ROWS = 20
#: How sure the lower bound of the rate is: only it refuses, and a refusal must not be luck.
SURE = 0.99
#: Experts who tell right labels from random ones worse than this (AUROC) say nothing.
RELIABLE = 0.6


@dataclass(frozen=True)
class Mislabeled:
    """What the detector says of every training row, all ``(n,)``.

    Attributes:
        suspicion: What rows are ranked by. Classification: how little everybody expects of the
            given label, as a mean rank from 0 to 1. Regression: the residual's size.
        score: Classification: posterior probability that the given label is wrong. Regression:
            one minus the adjusted p-value of the residual.
        certain: Rows accused at the promised false discovery rate.
        flags: Named rows: the certain and the likely ones.
        surely: Share of the rows down to this one, by suspicion, that are wrong at least; with
            95 % confidence for all rows at once.
        likelier: Class index that who did not learn the label prefers (regression: the prediction).
        likelier_probability: What the same give ``likelier``: high where they know better, low
            where the row is only odd to them; NaN for regression.
        held_out_probability: Calibrated probability of the given label by those who did not learn
            it; NaN for regression.
        measure: The summary.
    """

    suspicion: np.ndarray
    score: np.ndarray
    certain: np.ndarray
    flags: np.ndarray
    surely: np.ndarray
    likelier: np.ndarray
    likelier_probability: np.ndarray
    held_out_probability: np.ndarray
    measure: Measure


def posterior_wrong(
    given: np.ndarray, classes: int, right: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Return each row's probability of a wrong label ``(n,)``, and the noise rate eta.

    Args:
        given: ``(n,)`` calibrated probability of the given label.
        classes: K.
        right: ``(n,)`` bool, rows whose label is known to be right.
    """
    other = (1 - given) / (classes - 1)
    if right is not None:
        other = np.where(right, 0.0, other)
    eta = 0.05
    for _ in range(1000):
        wrong = eta * other / np.maximum(eta * other + (1 - eta) * given, 1e-300)
        before, eta = eta, float(wrong.mean())
        if abs(eta - before) < 1e-7:
            break
    return wrong, eta


@dataclass(frozen=True)
class Beside:
    """What suspicion beside the trusted rows' shows, whatever it means: all that is certain."""

    certain: np.ndarray
    surely: np.ndarray
    guilty: int

    @classmethod
    def of(
        cls, suspicion: np.ndarray, trusted: np.ndarray, apart: np.ndarray | None, fdr: float
    ) -> Beside:
        """Compare ``(n,)`` suspicions with those of ``(m,)`` trusted rows.

        Rows that stand ``apart`` are never certain, and count as innocent.
        """
        tested = np.ones(len(suspicion), dtype=bool) if apart is None else ~apart
        envelope = Envelope.of(suspicion[tested], trusted)
        accused = np.zeros(len(suspicion), dtype=bool)
        accused[tested] = certain(suspicion[tested], trusted, fdr)
        # Equally suspicious rows stand together; rows apart are counted, but may all be innocent.
        depth, among = (
            np.maximum(len(some) - np.searchsorted(np.sort(some), suspicion, side="left"), 1)
            for some in (suspicion, suspicion[tested])
        )
        surely = (among - envelope.false_at_most(among)) / np.maximum(depth, among)
        sure = Envelope.of(suspicion[tested], trusted, SURE)
        return cls(accused, surely, sure.guilty)


def disagreement(
    right: int, queries: int, agree: int, rows: int, classes: int, *, deviations: float
) -> float:
    """Return the share of wrong labels that two accuracies show, moved by standard deviations.

    Models that never saw a row are right on a share b of the queries. Were no training label
    wrong, they would agree with as many; with a share eta wrong they agree with
    ``(1 - eta) b + eta c``, where c is the chance to agree with a wrong one. Unlike the posterior
    it needs no row to stand out.

    Args:
        right, queries: Correct answers among the queries, and how many those are.
        agree, rows: Answers that equal the given label among the training rows.
        classes: K; a wrong answer is taken to hit a wrong label with chance ``1 / (K - 1)``.
        deviations: 0 for the estimate, -1.645 and 1.645 for its lower and upper 95 % bounds.
    """
    b, a = right / queries, agree / rows
    c = (1 - b) / (classes - 1)
    if b <= c:
        return 0.0 if deviations <= 0 else 1.0
    # One more of each answer: a share of 0 or 1 has a spread too (Agresti and Caffo, 2000).
    x, y = (right + 1) / (queries + 2), (agree + 1) / (rows + 2)
    deviation = np.sqrt(x * (1 - x) / (queries + 2) + y * (1 - y) / (rows + 2))
    return float(np.clip((b - a + deviations * deviation) / (b - c), 0, 1))


def mislabeled_classes(
    naive: Sequence[Expert],
    labels: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
    *,
    learned: Sequence[Expert] = (),
    apart: np.ndarray | None = None,
    right: np.ndarray | None = None,
    fdr: float = 0.1,
    note: str = "",
    joined: Pool | None = None,
) -> Mislabeled:
    """Judge class labels.

    Args:
        naive: Who did not learn the training rows' labels; at least one.
        labels: ``(n,)`` given class indices of the training rows.
        query_labels: ``(m,)`` class indices of the queries.
        trusted: ``(m,)`` bool, queries that may calibrate (not leaked ones).
        learned: Who did learn them. They help to rank rows, not to count wrong labels.
        apart: ``(n,)`` bool, training rows that are not like the trusted queries even if they are
            right, such as copies; they are never certain and lower no bound.
        right: ``(n,)`` bool, rows whose label a person found right. They are not named, and what
            is certain rests on the others alone: the lower bound is what these support. The
            models' disagreement with such rows is error of the models, so they stay in the
            agreement that the upper bound and all doubts rest on.
        fdr: Largest expected share of innocent rows among the certain ones.
        note: How the experts came to be, one clause.
        joined: The naive ones' pool, where it is there already.
    """
    n, classes = naive[0].train.shape
    truth = query_labels[trusted]
    if apart is not None and (~apart).sum() < MIN_ROWS:
        return undecided(
            n,
            f"only {int((~apart).sum())} training rows that can be compared with query rows: the "
            "others are copies, or of classes with fewer than ten rows",
        )
    if len(truth) < MIN_QUERIES:
        return undecided(
            n,
            f"only {len(truth)} query rows that are not leaked, {MIN_QUERIES} are needed to "
            "calibrate what models expect of a label",
        )
    joined = pool(naive, query_labels, trusted) if joined is None else joined
    hits = int((joined.queries[trusted].argmax(1) == truth).sum())
    guess = float(np.bincount(truth, minlength=classes).max() / len(truth))
    if binomial_low(hits, len(truth), confidence=0.99) <= guess:
        return undecided(
            n,
            f"who never learned a row's label is right on {hits / len(truth):.1%} of the queries, "
            f"always guessing one class on {guess:.1%}: such an opinion of a label says nothing",
        )

    reliability = _told_from_random(joined.queries[trusted], truth)
    if reliability < RELIABLE:
        return undecided(
            n,
            f"who never learned a row's label tells right labels of queries from random ones with "
            f"an AUROC of {reliability:.2f}; below {RELIABLE} such an opinion says nothing",
        )

    rows = np.arange(n)
    probability = np.exp(joined.train)
    given = probability[rows, labels]
    tested = np.ones(n, dtype=bool) if apart is None else ~apart
    known = np.zeros(n, dtype=bool) if right is None else right
    _, eta = posterior_wrong(given[tested], classes, known[tested])
    if eta > MOST:
        return undecided(
            n,
            f"more than {MOST:.0%} of the labels look wrong: then what the experts say of a label "
            "means nothing, or the labels do",
        )
    other = eta * (1 - given) / (classes - 1)
    wrong = np.where(known, 0.0, other / (other + (1 - eta) * given))
    # A learned label looks less suspicious than a query's, so that what follows errs to the safe
    # side; on the queries, models that know their rows by heart are worth little.
    suspicion, expected = suspicions([*naive, *learned], labels, query_labels, trusted)
    beside = Beside.of(suspicion, expected[trusted], ~tested | known, fdr)
    flags = beside.certain | (wrong > 0.5)
    masked = probability.copy()
    masked[rows, labels] = -1

    agree, count = int((probability.argmax(1) == labels)[tested].sum()), int(tested.sum())
    surely_differ, differ, at_most_differ = (
        disagreement(hits, len(truth), agree, count, classes, deviations=z)
        for z in (-3.09, -2.33, 1.645)
    )
    low, abstained = beside.guilty / n, None
    said = f"who never learned a row's label is right on {hits / len(truth):.1%} of the queries, "
    if surely_differ > UNEXPLAINED + eta:
        low = 0.0
        abstained = (
            f"{said}but agrees with only {agree / count:.1%} of the training labels, fewer than "
            "random errors explain: the training rows are of another kind than the queries, or "
            "many labels are wrong by a rule"
        )
    elif (told := agreeing(naive, labels, tested, query_labels, trusted)) is not None:
        abstained = (
            f"{told} agree with the training labels surely oftener than they are right on the "
            "queries: either labels are wrong by a rule, which is learned as what is right is "
            "learned, or training rows are near copies of each other, or easier than the queries; "
            "let a person look at some (forward-inf review sample)"
        )
    elif blind_differ(naive, labels, tested, query_labels, trusted) > max(
        at_most_differ, UNEXPLAINED
    ):
        low = 0.0  # rows of another kind look guilty
        abstained = (
            "who learned from the query rows alone is right on others of them surely oftener than "
            f"it agrees with the training labels, and more than the {at_most_differ:.1%} that all "
            "experts together allow for: the training rows are of another kind than the queries, "
            "or labels are wrong by a rule; let a person look at some (forward-inf review sample)"
        )
    elif (apart_by := following_another_rule(naive, labels, tested, query_labels, trusted)) > max(
        at_most_differ, UNEXPLAINED
    ):
        abstained = (
            "who learned from the query rows alone takes the training rows of a label for other "
            f"classes than the queries of that label: about {apart_by:.1%} of the labels follow "
            f"another rule, and all experts together allow for {at_most_differ:.1%}; either labels "
            "are wrong by a rule, or the training rows are of another kind than the queries; let a "
            "person look at some (forward-inf review sample)"
        )
    # For an accused row the best *other* label: calibration may still prefer the given one.
    likelier = np.where(flags, masked.argmax(1), probability.argmax(1))
    estimate = max(eta, differ, low)
    named, sure = int(flags.sum()), int(beside.certain.sum())
    return Mislabeled(
        suspicion=suspicion,
        score=wrong,
        certain=beside.certain,
        flags=flags,
        surely=beside.surely,
        likelier=likelier,
        likelier_probability=probability[rows, likelier],
        held_out_probability=given,
        measure=Measure(
            count=named,
            total=n,
            certain=sure,
            reliability=reliability,
            estimate=estimate,
            rate_low=low,
            rate_high=max(at_most_differ, estimate, binomial_high(0, count)),
            threshold=None,  # two rules name rows: no line parts them from the others
            note=(
                f"{sure:,} rows are certain at a false discovery rate of {fdr:.0%} beside "
                f"{len(truth):,} query rows, {named - sure:,} more are likelier wrong than right; "
                f"a random wrong label is told from a right one with an AUROC of {reliability:.2f} "
                f"on the queries; asked were {joined.described()}{'; ' + note if note else ''}"
            ),
            abstained=abstained,
        ),
    )


def _told_from_random(said: np.ndarray, truth: np.ndarray) -> float:
    """Return how well right labels are told from random wrong ones, an AUROC.

    Args:
        said: ``(m, K)`` log-probabilities.
        truth: ``(m,)`` class indices.
    """
    right = np.zeros(said.shape, dtype=bool)
    right[np.arange(len(truth)), truth] = True
    ranks = stats.rankdata(said)[right.ravel()]
    k, others = len(truth), said.size - len(truth)
    return float((ranks.sum() - k * (k + 1) / 2) / (k * others))


def undecided(rows: int, why: str, *, applies: bool = True) -> Mislabeled:
    """Return the verdict where nothing can be said of so many rows, or nothing is to be said."""
    nobody, unknown = np.zeros(rows, dtype=bool), np.full(rows, np.nan)
    return Mislabeled(
        suspicion=unknown,
        score=unknown,
        certain=nobody,
        flags=nobody,
        surely=np.zeros(rows),
        likelier=np.zeros(rows, dtype=np.int64),
        likelier_probability=unknown,
        held_out_probability=unknown,
        measure=Measure.none(rows, why, applies=applies),
    )
