"""For training scripts: log data to a run so that an audit finds it from the version alone."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import mlflow.data
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.command_line import join_names
from forward_inf_mlflow.data.acceptance import accept
from forward_inf_mlflow.data.lineage import CONTEXT_TAG
from forward_inf_mlflow.data.reading import one_line
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError, TrackingError
from forward_inf_mlflow.mlflow_errors import is_missing, redact, translate_errors

#: The folder in the run's artifacts.
_FOLDER = "forward_inf_data"


class Logged(NamedTuple):
    """The full-content SHA-256 of what was logged."""

    train: str
    queries: str | None


def log_training_data(
    train: tuple[Any, Any],
    queries: tuple[Any, Any] | None = None,
    *,
    ids: Any = None,
    sources: Any = None,
    query_ids: Any = None,
    run_id: str | None = None,
) -> Logged:
    """Log the rows a model is trained on, and those it is judged by, to its run.

    Call it inside ``with mlflow.start_run():``, in the run that logs the model. The rows become
    artifacts (npz for arrays, parquet for frames) and MLflow data-set inputs whose tags say where
    they are and what they hash to.

    Args:
        train: ``(x, y)``: ``x`` an array or tensor ``(n, ...)`` or a frame ``(n, d)``, as the model
            takes it; ``y`` ``(n,)`` labels or regression targets, or None where rows have none
            (texts of a language model).
        queries: ``(x, y)`` of the held-out rows, in the same form.
        ids: ``(n,)`` unique names of the training rows; their positions if None.
        sources: ``(n,)`` where each training row came from, such as a supplier or an annotator.
        query_ids: ``(m,)`` unique names of the query rows.
        run_id: The run; the active one if None.

    Returns:
        The two digests.

    Raises:
        DataError: No run is active, the run has other data already, or the rows are not acceptable
            (see ``acceptance.accept``). Nothing has been logged then.
        TrackingError: The server cannot be reached or refuses.
    """
    if run_id is None:
        active = mlflow.active_run()
        if active is None:
            raise DataError(
                "no run is active: call log_training_data inside `with mlflow.start_run():`, "
                "or give it run_id"
            )
        run_id = active.info.run_id
    parts = {"train": _rows("train", train, ids, sources)}
    if queries is not None:
        parts["queries"] = _rows("queries", queries, query_ids, None)
    named = {"train": ids is not None, "queries": query_ids is not None}
    labelled = {
        "train": train[1] is not None,
        "queries": queries is not None and queries[1] is not None,
    }
    with translate_errors():
        client = MlflowClient()
        missing = {
            role: rows for role, rows in parts.items() if not _is_logged(client, run_id, role, rows)
        }
        try:
            with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
                inputs = []
                for role, rows in missing.items():
                    path, columns = _write(
                        rows, Path(folder) / role, has_ids=named[role], labelled=labelled[role]
                    )
                    client.log_artifact(run_id, str(path), _FOLDER)
                    uri = f"runs:/{run_id}/{_FOLDER}/{path.name}"
                    inputs.append(dataset_input(rows, role, uri, columns))
        except OSError as error:
            raise TrackingError(
                f"the data cannot be written to run {run_id}: {redact(str(error))}"
            ) from None
        if inputs:  # last: what is listed as an input is there
            client.log_inputs(run_id, datasets=inputs)
    return Logged(parts["train"].sha256, parts["queries"].sha256 if "queries" in parts else None)


def _rows(role: str, pair: tuple[Any, Any], ids: Any, sources: Any) -> Rows:
    try:
        features, labels = pair
    except (TypeError, ValueError):
        raise DataError(f"{role} is not a pair: give {role}=(x, y)") from None
    try:
        if not isinstance(features, pd.DataFrame):
            features = np.asarray(features)
        if labels is None:
            labels = np.zeros(len(features), np.int64)
        if not isinstance(labels, pd.Series | pd.DataFrame):
            labels = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        # Ragged lists, tensors on another device or with a gradient.
        raise DataError(
            f"{role}: not an array ({one_line(error)}); give numpy arrays, "
            "frames, or detached tensors on the CPU"
        ) from error
    if isinstance(features, np.ndarray) and features.ndim == 0:
        raise DataError(f"{role}: x is a single value; give an array (rows, features)")
    return accept(features, labels, ids=ids, sources=sources, uri=role)


def _is_logged(client: MlflowClient, run_id: str, role: str, rows: Rows) -> bool:
    """Say whether the run has exactly these rows; a second data set would hide the first."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_missing(error):
            raise DataError(f"no run {run_id!r}; give the id of a run that exists") from None
        raise
    for entry in run.inputs.dataset_inputs:
        tags = {tag.key: tag.value for tag in entry.tags}
        if tags.get("fi.uri", "").startswith(f"runs:/{run_id}/{_FOLDER}/{role}."):
            if tags.get("fi.sha256") == rows.sha256:
                return True
            raise DataError(
                f"run {run_id} has other rows as its {role} data already; log these in another run"
            )
    return False


def _write(rows: Rows, stem: Path, *, has_ids: bool, labelled: bool) -> tuple[Path, dict[str, str]]:
    """Write rows to a file next to ``stem``; return it and which column is what, as tags."""
    extra: dict[str, Any] = {"label": rows.labels} if labelled else {}
    if has_ids:
        extra["id"] = rows.ids
    if rows.sources is not None:
        extra["source"] = rows.sources
    if isinstance(rows.features, pd.DataFrame):
        path = stem.with_suffix(".parquet")
        names = {part: _free_name(part, rows.features) for part in extra}
        held = {names[part]: values for part, values in extra.items()}
        if rows.targets is not None:
            del held[names["label"]]
            columns = [_free_name(name, rows.features) for name in rows.label_names]
            names["label"] = join_names(columns)
            held |= dict(zip(columns, rows.targets.T, strict=True))
        rows.features.assign(**held).to_parquet(path, index=False)
    else:
        path = stem.with_suffix(".npz")
        names = {"label": "y", "id": "ids", "source": "sources"}
        names = {part: names[part] for part in extra}
        if rows.targets is not None:
            extra["label"] = rows.targets
        np.savez(path, x=rows.features, **{names[p]: v for p, v in extra.items()})
    return path, names


def _free_name(part: str, frame: pd.DataFrame) -> str:
    while part in frame.columns:
        part += "_"
    return part


def dataset_input(
    rows: Rows,
    role: str,
    uri: str,
    columns: Mapping[str, str],
    *,
    whole: bool = True,
    extra: Mapping[str, str] | None = None,
) -> DatasetInput:
    """Return a data set as the input of a run, with the tags by which an audit finds it.

    Args:
        rows: What the file at ``uri`` holds.
        role: ``train`` or ``queries``.
        uri: Where the file is, such as ``runs:/<id>/train.npz``.
        columns: Which column is the label, the id and the source, if there are any.
        whole: Whether the rows are of all columns; else their digest is not tagged.
        extra: Further tags.
    """
    # MLflow tells data sets of an experiment apart by name and its digest of the first rows; the
    # second run of two that differ later would get the first one's source. So the name has ours.
    name = f"{role}-{rows.sha256[:12]}"
    # From JSON: `runs:/` and proxied artifact URIs are refused as sources, but can be downloaded.
    source = get_dataset_source_from_json(json.dumps({"uri": uri}), "local")
    with warnings.catch_warnings():
        # It warns of integer columns that might get gaps later: these rows are final.
        warnings.filterwarnings("ignore", message=".*integer column")
        label = columns.get("label")
        if isinstance(rows.features, pd.DataFrame):
            frame = rows.features if label is None else rows.features.assign(**{label: rows.labels})
            data = mlflow.data.from_pandas(frame, source=source, name=name, targets=label)
        else:
            flat = rows.features.reshape(len(rows), -1)  # it refuses images
            targets = None if label is None else rows.labels
            data = mlflow.data.from_numpy(flat, source=source, name=name, targets=targets)
        config = data.to_dict()
    tags = {
        CONTEXT_TAG: {"train": "training", "queries": "test"}[role],
        "fi.uri": uri,
        **({"fi.sha256": rows.sha256} if whole else {}),
        **{f"fi.{part}": column for part, column in columns.items()},
        **(extra or {}),
    }
    if isinstance(rows.features, np.ndarray) and rows.features.ndim > 2:
        tags["fi.shape"] = ",".join(str(size) for size in rows.features.shape[1:])
    return DatasetInput(
        Dataset(**config), tags=[InputTag(key, value) for key, value in tags.items()]
    )
