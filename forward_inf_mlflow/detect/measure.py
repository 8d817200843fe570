"""Measure: one number of an audit, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How many rows a detector names, and how many there are.

    Attributes:
        count: Named rows.
        total: Rows that were judged.
        rate_low: Lower bound of the true rate (95 %; of mislabeled rows 99 %). Only this refuses a
            version: doubt about the estimate never does.
        rate_high: Upper 95 % bound of it.
        estimate: The rate itself, named or not; None takes the share of the named rows.
        certain: How many of the named ones stand at the promised error rate; None for all.
        reliability: How well the scores tell what they should where that is known, 0 to 1; each
            detector says what that is. None where it is not known.
        threshold: The score from which rows are named, for the reader.
        note: How these came to be, one sentence.
        abstained: Why the detector gives no verdict, one sentence; None if it gives one.
        applies: Whether there is anything to judge in rows of this kind. Where not, there is no
            verdict, and none is missing.
    """

    count: int
    total: int
    rate_low: float
    rate_high: float
    estimate: float | None = None
    certain: int | None = None
    reliability: float | None = None
    threshold: float | None
    note: str
    abstained: str | None = None
    applies: bool = True

    @property
    def rate(self) -> float:
        """Return the best guess of the rate, 0 to 1."""
        if self.estimate is not None:
            return self.estimate
        return self.count / self.total if self.total else 0.0

    @classmethod
    def none(cls, total: int, why: str, *, applies: bool = True) -> Measure:
        """Return the measure of a detector that cannot judge these rows, or has nothing to."""
        return cls(
            count=0,
            total=total,
            rate_low=0.0,
            rate_high=1.0,
            threshold=None,
            note="",
            abstained=why,
            applies=applies,
        )


def binomial_low(count: int, total: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided Clopper-Pearson lower bound of a share."""
    if count == 0:
        return 0.0
    return float(stats.beta.ppf(1 - confidence, count, total - count + 1))


def binomial_high(count: int, total: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided Clopper-Pearson upper bound of a share; 1 without rows."""
    if count >= total:
        return 1.0
    return float(stats.beta.ppf(confidence, count + 1, total - count))


def binomial_interval(count: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided Clopper-Pearson interval of a share; (0, 1) without rows."""
    if total == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(stats.beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(stats.beta.isf(tail, count + 1, total - count))
    return low, high
