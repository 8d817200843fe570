"""Rows: the entries of the work list as the template shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from forward_inf_mlflow.report.album import Album
from forward_inf_mlflow.report.formats import DASH, label, number, whole
from forward_inf_mlflow.report.portraits import Values
from forward_inf_mlflow.report.sections import Section
from forward_inf_mlflow.report.words import marked
from forward_inf_mlflow.report.worklist import (
    KINDS,
    Entry,
    Finding,
    fair_share,
    neighbours,
    wanted,
    work_list,
)

#: Rows that the list shows; flagged.csv has them all.
MAX_ROWS = 500
#: Proponents, and opponents, of one row.
MAX_SIDE = 4
#: Copies of one row that are shown beside it.
_MAX_PAIRS = 3
_FEATURE, _MAX_FEATURES, _MAX_VALUE, _MAX_TEXT = "feature.", 6, 60, 160
#: Characters of a text that a proponent or opponent is recognized by.
_MAX_HINT = 90
#: Columns in which two rows differ.
_MAX_DIFFERENT = 8
#: Columns of the table that a spreadsheet gets.
COLUMNS = (
    "order", "row_id", "finding", "also", "given_label", "likelier_label", "copy_of", "source",
    "score", "own_loss", "to_do", "evidence",
)  # fmt: skip
_ROLES = {"train": "training row", "query": "query"}
_LEAKS = {
    "exact": "exact copy",
    "near": "near copy",
    "encoded": "copy to the model",
    "influence": "influence only",
}


def rows_to_show(
    flagged: pd.DataFrame, scores: pd.DataFrame, influence: pd.DataFrame
) -> dict[str, list[str]]:
    """Return the ids of all rows that a page shows, by ``train`` and ``query``."""
    return wanted(fair_share(work_list(flagged, scores), MAX_ROWS), influence, MAX_SIDE)


@dataclass(frozen=True)
class Shown:
    """The work list of a page.

    Attributes:
        rows: What is shown, in order.
        more: How many further rows there are.
        kinds: Kinds that occur among the shown rows: name, title and number of rows.
        sources: Sources that occur among the shown rows.
        asked: How many of the shown rows have proponents and opponents.
        header: Columns of the table that a spreadsheet gets, as JSON in an attribute.
    """

    rows: list[Section]
    more: int
    kinds: list[tuple[str, str, int]]
    sources: list[str]
    asked: int
    header: Markup


class Presenter:
    """What turns entries into what is shown."""

    def __init__(
        self,
        scores: pd.DataFrame,
        influence: pd.DataFrame | None,
        values: Mapping[str, Values],
        album: Album,
        *,
        regression: bool,
    ) -> None:
        """Keep what there is to show of rows.

        Args:
            scores: One line per training row, for the labels of proponents and opponents.
            influence: Proponents and opponents.
            values: What rows without pictures are recognized by.
            album: Their pictures.
            regression: Whether labels are targets.
        """
        self._sides = neighbours(influence, MAX_SIDE)
        self._values, self._album, self._regression = values, album, regression
        known = {"id", "label"} <= set(scores.columns)
        ids = [label(value) for value in scores["id"]] if known else []
        self._labels = dict(zip(ids, scores["label"] if known else [], strict=True))

    def show(self, flagged: pd.DataFrame, scores: pd.DataFrame) -> Shown:
        """Return the list of a page."""
        entries = work_list(flagged, scores)
        some = fair_share(entries, MAX_ROWS)
        named = dict.fromkeys(label(_of(entry, "source")) for entry in some)
        sources = sorted(name for name in named if name not in ("", DASH))
        # Flagged rows first: where room is short, their pictures matter more.
        pictures = [{key: self._picture(key) for key in entry.rows} for entry in some]
        rows = [
            self._row(order, entry, found, sources)
            for order, (entry, found) in enumerate(zip(some, pictures, strict=True), 1)
        ]
        kinds = [(kind, title, sum(kind in row["kinds"] for row in rows))
                 for kind, title in KINDS.items()]  # fmt: skip
        return Shown(
            rows=rows,
            more=len(entries) - len(some),
            kinds=[one for one in kinds if one[2]],
            sources=sources,
            asked=sum(bool(row["sides"]) for row in rows),
            header=_cells(COLUMNS),
        )

    def _row(
        self, order: int, entry: Entry, pictures: Mapping[str, str | None], sources: list[str]
    ) -> Section:
        own = f"train:{entry.row_id}"
        source = label(_of(entry, "source"))
        given, likelier = _of(entry, "given_label"), self._likelier(entry)
        findings = [self._finding(finding) for finding in entry.findings]
        pairs = [self._pair(own, f, pictures) for f in entry.findings if f.other is not None]
        row = Section(
            order=order,
            id=entry.row_id,
            picture=pictures[own],
            values=[] if pictures[own] else self._shown_values(entry),
            kinds=list(dict.fromkeys(finding.kind for finding in entry.findings)),
            findings=findings,
            given=given,
            likelier=likelier,
            remedy=self._remedy(entry, likelier),
            source="" if source == DASH else source,
            source_number=sources.index(source) if source in sources else -1,
            score=entry.first.told["score"],
            loss=_of(entry, "loss"),
            pairs=pairs[:_MAX_PAIRS],
            more_pairs=max(0, len(pairs) - _MAX_PAIRS),
            sides=self._asked(entry),
        )
        row["cells"] = _cells(self._plain(row, entry))
        return row

    def _picture(self, key: str) -> str | None:
        role, _, row_id = key.partition(":")
        return self._album.find(role, row_id)

    def _finding(self, finding: Finding) -> Section:
        told = finding.told
        tier = None
        if finding.kind == "leaked":
            tier = _LEAKS.get(told["kind"], told["kind"])
        elif finding.kind == "conflict" or told["kind"] == "rare":
            tier = told["kind"]
        return Section(
            kind=finding.kind,
            title=KINDS[finding.kind],
            tier=tier if label(tier) != DASH else None,
            evidence=told["evidence"],
            p_value=told["p_value"],
        )

    def _likelier(self, entry: Entry) -> Any:
        """Return the label that the data speak for, of a row whose own is in doubt."""
        for finding in entry.findings:
            if finding.kind in ("certain", "likely"):
                return finding.told["likelier_label"]
        return None

    def _remedy(self, entry: Entry, likelier: Any) -> str:
        kind = entry.first.kind
        if kind == "certain":
            return "correct the target or drop the row" if self._regression else (
                f"relabel to {label(likelier)} or drop"
            )  # fmt: skip
        if kind == "conflict":
            return "decide which label is right; mend or drop the other row"
        if kind == "leaked":
            return "drop from training"
        if kind == "likely":
            return "look; correct the target, or keep" if self._regression else (
                f"look; relabel to {label(likelier)}, or keep"
            )  # fmt: skip
        return "keep if right, and gather more like it"

    def _pair(self, own: str, finding: Finding, pictures: Mapping[str, str | None]) -> Section:
        """Return two rows side by side: the other one, and this."""
        assert finding.other is not None
        told = finding.told
        leak = finding.kind == "leaked"
        mine, theirs = self._of_pair(own, told), list(self._values.get(finding.other, []))
        different, same = _compared(theirs, mine)
        return Section(
            kind=finding.kind,
            what="query" if leak else "copy",
            id=finding.other.partition(":")[2],
            label=told["likelier_label"] if leak else told["other_label"],
            same_label=told["same_label"] if leak else False,
            other_picture=pictures[finding.other],
            different=different,
            same=same,
        )

    def _of_pair(self, own: str, told: Section) -> Values:
        return self._values.get(own) or _features(told)

    def _shown_values(self, entry: Entry) -> list[tuple[str, str]]:
        found = self._values.get(f"train:{entry.row_id}") or _features(entry.first.told)
        found = found[:_MAX_FEATURES]
        return [(name[:_MAX_VALUE], _short(value, _MAX_TEXT)) for name, value in found]

    def _asked(self, entry: Entry) -> list[Section]:
        """Return who speaks for and against the label of the row, or of the query it leaked to."""
        found = []
        for key in entry.rows:
            sides = self._sides.get(key)
            if not sides or not any(sides.values()):
                continue
            role, _, row_id = key.partition(":")
            own = key == f"train:{entry.row_id}"
            found.append(
                Section(
                    whose="this row" if own else f"{_ROLES[role]} {row_id}",
                    sides=[
                        (name, [self._neighbour(row) for row in sides[name]])
                        for name in ("proponent", "opponent")
                    ],
                )
            )
        return found[:1] if not found or found[0]["whose"] == "this row" else found[:_MAX_PAIRS]

    def _neighbour(self, row: Mapping[str, Any]) -> Section:
        row_id = row["train_id"]
        picture = self._album.find("train", row_id)
        values = [] if picture else self._values.get(f"train:{row_id}", [])
        texts = [_short(value, _MAX_HINT) for _, value in values if isinstance(value, str)]
        return Section(
            id=row_id,
            label=self._labels.get(row_id),
            influence=row["influence"],
            picture=picture,
            text=" · ".join(texts[:2])
            or ", ".join(f"{name} {label(value)}" for name, value in values[:3]),
        )

    def _plain(self, row: Section, entry: Entry) -> list[Any]:
        """Return the row as a line of a spreadsheet."""
        first = entry.first
        copies = [key.partition(":")[2] for key in entry.rows[1:]]
        titles = [finding["title"] for finding in row["findings"]]
        also = [title for title in dict.fromkeys(titles) if title != titles[0]]
        tier = row["findings"][0]["tier"]
        score = number(first.told["score"])
        loss = number(row["loss"])
        return [
            row["order"],
            row["id"],
            titles[0] + (f" ({tier})" if tier else ""),
            "; ".join(also),
            label(row["given"]) if row["given"] is not None else "",
            label(row["likelier"]) if row["likelier"] is not None else "",
            "; ".join(copies),
            row["source"],
            "" if score is None else f"{score:.6g}",
            "" if loss is None else f"{loss:.6g}",
            row["remedy"],
            "; ".join(label(finding["evidence"]) for finding in row["findings"]),
        ]


def _of(entry: Entry, name: str) -> Any:
    """Return what the first finding that says it says."""
    return next((f.told[name] for f in entry.findings if label(f.told[name]) != DASH), None)


def _compared(theirs: Values, mine: Values) -> tuple[list[tuple[str, Markup, Markup]], list[str]]:
    """Return the columns in which two rows differ, and the names of those in which they do not.

    Of a column: its name, the other row's value and this one's, with the words marked that differ.
    """
    differ, same, ours = [], [], dict(mine)
    for name, value in theirs:
        if name not in ours:
            continue
        left, right = label(value), label(ours[name])
        if left == right and value == ours[name]:
            same.append(name[:_MAX_VALUE])
        else:
            # Numbers that read alike are written out.
            pair = (str(value), str(ours[name])) if left == right else (left, right)
            differ.append((name[:_MAX_VALUE], *marked(*pair)))
    return differ[:_MAX_DIFFERENT], same


def _features(told: Section) -> list[tuple[str, object]]:
    """Return the values that the table of flagged rows holds itself, as older audits do."""
    keys = [key for key in told if key.startswith(_FEATURE)][:_MAX_FEATURES]
    return [(key.removeprefix(_FEATURE), _short(told[key], _MAX_VALUE)) for key in keys]


def _short(value: object, most: int) -> str:
    text = label(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _cells(values: Sequence[Any]) -> Markup:
    """Return cells as JSON for an attribute: printable, and none that a spreadsheet would run."""
    return escape(json.dumps([_inert(value) for value in values], ensure_ascii=False))


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = whole(value)
    if not text.startswith(("=", "+", "-", "@")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
