"""Measures: the three numbers against the policy, and how the score behind each is distributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from forward_inf_mlflow.report.charts import distribution
from forward_inf_mlflow.report.formats import number
from forward_inf_mlflow.report.sections import Section, floats

#: The three questions, and the policy's bound of each.
BOUNDS = {
    "mislabeled": "max_mislabeled_rate",
    "leaked": "max_leakage_rate",
    "memorized": "max_memorized_rate",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One of the three questions, as the template shows it.

    Attributes:
        name: ``mislabeled``, ``leaked`` or ``memorized``.
        measure: Counts, rates, threshold and note, from the audit.
        bound: The largest rate that the policy allows; None if the verdict is report-only.
        state: ``over``, ``near`` or ``within`` the bound, ``report``, or ``unknown``.
        bar: Where the rate, its interval and the bound lie on a bar, in percent of its length.
        chart: How the score is distributed.
        undrawn: Rows without a score, which the chart leaves out.
    """

    name: str
    measure: Section
    bound: float | None
    state: str
    bar: Section | None
    chart: Markup | None
    undrawn: int

    @classmethod
    def of(
        cls, name: str, *, measure: Section, bound: float | None, scores: pd.DataFrame, leaks: Any
    ) -> Verdict:
        """Hold a measure against its bound, and draw its score.

        Args:
            name: Which.
            measure: Of the audit.
            bound: Of the policy.
            scores: One line per training row.
            leaks: One score per query, smaller is closer; anything else is none.
        """
        threshold = number(measure["threshold"])
        if name == "leaked":
            values = floats(leaks if isinstance(leaks, list | np.ndarray) else [])
            # By score, not by verdict: an exact copy is found without one.
            flags = values <= (-np.inf if threshold is None else threshold)
            noun = "query rows"
            axis = "minus nearness to a training row, over the threshold: further left is closer"
        else:
            unknown = [None] * len(scores)
            values = floats(scores.get(f"{name}_score", unknown))
            # Read back from a file, a column of booleans may hold None: that is no flag.
            flags = np.array([str(flag) == "True" for flag in scores.get(name, unknown)], bool)
            noun = "training rows"
            axis = f"{name} score: further right is more suspicious"
        drawn = f"{len(values):,} {noun}, {int(flags.sum()):,} of them flagged"
        if threshold is not None:
            drawn += f"; the threshold is {threshold:.3g}"
        return cls(
            name=name,
            measure=measure,
            bound=bound,
            state=_state(measure, bound),
            bar=_bar(measure, bound),
            chart=distribution(
                values,
                flags,
                threshold=threshold,
                axis=axis,
                noun=noun,
                description=f"Histogram of the score behind the verdict {name}: {drawn}.",
            ),
            undrawn=int(np.isnan(values).sum()),
        )


def _state(measure: Section, bound: float | None) -> str:
    rate = number(measure["rate"])
    if measure["abstained"] or rate is None:
        return "none" if measure["applies"] is False else "unknown"
    if bound is None:
        return "report"
    if rate <= bound:
        return "within"
    low = number(measure["rate_low"])
    return "over" if low is None or low > bound else "near"


def _bar(measure: Section, bound: float | None) -> Section | None:
    rate = number(measure["rate"])
    if rate is None or measure["abstained"]:
        return None
    low = min(rate, number(measure["rate_low"]) or 0.0)
    high = max(rate, number(measure["rate_high"]) or 0.0)
    # Room to the right of the longest mark, and a rate of zero against no bound still has a length.
    # A wide interval must not squeeze the rate and the bound, which are what is compared.
    length = min(1.0, max(min(high, 3 * max(rate, bound or 0.0)), rate, bound or 0.0) * 1.15) or 1.0
    marks = {"low": low, "rate": rate, "high": high, "bound": bound}
    return Section(
        {
            k: None if v is None else round(100 * min(1, max(0, v / length)), 2)
            for k, v in marks.items()
        }
    )
