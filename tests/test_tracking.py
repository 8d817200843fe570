"""Where an audit's run goes, how it ends, and where its metrics land when a version is a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import mlflow
import pytest
from conftest import points, register_points, sqlite_store, tracking
from mlflow import MlflowClient

from forward_inf_mlflow.auditing import audit
from forward_inf_mlflow.errors import ForwardInfError, TrackingError
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.tracking import audit_run


@pytest.fixture(scope="module", autouse=True)
def version(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Version]:
    """A version whose own run is in the experiment ``own``, in a store of this module."""
    folder = tmp_path_factory.mktemp("tracking")
    with tracking(sqlite_store(folder)):
        mlflow.create_experiment("own", artifact_location=(folder / "own").as_uri())
        mlflow.set_experiment("own")
        yield resolve(register_points(points(leaks=9)))


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with an environment that names no experiment and no run."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def experiment_id(name: str, *, deleted: bool = False) -> str:
    client = MlflowClient()
    found = client.get_experiment_by_name(name)
    number = str(client.create_experiment(name) if found is None else found.experiment_id)
    if deleted and (found is None or found.lifecycle_stage == "active"):
        client.delete_experiment(number)
    return number


def place(version: Version, experiment: str | None = None) -> str:
    """Return the name of the experiment that an audit's run goes to."""
    with audit_run(version, experiment=experiment, run_id=None) as run:
        return str(MlflowClient().get_experiment(run.experiment_id).name)


def audits() -> list[str]:
    """Return the ids of all runs of audits."""
    client = MlflowClient()
    numbers = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(numbers, "tags.`forward_inf.model` LIKE 'models:%'")
    return sorted(run.info.run_id for run in found)


# Copies


def test_the_audit_of_a_copy_stands_on_the_copy_and_on_the_model_that_was_logged(
    version: Version,
) -> None:
    client = MlflowClient()
    client.copy_model_version(version.uri, "copy")
    client.copy_model_version("models:/copy/1", "copy-of-copy")
    result = audit("models:/copy-of-copy/1")
    assert version.model_id is not None
    logged = client.get_logged_model(version.model_id).metrics or []
    found = {metric.key: metric for metric in logged if metric.run_id == result.run_id}
    assert found["forward_inf/leaked_count"].value == result.record["measures"]["leaked"]["count"]
    assert found["forward_inf/leaked_count"].dataset_name.startswith("queries-")
    assert found["forward_inf/mislabeled_rate"].dataset_name.startswith("train-")
    run = client.get_run(result.run_id)
    assert [entry.model_id for entry in run.inputs.model_inputs] == [version.model_id]
    copy = client.get_model_version("copy-of-copy", "1")
    assert copy.tags["fi.run"] == result.run_id
    assert result.run_id in copy.description
    for name in (version.name, "copy"):
        other = client.get_model_version(name, "1")
        assert "fi.run" not in other.tags
        assert not other.description


def test_the_audit_of_a_copy_goes_to_the_experiment_of_the_run_that_made_the_model(
    version: Version,
) -> None:
    MlflowClient().copy_model_version(version.uri, "placed")
    assert place(resolve("models:/placed/1")) == "own"


def test_the_audit_of_a_copy_without_its_original_has_its_metrics_on_the_run_alone() -> None:
    client = MlflowClient()
    uri = register_points(points(), "short-lived")
    model_id = resolve(uri).model_id
    client.copy_model_version(uri, "orphan")
    client.delete_registered_model("short-lived")
    result = audit("models:/orphan/1")
    assert "forward_inf/leaked_count" in client.get_run(result.run_id).data.metrics
    assert not client.get_run(result.run_id).inputs.model_inputs
    assert not client.get_logged_model(str(model_id)).metrics
    assert client.get_model_version("orphan", "1").tags["fi.run"] == result.run_id


# The experiment


def test_nothing_said_means_the_experiment_of_the_versions_own_run(version: Version) -> None:
    assert place(version) == "own"


@pytest.mark.parametrize("by", ["NAME", "ID"])
def test_the_environment_comes_before_the_versions_own(
    by: str, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = experiment_id("environment")
    monkeypatch.setenv(f"MLFLOW_EXPERIMENT_{by}", "environment" if by == "NAME" else number)
    assert place(version) == "environment"


@pytest.mark.parametrize("by", ["NAME", "ID"])
def test_the_argument_comes_before_the_environment(
    by: str, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = experiment_id("environment")
    monkeypatch.setenv(f"MLFLOW_EXPERIMENT_{by}", "environment" if by == "NAME" else number)
    assert place(version, "argument") == "argument"


@pytest.mark.parametrize("by", ["argument", "NAME"])
def test_an_experiment_that_is_named_first_here_is_made(
    by: str, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"new-by-{by}"
    if by == "NAME":
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    assert place(version, name if by == "argument" else None) == name


@pytest.mark.parametrize("by", ["argument", "NAME", "ID"])
def test_a_deleted_experiment_is_refused_in_one_line_and_no_run_begins(
    by: str, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = experiment_id("deleted", deleted=True)
    if by != "argument":
        monkeypatch.setenv(f"MLFLOW_EXPERIMENT_{by}", "deleted" if by == "NAME" else number)
    before = audits()
    with pytest.raises(TrackingError, match=r"'deleted' is deleted.*--experiment") as error:
        place(version, "deleted" if by == "argument" else None)
    assert "\n" not in str(error.value)
    assert audits() == before


def test_an_experiment_number_that_does_not_exist_is_refused_in_one_line(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "987654321")
    before = audits()
    with pytest.raises(ForwardInfError, match="987654321") as error:
        place(version)
    assert "\n" not in str(error.value)
    assert audits() == before


def test_a_version_whose_own_run_was_deleted_is_audited_beside_it() -> None:
    gone = registered_in("lost-run")
    MlflowClient().delete_run(str(gone.run_id))
    assert place(gone) == "lost-run"


def test_a_version_whose_own_experiment_was_deleted_needs_another_one_named() -> None:
    gone = registered_in("lost-experiment")
    experiment_id("lost-experiment", deleted=True)
    before = audits()
    with pytest.raises(TrackingError, match=r"'lost-experiment' is deleted.*--experiment"):
        place(gone)
    assert audits() == before
    assert place(gone, "own") == "own"


def registered_in(experiment: str) -> Version:
    """Register a version, named as the experiment of its run."""
    client = MlflowClient()
    client.create_registered_model(experiment)
    run = client.create_run(experiment_id(experiment))
    made = client.create_model_version(experiment, "somewhere", run.info.run_id)
    return resolve(f"models:/{experiment}/{made.version}")


# The end


def status_after(version: Version, error: BaseException | None, run_id: str | None = None) -> str:
    """Return how the run ends when the audit ends so."""
    known = []
    with nullcontext() if error is None else pytest.raises(type(error)):  # noqa: SIM117
        with audit_run(version, experiment=None, run_id=run_id) as run:
            known.append(run.run_id)
            assert MlflowClient().get_run(run.run_id).info.status == "RUNNING"
            if error is not None:
                raise error
    return str(MlflowClient().get_run(known[0]).info.status)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (TrackingError("full"), "FAILED"),
        (ValueError("surprise"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
    ids=repr,
)
def test_a_run_of_our_own_ends_as_the_audit_did(
    error: BaseException | None, status: str, version: Version
) -> None:
    assert status_after(version, error) == status


@pytest.mark.parametrize("error", [None, ValueError("surprise"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_the_end_of_somebody_elses_run_is_left_to_them(
    by: str, error: BaseException | None, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = MlflowClient().create_run(experiment_id("theirs")).info.run_id
    if by == "environment":
        monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    before = set(audits())
    assert status_after(version, error, theirs if by == "argument" else None) == "RUNNING"
    assert set(audits()) - before == {theirs}
