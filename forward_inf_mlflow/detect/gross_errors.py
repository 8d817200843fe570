"""Gross errors: regression targets that are too far from what is predicted without the row.

How far predictions are off, beside how far they are on the queries, whose targets are trusted.
*Certain* and the lower bound come from that order alone, as for classes (`mislabeled`); likely are
the rows that a Student t distribution fitted to the queries' residuals accuses (Benjamini-Hochberg
at ``fdr``).

**Who predicts.** Half-models that learn by squares are ruined by the very errors that are looked
for: a few targets ten spreads away bend them everywhere. Medians of neighbours' targets are not
bent, and the median of all targets never is, though it knows nothing either. Whoever is nearest to
the training targets is believed, by the median distance, which the errors do not move. So chosen,
training rows look no worse than queries, and everything errs to the safe side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from forward_inf_mlflow.detect import neighbours as nb
from forward_inf_mlflow.detect.measure import Measure, binomial_high
from forward_inf_mlflow.detect.mislabeled import RELIABLE, Beside, Mislabeled, undecided
from forward_inf_mlflow.halves import HeldOut

#: Fewer trusted rows than this do not show how far residuals reach.
MIN_RESIDUALS = 100
#: A median residual below this share of the spread: many are tied, and no bell describes them.
_TIED = 1e-3
#: How many neighbours' targets have their median taken.
_NEAR = 15
#: Multiplications beyond which neighbours are not looked for.
_BUDGET = 2e13
#: How often the queries' targets are dealt out anew, to see what wrong ones look like.
_DEALS = 20


@dataclass(frozen=True)
class Predictor:
    """Who says what a row's target is, without having seen it.

    Attributes:
        name: Who, in words.
        train: ``(n,)``.
        queries: ``(m,)``.
    """

    name: str
    train: np.ndarray
    queries: np.ndarray


def half_models(held_out: HeldOut) -> Predictor:
    """Return the mean of half-models' outputs ``(R, n, 1)``.

    Both kinds of rows are means over one half-model a repeat, so their residuals compare.
    """
    train, queries = (
        said.reshape(len(said), -1).mean(0) for said in (held_out.train_out, held_out.queries)
    )
    return Predictor("half-models", train, queries)


def near_medians(
    train: np.ndarray, queries: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> Predictor | None:
    """Return the median target of the nearest other training rows; None where rows do not allow it.

    Args:
        train: ``(n, d)`` float32.
        queries: ``(m, d)``.
        targets: ``(n,)``, some of them wrong.
        groups: ``(n,)`` rows of one group are the same row and do not speak for each other.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    each = float(len(train) + len(queries)) * train.shape[1]
    if len(first) <= _NEAR or each * len(first) > _BUDGET:
        return None
    voters = train[first]
    said = [
        np.concatenate(
            [
                np.median(targets[first[near]], axis=1)
                for near in nb.nearest_ranks(rows, voters, _NEAR, own=own)
            ]
        )
        for rows, own in ((train, member.reshape(-1)), (queries, None))
    ]
    return Predictor(f"the median of the {_NEAR} nearest other rows", *said)


def mislabeled_targets(
    predictors: Sequence[Predictor],
    targets: np.ndarray,
    query_targets: np.ndarray,
    trusted: np.ndarray,
    *,
    apart: np.ndarray | None = None,
    right: np.ndarray | None = None,
    fdr: float = 0.1,
    note: str = "",
) -> Mislabeled:
    """Judge regression targets: gross errors, beyond what residuals on the queries explain.

    Args:
        predictors: Who never saw a row's target; at least one. The median of all joins them.
        targets: ``(n,)`` given targets of the training rows.
        query_targets: ``(m,)`` those of the queries.
        trusted: ``(m,)`` bool, queries that count.
        apart, right: ``(n,)`` bool, see `mislabeled.mislabeled_classes`.
        fdr: Largest expected share of innocent rows among the certain ones.
        note: How the half-models came to be, one clause.
    """
    n, best = len(targets), nearest(predictors, targets, len(query_targets))
    reference = (query_targets - best.queries)[trusted]
    if len(reference) < MIN_RESIDUALS:
        why = (
            f"only {len(reference)} query rows that are not leaked, {MIN_RESIDUALS} are needed to "
            "know which residuals are usual"
        )
        return replace(undecided(n, why), likelier=best.train)

    centre = float(np.median(reference))
    size, usual = np.abs(targets - best.train - centre), np.abs(reference - centre)
    dealt = _dealt(query_targets[trusted], best.queries[trusted], centre)
    reliability = _told_apart(usual, dealt)
    adjusted, freedom = _accused(size, reference, centre)
    known = np.zeros(n, dtype=bool) if right is None else right
    beside = Beside.of(size, usual, known if apart is None else apart | known, fdr)
    suspected = int((beside.certain | (adjusted <= fdr)).sum())  # what a person kept lowers no end
    adjusted[known] = 1.0
    sure, abstained = int(beside.certain.sum()), None
    if reliability < RELIABLE:
        flags, low, estimate, high = beside.certain, 0.0, sure / n, 1.0
        abstained = (
            "who never saw a row's target tells the queries' own targets from each other's with an "
            f"AUROC of {reliability:.2f}; below {RELIABLE} only targets far from all others can be "
            "named, and nothing is known of the others"
        )
    else:
        flags = beside.certain | (adjusted <= fdr)
        low = beside.guilty / n
        estimate = max(low, float((1 - fdr) * flags.mean()), _fewest(size, usual))
        high = max(_most(size, usual, dealt), binomial_high(suspected, n), estimate)
    named = int(flags.sum())
    return Mislabeled(
        suspicion=size,
        score=1 - adjusted,
        certain=beside.certain,
        flags=flags,
        surely=beside.surely,
        likelier=best.train,
        likelier_probability=np.full(n, np.nan),
        held_out_probability=np.full(n, np.nan),
        measure=Measure(
            count=named,
            total=n,
            certain=sure,
            reliability=reliability,
            estimate=estimate,
            rate_low=low,
            rate_high=high,
            threshold=1 - fdr,
            note=(
                f"{sure:,} targets are certain at a false discovery rate of {fdr:.0%} beside "
                f"{len(reference):,} query rows, {named - sure:,} more by a Student t with "
                f"{freedom:.1f} degrees of freedom fitted to the queries' residuals; targets are "
                f"predicted by {best.name}, the nearest to them; only gross errors are named; the "
                "upper end is the share of targets that may be other rows'; the queries' own "
                f"targets are told from each other's with an AUROC of {reliability:.2f}"
                + (f"; {note}" if note else "")
            ),
            abstained=abstained,
        ),
    )


def nearest(predictors: Sequence[Predictor], targets: np.ndarray, queries: int) -> Predictor:
    """Return who is nearest to the targets ``(n,)`` by the median; their own median joins them."""
    middle = float(np.median(targets))
    sides = np.full(len(targets), middle), np.full(queries, middle)
    plain = Predictor("the median of all targets", *sides)
    return min((*predictors, plain), key=lambda one: np.median(np.abs(targets - one.train)))


def _accused(size: np.ndarray, reference: np.ndarray, centre: float) -> tuple[np.ndarray, float]:
    """Return adjusted p-values ``(n,)`` under a t distribution, and its degrees of freedom."""
    freedom, _, scale = stats.t.fit(reference, floc=centre)
    # The scale is an estimate too: its standard error is at most about 1 / sqrt(m) of it here, and
    # a tail fitted too thin would accuse.
    scale *= 1 + 2 / np.sqrt(len(reference))
    p = 2 * stats.t.sf(size / max(scale, np.finfo(np.float64).tiny), freedom)
    adjusted = stats.false_discovery_control(np.clip(np.nan_to_num(p, nan=1.0), 0, 1))
    if np.median(np.abs(reference - centre)) < _TIED * reference.std():
        adjusted[:] = 1.0  # most queries are predicted exactly: no such law describes the others
    return adjusted, float(freedom)


def _dealt(targets: np.ndarray, predicted: np.ndarray, centre: float) -> np.ndarray:
    """Return how far predictions are from other queries' targets, ``(deals * m,)``."""
    rng, m = np.random.default_rng(0), len(targets)
    order = rng.permutation(m)  # rows may be sorted
    targets, predicted = targets[order], predicted[order]
    steps = rng.permutation(np.arange(1, m))[:_DEALS]
    return np.concatenate([np.abs(np.roll(targets, step) - predicted - centre) for step in steps])


def _told_apart(usual: np.ndarray, dealt: np.ndarray) -> float:
    """Return how well right targets are told from other rows', an AUROC by residuals."""
    ranks = stats.rankdata(np.concatenate([usual, dealt]))[: len(usual)]
    k = len(usual)
    return float(1 - (ranks.sum() - k * (k + 1) / 2) / (k * len(dealt)))


def _fewest(size: np.ndarray, usual: np.ndarray) -> float:
    """Return a lower 99 % end of the share of wrong targets, by a count.

    More training rows than queries lie beyond the queries' .74 quantile; were all wrong ones beyond
    it, of wrong targets so many more.
    """
    level = np.quantile(usual, 0.74)
    mine, theirs = size > level, usual > level
    room = 1 - float(theirs.mean())
    return 0.0 if room <= 0 else max(0.0, _apart(mine, theirs, -2.33) / room)


def _most(size: np.ndarray, usual: np.ndarray, dealt: np.ndarray) -> float:
    """Return an upper 95 % end of the share of wrong targets.

    Training rows' squared residuals lie on average between the queries' and those of queries with
    each other's targets, in proportion to the share. None counts for more than the queries' .98
    quantile: a mean of squares would be moved by a single target as far as that is off.
    """
    cap = np.quantile(usual, 0.98)
    mine, theirs, wrong = (np.minimum(some, cap) ** 2 for some in (size, usual, dealt))
    room = float(wrong.mean() - theirs.mean())
    return 1.0 if room <= 0 else float(np.clip(_apart(mine, theirs, 1.645) / room, 0, 1))


def _apart(mine: np.ndarray, theirs: np.ndarray, deviations: float) -> float:
    """Return how far two means are apart, moved by so many standard deviations.

    Each sample gets two made-up values, its extremes (Agresti and Caffo, 2000): rows that are all
    alike have a spread too.
    """
    both = np.concatenate([mine, theirs]).astype(np.float64)
    ends = [both.min(), both.max()]
    spread = sum(np.append(some, ends).var() / (len(some) + 2) for some in (mine, theirs))
    return float(mine.mean() - theirs.mean() + deviations * np.sqrt(spread))
