"""The version's description: our block alone changes, and never loses verdict and links."""

from __future__ import annotations

import pytest
from conftest import points, register_points
from mlflow import MlflowClient

from forward_inf_mlflow.auditing import audit
from forward_inf_mlflow.description import describe_version
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.tracking import AuditRun

RUN = AuditRun("0123456789abcdef" * 2, "123456789012345678")
REASONS = [f"reason {i} <b> [x](http://evil.test) " + "and so on " * 20 for i in range(30)]


@pytest.fixture
def version(store: str) -> Version:
    return resolve(register_points(points(leaks=9)))


def description() -> str:
    return str(MlflowClient().get_model_version("points", "1").description or "")


@pytest.mark.parametrize("others", ["", "Written by a person.", "x" * 4500])
def test_the_links_stand_before_the_reasons_and_survive_any_cut(
    others: str, version: Version
) -> None:
    MlflowClient().update_model_version("points", "1", others)
    for outcome in ("pass", "fail"):  # the second replaces the first
        decision = {"outcome": outcome, "reasons": REASONS}
        assert describe_version(version, decision, RUN) is None
    text = description()
    assert len(text) <= 5000
    assert text.startswith(others)
    block = text.removeprefix(others).lstrip()
    assert len(block) <= 2000
    assert block.count("Data audit of models:/points/1: refused") == 1
    assert "passed" not in block
    for link in (RUN.link("report.html"), RUN.link("flagged.json"), RUN.link()):
        assert f"]({link})" in block
    assert block.index("[audit run]") < (block.index("reason 0") if len(others) < 4000 else 2000)
    assert "more, see the report" in block
    assert block.endswith("-->")
    assert "<b>" not in block
    assert "](http://evil" not in block


def test_few_reasons_are_all_there_and_long_ones_shortened(version: Version) -> None:
    reasons = ["short", "y" * 5000, "last"]
    describe_version(version, {"outcome": "undecided", "reasons": reasons}, RUN)
    assert "- short\n- yyy" in description()
    assert "y…\n- last\n" in description()
    assert "more, see" not in description()


def test_a_full_description_is_said_and_never_keeps_an_older_verdict(version: Version) -> None:
    client = MlflowClient()
    older = "<!-- forward-inf -->\n**Data audit: passed**\n<!-- /forward-inf -->"
    others = "z" * 4900
    client.update_model_version("points", "1", f"{older}\n\n{others}")
    with pytest.warns(UserWarning, match="leaves no room for the verdict") as caught:
        result = audit(version.uri)
    assert len([w for w in caught if "no room" in str(w.message)]) == 1
    assert "shorten the description" in str(result.as_dict()["warning"])
    assert description().strip() == others
    assert client.get_model_version("points", "1").tags["fi.gate"] == "fail"
