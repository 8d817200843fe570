"""The audit as a whole, through a real store: what it keeps, and how it says to repeat itself."""

from __future__ import annotations

import functools
import json
import shlex
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
from conftest import points, register_points, sqlite_store, tracking
from mlflow import MlflowClient
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from forward_inf_mlflow import auditing
from forward_inf_mlflow.auditing import AuditResult, audit
from forward_inf_mlflow.cli import run
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.detect.sources import sentence
from forward_inf_mlflow.errors import TrackingError
from forward_inf_mlflow.policy import Policy, load_policy
from forward_inf_mlflow.report.formats import figure
from forward_inf_mlflow.tables import FLAGGED
from forward_inf_mlflow.trainers import Continued, Recipe


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Yield the address of a server that hands out the files of a folder."""
    handler = functools.partial(Silent, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.usefixtures("store")
def test_what_signs_a_url_stands_in_no_artifact_and_no_tag(web: str, tmp_path: Path) -> None:
    data = points()
    uri = register_points(data)
    data.test_x.assign(label=data.test_y).to_csv(tmp_path / "test.csv", index=False)
    out = tmp_path / "out"
    result = audit(uri, queries=f"http://{web}/test.csv?sig=SECRET&se=2030#SECRET", out=out)
    assert f"--queries http://{web}/test.csv" in result.record["repeat"]
    for file in out.iterdir():
        assert b"SECRET" not in file.read_bytes(), file.name
    run = MlflowClient().get_run(result.run_id)
    assert "SECRET" not in str(run.to_dictionary())
    version = MlflowClient().get_model_version("points", "1")
    assert "SECRET" not in f"{version.description}{version.tags}"


@pytest.mark.usefixtures("store")
def test_the_command_that_repeats_an_audit_names_device_and_policy(tmp_path: Path) -> None:
    uri = register_points(points())
    bounds = Policy(max_mislabeled_rate=0.5)
    result = audit(uri, device="cpu", policy=bounds, out=tmp_path)
    words = shlex.split(result.record["repeat"])
    assert words[:3] == ["forward-inf", "audit", uri]
    assert words[words.index("--device") + 1] == "cpu"
    assert load_policy(tmp_path / words[words.index("--policy") + 1]) == bounds
    stored = mlflow.artifacts.load_text(f"runs:/{result.run_id}/forward_inf/report.html")
    assert "policy.yaml</code> lies beside this report" in stored
    plain = json.loads((tmp_path / "audit.json").read_bytes())
    assert plain["repeat"] == result.record["repeat"]


@pytest.mark.usefixtures("store")
def test_flagged_rows_are_recognized_by_the_features_of_their_training_row(tmp_path: Path) -> None:
    data = points(leaks=9)
    result = audit(register_points(data), out=tmp_path)
    table = pd.read_csv(tmp_path / "flagged.csv", dtype={"row_id": str})
    ours = ["decision", "new_label", "row_digest", "audit_run"]  # for whoever fills it in
    assert set(table["audit_run"]) == {result.run_id}
    table = table.drop(columns=ours)
    assert list(table.columns) == [*FLAGGED, *(f"feature.{name}" for name in "abcd")]
    shown = table[[f"feature.{name}" for name in "abcd"]].to_numpy()
    np.testing.assert_allclose(shown, data.x.to_numpy()[table["row_id"].astype(int)], rtol=1e-5)
    assert list(json.loads((tmp_path / "flagged.json").read_text())["columns"]) == list(table)
    leak = result.flagged.iloc[0]
    assert f"a <b>{figure(leak['feature.a'])}</b>" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def sourced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditResult]:
    """Audit a version whose rows come from two sources, one of them mostly wrong."""
    data = points(leaks=9)
    sources = np.where(np.arange(240) < 60, "bad", "good")
    wrong = np.arange(30, 60)
    data.y[wrong] = (data.y[wrong] + 1) % 3
    with tracking(sqlite_store(tmp_path_factory.mktemp("sourced"))):
        mlflow.set_experiment("tests")
        with mlflow.start_run():
            log_training_data((data.x, data.y), (data.test_x, data.test_y), sources=sources)
            model = LogisticRegression().fit(data.x, data.y)
            mlflow.sklearn.log_model(
                model, name="model", pip_requirements=[], registered_model_name="sourced"
            )
        yield audit("models:/sourced/1", effort="thorough")


def test_the_command_line_prints_every_share_of_every_source_and_what_to_mind(
    sourced: AuditResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Continued(*[cast("Any", None)] * 4, Recipe())
    trainer._choice = ("shrunk", 0.01)
    measures = sourced.record["measures"]
    shrunk = measures | {"mislabeled": measures["mislabeled"] | {"note": trainer.note}}
    record = {**sourced.record, "measures": shrunk, "notes": ["the model was logged so"]}
    monkeypatch.setattr(auditing, "audit", lambda *_, **__: replace(sourced, record=record))
    run(["audit", sourced.version.uri])
    printed = " ".join(capsys.readouterr().out.split())
    for source in sourced.record["sources"]:
        assert sentence(source) in printed
    assert "note: the model was logged so" in printed
    assert "note: mislabeled: half-models start from the audited weights" in printed
    monkeypatch.setattr(auditing, "audit", lambda *_, **__: sourced)
    run(["audit", sourced.version.uri])
    plain = " ".join(capsys.readouterr().out.split())
    assert "note:" not in plain, "half-models that start afresh need no warning"
    assert "forward passes of one row to read them" in plain


def test_with_models_trained_alike_every_row_has_an_interval_of_mem_i(sourced: AuditResult) -> None:
    scores, measure = sourced.scores, sourced.record["measures"]["memorized"]
    low, fall, high = (scores[f"memorized_{name}"] for name in ("low", "fall", "high"))
    assert ((low <= fall) & (fall <= high)).all()
    assert (high - low).between(0.3, 1.1).all(), "sixteen models show a row roughly"
    assert measure["rate_low"] <= measure["rate"] <= measure["rate_high"] < 1
    assert "16 models trained as the audited one was" in measure["note"] or measure["abstained"]
    named = sourced.flagged[sourced.flagged["verdict"] == "memorized"]
    assert named["evidence"].str.contains("models that saw the row give its label oftener").all()


def test_targets_are_printed_in_four_digits_and_classes_as_they_are(
    sourced: AuditResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flagged = sourced.flagged.assign(given_label=0.123456789, likelier_label=7)
    monkeypatch.setattr(auditing, "audit", lambda *_, **__: replace(sourced, flagged=flagged))
    run(["audit", sourced.version.uri])
    printed = capsys.readouterr().out
    assert "0.1235" in printed
    assert "0.12345" not in printed
    assert "7.0" not in printed


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("known", [True, False], ids=["another", "unknown"])
def test_an_experiment_that_the_given_run_is_not_in_is_refused(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, client = register_points(points()), MlflowClient()
    if known:
        client.create_experiment("elsewhere")
    with mlflow.start_run() as run:
        pass
    given = run.info.run_id
    for by_argument in (True, False):
        if not by_argument:
            monkeypatch.setenv("MLFLOW_RUN_ID", given)
        with pytest.raises(TrackingError, match="not in the experiment 'elsewhere'") as caught:
            audit(uri, experiment="elsewhere", run_id=given if by_argument else None)
        assert "\n" not in str(caught.value)
    assert "forward_inf.model" not in client.get_run(given).data.tags
    assert (client.get_experiment_by_name("elsewhere") is not None) is known
    assert audit(uri, experiment="tests").run_id == given


@pytest.mark.usefixtures("store")
def test_as_many_queries_are_asked_one_by_one_as_were_wished_for() -> None:
    uri = register_points(points())
    few, every = audit(uri, influence_queries=3), audit(uri, influence_queries=10_000)
    assert few.influence["query_id"].nunique() == 3
    assert every.influence["query_id"].nunique() == every.record["data"]["queries"]["rows"]
    assert "--influence-queries 3" in few.record["repeat"]


@pytest.mark.usefixtures("store")
def test_rows_that_cannot_be_read_are_named_and_the_others_are_audited() -> None:
    data = points()
    uri = register_points(data)
    train, queries = (x.assign(y=y) for x, y in ((data.x, data.y), (data.test_x, data.test_y)))
    spoilt, holes = train.copy(), queries.copy()
    spoilt.loc[[3, 8], "a"] = np.nan, np.inf
    holes.loc[holes.index[0], "b"] = np.nan
    folder = Path(mlflow.get_tracking_uri().removeprefix("sqlite:///")).parent
    for name, frame in {"train": spoilt, "queries": holes}.items():
        frame.assign(id=[f"{name}-{i}" for i in range(len(frame))]).to_csv(
            folder / f"{name}.csv", index=False
        )
    policy = Policy(data="declared")
    result = audit(
        uri,
        train=str(folder / "train.csv"),
        queries=str(folder / "queries.csv"),
        label="y",
        id="id",
        policy=policy,
    )
    assert len(result.scores) == len(train) - 2
    assert not set(result.scores["id"]) & {"train-3", "train-8"}
    notes = " ".join(result.record["notes"])
    assert "2 training rows were left out" in notes
    assert "train-3, train-8" in notes
    assert "1 query row was left out" in notes
    assert "queries-0" in notes
    assert result.record["partial"]
    assert result.decision.outcome == "undecided"
    assert "partial: true" in result.decision.reasons[0]


@pytest.mark.usefixtures("store")
def test_gaps_that_the_models_own_steps_fill_leave_nothing_out() -> None:
    data = points()
    x = data.x.copy()
    x.loc[x.index[::7], "a"] = np.nan
    pipeline = make_pipeline(SimpleImputer(), LogisticRegression()).fit(x, data.y)
    with mlflow.start_run():
        log_training_data((x, data.y), (data.test_x, data.test_y))
        mlflow.sklearn.log_model(
            pipeline,
            name="model",
            pip_requirements=["scikit-learn"],
            registered_model_name="imputed",
            skops_trusted_types=["numpy.dtype"],
        )
    result = audit("models:/imputed/1")
    assert len(result.scores) == len(x)
    assert not result.record["partial"]
    assert not [note for note in result.record["notes"] if "left out" in note]
