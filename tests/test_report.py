"""The report's page: the decision first, then what explains it."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from html import unescape
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from report_cases import (
    LEAK_SCORES,
    NO_SCORES,
    Page,
    make_audit,
    make_flagged,
    make_influence,
    make_scores,
)

from forward_inf_mlflow.report import Portraits, render, thumbnail
from forward_inf_mlflow.report.rows import COLUMNS
from forward_inf_mlflow.report.sections import Section
from forward_inf_mlflow.report.worklist import KINDS, Entry, Finding, fair_share, work_list


@pytest.fixture(scope="module")
def whole() -> str:
    """Return a page with all it can have; its charts are most of the time that a page takes."""
    return render(make_audit(leak_scores=LEAK_SCORES), make_flagged(), make_scores())


@pytest.mark.parametrize("outcome", ["pass", "fail", "undecided"])
def test_every_reason_stands_above_the_first_table(outcome: str) -> None:
    reasons = [f"reason number {i}" for i in range(5)]
    audit = make_audit(decision={"outcome": outcome, "reasons": reasons})
    above = render(audit, make_flagged(), NO_SCORES).split("<table", 1)[0]
    assert all(reason in above for reason in reasons)
    assert {"pass": "PASS", "fail": "REFUSED", "undecided": "UNDECIDED"}[outcome] in above


def test_each_chart_names_its_threshold(whole: str) -> None:
    charts = re.findall(r'<svg role="img".*?</svg>', whole, re.DOTALL)
    assert len(charts) == 3
    for chart, threshold in zip(charts, ("0.62", "−4.5", "0.25"), strict=True):
        assert re.search(rf"<text[^>]*>threshold {threshold}<", chart)
        assert "var(--flagged)" in chart


def test_the_same_audit_gives_the_same_bytes(whole: str) -> None:
    assert whole == render(make_audit(leak_scores=LEAK_SCORES), make_flagged(), make_scores())


def test_ids_in_the_page_are_unique_and_links_lead_to_one(whole: str) -> None:
    page = Page(whole)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {href.removeprefix("#") for href in page.attributes("a", "href")} <= set(ids)


def test_headings_descend_one_level_at_a_time_and_tables_name_their_columns(whole: str) -> None:
    page = Page(whole)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    headers = [attrs for tag, attrs in page.tags if tag == "th"]
    assert headers
    assert all(attrs.get("scope") in ("col", "row") for attrs in headers)


@pytest.fixture(scope="module")
def noise() -> bytes:
    """Return the heaviest picture that there is."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return thumbnail(pixels)


def test_five_hundred_flagged_rows_with_noisy_colour_pictures_stay_under_five_megabytes(
    noise: bytes,
) -> None:
    rng = np.random.default_rng(0)
    verdicts = np.repeat(["mislabeled", "leaked", "memorized"], [300, 100, 100])
    ids = [f"{verdict}{i}" for i, verdict in enumerate(verdicts)]
    flagged = make_flagged(167).head(500).assign(verdict=verdicts, row_id=ids, query_id=ids)
    keys = [*(f"train:{i}" for i in ids), *(f"query:{i}" for i in ids[300:400])]
    rows = Portraits({key: rng.bytes(len(noise)) for key in keys})
    asked = [(f"train:{ids[i]}", ids[i + j + 1], 0.5 - j) for i in range(50) for j in range(8)]
    page = render(
        make_audit(leak_scores=LEAK_SCORES),
        flagged,
        make_scores().drop(columns="copy_of"),
        rows,
        make_influence(asked),
    )
    assert page.count("<tr data-kinds") == 500
    assert page.count("data:image/png") == len(keys)
    assert "pictures were left out" not in page
    assert len(page.encode()) < 5_000_000


def test_pictures_beyond_the_budget_are_left_out_and_said_so() -> None:
    images = {f"train:r{i}": bytes([i]) * 1_000_000 for i in range(5)}
    page = render(make_audit(), make_flagged(each=5), NO_SCORES, Portraits(images))
    assert len(page) < 5_000_000
    assert "pictures were left out" in page


def test_a_picture_that_several_rows_show_is_held_once() -> None:
    png = thumbnail(np.eye(8))
    images = {f"{kind}{i}": png for kind in ("train:r", "query:q") for i in range(3)}
    page = render(make_audit(), make_flagged(3), NO_SCORES, Portraits(images))
    assert page.count("data:image/png") == 1
    assert page.count('class="pic p0"') == 2 * 3


def rows_of(html: str) -> list[str]:
    """Return the rows of the work list."""
    return re.findall(r"<tr data-kinds.*?\n    </tr>", html, re.DOTALL)


def cells_of(row: str) -> dict[str, Any]:
    """Return what a spreadsheet gets of a row."""
    (cells,) = re.findall(r'data-cells="([^"]*)"', row)
    return dict(zip(COLUMNS, json.loads(unescape(cells)), strict=True))


def test_the_list_shows_five_hundred_rows_some_of_every_kind_and_counts_the_rest() -> None:
    many = make_flagged(1234)
    many["row_id"] = [f"{verdict}{i}" for i, verdict in enumerate(many["verdict"])]
    page = render(make_audit(), many, NO_SCORES)
    kinds = Counter(re.findall(r'data-kinds="([^"]*)"', page))
    assert kinds == {"leaked": 300, "likely": 100, "memorized": 100}
    assert "and 3,202 more, see" in page


def test_rows_stand_once_in_the_order_of_what_to_mend_first() -> None:
    flagged = make_flagged(3).assign(row_id=["a", "b", "c", "d", "b", "e", "f", "c", "c0"])
    flagged["kind"] = [
        "likely",
        "certain",
        "likely",
        "exact",
        "near",
        "near",
        "rare",
        "rare",
        "rare",
    ]
    entries = work_list(flagged, make_scores())
    assert [entry.row_id for entry in entries] == [*"b", "c3", "c2", "c1", "c0", *"deacf"]
    kinds = {entry.row_id: [finding.kind for finding in entry.findings] for entry in entries}
    assert kinds["b"] == ["certain", "leaked"]
    assert kinds["c"] == ["likely", "memorized"]
    assert kinds["c0"] == ["conflict", "memorized"]
    shown = [
        cells_of(row)["row_id"] for row in rows_of(render(make_audit(), flagged, make_scores()))
    ]
    assert shown == [entry.row_id for entry in entries]


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [([900, 0, 0, 0, 0], [500]), ([900, 900, 0, 20, 0], [380, 100, 20]), ([3, 0, 0, 0, 9], [3, 9])],
)
def test_no_kind_crowds_out_another(sizes: list[int], shown: list[int]) -> None:
    entries = [
        Entry(f"{kind}{i}", (Finding(kind, i, Section()),))
        for kind, size in zip(KINDS, sizes, strict=True)
        for i in range(size)
    ]
    some = fair_share(entries, 500)
    assert list(Counter(entry.first.kind for entry in some).values()) == shown
    taken = {entry.row_id for entry in some}
    assert [entry for entry in entries if entry.row_id in taken] == some, "in order"


def test_a_leak_shows_the_query_beside_the_training_row() -> None:
    query, row = thumbnail(np.eye(8)), thumbnail(1 - np.eye(8))
    images = Portraits({"query:q0": query, "train:r0": row})
    flagged = make_flagged(1).query("verdict == 'leaked'")
    page = render(make_audit(), flagged, NO_SCORES, images)
    (leak,) = rows_of(page)
    shown = re.findall(r'class="pic (p\d)" role="img" aria-label="([^"]*)"', leak)
    assert [alt for _, alt in shown] == ["query q0", "training row r0"]
    held = dict(re.findall(r"\.(p\d)\{background-image:url\(data:image/png;base64,([^)]*)\)", page))
    assert [base64.b64decode(held[name]) for name, _ in shown] == [query, row]


def test_two_copies_that_disagree_stand_side_by_side_with_both_labels() -> None:
    images = Portraits({f"train:c{i}": thumbnail(np.eye(8) * i) for i in range(4)})
    rows = rows_of(render(make_audit(), make_flagged(0), make_scores(), images))
    assert [cells_of(row)["row_id"] for row in rows] == ["c3", "c2", "c1", "c0"]
    first = Page(rows[0]).text
    assert "copies disagree: exact" in first
    assert "every value is the same as training row c2, whose label is 3" in " ".join(first.split())
    assert "copies disagree: near" in Page(rows[2]).text
    assert [attrs["aria-label"] for _, attrs in Page(rows[0]).tags if "aria-label" in attrs] == [
        "copy c2", "training row c3",
    ]  # fmt: skip


def test_a_copy_that_nobody_names_is_told_without_it() -> None:
    rows = rows_of(render(make_audit(), make_flagged(0), make_scores().assign(copy_of="")))
    assert len(rows) == 4
    assert all("a copy of this row has another label" in row for row in rows)


def test_proponents_and_opponents_are_those_of_the_row_and_not_of_a_query_of_its_name() -> None:
    flagged = make_flagged(1).assign(row_id="r1", query_id="r1").head(1)
    asked = [("train:r1", "r7", 0.5), ("train:r1", "r8", -0.25), ("query:r1", "r9", 0.75)]
    (row,) = rows_of(render(make_audit(), flagged, NO_SCORES, None, make_influence(asked)))
    text = " ".join(Page(row).text.split())
    assert "Proponents r7 label – +0.50 Opponents r8 label – −0.25" in text
    assert "r9" not in text
    leaked = make_flagged(1).assign(row_id="r2", query_id="r1").query("verdict == 'leaked'")
    (row,) = rows_of(render(make_audit(), leaked, NO_SCORES, None, make_influence(asked)))
    assert "label of query r1" in Page(row).text
    assert "r9" in Page(row).text
    assert "r7" not in Page(row).text


def test_who_neither_helps_nor_harms_is_no_proponent() -> None:
    asked = make_influence(
        [("train:r0", "r7", 0.5), ("train:r0", "r8", -0.1), ("train:r0", "r9", 1)]
    )
    asked.loc[1, "kind"], asked.loc[2, "influence"] = "proponent", 0.0  # a list that ran out
    (row,) = rows_of(render(make_audit(), make_flagged(1).head(1), NO_SCORES, None, asked))
    assert "r7" in row
    assert not {"r8", "r9"} & set(re.findall(r"r\d", row))


def test_texts_of_a_leak_stand_side_by_side_with_the_differing_words_marked() -> None:
    same = (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    )
    values = {"query:q0": f"the <b>red</b> car {same} end", "train:r0": f"the blue car {same} end"}
    rows = Portraits({}, {key: [("text", value), ("n", 1)] for key, value in values.items()})
    flagged = make_flagged(1).query("verdict == 'leaked'")
    (row,) = rows_of(render(make_audit(), flagged, NO_SCORES, rows))
    assert re.findall("<mark>(.*?)</mark>", row) == ["&lt;b&gt;red&lt;/b&gt;", "blue"]
    assert "the <mark>blue</mark> car one two three four five <span class=fine>…</span></td>" in row
    assert "The other 1 columns kept here are equal." in row


def test_a_label_that_differs_is_marked_and_one_that_does_not_is_not() -> None:
    flagged = make_flagged(1).query("verdict == 'leaked'")
    (same,) = rows_of(render(make_audit(), flagged, NO_SCORES))
    (other,) = rows_of(render(make_audit(), flagged.assign(same_label=False), NO_SCORES))
    assert "<mark>" not in same
    assert re.findall("<mark>(.*?)</mark>", other) == ["5", "3"]


def test_a_spreadsheet_gets_whole_numbers_and_texts_that_it_does_not_run() -> None:
    long = "x" * 450
    flagged = make_flagged(1).head(1).assign(
        score=0.123456789, loss=-0.5, given_label="=1+1", source="-cmd|x", evidence="a\tb\nc",
        likelier_label="-2.5", row_id=long,
    )  # fmt: skip
    cells = cells_of(rows_of(render(make_audit(), flagged, NO_SCORES))[0])
    assert cells["score"] == "0.123457"
    assert cells["own_loss"] == "-0.5"
    assert cells["given_label"] == "'=1+1"
    assert cells["source"] == "'-cmd|x"
    assert cells["likelier_label"] == "-2.5"
    assert cells["row_id"] == long
    assert not re.search(r"[\t\n\r]", cells["evidence"])
    assert cells["finding"] == "likely mislabeled"


def test_without_scripts_every_row_stands_there_and_nothing_that_needs_them(whole: str) -> None:
    page = Page(whole)
    hidden = [tag for tag, attrs in page.tags if "hidden" in attrs]
    assert hidden == ["div", "textarea", "p", "div"], "filters, their table, and the slider"
    assert len(rows_of(whole)) == 3 + 4


def test_the_page_begins_with_a_link_past_what_stands_before_the_rows(whole: str) -> None:
    body = whole.split("<body>", 1)[1]
    first = Page(body).tags[0]
    assert first == ("a", {"class": "skip", "href": "#rows"})
    assert 'id="rows" tabindex="-1"' in body


def test_charts_are_the_only_drawings(whole: str) -> None:
    assert whole.count("<svg") == whole.count('<svg role="img"') == 3


def test_every_p_value_of_a_source_is_shown_with_the_source_that_chance_does_not_explain(
    whole: str,
) -> None:
    table = whole.split('id="sources"', 1)[1].split("</table>", 1)[0]
    bad, good = re.findall('<tr>\\s*<th scope="row".*?</tr>', table, re.DOTALL)
    text = " ".join(Page(bad).text.split())
    assert "p < 0.001" in text
    assert "p 0.42" in text
    assert "below others" in text
    assert "p 0.03" in text
    assert "high" not in Page(good).text
    assert "others" not in Page(good).text


def test_a_review_is_told_with_its_intervals(whole: str) -> None:
    text = " ".join(Page(whole).text.split())
    assert "A. Owner looked at 50 rows: 12 are wrong, and 2 could not be told." in text
    assert "of all training labels 8.1% (4.0% to 14.0%) are wrong." in text
    assert "of the labels that this audit calls wrong 80.0% (60.0% to 95.0%) are." in text
    assert "a person saw" not in render(make_audit(review=None), make_flagged(), NO_SCORES)


def test_reliability_stands_at_its_number(whole: str) -> None:
    card = whole.split("<h3>Mislabeled", 1)[1].split("</section>", 1)[0]
    assert "reliability 0.93" in card


def test_a_row_without_a_picture_shows_its_main_features_short_and_as_text() -> None:
    columns = {f"feature.f{i}": 0.5 + i for i in range(7)} | {"feature.<i>": "<b>" + "x" * 900}
    flagged = make_flagged(1)
    flagged[list(columns)[-1]] = columns["feature.<i>"]
    page = render(make_audit(), flagged.assign(**dict(list(columns.items())[:5])), NO_SCORES)
    text = Page(page).text
    assert all(f"f{i} {i}.5" in text for i in range(5))
    assert "<i> <b>x" in text
    assert "x" * 60 not in text
    assert "f6 6.5" not in Page(render(make_audit(), flagged.assign(**columns), NO_SCORES)).text
    shown = render(
        make_audit(), flagged.assign(**columns), NO_SCORES, Portraits({"train:r0": b"png"})
    )
    assert "f1 " not in Page(shown).text


def test_a_verdict_without_a_bound_is_marked_report_only() -> None:
    page = Page(render(make_audit(), make_flagged(), NO_SCORES))
    assert "report only" in page.text.split("Memorized", 1)[1].split("What to do next")[0]
    assert "do not count towards the decision" in page.text


def test_a_source_that_is_worse_than_chance_is_named_in_the_next_steps() -> None:
    page = render(make_audit(), make_flagged(), NO_SCORES)
    steps = page.split("What to do next", 1)[1].split("</section>", 1)[0]
    assert "vendor-b" in steps
    assert "7.5%" in steps


def test_an_abstained_detector_says_why_instead_of_a_rate() -> None:
    audit = make_audit(decision={"outcome": "undecided", "reasons": ["could not judge"]})
    audit["measures"]["mislabeled"] |= {"abstained": "too few rows", "count": 0, "rate": 0.0}
    above = Page(render(audit, make_flagged(0), NO_SCORES)).text.split("What to do next")[0]
    card = above.split("Three numbers")[1].split("Leaked")[0]
    assert "could not tell" in card
    assert "too few rows" in card
    assert "0.0" not in card


def test_regression_speaks_of_targets_and_predictions() -> None:
    audit = make_audit(task="regression")
    flagged = make_flagged(given_label=3.14159, likelier_label=2.71828, same_label=None)
    flagged["row_id"] = range(9)
    page = Page(render(audit, flagged, make_scores().assign(memorized_score=np.nan)))
    assert "3.14 → 2.72" in page.text
    assert "correct the target" in page.text
    assert "3.14159" not in page.text
    assert "nats" not in page.text


def test_labels_that_a_gap_turned_into_floats_read_as_whole_numbers() -> None:
    flagged = make_flagged(1, given_label=[3.0, 3.0, np.nan], row_id=[7.0, 8.0, 9.0])
    page = render(make_audit(), flagged, NO_SCORES, Portraits({"train:7": b"png"}))
    assert "<s>3</s>" in page
    assert "<code>7</code>" in page
    assert [cells_of(row)["row_id"] for row in rows_of(page)] == ["8", "7", "9"]
    assert base64.b64encode(b"png").decode() in page
