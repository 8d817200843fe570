"""Decisions become a cleaned data set, logged with its lineage, and kept rows stay unnamed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
from conftest import one_line, points, run_here, train_of
from mlflow import MlflowClient
from sklearn.linear_model import LogisticRegression

from forward_inf_mlflow.auditing import AuditResult, audit
from forward_inf_mlflow.cleaning import apply_decisions
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.decisions import read_filled
from forward_inf_mlflow.errors import DataError, ForwardInfError, TrackingError
from forward_inf_mlflow.keeping import TAG, recall
from forward_inf_mlflow.policy import Policy
from forward_inf_mlflow.promotion import gate

FLIPPED = range(100, 124)
DATA = points(leaks=3)
LABELS = np.array(["red", "green", "blue"])
Y = np.where(np.isin(np.arange(240), list(FLIPPED)), (DATA.y + 1) % 3, DATA.y)
IDS = [f"={i}x" for i in range(240)]  # each a formula to a spreadsheet


def register(name: str, y: np.ndarray, x: pd.DataFrame, ids: Any) -> str:
    model = LogisticRegression().fit(x, LABELS[y])
    with mlflow.start_run():
        log_training_data((x, LABELS[y]), (DATA.test_x, LABELS[DATA.test_y]), ids=ids)
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            input_example=x[:2],
            pip_requirements=["scikit-learn"],
            registered_model_name=name,
        )
    return f"models:/{name}/{info.registered_model_version}"


@dataclass(frozen=True)
class Story:
    """An audited version, and its ``flagged.csv``."""

    audit: AuditResult
    flagged: pd.DataFrame

    @property
    def uri(self) -> str:
        return self.audit.version.uri

    def filled(self, folder: Path, **decisions: str) -> Path:
        """Write a decision beside every row of a verdict, and nothing beside the others."""
        said = self.flagged.assign(decision=self.flagged["verdict"].map(decisions).fillna(""))
        said.to_csv(folder / "filled.csv", index=False)
        return folder / "filled.csv"


@pytest.fixture(scope="module")
def story(shared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    out = tmp_path_factory.mktemp("out")
    result = audit(register("colours", Y, DATA.x, IDS), out=out)
    return Story(result, read_filled(out / "flagged.csv"))


def runs() -> int:
    client = MlflowClient()
    return len(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def test_a_dry_run_says_what_would_change_and_writes_nothing(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, before = story.filled(tmp_path, mislabeled="fix", leaked="drop"), runs()
    done = run_here("review", "apply", str(file), "--dry-run", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["run_id"] is None
    assert found["dropped"] == 3
    assert found["fixed"] == (story.flagged["verdict"] == "mislabeled").sum()
    assert found["rows_after"] == 237
    assert found["file"] == "train-cleaned.parquet", "beside no local file: in this folder"
    said = run_here("review", "apply", str(file), "--dry-run").stdout
    assert "would write train-cleaned.parquet: 237 of 240 rows" in said
    assert "nothing was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["filled.csv"]
    assert runs() == before
    assert not recall(story.audit.version).reviews


def test_a_cleaned_data_set_is_written_logged_and_found_by_an_audit(
    story: Story, tmp_path: Path
) -> None:
    out = tmp_path / "clean.parquet"
    file = story.filled(tmp_path, mislabeled="fix", leaked="drop")
    found = apply_decisions(file, out=out, by="A. Owner")
    assert found.run_id is not None
    before = train_of(str(story.audit.version.run_id)).rows
    dropped = set(story.flagged.loc[story.flagged["verdict"] == "leaked", "row_id"].str[1:])
    fixed = {change["row_id"]: change["after"] for change in found.changes if change["after"]}
    stay = [i for i, name in enumerate(before.ids) if name not in dropped]
    cleaned = train_of(found.run_id)
    assert cleaned.digest == "verified"
    assert list(cleaned.rows.ids) == list(before.ids[stay])
    assert isinstance(before.features, pd.DataFrame)
    pd.testing.assert_frame_equal(
        cleaned.rows.features, before.features.iloc[stay].reset_index(drop=True), check_exact=True
    )
    labels = [fixed.get(before.ids[i], before.labels[i]) for i in stay]
    assert list(cleaned.rows.labels) == labels
    right = sum(a == LABELS[DATA.y[i]] for i, a in zip(stay, labels, strict=True))
    assert right >= 230, "flipped labels came back"
    run = MlflowClient().get_run(found.run_id)
    assert run.data.tags["forward_inf.audit_run"] == story.audit.run_id
    assert run.data.tags["forward_inf.original_sha256"] == before.sha256
    assert run.data.metrics["forward_inf/dropped"] == 3
    contexts = {
        tag.value: one.dataset
        for one in run.inputs.dataset_inputs
        for tag in one.tags
        if tag.key == "mlflow.data.context"
    }
    assert set(contexts) == {"original", "training"}
    record = mlflow.artifacts.load_dict(f"runs:/{found.run_id}/forward_inf_review/review.json")
    assert (record["by"], record["original_sha256"]) == ("A. Owner", before.sha256)
    assert record["version"]["name"] == "colours"
    logged = mlflow.artifacts.download_artifacts(record["file"], dst_path=str(tmp_path / "again"))
    assert Path(logged).read_bytes() == out.read_bytes()
    with pytest.raises(ForwardInfError, match="exists already"):
        apply_decisions(file, out=out)


def test_a_csv_file_is_cleaned_beside_itself_and_one_that_changed_is_refused(
    story: Story, tmp_path: Path
) -> None:
    original, queries = tmp_path / "rows.csv", tmp_path / "queries.csv"
    DATA.x.assign(y=LABELS[Y], when="2020-01-01", nr=IDS).to_csv(original, index=False)
    DATA.test_x.assign(y=LABELS[DATA.test_y]).to_csv(queries, index=False)
    uri = register("declared", Y, DATA.x, IDS)
    out = tmp_path / "out"
    columns = {"label": "y", "id": "nr", "features": list("abcd")}
    declared: dict[str, Any] = {"train": str(original), "queries": str(queries), **columns}
    audit(uri, out=out, effort="quick", **declared)
    flagged = read_filled(out / "flagged.csv")
    assert len(flagged) > 3
    said = ["drop", *[""] * (len(flagged) - 1)]
    flagged.assign(decision=said).to_csv(tmp_path / "f.csv", index=False)
    done = run_here("review", "apply", str(tmp_path / "f.csv"))
    assert done.returncode == 0, done.stderr
    row = flagged["row_id"][0].removeprefix("'")
    lines = original.read_text().splitlines(keepends=True)
    expected = "".join(line for line in lines if not line.endswith(f",{row}\n"))
    assert (tmp_path / "rows-cleaned.csv").read_text() == expected
    assert "next: train on" in done.stdout
    original.write_text(expected)
    done = run_here("review", "apply", str(tmp_path / "f.csv"), "--out", str(tmp_path / "b.csv"))
    assert done.returncode == 2
    assert "no longer holds what was audited" in one_line(done.stderr)
    original.rename(tmp_path / "moved.csv")
    (tmp_path / "moved.csv").write_text("".join(lines))
    done = run_here("review", "apply", str(tmp_path / "f.csv"))
    assert "say where the training data are with --train" in one_line(done.stderr)
    moved = ("--train", str(tmp_path / "moved.csv"), "--dry-run", "--json")
    done = run_here("review", "apply", str(tmp_path / "f.csv"), *moved)
    assert json.loads(done.stdout)["file"] == str(tmp_path / "moved-cleaned.csv")


@pytest.mark.parametrize(
    ("column", "value", "kind", "says"),
    [
        ("audit_run", "x", TrackingError, "'x', and this server has no such audit"),
        ("audit_run", "0" * 32, TrackingError, "this server has no such audit"),
        ("new_label", "rde", DataError, "'rde' is none that the data have"),
    ],
)
def test_what_is_not_the_audits_or_not_a_label_is_refused(
    column: str, value: str, kind: type[Exception], says: str, story: Story, tmp_path: Path
) -> None:
    file = story.filled(tmp_path, mislabeled="fix")
    table = read_filled(file)
    chosen = table["verdict"] == "mislabeled" if column == "new_label" else table["verdict"] != ""
    table.loc[chosen, column] = value
    table.to_csv(file, index=False)
    with pytest.raises(kind, match=says) as caught:
        apply_decisions(file, out=tmp_path / "x.parquet")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.parquet").exists()


def test_a_file_of_another_version_than_the_one_named_is_refused(
    story: Story, tmp_path: Path
) -> None:
    file = story.filled(tmp_path, leaked="drop")
    other = register("other", Y, DATA.x, IDS)
    done = run_here("review", "apply", other, str(file), "--dry-run")
    assert done.returncode == 2
    assert f"that of {story.uri}: leave {other} out" in one_line(done.stderr)
    assert run_here("review", "apply", story.uri, str(file), "--dry-run").returncode == 0
    done = run_here("review", "apply", str(file), "--out", str(tmp_path / "x.csv"))
    assert "let --out end in '.parquet'" in one_line(done.stderr)


def test_kept_rows_are_not_named_again_in_any_version_and_the_policy_may_refuse_that(
    story: Story, tmp_path: Path
) -> None:
    """The last test of this file: it changes what the model's next audits name."""
    wrong = story.flagged[story.flagged["verdict"] == "mislabeled"]
    kept, fixed = wrong.iloc[:5], wrong.iloc[5:]
    said = story.flagged.assign(decision="")
    said.loc[kept.index, "decision"] = "keep"
    said.loc[said["verdict"] == "leaked", "decision"] = "keep"
    said.to_csv(tmp_path / "f.csv", index=False)
    done = run_here("review", "apply", str(tmp_path / "f.csv"), "--by", "A. Owner", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["kept"], found["file"], found["changes"]) == (8, None, [])
    tags = MlflowClient().get_registered_model("colours").tags
    assert set(tags) == {f"{TAG}{found['run_id']}"}

    # Another version, in another order and with other names.
    order = np.random.default_rng(0).permutation(240)
    uri = register("colours", Y[order], DATA.x.iloc[order].reset_index(drop=True), None)
    again = audit(uri)
    named = again.flagged[again.flagged["verdict"] == "mislabeled"]
    back = {str(position): IDS[i] for position, i in enumerate(order)}
    names = {f"'{back[name]}" for name in named["row_id"]}
    assert not names & set(kept["row_id"])
    assert names >= set(fixed["row_id"].head(10))
    assert "leaked" not in set(again.flagged["verdict"])
    before, now = (one.record["measures"] for one in (story.audit, again))
    assert now["leaked"]["count"] == now["leaked"]["rate_low"] == 0
    assert now["leaked"]["rate_high"] == before["leaked"]["rate_high"]
    assert now["mislabeled"]["rate_low"] < before["mislabeled"]["rate_low"]
    assert now["mislabeled"]["count"] <= before["mislabeled"]["count"] - 5
    record = again.record["kept"]
    assert (record["rows"], record["mislabeled"], record["leaked"]) == (8, 5, 3)
    assert record["reviews"] == [{"run_id": found["run_id"], "by": "A. Owner", "rows": 8}]
    report = mlflow.artifacts.load_text(f"runs:/{again.run_id}/forward_inf/report.html")
    assert f"in review run {found['run_id']} by A. Owner (8)" in report

    # A policy that counts no kept rows decides nothing from this audit, and audits without them.
    strict = Policy(kept=False, max_mislabeled_rate=None, max_leakage_rate=0.5)
    refused = gate(uri, policy=strict)
    assert refused.decision.outcome == "undecided"
    assert "8 training rows are not named because a person kept them" in str(refused.decision)
    whole = audit(uri, policy=strict)
    assert whole.decision.outcome == "pass"
    assert whole.record["kept"] is None
    assert (whole.flagged["verdict"] == "leaked").sum() == 3

    # What a stranger writes is ignored, with a sentence, and changes nothing.
    client = MlflowClient()
    hostile = {f"{TAG}no run": "1", f"{TAG}{'0' * 32}": "2", f"{TAG}{story.audit.run_id}": "3"}
    for key, value in {**hostile, f"{TAG}{found['run_id']}": "0" * 64}.items():
        client.set_registered_model_tag("colours", key, value)
    ignored = audit(uri)
    assert len(ignored.record["kept"]["ignored"]) == 4
    assert (ignored.record["kept"]["rows"], ignored.record["kept"]["reviews"]) == (0, [])
    assert (ignored.flagged["verdict"] == "leaked").sum() == 3
    assert sum("was ignored" in note for note in ignored.record["notes"]) == 4
