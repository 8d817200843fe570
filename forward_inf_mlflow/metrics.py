"""Metrics: the numbers of an audit's record that MLflow keeps, searches and draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

#: What is counted of copies inside the training set.
_COPIES = ("rows", "conflicts")
#: How the record's keys of a group of queries are called as metrics.
_WORTH = {
    "accuracy": "accuracy_{}",
    "low": "accuracy_{}_low",
    "high": "accuracy_{}_high",
    "loss": "loss_{}",
    "loss_low": "loss_{}_low",
    "loss_high": "loss_{}_high",
}


def metrics_of(record: Mapping[str, Any]) -> dict[Literal["train", "queries"], dict[str, float]]:
    """Return the metrics of an audit, by the rows that they describe.

    A detector that abstained has none: a search or a threshold must not take "no verdict" for
    "no bad rows".
    """

    def of(measure: str, rate: str, count: str | None = None) -> dict[str, float]:
        stored = record["measures"][measure]
        if stored["abstained"] is not None:
            return {}
        return {
            rate: float(stored["rate"]),
            f"{rate}_low": float(stored["rate_low"]),
            f"{rate}_high": float(stored["rate_high"]),
            **({count: float(stored["count"])} if count else {}),
            **(
                {f"{measure}_reliability": float(stored["reliability"])}
                if stored.get("reliability") is not None
                else {}
            ),
        }

    return {
        "train": {
            **of("mislabeled", "mislabeled_rate", "mislabeled_count"),
            **of("memorized", "memorized_rate", "memorized_count"),
            **_membership(record),
            **_receipt(record),
            **{f"duplicate_{name}": float(record["duplicates"][name]) for name in _COPIES},
            "gate_passed": float(record["decision"]["outcome"] == "pass"),
            **{name: float(value) for name, value in record["costs"].items()},
        },
        "queries": {
            **of("leaked", "leakage_rate", "leaked_count"),
            **of("inflated", "leak_inflation"),
            **_worth(record),
        },
    }


def _membership(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what an attack reaches at 1 % false positives, with its interval."""
    found = record["membership"]
    if found is None:
        return {}
    name = "membership_tpr_at_1fpr"
    keys = {name: "rate", f"{name}_low": "low", f"{name}_high": "high"}
    return {metric: float(found[key]) for metric, key in keys.items()}


def _receipt(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what training without the mislabeled rows changes, with its interval."""
    found = record["receipt"]
    if found is None:
        return {}
    return {f"receipt_{key}": float(found[key]) for key in ("gain", "low", "high")}


def _worth(record: Mapping[str, Any]) -> dict[str, float]:
    """Return accuracy and loss on all queries and on those that did not leak, with intervals."""
    groups = record["leak_worth"] or {}
    return {
        metric.format(name): float(group[key])
        for name, group in groups.items()
        if name in ("clean", "everything") and group["rows"]
        for key, metric in _WORTH.items()
        if key in group and group[key] is not None and math.isfinite(group[key])
    }
