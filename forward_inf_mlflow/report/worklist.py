"""Work list: every row that something is wrong with, once, in the order of what to mend first.

1. Certainly mislabeled rows: most of them are wrong, and a new label mends them.
2. Copies inside the training set whose labels disagree: one of them is wrong, whichever it is.
3. Leaked rows: results cannot be trusted while they are there.
4. Likely mislabeled rows: look before you change them.
5. Memorized rows: often rare and right.

A row that several verdicts name stands where the first of them puts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from forward_inf_mlflow.report.formats import label
from forward_inf_mlflow.report.sections import Section, floats

#: What a row may be accused of, in the order of what to mend first.
KINDS = {
    "certain": "certainly mislabeled",
    "conflict": "copies disagree",
    "leaked": "leaked",
    "likely": "likely mislabeled",
    "memorized": "memorized",
}
_ORDER = {kind: place for place, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Finding:
    """One accusation of a row.

    Attributes:
        kind: See ``KINDS``.
        place: Among those of its kind, the surest first.
        told: The line of ``flagged.csv`` that says it, or what stands in its place.
        other: The row that it is a copy of, as ``query:<id>`` or ``train:<id>``; None if it is
            accused alone.
    """

    kind: str
    place: int
    told: Section
    other: str | None = None


@dataclass(frozen=True)
class Entry:
    """A training row and all it is accused of, the first to mend first."""

    row_id: str
    findings: tuple[Finding, ...]

    @property
    def first(self) -> Finding:
        """Return what puts the row where it stands."""
        return self.findings[0]

    @property
    def rows(self) -> list[str]:
        """Return what a reader must see to judge it: the row, and those it is a copy of."""
        others = [finding.other for finding in self.findings if finding.other is not None]
        return list(dict.fromkeys([f"train:{self.row_id}", *others]))


def work_list(flagged: pd.DataFrame, scores: pd.DataFrame) -> list[Entry]:
    """Return all rows to look at, in order.

    Args:
        flagged: One line per verdict and row, worst first within each verdict.
        scores: One line per training row; ``copy_of``, ``copy_exact`` and ``copy_conflicts`` say
            which copies disagree.
    """
    findings: dict[str, list[Finding]] = {}
    for place, line in enumerate(flagged.to_dict("records")):
        told = Section({str(key): value for key, value in line.items()})
        if (kind := _kind(told)) is not None:
            other = f"query:{label(told['query_id'])}" if kind == "leaked" else None
            found = Finding(kind, place, told, other)
            findings.setdefault(label(told["row_id"]), []).append(found)
    for row_id, found in _conflicts(scores):
        findings.setdefault(row_id, []).append(found)
    entries = [
        Entry(row_id, tuple(sorted(found, key=lambda one: (_ORDER[one.kind], one.place))))
        for row_id, found in findings.items()
    ]
    return sorted(entries, key=lambda entry: (_ORDER[entry.first.kind], entry.first.place))


def fair_share(entries: list[Entry], most: int) -> list[Entry]:
    """Return at most so many entries: the first of all kinds, so that none hides another.

    Every kind has an equal share; what a kind leaves goes to the first kinds.
    """
    groups = [[e for e in entries if e.first.kind == kind] for kind in KINDS]
    taken = [min(len(group), most // len(KINDS)) for group in groups]
    left = most - sum(taken)
    for i, group in enumerate(groups):
        more = min(left, len(group) - taken[i])
        taken[i], left = taken[i] + more, left - more
    return [entry for group, n in zip(groups, taken, strict=True) for entry in group[:n]]


def wanted(entries: list[Entry], influence: pd.DataFrame | None, each: int) -> dict[str, list[str]]:
    """Return the ids of the rows that the list shows, by ``train`` and ``query``.

    Args:
        entries: What is shown.
        influence: Proponents and opponents, which are shown too.
        each: How many of either kind of one row.
    """
    keys = dict.fromkeys(key for entry in entries for key in entry.rows)
    sides = neighbours(influence, each)
    asked = [key for key in keys if key in sides]
    for key in asked:
        keys |= dict.fromkeys(
            f"train:{row['train_id']}" for rows in sides[key].values() for row in rows
        )
    found: dict[str, list[str]] = {"train": [], "query": []}
    for key in keys:
        role, _, row_id = key.partition(":")
        found[role].append(row_id)
    return found


def neighbours(
    influence: pd.DataFrame | None, each: int
) -> Mapping[str, Mapping[str, list[dict[str, Any]]]]:
    """Return the first proponents and opponents by ``train:<id>`` or ``query:<id>`` asked about.

    Those that help or harm at all: the smallest of a list may do neither.
    """
    needed = ("query_id", "kind", "rank", "train_id", "influence")
    if influence is None or not len(influence) or not set(needed) <= set(influence.columns):
        return {}
    asked = influence["asked"] if "asked" in influence else pd.Series("query", influence.index)
    value = floats(influence["influence"])
    table = influence.assign(asked=asked, influence=value)
    table = table[(value > 0) == (table["kind"] == "proponent")]
    table = table[(table["influence"] != 0) & table["influence"].notna()]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (role, query, kind), rows in table.sort_values("rank", kind="stable").groupby(
        ["asked", "query_id", "kind"], sort=False
    ):
        sides = found.setdefault(f"{role}:{label(query)}", {"proponent": [], "opponent": []})
        if kind in sides:
            some = rows.head(each)
            sides[kind] = [
                {"train_id": label(row), "influence": v}
                for row, v in zip(some["train_id"], some["influence"], strict=True)
            ]
    return found


def _kind(told: Section) -> str | None:
    if told["verdict"] == "mislabeled":
        return "certain" if told["kind"] == "certain" else "likely"
    return told["verdict"] if told["verdict"] in ("leaked", "memorized") else None


def _conflicts(scores: pd.DataFrame) -> list[tuple[str, Finding]]:
    """Return the rows that have a copy with another label: exact copies first, pairs together."""
    if not {"id", "label", "copy_of", "copy_conflicts"} <= set(scores.columns):
        return []
    ids = [label(value) for value in scores["id"]]
    labels = dict(zip(ids, scores["label"], strict=True))
    marked = np.flatnonzero([str(flag) == "True" for flag in scores["copy_conflicts"]])
    exact = scores.get("copy_exact", pd.Series(None, scores.index, dtype=object))
    sure = np.array([str(flag) == "True" for flag in exact], dtype=bool)
    places = {row_id: place for place, row_id in enumerate(ids)}
    twins = [label(value) for value in scores["copy_of"]]
    loss = floats(scores.get("loss", [None] * len(ids)))

    def order(i: int) -> tuple[bool, int, float]:
        return not sure[i], min(i, places.get(twins[i], i)), -np.nan_to_num(loss[i])

    found = []
    for place, i in enumerate(sorted(map(int, marked), key=order)):
        twin = twins[i]
        line = Section({str(name): scores[name].iloc[i] for name in ("label", "source", "loss")
                        if name in scores})  # fmt: skip
        same = "every value is" if sure[i] else "to the model it is"
        told = Section(
            row_id=ids[i],
            given_label=line["label"],
            other_label=labels.get(twin),
            kind="exact" if sure[i] else "near",
            source=line["source"],
            loss=line["loss"],
            evidence=f"{same} the same as training row {twin}, whose label is "
            f"{label(labels.get(twin))}: where a row decides its label, one of the two is wrong"
            if twin in labels
            else "a copy of this row has another label",
        )
        found.append(
            (ids[i], Finding("conflict", place, told, f"train:{twin}" if twin in labels else None))
        )
    return found
