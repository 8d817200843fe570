"""Decisions: what a person writes beside flagged rows, in the file that they are filled into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forward_inf_mlflow.errors import DataError

#: What the names of the row's own columns begin with: none is taken for a column of ours.
FEATURE = "feature."
#: What may be decided about a flagged row; an empty cell decides nothing.
DECISIONS = ("fix", "drop", "keep")
#: What a row of ``flagged.csv`` is known by.
_KEY = ("verdict", "row_id", "query_id", "row_digest")
_NEEDED = (*_KEY, "decision", "likelier_label", "given_label", "audit_run")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_QUOTED = re.compile(r"'+[=+\-@\t\r]")


@dataclass(frozen=True)
class Choice:
    """What was decided about one flagged row.

    Attributes:
        verdict, row_id, digest: Which one, as the audit named it.
        decision: "fix", "drop" or "keep".
        before: Its label.
        label: The label to write, as text; None unless it is to be fixed.
        own: Whether a person wrote that label, rather than the audit.
    """

    verdict: str
    row_id: str
    digest: str
    decision: str
    before: str
    label: str | None
    own: bool = False


def harmless(table: pd.DataFrame) -> pd.DataFrame:
    """Quote texts that a spreadsheet would run as a formula; the data are other people's.

    Those that are quoted already get one quote more, so that no two texts become one.
    """

    def quoted(value: Any) -> Any:
        if not isinstance(value, str) or not _FORMULA.match(value):
            return value
        try:
            float(value)
        except ValueError:
            return f"'{value}"
        return value

    return table.map(quoted)


def unquoted(text: str) -> str:
    """Return a text as it was before `harmless`."""
    return text[1:] if _QUOTED.match(text) else text


def to_fill_in(flagged: pd.DataFrame, scores: pd.DataFrame, run_id: str | None) -> pd.DataFrame:
    """Return the flagged rows with what makes them a file to fill in: ``flagged.csv``.

    Args:
        flagged: One row per verdict.
        scores: Where the training rows' digests are, by ``id``.
        run_id: The audit's run.

    Returns:
        The same with the empty columns ``decision`` and ``new_label`` behind the likelier label,
        and with ``row_digest`` and ``audit_run`` behind the evidence.
    """
    table = flagged.drop(
        columns=["decision", "new_label", "row_digest", "audit_run"], errors="ignore"
    )
    digests = np.full(len(table), "", dtype=object)
    if "row_digest" in scores and len(table):
        where = pd.Index(scores["id"].astype(str)).get_indexer(table["row_id"].astype(str))
        digests[where >= 0] = scores["row_digest"].to_numpy()[where[where >= 0]]
    at = list(table.columns).index("likelier_label") + 1
    table.insert(at, "decision", "")
    table.insert(at + 1, "new_label", "")
    at = list(table.columns).index("evidence") + 1
    table.insert(at, "row_digest", digests)
    table.insert(at + 1, "audit_run", run_id or "")
    return table


def read_filled(file: Path) -> pd.DataFrame:
    """Read a csv file that came back from a person, every cell as text.

    Spreadsheets write semicolons or tabs in some countries, and a mark before the first name.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            first = text.readline()
        separator = max(",;\t", key=first.count)
        return pd.read_csv(
            file, dtype=str, keep_default_na=False, sep=separator, encoding="utf-8-sig"
        )
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: save it as 'CSV UTF-8'") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as csv: {' '.join(str(error).split())}") from error


def choices(table: pd.DataFrame, flagged: pd.DataFrame, *, file: object) -> list[Choice]:
    """Return what a person decided, one for each row with a decision.

    Args:
        table: The file as it came back; rows may be missing and stand in any order.
        flagged: ``flagged.csv`` as the audit wrote it, every cell as text.
        file: What messages call the file.

    Raises:
        DataError: A column is missing, a row is none of the audit's, or a decision is unknown,
            impossible, or contradicts another about the same training row.
    """
    if missing := [name for name in _NEEDED if name not in table.columns]:
        raise DataError(f"{file} lacks the column '{missing[0]}': give an audit's flagged.csv")
    ours = {_key(row): row for row in flagged.to_dict("records")}
    said = table["decision"].str.strip().str.lower()
    unknown = table[~said.isin(["", *DECISIONS])]
    if len(unknown):
        row = unknown.iloc[0]
        more = f" ({len(unknown)} such rows)" if len(unknown) > 1 else ""
        raise DataError(
            f"row {row['row_id']} of {file} has the decision '{row['decision'][:20]}'{more}: write "
            f"{', '.join(DECISIONS)}, or nothing"
        )
    found = []
    for row, decision in zip(table.to_dict("records"), said, strict=True):
        mine = ours.get(_key(row))
        if mine is None:
            raise DataError(
                f"row {row['row_id'][:80]} of {file} ({row['verdict'][:20]}) is none that the "
                "audit flagged: its verdict, ids or digest were changed (a spreadsheet may have "
                "turned 007 into 7: import the columns as text), or the row is another audit's"
            )
        if decision:
            found.append(_choice(mine, decision, row.get("new_label", ""), file))
        elif row.get("new_label", "").strip():
            raise DataError(
                f"row {row['row_id']} of {file} has a new label and no decision: write fix"
            )
    if not found:
        raise DataError(
            f"no row of {file} has a decision: write {', '.join(DECISIONS)} beside some"
        )
    _agree(found, file)
    return found


def _choice(row: dict[str, str], decision: str, new: str, file: object) -> Choice:
    row_id, verdict = unquoted(row["row_id"]), row["verdict"]
    before, label, own = unquoted(row["given_label"]), None, bool(new.strip())
    if own and decision != "fix":
        raise DataError(f"row {row_id} of {file} has a new label, but the decision is '{decision}'")
    if decision == "fix":
        if verdict == "leaked":
            raise DataError(
                f"row {row_id} of {file} is leaked, and no other label mends that: write drop to "
                "take the training row out, or keep"
            )
        label = unquoted(new.strip()) if own else unquoted(row["likelier_label"])
        if label == before:
            raise DataError(
                f"row {row_id} of {file}: the likelier label is the given one, '{label[:40]}': "
                "write the right one into the column new_label, or drop or keep the row"
            )
    return Choice(verdict, row_id, row["row_digest"], decision, before, label, own)


def _agree(found: Sequence[Choice], file: object) -> None:
    """Refuse decisions about one training row that contradict each other."""
    first: dict[str, Choice] = {}
    for one in found:
        other = first.setdefault(one.row_id, one)
        if {other.decision, one.decision} == {"keep", "drop"} and other.verdict != one.verdict:
            continue  # such as a right label of a row that leaked: dropped, and not relabelled
        if (other.decision, other.label) != (one.decision, one.label):
            a, b = (
                f"{c.decision} ({c.verdict}{', ' + c.label[:40] if c.label else ''})"
                for c in (other, one)
            )
            raise DataError(
                f"row {one.row_id} of {file} has two decisions, {a} and {b}: choose one"
            )


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(unquoted(row[name].strip(" ")) for name in _KEY)
