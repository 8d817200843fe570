"""What a person writes beside flagged rows: read, matched with the audit's rows, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from forward_inf_mlflow.decisions import (
    Choice,
    choices,
    harmless,
    read_filled,
    to_fill_in,
    unquoted,
)
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.tables import FLAGGED

SCORES = pd.DataFrame({"id": ["007", "=1+1", "b"], "row_digest": ["d7", "d1", "db"]})


def flagged() -> pd.DataFrame:
    """Return four verdicts on three rows, one of which has a name that is a formula."""
    rows = [
        ("mislabeled", "007", None, "cat", "dog"),
        ("mislabeled", "=1+1", None, "cat", "-dog"),
        ("leaked", "007", "q1", "cat", "cat"),
        ("memorized", "b", None, "dog", "dog"),
    ]
    names = ("verdict", "row_id", "query_id", "given_label", "likelier_label")
    return pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows], columns=list(FLAGGED))


@pytest.fixture
def ours(tmp_path: Path) -> pd.DataFrame:
    harmless(to_fill_in(flagged(), SCORES, "r" * 32)).to_csv(tmp_path / "ours.csv", index=False)
    return read_filled(tmp_path / "ours.csv")


def test_a_file_to_fill_in_has_empty_decisions_and_says_whose_rows_they_are(
    ours: pd.DataFrame,
) -> None:
    assert set(ours["decision"]) == set(ours["new_label"]) == {""}
    assert set(ours["audit_run"]) == {"r" * 32}
    assert list(ours["row_digest"]) == ["d7", "d1", "d7", "db"]
    assert list(ours["row_id"]) == ["007", "'=1+1", "007", "b"]


def test_decisions_are_matched_by_row_whatever_the_order_and_quotes_are_undone(
    ours: pd.DataFrame,
) -> None:
    said = ours.assign(decision=["", " FIX ", "drop", "Keep"]).iloc[::-1]
    assert choices(said, ours, file="f.csv") == [
        Choice("memorized", "b", "db", "keep", "dog", None),
        Choice("leaked", "007", "d7", "drop", "cat", None),
        Choice("mislabeled", "=1+1", "d1", "fix", "cat", "-dog"),
    ]
    stripped = said.assign(row_id=said["row_id"].map(unquoted))  # as some spreadsheets do
    assert choices(stripped, ours, file="f.csv") == choices(said, ours, file="f.csv")
    assert len(choices(said.iloc[:1], ours, file="f.csv")) == 1, "rows may be left out"


def test_a_right_label_of_a_leaked_row_is_kept_and_the_row_dropped(ours: pd.DataFrame) -> None:
    said = ours.assign(decision=["keep", "", "drop", ""])
    found = choices(said, ours, file="f.csv")
    assert [(one.verdict, one.decision) for one in found] == [
        ("mislabeled", "keep"),
        ("leaked", "drop"),
    ]


TEXTS = ["=x", "'=x", "''=x", "-5", "'-5", "-x", "'-x", "'", "''", "", "a'=", "'a", "@", "'@", "\t"]


def test_quotes_are_undone_to_the_text_that_was_there_and_no_two_become_one() -> None:
    quoted = list(harmless(pd.DataFrame({"id": TEXTS}))["id"])
    assert [unquoted(text) for text in quoted] == TEXTS
    assert len(set(quoted)) == len(TEXTS)
    assert not any(text[:1] in ("=", "@", "\t") or text == "-x" for text in quoted)


def test_rows_whose_ids_differ_by_a_quote_are_two_rows(tmp_path: Path) -> None:
    table = flagged().iloc[[0, 1]].assign(row_id=["=x", "'=x"])
    scores = pd.DataFrame({"id": ["=x", "'=x"], "row_digest": ["d", "d"]})  # of the same content
    ours = harmless(to_fill_in(table, scores, "r"))
    ours.to_csv(tmp_path / "f.csv", index=False)
    read = read_filled(tmp_path / "f.csv")
    found = choices(read.assign(decision=["drop", "keep"]), read, file="f.csv")
    assert [(one.row_id, one.decision) for one in found] == [("=x", "drop"), ("'=x", "keep")]


def test_a_new_label_comes_before_the_likelier_one(ours: pd.DataFrame) -> None:
    said = ours.assign(decision=["fix", "", "", ""], new_label=[" '=cow ", "", "", ""])
    [found] = choices(said, ours, file="f.csv")
    assert (found.label, found.own) == ("=cow", True)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({(1, "decision"): "fx"}, r"row '=1\+1 of f.csv has the decision 'fx': write fix, drop"),
        ({(0, "decision"): "fix", (0, "row_digest"): "d8"}, "row 007 .* is none that the audit"),
        ({(0, "decision"): "fix", (0, "row_id"): "7"}, "007 into 7"),
        ({(3, "verdict"): "mislabeled"}, r"row b of f.csv \(mislabeled\) is none"),
        ({(2, "query_id"): "q2"}, "is none that the audit flagged"),
        ({}, "no row of f.csv has a decision"),
        ({(2, "decision"): "fix"}, "row 007 of f.csv is leaked, and no other label mends that"),
        ({(3, "decision"): "fix"}, "row b of f.csv: the likelier label is the given one, 'dog'"),
        ({(0, "decision"): "drop", (0, "new_label"): "x"}, "new label, but the decision is 'drop'"),
        ({(0, "new_label"): "x"}, "row 007 of f.csv has a new label and no decision"),
        (
            {(0, "decision"): "fix", (2, "decision"): "drop"},
            r"row 007 of f.csv has two decisions, fix \(mislabeled, dog\) and drop \(leaked\)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_row_and_value(
    cells: dict[tuple[int, str], str], says: str, ours: pd.DataFrame
) -> None:
    said = ours.copy()
    for (row, name), value in cells.items():
        said.loc[row, name] = value
    with pytest.raises(DataError, match=says) as caught:
        choices(said, ours, file="f.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["decision", "row_digest", "query_id"])
def test_a_column_that_is_gone_is_named(name: str, ours: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=f"lacks the column '{name}'"):
        choices(ours.drop(columns=name), ours, file="f.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_file_is_read_as_spreadsheets_of_any_country_write_it(
    separator: str, ours: pd.DataFrame, tmp_path: Path
) -> None:
    ours.to_csv(tmp_path / "f.csv", sep=separator, index=False, encoding="utf-8-sig")
    pd.testing.assert_frame_equal(read_filled(tmp_path / "f.csv"), ours)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"a,b\n\xff\xfe,1", "is not UTF-8"), (b"", "cannot be read as csv"), (None, "cannot be")],
)
def test_a_file_that_cannot_be_read_is_one_line(content: Any, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "f.csv").write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_filled(tmp_path / "f.csv")
    assert "\n" not in str(caught.value)
