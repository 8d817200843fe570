"""What an audit leaves in MLflow: a run, metrics, artifacts, tags and a description."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LoggedModelInput,
    Run,
)
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.data.lineage import CONTEXT_TAG, DataSet
from forward_inf_mlflow.errors import TrackingError
from forward_inf_mlflow.mlflow_errors import environment, is_missing, translate_errors
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.verdicts.claims import AUDIT_TAG, GATE_TAG, RUN_TAG

#: Folder of all artifacts in the audit run.
FOLDER = "forward_inf"
#: Run tags: the version's address, and what tells other runs about a version from audits.
MODEL_TAG, KIND_TAG = "forward_inf.model", "forward_inf.kind"
#: MLflow's run tag that names the artifacts which its UI shows as tables.
_TABLES_TAG = "mlflow.loggedArtifacts"


def identity(version: Version) -> str:
    """Return what tells this version from any other that bears its name and number."""
    return identity_of(asdict(version))


def identity_of(model: Mapping[str, Any]) -> str:
    """Return the same from what a record says of its version."""
    facts = [str(model.get(key)) for key in ("name", "version", "creation_timestamp", "source")]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


@dataclass(frozen=True)
class AuditRun:
    """The MLflow run of one audit."""

    run_id: str
    experiment_id: str

    def link(self, artifact: str = "") -> str:
        """Return the run's (or an artifact's) address inside the MLflow UI."""
        run = f"#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"{run}/artifacts/{FOLDER}/{artifact}" if artifact else run


@contextmanager
def audit_run(
    version: Version, *, experiment: str | None, run_id: str | None
) -> Iterator[AuditRun]:
    """Begin the audit's run, and end it FINISHED, FAILED or KILLED.

    A run that exists already (``run_id``, or the one ``mlflow run`` began) is used and its end
    left to whoever began it.

    Args:
        version: What is audited.
        experiment: Name of the experiment, made if it does not exist; None for the one that the
            environment names, else the one of the version's own run.
        run_id: A run that exists already.
    """
    client = MlflowClient()
    borrowed = run_id or os.environ.get("MLFLOW_RUN_ID")
    tags = {MODEL_TAG: version.uri}
    with translate_errors():
        if borrowed:
            run = client.get_run(borrowed)
            _require_inside(client, run, experiment)
        else:
            run = client.create_run(
                _experiment(client, version, experiment),
                run_name=f"forward-inf {version.name} {version.version}",
                tags=tags,
            )
    status = "FAILED"
    # Nothing between the run's begin and this: a Ctrl-C there would leave it running for ever.
    try:
        if borrowed:
            with translate_errors():
                for key, value in tags.items():
                    client.set_tag(borrowed, key, value)
        yield AuditRun(run.info.run_id, run.info.experiment_id)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if not borrowed:
            # MLflow would print the run's address, in the middle of what --json prints.
            with translate_errors(), environment(MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true"):
                client.set_terminated(run.info.run_id, status)


def end_killed(run_ids: Sequence[str]) -> None:
    """End runs whose process was killed before it could; those that ended are left alone."""
    client = MlflowClient()
    for run_id in run_ids:
        try:
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, "KILLED")
        except MlflowException:  # deleted, or of another server
            continue


def _require_inside(client: MlflowClient, run: Run, experiment: str | None) -> None:
    """Refuse an experiment that the run, which exists already, is not in."""
    if experiment is None:
        return
    found = client.get_experiment_by_name(experiment)
    if found is None or found.experiment_id != run.info.experiment_id:
        raise TrackingError(
            f"the audit goes into run {run.info.run_id} (run_id or MLFLOW_RUN_ID), which is not in "
            f"the experiment '{experiment}': leave --experiment out, or the run"
        )


def _experiment(client: MlflowClient, version: Version, name: str | None) -> str:
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")  # also what mlflow.set_experiment writes
    if name is None and number:
        return _active(client.get_experiment(number))
    if name := name or os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        found = client.get_experiment_by_name(name)
        return str(client.create_experiment(name)) if found is None else _active(found)
    if version.run_id is not None:
        try:
            number = client.get_run(version.run_id).info.experiment_id
        except MlflowException as error:
            if not is_missing(error):
                raise
        else:
            return _active(client.get_experiment(number))
    return "0"


def _active(experiment: Experiment) -> str:
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment '{experiment.name}' is deleted: restore it, or name another "
            "--experiment"
        )
    return str(experiment.experiment_id)


def link_inputs(
    run: AuditRun, version: Version, train: DataSet, queries: DataSet | None = None
) -> None:
    """Link the run to the logged model and to its data sets."""
    models = [LoggedModelInput(version.model_id)] if version.model_id else []
    inputs = [data_input(train, "training")]
    if queries is not None:
        inputs.append(data_input(queries, "test"))
    with translate_errors():
        MlflowClient().log_inputs(run.run_id, models=models, datasets=inputs)


def data_input(data: DataSet, context: str) -> DatasetInput:
    """Return a data set as the input of a run, in a context such as ``training``."""
    entity = Dataset(
        name=data.name,
        digest=data.mlflow_digest,
        source_type="local",
        source=json.dumps({"uri": data.rows.uri}),
    )
    if data.origin == "declared":
        # In the run that made the version it must not pass for what the version was made with.
        context = f"declared-{context}"
    tags = [InputTag(CONTEXT_TAG, context), InputTag("fi.sha256", data.rows.sha256)]
    return DatasetInput(entity, tags)


def log_metrics(
    run: AuditRun, version: Version, data: DataSet, metrics: Mapping[str, float]
) -> None:
    """Log metrics on the run and, with their data set, on the logged model."""
    with translate_errors():
        mlflow.log_metrics(
            {f"forward_inf/{name}": float(value) for name, value in metrics.items()},
            run_id=run.run_id,
            model_id=version.model_id,
            dataset=Dataset(data.name, data.mlflow_digest, "local", "{}"),
        )


def log_files(run: AuditRun, folder: Path, *, last: str) -> None:
    """Log every file of a folder, ``last`` after all others: where it is, the audit is whole."""
    client = MlflowClient()
    with translate_errors():
        for file in sorted(folder.iterdir()):
            if file.name != last:
                client.log_artifact(run.run_id, str(file), FOLDER)
        client.log_artifact(run.run_id, str(folder / last), FOLDER)


def log_table(run: AuditRun, path: str, pictures: Mapping[str, bytes], folder: str) -> None:
    """Log the pictures of a table, and mark the table as one that the MLflow UI shows.

    Args:
        run: The audit's run.
        path: The table's path among the run's artifacts.
        pictures: PNG bytes by file name.
        folder: Folder of the pictures among the run's artifacts.
    """
    client = MlflowClient()
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as name, translate_errors():
        for file, png in pictures.items():
            (Path(name) / file).write_bytes(png)
        if pictures:
            client.log_artifacts(run.run_id, name, folder)
        logged = json.loads(client.get_run(run.run_id).data.tags.get(_TABLES_TAG, "[]"))
        if (table := {"path": path, "type": "table"}) not in logged:
            client.set_tag(run.run_id, _TABLES_TAG, json.dumps([*logged, table]))


def tag_version(version: Version, outcome: str, run: AuditRun, audit_sha256: str) -> None:
    """Write the verdict on the version: three tags."""
    client = MlflowClient()
    with translate_errors():
        tags = {GATE_TAG: outcome, RUN_TAG: run.run_id, AUDIT_TAG: audit_sha256}
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.version, key, value)
