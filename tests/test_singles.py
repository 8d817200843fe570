"""Whom an audit asks about one by one, within one budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from forward_inf_mlflow.detect.mislabeled import Mislabeled, undecided
from forward_inf_mlflow.singles import whom_else_to_ask, whom_to_ask

LOSS = np.arange(40.0)  # of 40 queries, the last one's the largest


def flagged(*rows: int) -> Mislabeled:
    """A verdict on 100 rows; of the flagged ones the first is the most suspicious."""
    flags, suspicion = np.zeros(100, dtype=bool), np.zeros(100)
    flags[list(rows)] = True
    suspicion[list(rows)] = -np.arange(len(rows))
    return replace(undecided(100, "a test"), flags=flags, suspicion=suspicion)


def suspects(*queries: int) -> np.ndarray:
    found = np.full(40, -1)
    found[list(queries)] = 7
    return found


def test_copies_come_first_then_a_quarter_of_the_rest_by_loss() -> None:
    assert whom_to_ask(suspects(2, 5), LOSS, 10).tolist() == [2, 5, 38, 39]
    assert whom_to_ask(suspects(2, 5), LOSS, 2).tolist() == [2, 5]
    assert whom_to_ask(suspects(), LOSS, 1).tolist() == [39]
    assert len(whom_to_ask(suspects(*range(20)), LOSS, 10)) == 10


@pytest.mark.parametrize(
    ("most", "leaks", "wrong", "rows", "queries"),
    [
        (10, (), (30, 20, 10), {10, 20, 30}, {33, 34, 35, 36}),
        (10, (), tuple(range(50)), {0, 1, 2, 3, 4}, {35, 36}),
        (10, (0, 1), tuple(range(50)), {0, 1, 2, 3}, {0, 1, 36}),
        (10, tuple(range(20)), (1, 2), set(), set(range(13, 20))),
        (3, (), (9, 8), {9}, {38}),
    ],
    ids=["all that are flagged", "half", "leaks first", "leaks alone", "few"],
)
def test_the_budget_is_kept_and_what_the_verdicts_bring_up_comes_first(
    most: int,
    leaks: tuple[int, ...],
    wrong: tuple[int, ...],
    rows: set[int],
    queries: set[int],
) -> None:
    leaked = np.isin(np.arange(40), leaks)
    asked = whom_to_ask(suspects(), LOSS, most)
    rest = whom_else_to_ask(asked, leaked, LOSS, flagged(*wrong), np.zeros(100), most)
    assert set(rest.rows) == rows
    assert set(rest.queries) == queries
    assert not set(rest.queries) & set(asked)
    assert len(asked) + len(rest.rows) + len(rest.queries) == most


def test_equally_suspicious_rows_are_asked_by_their_loss() -> None:
    loss = np.zeros(100)
    loss[[50, 60]] = 2, 3
    wrong = flagged(40, 50, 60)
    wrong = replace(wrong, suspicion=np.ones(100))
    rest = whom_else_to_ask(np.array([39]), np.zeros(40, bool), LOSS, wrong, loss, 4)
    assert set(rest.rows) == {50, 60}


def test_a_budget_beyond_all_rows_asks_everybody_once() -> None:
    asked = whom_to_ask(suspects(), LOSS, 10_000)
    rest = whom_else_to_ask(asked, np.zeros(40, bool), LOSS, flagged(1), np.zeros(100), 10_000)
    assert sorted([*asked, *rest.queries]) == list(range(40))
    assert rest.rows.tolist() == [1]
