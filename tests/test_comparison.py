"""What changed between two audits: rows by their digests, flags, rates beyond chance; no MLflow."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_cases import make_audit
from scipy import stats

from forward_inf_mlflow.comparison import VERDICTS, Side, _rates, compare_sides
from forward_inf_mlflow.detect.measure import Measure, binomial_high, binomial_low
from forward_inf_mlflow.errors import TrackingError
from forward_inf_mlflow.record import write_record


def record(**rates: Any) -> dict[str, Any]:
    """Return a record with the rates (low, rate, high) of some verdicts; None for no verdict."""
    audit = make_audit()
    audit |= {"membership": None, "receipt": None, "leak_worth": None}
    audit |= {"duplicates": {"rows": 0, "conflicts": 0}, "decision": {"outcome": "pass"}}
    audit["measures"]["inflated"] = dict(audit["measures"]["leaked"])
    for verdict, rate in rates.items():
        stored = audit["measures"][verdict]
        if rate is None:
            stored["abstained"] = "too few"
        else:
            stored["rate_low"], stored["rate"], stored["rate_high"] = rate
    return audit


def scores(
    rows: str, labels: str, *, ids: Any = None, digests: bool = True, **flags: str
) -> pd.DataFrame:
    """Return one row for each letter, which stands for its features, with a label each."""
    n = len(rows)
    table = pd.DataFrame({"id": list(ids or map(str, range(n))), "label": list(labels)})
    for verdict in VERDICTS:
        table[verdict] = [row in flags.get(verdict, "") for row in rows]
    if digests:
        table["features_digest"] = list(rows)
        table["row_digest"] = [f"{a}{b}" for a, b in zip(rows, labels, strict=True)]
    table["mislabeled_suspicion"] = np.linspace(0, 1, n)
    if "kept" in flags:
        table["kept"] = [row in flags["kept"] for row in rows]
    return table


def compared(old: pd.DataFrame, new: pd.DataFrame, a: Any = None, b: Any = None) -> dict[str, Any]:
    found = compare_sides(
        Side("models:/m/1", "r1", a or record(), old), Side("models:/m/2", "r2", b or record(), new)
    )
    json.loads(write_record(found))
    return found


def test_an_audit_of_declared_data_is_told_from_one_of_the_logged_data() -> None:
    declared = record()
    declared["data"]["train"] |= {"origin": "declared"}
    table = scores("abc", "000")
    found = compared(table, table, declared)
    assert (found["old"]["declared"], found["new"]["declared"]) == (True, False)
    said = "the audit of models:/m/1 was asked about declared data, not those that were logged"
    assert sum(said in one for one in found["sentences"]) == 1
    assert not any("declared" in one for one in compared(table, table)["sentences"])


def test_rows_are_known_by_digest_wherever_they_stand_and_whatever_they_are_called() -> None:
    # a and b stay, c gets another label, d goes, e comes; the second a is another row.
    found = compared(
        scores("abacd", "xyxxx", mislabeled="bcd"),
        scores("ecbaa", "xyyxx", ids="vwxyz", mislabeled="bce"),
    )
    assert found["rows_known_by"] == "row digest"
    rows = {"old": 5, "new": 5, "same": 3, "relabelled": 1, "added": 1, "removed": 1}
    assert found["rows"] == rows
    flags = found["verdicts"]["mislabeled"]
    assert flags["stayed"] == 1
    assert flags["went"] == {
        "rows": 2, "cleared": 0, "kept": 0, "relabelled": 1, "removed": 1, "ids": ["4", "3"]
    }  # fmt: skip
    assert flags["came"] == {
        "rows": 2, "accused": 0, "relabelled": 1, "added": 1, "ids": ["w", "v"]
    }  # fmt: skip
    assert "1 have another label, 1 went, 1 came (known by row digest)" in found["sentences"][1]


def test_without_digests_rows_are_known_by_id_and_it_says_so() -> None:
    old = scores("abc", "xyz", mislabeled="a", digests=False)
    new = scores("abd", "xzz", mislabeled="b")
    found = compared(old, new)
    assert found["rows_known_by"] == "id"
    assert (found["rows"]["same"], found["rows"]["relabelled"]) == (2, 1)
    assert found["verdicts"]["mislabeled"]["went"]["cleared"] == 1


def test_a_row_that_a_person_kept_is_no_change_of_the_audit() -> None:
    rows = "abcdefghij"
    found = compared(
        scores(rows, "x" * 10, mislabeled=rows), scores(rows, "x" * 10, kept="abcdefghi")
    )
    flags = found["verdicts"]["mislabeled"]
    assert (flags["went"]["kept"], flags["went"]["cleared"]) == (9, 1)
    assert flags["unchanged_rows"]["rows"] == 1
    assert not flags["unchanged_rows"]["differs"]


@pytest.mark.parametrize(("gone", "came"), [(0, 0), (3, 3), (6, 0), (12, 1), (5, 9)])
def test_unchanged_rows_are_held_against_chance_by_mcnemar(gone: int, came: int) -> None:
    letters = [chr(200 + i) for i in range(40)]
    rows = "".join(letters)
    was, is_ = "".join(letters[: gone + 2]), "".join([*letters[:2], *letters[30 : 30 + came]])
    found = compared(scores(rows, "x" * 40, mislabeled=was), scores(rows, "x" * 40, mislabeled=is_))
    test = found["verdicts"]["mislabeled"]["unchanged_rows"]
    assert (test["only_old"], test["only_new"]) == (gone, came)
    n, k = gone + came, min(gone, came)
    exact = min(1.0, 2 * stats.binom.cdf(k, n, 0.5)) if n else 1.0
    assert test["p_value"] == pytest.approx(exact)
    assert test["differs"] == (exact < 0.05 / 3)
    assert any("beyond chance (" in s and "McNemar" in s for s in found["sentences"]) == (
        exact < 0.05 / 3
    )


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ((0.02, 0.05, 0.08), (0.081, 0.1, 0.2), "higher"),
        ((0.02, 0.05, 0.08), (0.0, 0.01, 0.019), "lower"),
        ((0.02, 0.05, 0.08), (0.08, 0.1, 0.2), "no"),
        ((0.02, 0.05, 0.08), (0.0, 0.0, 1.0), "no"),
        (None, (0.5, 0.6, 0.7), None),
    ],
)
def test_rates_differ_where_their_intervals_do_not_overlap(
    old: Any, new: Any, differs: str | None
) -> None:
    table = scores("ab", "xy")
    found = compared(table, table, record(mislabeled=old), record(mislabeled=new))
    rate = found["verdicts"]["mislabeled"]["rate"]
    assert rate["differs"] == differs
    assert rate["wrong_at_most"] == pytest.approx(0.06)
    assert rate["old"] == (None if old is None else list(old))
    assert any("beyond chance (the" in s for s in found["sentences"]) == (
        differs in ("higher", "lower")
    )


def test_a_count_of_memorized_rows_is_no_interval_and_is_not_tested() -> None:
    table = scores("ab", "xy")
    counts = [record(memorized=(rate, rate, rate)) for rate in (0.0, 0.2)]
    rate = compared(table, table, *counts)["verdicts"]["memorized"]["rate"]
    assert (rate["differs"], rate["wrong_at_most"]) == (None, None)


def test_two_audits_of_one_truth_are_told_apart_no_oftener_than_promised() -> None:
    rng, claims = np.random.default_rng(0), 0
    for _ in range(500):
        pair = [
            Measure(
                count=int(count),
                total=200,
                rate_low=binomial_low(int(count), 200),
                rate_high=binomial_high(int(count), 200),
                threshold=None,
                note="",
            )
            for count in rng.binomial(200, 0.1, 2)
        ]
        claims += _rates("leaked", *pair)["differs"] != "no"
    assert claims / 500 <= 0.1


def test_metrics_stand_side_by_side_and_settings_that_differ_are_named() -> None:
    table = scores("ab", "xy")
    old, new = record(), record(memorized=None)
    new["settings"] = {"seed": 0, "effort": "quick"}
    found = compared(table, table, old, new)
    metrics = {one["name"]: (one["old"], one["new"]) for one in found["metrics"]}
    assert metrics["mislabeled_rate"] == (0.0323, 0.0323)
    assert metrics["memorized_rate"] == (0.0323, None)
    assert found["settings"] == ["effort"]
    assert "differ in their settings (effort)" in found["sentences"][-1]


def test_a_table_that_lacks_a_column_is_one_line() -> None:
    table = scores("ab", "xy")
    with pytest.raises(TrackingError, match=r"scores\.parquet of run r2 lacks 'leaked': audit"):
        compared(table, table.drop(columns="leaked"))
