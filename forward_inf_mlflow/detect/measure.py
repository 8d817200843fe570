"""Measure: one number of an audit, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How many rows a detector accuses.

    Attributes:
        count: Accused rows.
        total: Rows that were judged.
        rate_low: Lower bound of the true rate, what a policy is held against: doubt about the
            estimate never refuses a version.
        threshold: The score from which rows are accused, for the reader.
        note: How count and bound came to be, one sentence.
        abstained: Why the detector gives no verdict, one sentence; None if it gives one.
    """

    count: int
    total: int
    rate_low: float
    threshold: float | None
    note: str
    abstained: str | None = None

    @property
    def rate(self) -> float:
        """Return the share of accused rows, 0 to 1."""
        return self.count / self.total if self.total else 0.0

    @classmethod
    def none(cls, total: int, why: str) -> Measure:
        """Return the measure of a detector that cannot judge these rows."""
        return cls(count=0, total=total, rate_low=0.0, threshold=None, note="", abstained=why)


def binomial_low(count: int, total: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided Clopper-Pearson lower bound of a share."""
    if count == 0:
        return 0.0
    return float(stats.beta.ppf(1 - confidence, count, total - count + 1))


def binomial_interval(count: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided Clopper-Pearson interval of a share; (0, 1) without rows."""
    if total == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(stats.beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(stats.beta.isf(tail, count + 1, total - count))
    return low, high
