"""Two versions' audits side by side: in MLflow, on the command line, and in the next report."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import one_line, points, register_points, run_here
from mlflow import MlflowClient
from report_cases import HOSTILE, make_audit

from forward_inf_mlflow import compare, comparing
from forward_inf_mlflow.auditing import AuditResult, audit
from forward_inf_mlflow.comparison import compare_sides
from forward_inf_mlflow.report import render
from forward_inf_mlflow.report.since import since_section
from forward_inf_mlflow.verdicts.claims import AUDIT_TAG


@pytest.fixture(scope="module")
def audits(shared_store: Path) -> tuple[AuditResult, AuditResult]:
    """Audit a version with leaks, leave the next one out, and audit the third, without them."""
    first = audit(register_points(points(leaks=9), "m"))
    register_points(points(), "m")
    return first, audit(register_points(points(), "m"))


def test_the_next_audit_says_what_changed_in_record_and_report(
    audits: tuple[AuditResult, AuditResult],
) -> None:
    first, second = audits
    assert first.record["since"] is None
    since = second.record["since"]
    assert since["old"]["model"] == "models:/m/1", "the newest earlier version with an audit"
    assert since["rows"]["same"] == 231
    assert since["rows"]["added"] == since["rows"]["removed"] == 9
    leaked = since["verdicts"]["leaked"]
    assert (leaked["stayed"], leaked["went"]["removed"], leaked["came"]["rows"]) == (0, 9, 0)
    assert leaked["rate"]["differs"] == "lower"
    report = mlflow.artifacts.load_text(f"runs:/{second.run_id}/forward_inf/report.html")
    assert "Since version 1" in report
    assert "lower beyond chance" in report
    assert "Since" not in mlflow.artifacts.load_text(
        f"runs:/{first.run_id}/forward_inf/report.html"
    )


def test_compare_says_the_same_and_logs_it_to_the_newer_run(
    audits: tuple[AuditResult, AuditResult],
) -> None:
    found = compare("models:/m/1", "models:/m/3")
    assert found.content["verdicts"] == json.loads(
        json.dumps(audits[1].record["since"]["verdicts"])
    )
    assert found.run_id == audits[1].run_id
    text = mlflow.artifacts.load_text(f"runs:/{found.run_id}/{found.artifact}")
    assert text.startswith("# models:/m/3 since models:/m/1")
    assert "| leakage\\_rate | 0.1 | 0 |" in text
    names = {f.path for f in MlflowClient().list_artifacts(found.run_id, comparing.FOLDER)}
    assert names == {found.artifact, found.artifact.replace(".md", ".json")}
    done = run_here("compare", "models:/m/1", "models:/m/3")
    assert (done.returncode, done.stderr) == (0, "")
    for said in found.sentences:
        assert said in done.stdout
    assert "leakage_rate" in done.stdout
    as_json = json.loads(run_here("compare", "models:/m/1", "models:/m/3", "--json").stdout)
    assert as_json["rows"] == found.content["rows"]
    back = compare("models:/m/3", "models:/m/1")
    assert back.content["verdicts"]["leaked"]["rate"]["differs"] == "higher"


def test_a_version_without_an_audit_is_one_line(audits: tuple[AuditResult, AuditResult]) -> None:
    done = run_here("compare", "models:/m/2", "models:/m/3")
    assert done.returncode == 2
    assert "no finished audit of models:/m/2" in one_line(done.stderr)


def test_an_earlier_audit_that_was_changed_or_broken_holds_up_no_new_one(
    audits: tuple[AuditResult, AuditResult], shared_store: Path
) -> None:
    client = MlflowClient()
    uri = register_points(points(), "m")
    [scores] = shared_store.rglob(f"{audits[1].run_id}/artifacts/forward_inf/scores.parquet")
    whole = scores.read_bytes()
    scores.write_bytes(b"PAR1 but not really")
    done = run_here("audit", uri)
    assert "since version 1: 231 training rows are the same" in done.stdout, "the one before"
    assert "leaked 9 flags went and 0 came (lower beyond chance)" in done.stdout
    done = run_here("compare", "models:/m/1", "models:/m/3")
    assert "is not the one that the audit wrote, it was changed since" in one_line(done.stderr)
    sha256 = client.get_model_version("m", "1").tags[AUDIT_TAG]
    client.set_model_version_tag("m", "1", AUDIT_TAG, "0" * 64)
    assert audit(uri).record["since"] is None
    client.set_model_version_tag("m", "1", AUDIT_TAG, sha256)
    scores.write_bytes(whole)
    done = run_here("compare", "models:/m/3", "models:/m/3")
    assert done.returncode == 0


def test_scores_that_nobody_wrote_are_one_line(
    audits: tuple[AuditResult, AuditResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        return compare_sides({}, {})  # type: ignore[arg-type]

    monkeypatch.setattr(comparing, "compare_sides", broken)
    done = run_here("compare", "models:/m/1", "models:/m/3")
    assert done.returncode == 2
    assert "cannot be compared, its record or its scores.parquet" in one_line(done.stderr)


def page(since: Any) -> str:
    return render(make_audit(since=since), pd.DataFrame(), pd.DataFrame(), {})


def test_everything_in_the_section_stays_text(audits: tuple[AuditResult, AuditResult]) -> None:
    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoiled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoiled(item) for item in value] or [HOSTILE]
        return HOSTILE if isinstance(value, str) else value

    html = page(spoiled(audits[1].record["since"]))
    assert "Since version" in html
    assert "<script>alert" not in html
    assert "<img src=http" not in html
    pasted = since_section(
        {"old": {"model": "models:/m;id/1"}, "rows": {"same": 1}}, "models:/$(x)/2"
    )
    assert pasted is not None
    assert shlex.split(pasted["command"])[2:] == ["models:/m;id/1", "models:/$(x)/2"]
    assert page({"problem": HOSTILE}).count("<script>alert") == 0


@pytest.mark.parametrize("value", [None, 3, [], "x", {}, {"old": 1}, {"old": {}, "rows": []}])
def test_what_is_no_comparison_gives_no_section(value: Any) -> None:
    assert since_section(value, "models:/m/2") is None
    assert 'id="since"' not in page(value)


def test_numbers_that_are_missing_break_no_page() -> None:
    for part in ({}, {"leaked": 3}, {"leaked": {"rate": {"old": [1]}, "went": {"rows": "x"}}}):
        html = page({"old": {"version": "1"}, "rows": {"same": np.nan}, "verdicts": part})
        assert "Since version 1" in html
