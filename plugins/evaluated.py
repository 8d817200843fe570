"""From what MLflow's ``evaluate`` was given to what an audit needs: a version and query rows."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient

from forward_inf_mlflow.data.acceptance import accept
from forward_inf_mlflow.data.lineage import logged_data
from forward_inf_mlflow.data.reading import LABEL_NAMES, Columns
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.mlflow_errors import impatient, translate_errors
from forward_inf_mlflow.registry import Version, resolve

#: The folder in the evaluation's run for query rows that the version did not log.
_FOLDER = "forward_inf_queries"
_WHERE = "the evaluation's data"


def find_version(model_uri: str | None, model_id: str | None) -> Version:
    """Return the registered version that is evaluated.

    MLflow tells an evaluator the logged model (``m-...``), never the version: the one version
    that was registered from it is meant.

    Args:
        model_uri: What the user says, or None.
        model_id: The logged model that MLflow loaded, if it has one.

    Raises:
        ModelError: No version, or more than one, can be meant; or the user names another model.
    """
    how = "name it in evaluator_config, as 'model_uri': 'models:/NAME/3'"
    if model_uri is not None:
        version = resolve(model_uri)
        if model_id and version.model_id and model_id != version.model_id:
            raise ModelError(
                f"{model_uri} is the logged model {version.model_id}, but {model_id} is being "
                "evaluated: name the same model in both places"
            )
        return version
    if model_id is None:
        raise ModelError(f"MLflow does not say which registered version is evaluated: {how}")
    found = _registered(model_id)
    if not found:
        raise ModelError(
            f"the logged model {model_id} is not registered, and only registered versions can be "
            "audited: register it"
        )
    if len(found) > 1:
        some = ", ".join(found[:5]) + (" ..." if len(found) > 5 else "")
        raise ModelError(f"the logged model {model_id} is registered as {some}: {how}")
    return resolve(found[0])


def queries_from(
    dataset: Any, version: Version, run_id: str, options: Mapping[str, Any]
) -> str | None:
    """Return None if the data are the version's logged queries, else where they were put.

    Args:
        dataset: MLflow's evaluation data set.
        version: The audited version.
        run_id: The evaluation's run.
        options: What else is given to the audit.

    Raises:
        DataError: The data cannot be audited.
    """
    features, labels = dataset.features_data, dataset.labels_data
    label, own_id = options.get("label"), options.get("id")
    if labels is None and isinstance(features, pd.DataFrame):
        features, labels = _split(features, label)
    columns = Columns(label, own_id, tuple(options["features"]) if "features" in options else None)
    besides = {own_id, options.get("group_by")}
    try:
        logged = logged_data(version, "queries", columns).rows
    except DataError:
        logged = None  # then the data are declared, and the audit says so
    if logged is not None and _same(logged, features, labels, besides):
        return None
    if labels is None:
        raise DataError(
            f"{_WHERE} are not the queries that {version.uri} logged, and have no labels: give "
            "them as targets"
        )
    rows = accept(_shaped(features, version), labels, uri=_WHERE)
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
        path = _write(rows, Path(folder), dataset.targets_name, columns)
        with translate_errors():
            MlflowClient().log_artifact(run_id, str(path), _FOLDER)
    return f"runs:/{run_id}/{_FOLDER}/{path.name}"


def _registered(model_id: str) -> list[str]:
    """Return the versions registered from a logged model, and their copies."""
    client, found = MlflowClient(), []
    waiting = [f"models:/{model_id}"]
    with translate_errors(), impatient():
        while waiting:
            source = waiting.pop()
            quote = '"' if "'" in source else "'"
            for version in client.search_model_versions(f"source_path={quote}{source}{quote}"):
                uri = f"models:/{version.name}/{version.version}"
                if uri not in found:
                    found.append(uri)
                    waiting.append(uri)
    return found


def _split(frame: pd.DataFrame, label: str | None) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Take the label column out of a frame that was given without targets."""
    names = [label] if label is not None else LABEL_NAMES
    found = [c for c in frame.columns if (c if label else str(c).lower()) in names]
    if len(found) != 1:
        return frame, None
    return frame.drop(columns=found), frame[found[0]].to_numpy()


def _same(
    logged: Rows,
    features: pd.DataFrame | np.ndarray,
    labels: np.ndarray | None,
    besides: set[str | None],
) -> bool:
    """Say whether the data have the values of the logged rows, in their order.

    Labels that nobody gave cannot differ. A column of the data that the logged rows lack is a
    difference, unless it is one of ``besides``.
    """
    if len(features) != len(logged):
        return False
    if labels is not None and not np.array_equal(np.asarray(labels).ravel(), logged.labels):
        return False
    theirs = logged.features
    if isinstance(theirs, pd.DataFrame) and isinstance(features, pd.DataFrame):
        given = {str(name): features[name].to_numpy() for name in features.columns}
        return set(given) - besides == set(theirs.columns) - besides and all(
            np.array_equal(given[name], theirs[name].to_numpy())
            for name in theirs.columns
            if name in given
        )
    given_flat, logged_flat = (np.asarray(x).reshape(len(x), -1) for x in (features, theirs))
    return np.array_equal(given_flat, logged_flat)


def _shaped(features: pd.DataFrame | np.ndarray, version: Version) -> pd.DataFrame | np.ndarray:
    """Give flat rows the shape that the model takes: MLflow evaluates no images."""
    if isinstance(features, pd.DataFrame):
        return features
    with translate_errors():
        signature = mlflow.models.get_model_info(version.uri).signature
    inputs = signature.inputs.inputs if signature and signature.inputs else []
    shape = getattr(inputs[0], "shape", ()) if len(inputs) == 1 else ()
    sizes = tuple(shape[1:])
    if len(sizes) < 2 or min(sizes) < 1 or math.prod(sizes) != features[0].size:
        return features
    return features.reshape(len(features), *sizes)


def _write(rows: Rows, folder: Path, targets: str | None, columns: Columns) -> Path:
    """Write rows so that they are read back under the column names of the audit's options."""
    if isinstance(rows.features, np.ndarray):
        path = folder / "queries.npz"
        arrays: dict[str, Any] = {
            (columns.features or ("x",))[0]: rows.features,
            columns.label or "y": rows.labels,
        }
        if columns.id:
            arrays[columns.id] = rows.ids
        np.savez(path, **arrays)
        return path
    name = columns.label or (targets if str(targets).lower() in LABEL_NAMES else None) or "label"
    if name in rows.features:
        raise DataError(f"{_WHERE}: the label {name!r} is also a feature; rename one of them")
    path = folder / "queries.parquet"
    rows.features.assign(**{name: rows.labels}).to_parquet(path, index=False)
    return path
