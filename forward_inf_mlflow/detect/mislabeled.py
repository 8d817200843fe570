"""Mislabeled rows: whose given label do models that never saw the row find hard to believe?

Classification, from held-out logits of training and query rows:

1. Calibrate on the queries, whose labels are trusted: a temperature, and a floor for what the
   half-models never expect.
2. A row's label is wrong with prior probability eta, then any other label is equally likely.
   eta and each row's posterior probability of being wrong follow by expectation-maximisation.
3. Accuse from the most probable row down, while the mean posterior of being *right* among the
   accused stays under ``fdr``: the expected share of false accusations if the posterior holds.

Regression: residuals of held-out predictions, a Student t distribution fitted to those of the
queries, and Benjamini-Hochberg at ``fdr``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from forward_inf_mlflow.detect.measure import Measure, binomial_low
from forward_inf_mlflow.halves import HeldOut

#: The share of labels that may look wrong for no reason that the detector can name. Beyond it, half
#: of what looks wrong must be named, else "few rows were accused" would sound like clean data.
UNNAMED = 0.02
#: Fewer trusted rows than this cannot calibrate a posterior, or show how far residuals reach.
MIN_QUERIES, MIN_RESIDUALS = 20, 100


@dataclass(frozen=True)
class Mislabeled:
    """What the detector says of every training row, all ``(n,)``.

    Attributes:
        score: Classification: posterior probability that the given label is wrong. Regression:
            one minus the adjusted p-value of the residual.
        flags: Accused rows.
        likelier: Class index that the half-models prefer (regression: predicted value).
        held_out_probability: Calibrated probability of the given label by models that did not see
            the row; NaN for regression.
        measure: The summary.
    """

    score: np.ndarray
    flags: np.ndarray
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


def accuse(wrong: np.ndarray, fdr: float) -> np.ndarray:
    """Return the largest set of most probable rows whose mean chance of being right is <= fdr.

    No row is accused that is more likely right than wrong, however sure the others are.
    """
    order = np.argsort(-wrong, kind="stable")
    mean_right = np.cumsum(1 - wrong[order]) / np.arange(1, len(wrong) + 1)
    within = np.flatnonzero((mean_right <= fdr) & (wrong[order] >= 0.5))
    flags = np.zeros(len(wrong), dtype=bool)
    if len(within):
        flags[order[: within[-1] + 1]] = True
    return flags


def _surely(wrong: np.ndarray, fdr: float) -> float:
    """Return a lower bound of how many of the accused are wrong.

    A sum of independent yes/no questions: its mean less 1.645 standard deviations is its lower
    5 %. That holds as far as the probabilities do; on data with known errors the share of false
    accusations reached the largest that is expected (benchmarks/RESULTS.md), which is allowed for.

    Args:
        wrong: ``(accused,)`` probability of being wrong.
        fdr: The expected share of false accusations.
    """
    mean, variance = wrong.sum(), (wrong * (1 - wrong)).sum()
    return float(max(0.0, min(mean - 1.645 * np.sqrt(variance), (1 - fdr) * len(wrong))))


def noise_low(right: int, queries: int, agree: int, rows: int, classes: int) -> float:
    """Return a lower 99.9 % bound of the share of wrong labels, from two accuracies alone.

    Models that never saw a row are right on a share b of the queries. Were no training label
    wrong, they would agree with as many; with a share eta wrong they agree with
    ``(1 - eta) b + eta c``, where c is the chance to agree with a wrong one. What this exceeds
    the posterior's eta by is not explained by wrong labels.

    Args:
        right, queries: Correct answers among the queries, and how many those are.
        agree, rows: Answers that equal the given label among the training rows.
        classes: K; a wrong answer is taken to hit a wrong label with chance ``1 / (K - 1)``.
    """
    b, a = right / queries, agree / rows
    c = (1 - b) / (classes - 1)
    if b <= c:
        return 0.0
    deviation = np.sqrt(b * (1 - b) / queries + a * (1 - a) / rows)
    return float(np.clip((b - a - 3.09 * deviation) / (b - c), 0, 1))


def mislabeled_classes(
    held_out: HeldOut,
    labels: np.ndarray,
    query_labels: np.ndarray,
    trusted: np.ndarray,
    *,
    fdr: float = 0.2,
) -> Mislabeled:
    """Judge class labels.

    Args:
        held_out: Logits of the half-models.
        labels: ``(n,)`` given class indices of the training rows.
        query_labels: ``(m,)`` class indices of the queries.
        trusted: ``(m,)`` bool, queries that may calibrate (not leaked ones).
        fdr: Expected share of false accusations among the accused.
    """
    n, classes = held_out.train_out.shape[1:]
    logits, truth = held_out.queries[:, trusted], query_labels[trusted]

    def nothing(why: str) -> Mislabeled:
        probability = special.softmax(np.nan_to_num(held_out.train_out), axis=-1).mean(0)
        return Mislabeled(
            score=np.full(n, np.nan),
            flags=np.zeros(n, dtype=bool),
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
    right = int((special.softmax(logits, axis=-1).mean(0).argmax(1) == truth).sum())
    guess = float(np.bincount(truth, minlength=classes).max() / len(truth))
    if binomial_low(right, len(truth)) <= guess:
        return nothing(
            f"models trained on half of the rows are right on {right / len(truth):.1%} of the "
            f"queries, always guessing one class on {guess:.1%}: their opinion of a label says "
            "nothing"
        )

    probability = calibrate(logits, truth)(held_out.train_out)
    given = probability[np.arange(n), labels]
    wrong, eta = posterior_wrong(given, classes)
    flags = accuse(wrong, fdr)
    found = wrong[flags]
    low = _surely(found, fdr)
    masked = probability.copy()
    masked[np.arange(n), labels] = -1
    abstained = None
    agree = int((special.softmax(held_out.train_out, axis=-1).mean(0).argmax(1) == labels).sum())
    disagreement = noise_low(right, len(truth), agree, n, classes)
    if disagreement > UNNAMED + eta:
        abstained = (
            f"models that never saw a row are right on {right / len(truth):.1%} of the queries, "
            f"but agree with only {agree / n:.1%} of the training labels, fewer than wrong labels "
            "explain: the training rows seem to be of another kind than the queries"
        )
    elif eta > UNNAMED and low / n < eta / 2:
        abstained = (
            f"about {eta:.1%} of the labels look wrong, but only {flags.sum()} of {n:,} can be "
            f"named with {len(truth)} query rows and models that are right on "
            f"{right / len(truth):.1%} of them: give more query rows, and look at the rows with "
            "the highest mislabeled_score in scores.parquet"
        )
    return Mislabeled(
        score=wrong,
        flags=flags,
        # For an accused row the best *other* label: calibration may still prefer the given one.
        likelier=np.where(flags, masked.argmax(1), probability.argmax(1)),
        held_out_probability=given,
        measure=Measure(
            count=int(flags.sum()),
            total=n,
            rate_low=float(low / n),
            threshold=float(found.min()) if len(found) else None,
            note=(
                f"rows are accused while the expected share of false accusations stays within "
                f"{fdr:.0%}; of all rows about {eta:.1%} look wrong; {held_out.note}"
            ),
            abstained=abstained,
        ),
    )


def mislabeled_targets(
    held_out: HeldOut,
    targets: np.ndarray,
    query_targets: np.ndarray,
    trusted: np.ndarray,
    *,
    fdr: float = 0.2,
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

    def result(score: np.ndarray, flags: np.ndarray, measure: Measure) -> Mislabeled:
        return Mislabeled(score, flags, predicted, np.full(n, np.nan), measure)

    nobody = np.zeros(n, dtype=bool)
    if held_out.diverged is not None:
        return result(np.full(n, np.nan), nobody, Measure.none(n, held_out.diverged))
    if len(reference) < MIN_RESIDUALS:
        why = (
            f"only {len(reference)} query rows that are not leaked, {MIN_RESIDUALS} are needed to "
            "know which residuals are usual"
        )
        return result(np.full(n, np.nan), nobody, Measure.none(n, why))
    if np.mean(reference**2) >= np.var(query_targets[trusted]):
        why = (
            "models trained on half of the rows predict the queries no better than their mean: "
            "their opinion of a target says nothing"
        )
        return result(np.full(n, np.nan), nobody, Measure.none(n, why))

    freedom, centre, scale = stats.t.fit(reference, floc=np.median(reference))
    # The scale is an estimate too: its standard error is at most about 1 / sqrt(m) of it here, and
    # a tail fitted too thin would accuse.
    scale *= 1 + 2 / np.sqrt(len(reference))
    p = 2 * stats.t.sf(np.abs(residual - centre) / scale, freedom)
    adjusted = stats.false_discovery_control(np.clip(p, 0, 1))
    flags = adjusted <= fdr
    count = int(flags.sum())
    low = _surely(np.full(count, 1 - fdr), fdr)
    return result(
        1 - adjusted,
        flags,
        Measure(
            count=count,
            total=n,
            rate_low=low / n,
            threshold=1 - fdr,
            note=(
                f"targets are accused at a false discovery rate of {fdr:.0%} (Benjamini-Hochberg) "
                f"against a Student t with {freedom:.1f} degrees of freedom fitted to the "
                f"queries' residuals; {held_out.note}"
            ),
        ),
    )
