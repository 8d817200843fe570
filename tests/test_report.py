"""The report's page: the decision first, then what explains it."""

from __future__ import annotations

import base64
import re
from itertools import pairwise

import numpy as np
import pytest
from report_cases import (
    LEAK_SCORES,
    NO_SCORES,
    Page,
    make_audit,
    make_flagged,
    make_scores,
)

from forward_inf_mlflow.report import Portraits, render, thumbnail


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


def test_three_hundred_flagged_rows_with_noisy_colour_pictures_stay_under_five_megabytes() -> None:
    rng = np.random.default_rng(0)
    noise = thumbnail(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    keys = [f"{kind}{i}" for kind in ("train:r", "query:q") for i in range(100)]
    images = dict.fromkeys(keys, noise)
    page = render(
        make_audit(leak_scores=LEAK_SCORES),
        make_flagged(each=100),
        make_scores(),
        Portraits(images),
    )
    assert page.count("data:image/png") == 400
    assert len(page.encode()) < 5_000_000


def test_pictures_beyond_the_budget_are_left_out_and_said_so() -> None:
    images = {f"train:r{i}": bytes(1_000_000) for i in range(5)}
    page = render(make_audit(), make_flagged(each=5), NO_SCORES, Portraits(images))
    assert len(page) < 5_000_000
    assert "thumbnails were left out" in page


def test_a_verdict_shows_its_first_hundred_rows_and_counts_the_rest() -> None:
    page = render(make_audit(), make_flagged(each=1234), NO_SCORES)
    assert page.count("<code>r99</code>") == 3
    assert "<code>r100</code>" not in page
    assert page.count("and 1,134 more, see") == 3


def test_a_leak_shows_the_query_beside_the_training_row() -> None:
    query, row = thumbnail(np.eye(8)), thumbnail(1 - np.eye(8))
    page = render(
        make_audit(), make_flagged(1), NO_SCORES, Portraits({"query:q0": query, "train:r0": row})
    )
    (leak,) = re.findall(
        r'<tr>\s*<th scope="row">(?:(?!</tr>).)*near copy.*?</tr>', page, re.DOTALL
    )
    shown = [base64.b64decode(png) for png in re.findall(r"base64,([^\"]+)", leak)]
    assert shown == [query, row]


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
    page = Page(render(audit, flagged, make_scores().assign(memorized_score=np.nan)))
    assert "Given → predicted" in page.text
    assert "3.14" in page.text
    assert "3.14159" not in page.text
    assert "nats" not in page.text


def test_labels_that_a_gap_turned_into_floats_read_as_whole_numbers() -> None:
    flagged = make_flagged(1, given_label=[3.0, 3.0, np.nan], row_id=[7.0, 8.0, 9.0])
    page = render(make_audit(), flagged, NO_SCORES, Portraits({"train:7": b"png"}))
    assert "<s>3</s>" in page
    assert "<code>7</code>" in page
    assert base64.b64encode(b"png").decode() in page
