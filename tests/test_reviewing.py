"""A person looks at some rows of an audit: drawn, answered, counted, and never chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from conftest import one_line, points, register_points, run_here
from mlflow import MlflowClient

from forward_inf_mlflow.auditing import AuditResult, audit
from forward_inf_mlflow.errors import DataError, ForwardInfError, TrackingError
from forward_inf_mlflow.found_audit import find_audit
from forward_inf_mlflow.promotion import gate
from forward_inf_mlflow.reviewing import apply_review
from forward_inf_mlflow.sampling import sample_review

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def audited() -> AuditResult:
    return audit(register_points(points()))


def drawn(uri: str, folder: Path, **options: Any) -> pd.DataFrame:
    sample_review(uri, folder / "rows.csv", **options)
    return pd.read_csv(folder / "rows.csv", dtype=str, keep_default_na=False)


def answered(table: pd.DataFrame, folder: Path, answer: Any = "right") -> Path:
    table.assign(answer=answer).to_csv(folder / "filled.csv", index=False)
    return folder / "filled.csv"


def test_answers_count_in_record_report_metrics_and_gate(
    audited: AuditResult, tmp_path: Path
) -> None:
    uri = audited.version.uri
    assert audited.decision.outcome == "pass"
    table = drawn(uri, tmp_path)
    said = ["wrong" if i % 3 == 0 else "right" for i in range(len(table))]
    found = apply_review(answered(table, tmp_path, said), by="A. Owner")
    assert found.decision.outcome == "fail"
    again = gate(uri)
    assert again.decision.outcome == "fail"
    assert again.run_id == found.run_id != audited.run_id
    assert found.audit_sha256 == find_audit(found.version).sha256 != audited.audit_sha256
    record = mlflow.artifacts.load_dict(f"runs:/{found.run_id}/forward_inf/audit.json")
    assert record["review"]["by"] == "A. Owner"
    assert record["review"]["of_run"] == audited.run_id
    assert record["review"]["of_sha256"] == audited.audit_sha256
    assert record["model"] == audited.record["model"]  # with the digest of its files
    assert "17 of 50 rows that A. Owner looked at" in record["measures"]["mislabeled"]["note"]
    run = MlflowClient().get_run(found.run_id)
    low = run.data.metrics["forward_inf/mislabeled_rate_low"]
    assert low == pytest.approx(found.verified.rate.low)
    assert low > 0.03
    report = mlflow.artifacts.load_text(f"runs:/{found.run_id}/forward_inf/report.html")
    assert "17 of 50 rows that A. Owner looked at" in report
    assert "A. Owner looked at 50 rows: 17 are wrong" in report
    version = MlflowClient().get_model_version("points", "1")
    assert version.tags["fi.gate"] == "fail"
    assert "Data audit of models:/points/1: refused" in version.description
    told = json.loads(run_here("history", uri, "--json").stdout)["events"]
    assert [(e["id"], e["kind"], e["outcome"], e["by"]) for e in told] == [
        (found.run_id, "audit", "REFUSED", "A. Owner"),
        (audited.run_id, "audit", "PASS", ""),
    ]
    assert told[0]["detail"].startswith("with the answers to a sample; mislabeled rows: ")
    names = {f.path for f in MlflowClient().list_artifacts(found.run_id, "forward_inf")}
    before = {f.path for f in MlflowClient().list_artifacts(audited.run_id, "forward_inf")}
    assert names == before


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (lambda t: t.assign(answer=""), DataError, "has no answer"),
        (lambda t: t.assign(answer="perhaps"), DataError, "the answer 'perhaps'"),
        (lambda t: t.iloc[1:].assign(answer="right"), DataError, "exactly the 20 rows"),
        (lambda t: t.assign(answer="right", row_id=t["row_id"][0]), DataError, "exactly"),
        (lambda t: t.assign(answer="right", draw="a-b"), DataError, "'draw' was changed"),
        (lambda t: t.assign(answer="right", draw="21-0"), DataError, "exactly the 21 rows"),
        (lambda t: t.assign(answer="right", audit_run="x"), TrackingError, "another audit"),
        (lambda t: t.assign(answer="right", audit_sha256="0"), TrackingError, "'audit_sha256' was"),
        (lambda t: t.drop(columns="answer"), DataError, "lacks the column 'answer'"),
    ],
    ids=["none", "unknown", "row gone", "twice", "draw", "other draw", "run", "sha256", "column"],
)  # fmt: skip
def test_a_file_that_is_not_what_was_drawn_is_refused_and_changes_nothing(
    spoil: Any, kind: type[ForwardInfError], said: str, audited: AuditResult, tmp_path: Path
) -> None:
    table = spoil(drawn(audited.version.uri, tmp_path, rows=20))
    table.to_csv(tmp_path / "filled.csv", index=False)
    with pytest.raises(kind, match=said) as caught:
        apply_review(tmp_path / "filled.csv")
    assert "\n" not in str(caught.value)
    assert gate(audited.version.uri).run_id == audited.run_id


def test_a_review_is_counted_once_and_not_after_another_audit(
    audited: AuditResult, tmp_path: Path
) -> None:
    uri = audited.version.uri
    file = answered(drawn(uri, tmp_path), tmp_path)
    apply_review(file)
    with pytest.raises(TrackingError, match="counts a review already"):
        apply_review(file)
    audit(uri)
    with pytest.raises(TrackingError, match="belongs to another audit"):
        apply_review(file)


def test_the_commands_say_what_to_do_and_exit_with_the_decision(
    audited: AuditResult, tmp_path: Path
) -> None:
    uri, rows = audited.version.uri, tmp_path / "rows.csv"
    done = run_here("review", "sample", uri, "-o", str(rows), "-n", "30")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"forward-inf review apply {rows}" in done.stdout
    assert f"open {rows.with_suffix('.html')} in a browser" in done.stdout
    few = run_here("review", "sample", uri, "-o", str(tmp_path / "few.csv"), "-n", "3")
    assert few.returncode == 2
    assert "say next to nothing" in one_line(few.stderr)
    table = pd.read_csv(rows, dtype=str, keep_default_na=False)
    file = answered(table, tmp_path)
    done = run_here("review", "apply", uri, str(file))
    assert done.returncode == 0, done.stderr
    assert "wrong labels of all rows: about 0.0%" in done.stdout
    audit(uri)
    rows.unlink()
    rows.with_suffix(".html").unlink()
    run_here("review", "sample", uri, "-o", str(rows))
    file = answered(pd.read_csv(rows, dtype=str, keep_default_na=False), tmp_path, "wrong")
    done = run_here("review", "apply", str(file), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["review"]["rate"]["estimate"] == pytest.approx(1)
