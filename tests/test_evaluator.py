"""``mlflow.models.evaluate`` audits where somebody asks for it, and says what the audit says."""

from __future__ import annotations

import inspect
import itertools
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import mlflow.models
import numpy as np
import pandas as pd
import pytest
from conftest import Points, points, register_points
from mlflow import MlflowClient
from mlflow.models import MetricThreshold
from mlflow.models.evaluation import ModelEvaluator
from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry
from mlflow.models.evaluation.validation import ModelValidationFailedException
from sklearn.linear_model import LogisticRegression

from forward_inf_mlflow import auditing
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.demo import Data, digits, register
from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.metrics import metrics_of
from forward_inf_mlflow.promotion import gate
from forward_inf_mlflow.record import write_record

EVALUATOR: type[ModelEvaluator] = type(_model_evaluation_registry.get_evaluator("forward_inf"))
MODULE = import_module(EVALUATOR.__module__)

pytestmark = pytest.mark.usefixtures("shared_store")

NUMBERS = itertools.count(1)


def registered(data: Points) -> str:
    """Register a model that no other test has touched."""
    return register_points(data, f"points-{next(NUMBERS)}")


@pytest.fixture(scope="module")
def untouched(shared_store: Path) -> str:
    """Return a version that is never audited: what is asked of it stops before that."""
    return registered(points())


@pytest.fixture(scope="module")
def refused(shared_store: Path) -> tuple[str, Any]:
    """Return a version with leaked rows and what its evaluation answered."""
    data = points(leaks=40)
    uri = registered(data)
    return uri, evaluate(uri, data)


class ReachedError(Exception):
    """Raised in place of an audit; holds what it was asked."""

    def __init__(self, uri: str, options: dict[str, Any]) -> None:
        super().__init__(uri)
        self.uri, self.options = uri, options


@pytest.fixture
def no_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(uri: str, **options: Any) -> None:
        raise ReachedError(uri, options)

    monkeypatch.setattr(auditing, "audit", reached)


def evaluate(model: Any, data: Points | pd.DataFrame, **arguments: Any) -> Any:
    if isinstance(data, Points):
        arguments = {"targets": "y", **arguments}
        data = data.test_x.assign(y=data.test_y)
    defaults = {"model_type": "forward-inf", "evaluators": "forward_inf"}
    return mlflow.models.evaluate(model, data=data, **{**defaults, **arguments})


def asked(*arguments: Any, **options: Any) -> ReachedError:
    with pytest.raises(ReachedError) as caught:
        evaluate(*arguments, **options)
    return caught.value


def model_id(uri: str) -> str:
    _, name, number = uri.split("/")
    return str(MlflowClient().get_model_version(name, number).source).removeprefix("models:/")


def on_the_model(uri: str) -> list[str]:
    """Return the names of our metrics on the logged model, as often as they stand there."""
    logged = MlflowClient().get_logged_model(model_id(uri)).metrics or []
    return sorted(metric.key for metric in logged if metric.key.startswith("forward_inf/"))


# What an audit says


def test_metrics_and_artifacts_are_those_of_the_audit_in_the_evaluations_run(
    refused: tuple[str, Any],
) -> None:
    uri, result = refused
    run = MlflowClient().get_run(result.run_id)
    ours = {k: v for k, v in run.data.metrics.items() if k.startswith("forward_inf/")}
    assert result.metrics == ours
    assert ours["forward_inf/leaked_count"] == 40
    record = result.artifacts["forward_inf/audit.json"].content
    assert record["run"]["run_id"] == result.run_id
    assert record["data"]["queries"]["origin"] == "logged"
    assert run.info.status == "FINISHED"
    assert gate(uri).run_id == result.run_id
    assert gate(uri).decision.outcome == "fail"
    names = {file.path for file in MlflowClient().list_artifacts(run.info.run_id, "forward_inf")}
    assert set(result.artifacts) == names
    assert on_the_model(uri) == sorted(ours)


def test_thresholds_gate_on_the_result(refused: tuple[str, Any]) -> None:
    _, result = refused

    def threshold(name: str, value: float, *, greater: bool = False) -> dict[str, MetricThreshold]:
        bound = MetricThreshold(threshold=value, greater_is_better=greater)
        return {f"forward_inf/{name}": bound}

    mlflow.validate_evaluation_results(threshold("leakage_rate", 0.9), result)
    for missed in (
        threshold("leakage_rate", 0.01),
        threshold("gate_passed", 1, greater=True),
        threshold("not_a_metric", 1),
    ):
        with pytest.raises(ModelValidationFailedException):
            mlflow.validate_evaluation_results(missed, result)


@pytest.mark.parametrize("named", [False, True], ids=["version", "version-and-logged-model"])
def test_metrics_stand_once_on_the_logged_model_and_once_on_the_run(named: bool) -> None:
    data = points()
    uri = registered(data)
    result = evaluate(uri, data, model_id=model_id(uri) if named else None)
    assert on_the_model(uri) == sorted(result.metrics)
    for name in result.metrics:
        assert len(MlflowClient().get_metric_history(result.run_id, name)) == 1
    linked = MlflowClient().get_run(result.run_id).inputs.model_inputs
    assert [entry.model_id for entry in linked] == [model_id(uri)]


def test_a_detector_that_abstained_has_no_metric_that_a_threshold_could_pass() -> None:
    judged = {"rate": 0.5, "rate_low": 0.1, "rate_high": 0.9, "count": 2, "abstained": None}
    record = {
        "measures": {
            "mislabeled": judged,
            "memorized": judged,
            "leaked": {"rate": 0.0, "count": 0, "abstained": "there is nothing to compare"},
            "inflated": {"rate": 0.0, "count": 0, "abstained": "there is nothing to compare"},
        },
        "leak_worth": None,
        "membership": None,
        "receipt": None,
        "duplicates": {"rows": 0, "conflicts": 0},
        "decision": {"outcome": "undecided"},
        "costs": {"rows": 4},
    }
    found = metrics_of(record)
    assert found["queries"] == {}
    assert found["train"]["gate_passed"] == 0
    assert found["train"]["mislabeled_rate"] == 0.5


def test_a_saved_result_can_be_loaded_again(refused: tuple[str, Any], tmp_path: Path) -> None:
    _, result = refused
    result.save(str(tmp_path))
    loaded = mlflow.models.EvaluationResult.load(str(tmp_path))
    assert loaded.metrics == result.metrics
    for name, artifact in result.artifacts.items():
        again = loaded.artifacts[name].content
        if isinstance(again, pd.DataFrame):
            pd.testing.assert_frame_equal(again, artifact.content)
        else:
            assert again == artifact.content
    assert "<html" in loaded.artifacts["forward_inf/report.html"].content


# Which data


def test_data_that_the_version_did_not_log_are_declared_and_kept() -> None:
    data = points(leaks=40)
    uri = registered(data)
    result = evaluate(uri, Points(data.x, data.y, data.test_x[:-1], data.test_y[:-1]))
    record = result.artifacts["forward_inf/audit.json"].content
    kept = f"runs:/{result.run_id}/forward_inf_queries/queries.parquet"
    assert record["decision"]["outcome"] == "undecided"
    assert record["data"]["queries"]["origin"] == "declared"
    assert record["data"]["queries"]["rows"] == 89
    assert f"--queries {kept}" in record["repeat"]
    repeated = json.loads(write_record(auditing.audit(uri, queries=kept).record))
    assert repeated["measures"] == record["measures"]


@pytest.mark.usefixtures("no_audit")
def test_equal_data_are_the_logged_ones_in_every_form(untouched: str) -> None:
    data = points()
    frame = data.test_x.assign(y=data.test_y)
    forms: list[dict[str, Any]] = [
        {"data": frame, "targets": "y"},
        {"data": frame[["y", "d", "c", "b", "a"]], "targets": "y"},
        {"data": frame},  # the label column is found by its usual name
        {"data": mlflow.data.from_pandas(frame, targets="y")},
        {"data": data.test_x},
        {"data": data.test_x.to_numpy(), "targets": data.test_y},
    ]
    for form in forms:
        assert asked(untouched, **form).options["queries"] is None, form


@pytest.mark.usefixtures("no_audit")
@pytest.mark.parametrize("what", ["value", "label", "order", "fewer", "column"])
def test_data_that_differ_at_all_are_declared(what: str, untouched: str) -> None:
    data = points()
    frame = data.test_x.assign(y=data.test_y)
    if what == "value":
        frame.iloc[7, 2] = np.nextafter(frame.iloc[7, 2], np.float32(9))
    elif what == "label":
        frame.loc[89, "y"] = (frame.loc[89, "y"] + 1) % 3
    elif what == "order":
        frame = frame.iloc[::-1]
    elif what == "fewer":
        frame = frame[1:]
    else:
        frame = frame.assign(e=1.0)
    assert asked(untouched, frame, targets="y").options["queries"].startswith("runs:/")


@pytest.mark.usefixtures("no_audit")
def test_images_given_as_flat_rows_are_the_logged_images_or_get_their_shape() -> None:
    whole = digits(0, spoiled=False)
    small = Data(
        **{
            name: value[:200] if len(value) == len(whole.x) else value
            for name, value in vars(whole).items()
        }
    )
    uri, _ = register(small, 0)
    flat = small.test_x.reshape(len(small.test_x), -1)
    assert asked(uri, flat, targets=small.test_y).options["queries"] is None
    kept = asked(uri, flat[:50], targets=small.test_y[:50]).options["queries"]
    with np.load(mlflow.artifacts.download_artifacts(kept)) as arrays:
        np.testing.assert_array_equal(arrays["x"], small.test_x[:50])
        np.testing.assert_array_equal(arrays["y"], small.test_y[:50])


def test_data_without_labels_that_were_not_logged_are_refused(untouched: str) -> None:
    with pytest.raises(DataError, match="give them as targets"):
        evaluate(untouched, points().test_x[:50])


@pytest.mark.parametrize("rows", [90, 50], ids=["logged", "declared"])
def test_an_evaluation_in_the_run_that_made_the_version_changes_no_later_audit(
    rows: int, tmp_path: Path
) -> None:
    data = points(leaks=40)
    with mlflow.start_run():  # logged as any MLflow user does, without tags of ours
        for context, x, y in (("training", data.x, data.y), ("test", data.test_x, data.test_y)):
            path = str(tmp_path / f"{context}.parquet")
            frame = x.assign(y=y)
            frame.to_parquet(path)
            logged = mlflow.data.from_pandas(frame, source=path, targets="y", name=context)
            mlflow.log_input(logged, context=context)
        info = mlflow.sklearn.log_model(
            LogisticRegression().fit(data.x, data.y),
            pip_requirements=[],
            registered_model_name=f"points-{next(NUMBERS)}",
        )
        uri = f"models:/{info.model_id}"
        evaluate(uri, Points(data.x, data.y, data.test_x[:rows], data.test_y[:rows]))
    again = evaluate(uri, data).artifacts["forward_inf/audit.json"].content
    assert again["data"]["train"]["origin"] == "logged"
    assert again["data"]["queries"]["origin"] == "logged"
    assert again["measures"]["leaked"]["count"] == 40


# Who asked for it


def test_other_peoples_evaluations_never_run_an_audit(
    untouched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        pytest.fail("an audit ran that nobody asked for")

    monkeypatch.setattr(EVALUATOR, "evaluate", never)
    monkeypatch.setattr(auditing, "audit", never)
    quiet = {"log_model_explainability": False, "seed": 1, "label": "y", "task": "auto"}
    for evaluators in (None, "default", ["default"]):
        config = {"default": quiet} if isinstance(evaluators, list) else quiet
        result = evaluate(
            untouched,
            points(),
            model_type="classifier",
            evaluators=evaluators,
            evaluator_config=config,
        )
        assert "accuracy_score" in result.metrics
        assert not any(name.startswith("forward_inf/") for name in result.metrics)


@pytest.mark.usefixtures("no_audit")
@pytest.mark.parametrize(
    "arguments",
    [
        {"evaluator_config": {"seed": 3}},
        {"evaluator_config": {"forward_inf": {"seed": 3}}},
        {"evaluators": ["forward_inf"], "evaluator_config": {"forward_inf": {"seed": 3}}},
        {"evaluators": None, "evaluator_config": {"seed": 3}},
        {"evaluators": None, "evaluator_config": {"forward_inf": {"seed": 3}}},
        {
            "model_type": "classifier",
            "evaluators": ["default", "forward_inf"],
            "evaluator_config": {
                "default": {"log_model_explainability": False},
                "forward_inf": {"seed": 3, "model_uri": None},
            },
        },
    ],
    ids=["flat", "nested", "nested-list", "all-flat", "all-nested", "beside-the-default"],
)
def test_both_forms_of_the_configuration_reach_the_audit(
    arguments: dict[str, Any], untouched: str
) -> None:
    reached = asked(untouched, points(), **arguments)
    assert reached.uri == untouched
    assert reached.options["seed"] == 3


# Which version


@pytest.mark.usefixtures("no_audit")
def test_the_version_is_found_however_the_model_is_named() -> None:
    data = points()
    uri = registered(data)
    name = uri.split("/")[1]
    MlflowClient().set_registered_model_alias(name, "best", "1")
    for model in (
        f"models:/{name}@best",
        f"models:/{model_id(uri)}",
        mlflow.pyfunc.load_model(uri),
    ):
        assert asked(model, data).uri == uri
    assert asked(None, data, evaluator_config={"model_uri": uri}).uri == uri


@pytest.mark.usefixtures("no_audit")
def test_a_model_registered_twice_must_be_named() -> None:
    data = points()
    uri = registered(data)
    MlflowClient().copy_model_version(uri, "production")
    with pytest.raises(ModelError, match=f"{uri}, models:/production/1.*model_uri"):
        evaluate("models:/production/1", data)
    reached = asked(
        "models:/production/1", data, evaluator_config={"model_uri": "models:/production/1"}
    )
    assert reached.uri == "models:/production/1"


def test_what_cannot_be_audited_is_refused_with_a_remedy_and_the_run_failed() -> None:
    data = points()
    uri = registered(data)
    other = registered(points(leaks=1))
    with mlflow.start_run():
        log_training_data((data.x, data.y), (data.test_x, data.test_y))
        model = LogisticRegression().fit(data.x, data.y)
        unregistered = f"models:/{mlflow.sklearn.log_model(model, pip_requirements=[]).model_id}"
    for model, config, message in (
        (unregistered, {}, "not registered"),
        (uri, {"model_uri": other}, "name the same model"),
        (lambda frame: frame, {}, "which registered version"),
        (uri, {"polcy": "p.yaml"}, "'polcy'; did you mean 'policy'"),
    ):
        with pytest.raises(ForwardInfError, match=message) as caught:
            evaluate(model, data, evaluator_config=config)
        assert "\n" not in str(caught.value)
        assert mlflow.last_active_run().info.status == "FAILED"
    assert on_the_model(uri) == []


# The configuration


def test_the_keys_are_the_arguments_of_audit() -> None:
    given_by_mlflow = {"model_uri", "queries", "experiment", "run_id", "log_metrics"} | {
        *("progress", "on_plan")
    }
    arguments = set(inspect.signature(auditing.audit).parameters)
    assert set(MODULE._KEYS) - {"model_uri"} == arguments - given_by_mlflow


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sed": 1}, "did you mean 'seed'"),
        ({"queries": "q.csv"}, "the data that you evaluate"),
        ({"zzz": 1}, "known: model_uri, train"),
        ({"seed": "1"}, "give it as int"),
        ({"seed": True}, "give it as int"),
        ({"features": "a,b"}, "give it as list or tuple"),
        ({"allow_pickle": "yes"}, "give it as bool"),
        ({"task": "clustering"}, "auto, classification, regression"),
        ({"batch_size": 0}, "at least 1"),
        ({"policy": "missing.yaml"}, "no policy file missing.yaml"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_configuration_is_one_line_that_says_what_to_do(
    config: dict[str, Any], message: str, untouched: str
) -> None:
    with pytest.raises(ForwardInfError, match=message) as caught:
        evaluate(None, points(), evaluator_config={"model_uri": untouched, **config})
    assert "\n" not in str(caught.value)


def test_a_policy_and_a_folder_for_copies_are_obeyed(tmp_path: Path) -> None:
    data = points(leaks=40)
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_leakage_rate: 0.9\n")
    result = evaluate(
        registered(data),
        data,
        evaluator_config={"policy": str(policy), "out": str(tmp_path / "copies")},
    )
    assert result.metrics["forward_inf/gate_passed"] == 1
    assert (tmp_path / "copies" / "audit.json").exists()
