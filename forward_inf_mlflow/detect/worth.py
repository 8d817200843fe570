"""What leaks are worth: how much of the accuracy and the loss on the queries they account for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from forward_inf_mlflow.detect.measure import Measure, binomial_interval

#: Fewer leaked queries than this say nothing of how the model does on leaked ones.
MIN_LEAKED = 5
_NORMAL = 1.96


@dataclass(frozen=True)
class Group:
    """How the model does on some queries.

    Attributes:
        rows: How many.
        accuracy, low, high: Share that is right, and its 95 % Clopper-Pearson interval; NaN of
            targets, which are never quite right.
        loss, loss_low, loss_high: Mean in the task's unit, and its 95 % interval (Student's t, cut
            at zero); NaN of fewer rows than two.
    """

    rows: int
    accuracy: float
    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float

    @classmethod
    def of(cls, right: np.ndarray | None, loss: np.ndarray) -> Group:
        """Sum up ``(k,)`` answers; ``right`` is None of targets."""
        rows, unknown = len(loss), (float("nan"),) * 3
        mean = float(loss.mean()) if rows else float("nan")
        low = high = float("nan")
        if rows > 1:
            half = float(stats.t.ppf(0.975, rows - 1) * loss.std(ddof=1) / rows**0.5)
            low, high = max(0.0, mean - half), mean + half
        if right is None or not rows:
            share = unknown
        else:
            share = float(right.mean()), *binomial_interval(int(right.sum()), rows)
        return cls(rows, *share, mean, low, high)


@dataclass(frozen=True)
class LeakWorth:
    """How the model does on leaked queries, on the others and on all.

    Attributes:
        leaked, clean, everything: See `Group`.
        inflation: How much higher the accuracy on all queries is than that on the clean ones.
        measure: The same as a share of the queries: those that are right because they leaked.
    """

    leaked: Group
    clean: Group
    everything: Group
    measure: Measure

    @property
    def inflation(self) -> float:
        """Return the accuracy on all queries less that on the clean ones."""
        return self.everything.accuracy - self.clean.accuracy

    def sentence(self) -> str | None:
        """Return it in words; None where nothing leaked."""
        if not self.leaked.rows or not self.clean.rows:
            return None
        leaked, clean, everything = self.leaked, self.clean, self.everything
        losses = (
            f"the mean loss on all is {everything.loss:.3g} ({everything.loss_low:.3g} to "
            f"{everything.loss_high:.3g}), without the leaked ones {clean.loss:.3g}"
        )
        if clean.rows > 1:
            losses += f" ({clean.loss_low:.3g} to {clean.loss_high:.3g})"
        if not math.isfinite(self.inflation):
            return f"{losses}, on the leaked ones {leaked.loss:.3g}"
        seen = f"{clean.accuracy:.1%}" != f"{everything.accuracy:.1%}"
        if self.inflation <= 0 or not seen:
            return (
                f"the model is right on {leaked.accuracy:.1%} of the leaked query rows and on "
                f"{clean.accuracy:.1%} of the others: the leaks do not help it; {losses}"
            )
        return (
            f"the model is right on {leaked.accuracy:.1%} of the leaked query rows "
            f"({leaked.low:.1%} to {leaked.high:.1%}) and on {clean.accuracy:.1%} of the others "
            f"({clean.low:.1%} to {clean.high:.1%}): without the leaks its accuracy is "
            f"{clean.accuracy:.1%} and not {everything.accuracy:.1%} ({everything.low:.1%} to "
            f"{everything.high:.1%}), {100 * self.inflation:.1f} points lower; {losses}"
        )


def worth(right: np.ndarray | None, loss: np.ndarray, leaked: np.ndarray) -> LeakWorth:
    """Compare the queries that leaked with those that did not; of targets by their losses alone.

    The interval of the inflation is that of a difference of two shares (Agresti and Caffo, 2000)
    times the share of leaked queries. It says what these queries show, and takes the leaked ones
    for as hard as the others: leaks of easy queries look worth more than they are.

    Args:
        right: ``(m,)`` bool, which queries the model answers right; None of targets.
        loss: ``(m,)`` in the task's unit.
        leaked: ``(m,)`` bool.
    """
    of_leaked, of_clean = (
        Group.of(None if right is None else right[some], loss[some]) for some in (leaked, ~leaked)
    )
    m, k = len(loss), int(leaked.sum())
    if right is None:
        measure = Measure.none(m, "targets and several labels have no accuracy")
    elif k == m:
        measure = Measure.none(m, "every query leaked: nothing is left to compare with")
    elif 0 < k < MIN_LEAKED:
        measure = Measure.none(m, f"only {k} queries leaked, too few to see what that is worth")
    else:
        x, y = ((int(right[some].sum()) + 1, int(some.sum()) + 2) for some in (leaked, ~leaked))
        p, q = x[0] / x[1], y[0] / y[1]
        spread = _NORMAL * float(np.sqrt(p * (1 - p) / x[1] + q * (1 - q) / y[1]))
        share = k / m
        inflation = share * (of_leaked.accuracy - of_clean.accuracy) if k else 0.0
        measure = Measure(
            count=k,
            total=m,
            estimate=max(0.0, inflation),
            rate_low=abs(float(np.clip(share * (p - q - spread), 0, max(0.0, inflation)))),
            rate_high=float(np.clip(share * (p - q + spread), max(0.0, inflation), 1)),
            threshold=None,
            note="accuracy on all query rows less that on those that did not leak",
        )
    return LeakWorth(of_leaked, of_clean, Group.of(right, loss), measure)
