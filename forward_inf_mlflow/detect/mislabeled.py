"""Mislabeled rows: whose given label do models that never saw the row find hard to believe?

Experts say it: the half-models, and whoever else did not learn the row's label (`experts`), joined
as the queries' trusted labels show what each is worth.

Three tiers. **Certain**: likely, and so suspicious beside the query rows, whose labels are trusted,
that at most a share ``fdr`` of them is expected to be innocent, whatever the suspicion means
(`error_control`). **Likely**: more probably wrong than right, if what follows holds. **The rest**
is ranked, with the share that is surely wrong down to each row.

Classification:

1. Calibrate on the queries: a temperature, a floor for what the half-models never expect, and the
   experts' weights.
2. A row's label is wrong with prior probability eta, then any other label is equally likely.
   eta and each row's posterior probability of being wrong follow by expectation-maximisation.
   Errors that follow a rule (one class for another) look less wrong: eta is then too low.

The gate's bound is the envelope's, which needs no model of the errors.

Rows are ranked by their **suspicion**, which also asks those who did learn the label, the audited
model above all, as far as they do not know it by heart. A label that was learned looks less
suspicious than a query's, so that the bounds err to the safe side.

Regression: how far held-out predictions are off, beside how far they are on the queries; likely are
the rows that a Student t distribution fitted to these accuses (Benjamini-Hochberg at ``fdr``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special, stats

from forward_inf_mlflow.detect.error_control import Envelope, certain
from forward_inf_mlflow.detect.experts import (
    Expert,
    Pool,
    knows_by_heart,
    of_probabilities,
    pool,
)
from forward_inf_mlflow.detect.measure import Measure, binomial_high, binomial_low
from forward_inf_mlflow.halves import HeldOut

#: How much more the half-models may disagree with the training labels than wrong ones explain.
UNEXPLAINED = 0.02
#: Fewer trusted rows than this cannot calibrate a posterior, or show how far residuals reach.
MIN_QUERIES, MIN_RESIDUALS = 20, 100


@dataclass(frozen=True)
class Mislabeled:
    """What the detector says of every training row, all ``(n,)``.

    Attributes:
        suspicion: What rows are ranked by. Classification: minus the logarithm of the given label's
            probability, in nats. Regression: the residual's size.
        score: Classification: posterior probability that the given label is wrong. Regression:
            one minus the adjusted p-value of the residual.
        certain: Rows accused at the promised false discovery rate.
        flags: Named rows: the certain and the likely ones.
        surely: Share of the rows down to this one, by suspicion, that are wrong at least; with
            95 % confidence for all rows at once.
        likelier: Class index that the half-models prefer (regression: predicted value).
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
    held_out_probability: np.ndarray
    measure: Measure


@dataclass(frozen=True)
class Calibration:
    """Turns held-out logits ``(R, rows, K)`` into probabilities ``(rows, K)``."""

    temperature: float
    floor: float

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Return mean softmax at the temperature, mixed with the uniform distribution."""
        mean = np.zeros(logits.shape[1:])
        for repeat in logits:  # one at a time: R copies in float64 would be the peak of memory
            mean += special.softmax(repeat.astype(np.float64) / self.temperature, axis=-1)
        return np.asarray((1 - self.floor) * mean / len(logits) + self.floor / logits.shape[-1])


def calibrate(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Fit temperature and floor by the likelihood of the trusted labels.

    The floor is at least 1 / (2 (m + 1)), Jeffreys' estimate of what did not happen once in m
    rows: they cannot show that it never does.

    Args:
        logits: ``(R, m, K)`` held-out logits of the queries.
        labels: ``(m,)`` class indices.
    """
    rows, least = np.arange(len(labels)), 0.5 / (len(labels) + 1)

    def make(v: np.ndarray) -> Calibration:
        floor = least + (0.5 - least) * special.expit(v[1])
        return Calibration(float(np.exp(np.clip(v[0], -5, 5))), float(floor))

    def cost(v: np.ndarray) -> float:
        return float(-np.log(make(v)(logits)[rows, labels]).mean())

    # From the best of a grid: far from it the search can end in the largest floor.
    start = min((np.array([t, -4.0]) for t in np.linspace(-2, 3, 11)), key=cost)
    return make(optimize.minimize(cost, start, method="Nelder-Mead").x)


def posterior_wrong(given: np.ndarray, classes: int) -> tuple[np.ndarray, float]:
    """Return each row's probability of a wrong label ``(n,)``, and the noise rate eta.

    Args:
        given: ``(n,)`` calibrated probability of the given label.
        classes: K.
    """
    other = (1 - given) / (classes - 1)
    eta = 0.05
    for _ in range(1000):
        wrong = eta * other / (eta * other + (1 - eta) * given)
        before, eta = eta, float(wrong.mean())
        if abs(eta - before) < 1e-7:
            break
    return wrong, eta


@dataclass(frozen=True)
class _Beside:
    """What suspicion beside the trusted rows' shows, whatever it means: all that is certain."""

    certain: np.ndarray
    surely: np.ndarray
    guilty: int

    @classmethod
    def of(
        cls, suspicion: np.ndarray, trusted: np.ndarray, apart: np.ndarray | None, fdr: float
    ) -> _Beside:
        """Compare ``(n,)`` suspicions with those of ``(m,)`` trusted rows.

        Rows that stand ``apart`` are never certain, and count as innocent.
        """
        tested = np.ones(len(suspicion), dtype=bool) if apart is None else ~apart
        envelope = Envelope.of(suspicion[tested], trusted)
        accused = np.zeros(len(suspicion), dtype=bool)
        accused[tested] = certain(suspicion[tested], trusted, fdr)
        # Equally suspicious rows stand together.
        depth = tested.sum() - np.searchsorted(np.sort(suspicion[tested]), suspicion, side="left")
        depth = np.maximum(depth, 1)
        surely = 1 - envelope.false_at_most(depth) / depth
        return cls(accused, surely, envelope.guilty)


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
    held_out: HeldOut,
    labels: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
    *,
    others: Sequence[Expert] = (),
    learned: Sequence[Expert] = (),
    apart: np.ndarray | None = None,
    fdr: float = 0.1,
) -> Mislabeled:
    """Judge class labels.

    Args:
        held_out: Logits of the half-models.
        labels: ``(n,)`` given class indices of the training rows.
        query_labels: ``(m,)`` class indices of the queries.
        trusted: ``(m,)`` bool, queries that may calibrate (not leaked ones).
        others: Who else did not learn the training rows' labels.
        learned: Who did: the audited model first.
        apart: ``(n,)`` bool, training rows that are not like the trusted queries even if they are
            right: near copies of the leaked ones, which somebody may have altered.
        fdr: Largest expected share of innocent rows among the certain ones.
    """
    n, classes = held_out.train_out.shape[1:]
    logits, truth = held_out.queries[:, trusted], query_labels[trusted]

    def nothing(why: str) -> Mislabeled:
        probability = special.softmax(np.nan_to_num(held_out.train_out), axis=-1).mean(0)
        return Mislabeled(
            suspicion=np.full(n, np.nan),
            score=np.full(n, np.nan),
            certain=np.zeros(n, dtype=bool),
            flags=np.zeros(n, dtype=bool),
            surely=np.zeros(n),
            likelier=probability.argmax(1),
            held_out_probability=probability[np.arange(n), labels],
            measure=Measure.none(n, why),
        )

    if held_out.diverged is not None:
        return nothing(held_out.diverged)
    if len(truth) < MIN_QUERIES:
        return nothing(
            f"only {len(truth)} query rows that are not leaked, {MIN_QUERIES} are needed to "
            "calibrate what models expect of a label"
        )
    calibration = calibrate(logits, truth)
    joined = _joined(calibration, held_out, others, query_labels, trusted)
    right = int((joined.queries[trusted].argmax(1) == truth).sum())
    guess = float(np.bincount(truth, minlength=classes).max() / len(truth))
    if binomial_low(right, len(truth)) <= guess:
        return nothing(
            f"models trained on half of the rows are right on {right / len(truth):.1%} of the "
            f"queries, always guessing one class on {guess:.1%}: their opinion of a label says "
            "nothing"
        )

    rows, asked = np.arange(n), np.arange(len(query_labels))
    probability = np.exp(joined.train)
    given = probability[rows, labels]
    wrong, eta = posterior_wrong(given, classes)
    ranked = _with_learned(joined, learned, labels, query_labels, trusted, eta)
    suspicion = -ranked.train[rows, labels]
    expected = -ranked.queries[asked, query_labels][trusted]
    beside = _Beside.of(suspicion, expected, apart, fdr)
    flags = wrong > 0.5
    certainly = beside.certain & flags  # the promise leaves room for rows that look right
    masked = probability.copy()
    masked[rows, labels] = -1

    agree = int((probability.argmax(1) == labels).sum())
    surely_differ, differ, at_most_differ = (
        disagreement(right, len(truth), agree, n, classes, deviations=z)
        for z in (-3.09, -2.33, 1.645)
    )
    low, abstained = beside.guilty / n, None
    if surely_differ > UNEXPLAINED + eta:
        low = 0.0
        abstained = (
            f"models that never saw a row are right on {right / len(truth):.1%} of the queries, "
            f"but agree with only {agree / n:.1%} of the training labels, fewer than random errors "
            "explain: the training rows are of another kind than the queries, or many labels are "
            "wrong by a rule"
        )
    estimate = max(eta, differ, low)
    named, sure = int(flags.sum()), int(certainly.sum())
    return Mislabeled(
        suspicion=suspicion,
        score=wrong,
        certain=certainly,
        flags=flags,
        surely=beside.surely,
        # For an accused row the best *other* label: calibration may still prefer the given one.
        likelier=np.where(flags, masked.argmax(1), probability.argmax(1)),
        held_out_probability=given,
        measure=Measure(
            count=named,
            total=n,
            certain=sure,
            estimate=estimate,
            rate_low=low,
            rate_high=max(at_most_differ, estimate),
            threshold=float(wrong[flags].min()) if named else None,
            note=(
                f"{sure:,} rows are certain at a false discovery rate of {fdr:.0%} beside "
                f"{len(truth):,} query rows, {named - sure:,} more are likelier wrong than right; "
                f"{held_out.note}; {_heard(joined)}"
            ),
            abstained=abstained,
        ),
    )


def _joined(
    calibration: Calibration,
    held_out: HeldOut,
    others: Sequence[Expert],
    query_labels: np.ndarray,
    trusted: np.ndarray,
) -> Pool:
    """Join the half-models with whoever else did not learn the labels."""
    halves = of_probabilities(
        "half-models", calibration(held_out.train_out), calibration(held_out.queries)
    )
    joined = pool([halves, *others], query_labels, trusted)
    return replace(
        joined,
        train=_floored(joined.train, calibration.floor),
        queries=_floored(joined.queries, calibration.floor),
    )


def _floored(logs: np.ndarray, floor: float) -> np.ndarray:
    return np.asarray(np.log((1 - floor) * np.exp(logs) + floor / logs.shape[1]))


def _with_learned(
    joined: Pool,
    learned: Sequence[Expert],
    labels: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
    noise: float,
) -> Expert:
    """Ask those too who learned the labels, as far as the audited model does not know its own."""
    if not learned:
        return joined
    heart = knows_by_heart(learned[0], labels, query_labels, trusted, noise)
    all_of_them = pool([joined, *learned], query_labels, trusted)
    return Expert(
        all_of_them.name,
        heart * joined.train + (1 - heart) * all_of_them.train,
        heart * joined.queries + (1 - heart) * all_of_them.queries,
    )


def _heard(joined: Pool) -> str:
    """Return who was heard besides the half-models, one clause."""
    others = [f"{name} ({weight:.2g})" for name, weight in list(joined.weights.items())[1:]]
    if not others:
        return "nobody else was heard"
    first = next(iter(joined.weights.values()))
    return f"they are heard with weight {first:.2g} beside {' and '.join(others)}"


def mislabeled_targets(
    held_out: HeldOut,
    targets: np.ndarray,
    query_targets: np.ndarray,
    trusted: np.ndarray,
    *,
    apart: np.ndarray | None = None,
    fdr: float = 0.1,
) -> Mislabeled:
    """Judge regression targets: gross errors, beyond what held-out residuals explain.

    Args as in :func:`mislabeled_classes`, with outputs ``(R, n, 1)`` and numbers for labels.
    """
    n = len(targets)
    predicted = held_out.train_out.reshape(len(held_out.train_out), n).mean(0)
    # Both are means over one half-model a repeat, so their residuals have the same spread.
    query_predicted = held_out.queries.reshape(len(held_out.queries), -1).mean(0)
    residual = targets - predicted
    reference = (query_targets - query_predicted)[trusted]

    def nothing(why: str) -> Mislabeled:
        nobody, unknown = np.zeros(n, dtype=bool), np.full(n, np.nan)
        none = Measure.none(n, why)
        return Mislabeled(unknown, unknown, nobody, nobody, np.zeros(n), predicted, unknown, none)

    if held_out.diverged is not None:
        return nothing(held_out.diverged)
    if len(reference) < MIN_RESIDUALS:
        return nothing(
            f"only {len(reference)} query rows that are not leaked, {MIN_RESIDUALS} are needed to "
            "know which residuals are usual"
        )
    if np.mean(reference**2) >= np.var(query_targets[trusted]):
        return nothing(
            "models trained on half of the rows predict the queries no better than their mean: "
            "their opinion of a target says nothing"
        )

    freedom, centre, scale = stats.t.fit(reference, floc=np.median(reference))
    # The scale is an estimate too: its standard error is at most about 1 / sqrt(m) of it here, and
    # a tail fitted too thin would accuse.
    scale *= 1 + 2 / np.sqrt(len(reference))
    p = 2 * stats.t.sf(np.abs(residual - centre) / scale, freedom)
    adjusted = stats.false_discovery_control(np.clip(p, 0, 1))
    beside = _Beside.of(np.abs(residual - centre), np.abs(reference - centre), apart, fdr)
    flags = beside.certain | (adjusted <= fdr)
    named, sure = int(flags.sum()), int(beside.certain.sum())
    low, share = beside.guilty / n, float((1 - fdr) * named / n)
    return Mislabeled(
        suspicion=np.abs(residual - centre),
        score=1 - adjusted,
        certain=beside.certain,
        flags=flags,
        surely=beside.surely,
        likelier=predicted,
        held_out_probability=np.full(n, np.nan),
        measure=Measure(
            count=named,
            total=n,
            certain=sure,
            estimate=max(low, share),
            rate_low=low,
            rate_high=binomial_high(named, n),
            threshold=1 - fdr,
            note=(
                f"{sure:,} targets are certain at a false discovery rate of {fdr:.0%} beside "
                f"{len(reference):,} query rows, {named - sure:,} more by a Student t with "
                f"{freedom:.1f} degrees of freedom fitted to the queries' residuals; only gross "
                f"errors are counted; {held_out.note}"
            ),
        ),
    )
