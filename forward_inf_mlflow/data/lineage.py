"""From a model version, or a URI, to the rows it was trained on and those it is judged by."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import mlflow.data
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.filesystem_dataset_source import FileSystemDatasetSource
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.entities import DatasetInput, Run
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.data.fetch import download, public_uri
from forward_inf_mlflow.data.images import ImageColumns, Images, read_images
from forward_inf_mlflow.data.mlflow_digest import Digest, check_digest
from forward_inf_mlflow.data.picture_rows import read_data
from forward_inf_mlflow.data.reading import Columns, listing, read_rows
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.texts import TextColumns, read_texts
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.mlflow_errors import impatient, is_missing, translate_errors

if TYPE_CHECKING:
    from forward_inf_mlflow.registry import Version

Role = Literal["train", "queries"]

CONTEXT_TAG = "mlflow.data.context"
#: Contexts that mean a role, the first one that a run has is taken.
_CONTEXTS: dict[Role, tuple[str, ...]] = {
    "train": ("training", "train"),
    "queries": ("test", "testing", "eval", "evaluation", "validation", "queries"),
}
_WORDS: dict[Role, str] = {"train": "training data", "queries": "query data"}
_SHAPE = re.compile(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*")


@dataclass(frozen=True)
class DataSet:
    """Rows, and how far they can be trusted to be what the version was trained on.

    Attributes:
        rows: What was read. Its ``sha256`` is of the columns asked for, as they are stored (before
            ``fi.shape``).
        origin: ``logged`` with the version, or ``declared`` by whoever audits it.
        digest: ``verified`` if every value is what was logged; ``mismatch`` if it is not.
        problem: Unless verified: one sentence that names the file and says why.
        name: MLflow's name for the data set; with ``mlflow_digest`` it links metrics to it.
        mlflow_digest: MLflow's digest, at most 36 characters.
    """

    rows: Rows
    origin: Literal["logged", "declared"]
    digest: Digest
    problem: str | None
    name: str
    mlflow_digest: str


@dataclass(frozen=True)
class Original:
    """The file that a data set was read from, while it is on this machine.

    Attributes:
        data: Its rows, as an audit reads them.
        path: The file, or the folder of files.
        columns: Which column is what, of all that was logged or said.
        shape: The tag ``fi.shape``, if there is one.
    """

    data: DataSet
    path: Path
    columns: Columns
    shape: str | None


def logged_data(version: Version, role: Role, columns: Columns) -> DataSet:
    """Read the data set that was logged to the run which made a version.

    A data set logged by ``log_training_data`` is preferred and found by its tags: ``fi.uri``,
    ``fi.sha256``, ``fi.label``, ``fi.id``, ``fi.source``, ``fi.shape`` (such as ``1,8,8`` for rows
    that were flattened). Otherwise the data set's MLflow source is read.

    Args:
        version: The registered version.
        role: Which rows.
        columns: What the user says about columns; may add to what was logged, not contradict it.

    Raises:
        DataError: The version has no run or its run no such data, several, or data that can no
            longer be found or read; each says how to go on.
        TrackingError: The server cannot be reached.
    """
    with logged_original(version, role, columns) as original:
        return original.data


@contextmanager
def logged_original(version: Version, role: Role, columns: Columns) -> Iterator[Original]:
    """Yield what `logged_data` reads with the file itself, which may be gone after the block."""
    what, found, tags, uri, shown = _logged(version, role)
    logged = Columns(
        tags.get("fi.label"),
        tags.get("fi.id"),
        None,
        tags.get("fi.source"),
        columns.lenient,
        labelled=columns.labelled,
        pictures=columns.pictures,
    )
    if logged.label and columns.label not in {None, logged.label}:
        raise DataError(
            f"{what} was logged with the label {logged.label!r}, not {columns.label!r}; leave "
            f"--label out, or name the data with --{role}"
        )
    wanted = Columns(
        label=columns.label or logged.label,
        id=columns.id or logged.id,
        features=columns.features,
        source=columns.source or logged.source,
        lenient=columns.lenient,
        labelled=columns.labelled,
        pictures=columns.pictures,
    )
    with _local(uri, role, what) as path:
        rows = read_data(path, uri=shown, columns=wanted)
        digest: Digest
        if sha256 := tags.get("fi.sha256"):
            # It is of the rows as they were logged, whatever columns are asked for now.
            whole = rows if wanted == logged else read_data(path, uri=shown, columns=logged)
            same = whole.sha256 == sha256.lower()
            digest = "verified" if same else "mismatch"
            why = None if same else "no longer holds the rows that were logged"
        elif rows.decoded is not None:
            digest, why = "unverified", "holds pictures, which MLflow computes no digest of"
        else:
            digest, why = check_digest(found.dataset, path, rows, label=wanted.label)
        data = DataSet(
            rows=_shaped(rows, tags.get("fi.shape")),
            origin="logged",
            digest=digest,
            problem=why and f"{what}: {shown} {why}; {_go_on(role)}",
            name=found.dataset.name,
            mlflow_digest=found.dataset.digest,
        )
        yield Original(data, path, wanted, tags.get("fi.shape"))


def _logged(version: Version, role: Role) -> tuple[str, DatasetInput, dict[str, str], str, str]:
    """Return what is spoken of, the data set of a role, its tags, where it lies, and what of that
    may be shown.
    """
    what = f"the {_WORDS[role]} of {version.name!r} version {version.version}"
    found = _choose(_run(version, role, what), role, what)
    tags = {tag.key: tag.value for tag in found.tags}
    uri = tags.get("fi.uri") or _source_uri(found, role, what)
    return what, found, tags, uri, public_uri(uri)


def logged_texts(version: Version, columns: TextColumns) -> tuple[DataSet, int]:
    """Read the training texts that were logged to the run which made a version.

    Returns:
        The data set, and how many empty texts were left out.

    Raises:
        DataError, TrackingError: As `logged_data`.
    """
    what, found, tags, uri, shown = _logged(version, "train")
    with _local(uri, "train", what) as path:
        rows, empty = read_texts(path, uri=shown, columns=columns)
        digest: Digest
        if (sha256 := tags.get("fi.sha256")) and tags.get("fi.label"):
            logged = Columns(tags["fi.label"], tags.get("fi.id"), None, tags.get("fi.source"))
            same = read_rows(path, uri=shown, columns=logged).sha256 == sha256.lower()
            digest = "verified" if same else "mismatch"
            why = None if same else "no longer holds the rows that were logged"
        else:
            digest, why = check_digest(found.dataset, path, rows, label=None)
    problem = why and f"{what}: {shown} {why}; {_go_on('train')}"
    name, mlflow_digest = found.dataset.name, found.dataset.digest
    return DataSet(rows, "logged", digest, problem, name, mlflow_digest), empty


def declared_texts(uri: str, columns: TextColumns) -> tuple[DataSet, int]:
    """Read training texts that the user names; otherwise as `logged_texts`.

    Raises:
        DataError: They cannot be found or read.
    """
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
        path = download(uri, into=Path(folder))
        rows, empty = read_texts(path, uri=public_uri(uri), columns=columns)
    return _declared(rows, "train"), empty


def logged_images(
    version: Version, columns: ImageColumns, channels: int | None
) -> tuple[DataSet, Images]:
    """Read the training images that were logged to the run which made a version.

    Args:
        version: The registered version.
        columns: Which array is what; a label, id or source that was logged counts where this
            does not say.
        channels: Of pictures in a folder, as the model takes them.

    Raises:
        DataError, TrackingError: As `logged_data`.
    """
    what, found, tags, uri, shown = _logged(version, "train")
    columns = replace(
        columns,
        label=columns.label or tags.get("fi.label"),
        id=columns.id or tags.get("fi.id"),
        source=columns.source or tags.get("fi.source"),
    )
    with _local(uri, "train", what) as path:
        images = read_images(path, uri=shown, columns=columns, channels=channels, strict=False)
        digest: Digest
        if sha256 := tags.get("fi.sha256"):
            same = images.rows.sha256 == sha256.lower()
            digest = "verified" if same else "mismatch"
            why = None if same else "no longer holds the rows that were logged"
        elif path.is_dir():
            digest, why = "unverified", "is a folder, whose digest is not computed here"
        else:
            digest, why = check_digest(found.dataset, path, images.rows, label=None)
    problem = why and f"{what}: {shown} {why}; {_go_on('train')}"
    rows = _shaped(images.rows, tags.get("fi.shape"))
    data = DataSet(rows, "logged", digest, problem, found.dataset.name, found.dataset.digest)
    return data, replace(images, rows=rows)


def declared_images(
    uri: str, role: Role, columns: ImageColumns, channels: int | None
) -> tuple[DataSet, Images]:
    """Read images that the user names; of generated ones (``queries``) each must decode.

    Raises:
        DataError: They cannot be found or read.
    """
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
        path = download(uri, into=Path(folder))
        images = read_images(
            path,
            uri=public_uri(uri),
            columns=columns,
            channels=channels,
            strict=role == "queries",
        )
    return _declared(images.rows, role), images


def declared_data(uri: str, role: Role, columns: Columns) -> DataSet:
    """Read a data set that the user names, which may not be what the version was trained on.

    Raises:
        DataError: It cannot be found or read.
    """
    with declared_original(uri, role, columns) as original:
        return original.data


@contextmanager
def declared_original(uri: str, role: Role, columns: Columns) -> Iterator[Original]:
    """Yield what `declared_data` reads with the file itself, which may be gone after the block."""
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
        path = download(uri, into=Path(folder))
        rows = read_data(path, uri=public_uri(uri), columns=columns)
        yield Original(_declared(rows, role), path, columns, None)


def _declared(rows: Rows, role: Role) -> DataSet:
    return DataSet(
        rows=rows,
        origin="declared",
        digest="unverified",
        problem=f"{rows.uri} was named with --{role}, not logged with the version",
        name=f"{role}-{rows.sha256[:12]}",
        mlflow_digest=rows.sha256[:8],
    )


def _go_on(role: Role) -> str:
    return f"log the data with log_training_data, or name it with --{role}"


def _run(version: Version, role: Role, what: str) -> Run:
    if not version.run_id:
        raise DataError(f"{what} is not known, since no run made this version; {_go_on(role)}")
    with translate_errors(), impatient():
        try:
            run = MlflowClient().get_run(version.run_id)
        except MlflowException as error:
            if not is_missing(error):
                raise
            raise DataError(
                f"{what} cannot be found: run {version.run_id} is gone; {_go_on(role)}"
            ) from None
    if run.info.lifecycle_stage != "active":
        raise DataError(
            f"{what} cannot be found: run {version.run_id} was deleted; restore it with "
            f"`mlflow runs restore`, or name the data with --{role}"
        )
    return run


def _choose(run: Run, role: Role, what: str) -> DatasetInput:
    """Return the one input that has the role: a data set of ours first, then by context."""
    inputs: dict[str, list[DatasetInput]] = {context: [] for context in _CONTEXTS[role]}
    ours: dict[str, list[DatasetInput]] = {context: [] for context in _CONTEXTS[role]}
    for entry in run.inputs.dataset_inputs if run.inputs else ():
        tags = {tag.key: tag.value for tag in entry.tags}
        context = tags.get(CONTEXT_TAG, "").lower()
        if context in inputs:
            inputs[context].append(entry)
            if "fi.uri" in tags:
                ours[context].append(entry)
    found = next((entries for entries in (*ours.values(), *inputs.values()) if entries), [])
    if not found:
        raise DataError(
            f"{what} was not logged to run {run.info.run_id} (no data set in the context "
            f"{' or '.join(_CONTEXTS[role])}); {_go_on(role)}"
        )
    if len(found) > 1:
        names = listing([entry.dataset.name for entry in found])
        raise DataError(
            f"{what} could be any of {names} in run {run.info.run_id}; name it with --{role}"
        )
    return found[0]


def _source_uri(entry: DatasetInput, role: Role, what: str) -> str:
    """Return where MLflow says the data came from. Nothing is loaded: only files are read here."""
    try:
        source = mlflow.data.get_source(entry)
    except (MlflowException, ValueError) as error:
        raise DataError(
            f"{what} has a source of type {entry.dataset.source_type!r}, which MLflow cannot "
            f"read here; {_go_on(role)}"
        ) from error
    if isinstance(source, FileSystemDatasetSource):
        return str(source.uri)
    if isinstance(source, HTTPDatasetSource):
        return str(source.url)
    if entry.dataset.source_type == "code":
        reason = "was logged without a source, only with the code that made it"
    else:
        reason = f"has a source of type {entry.dataset.source_type!r}, not a file"
    raise DataError(f"{what} {reason}; {_go_on(role)}")


@contextmanager
def _local(uri: str, role: Role, what: str) -> Iterator[Path]:
    """Bring logged data to this machine while it is read."""
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
        try:
            path = download(uri, into=Path(folder))
        except DataError as error:
            raise DataError(f"{what} is not where it was logged: {error}; {_go_on(role)}") from None
        yield path


def _shaped(rows: Rows, shape: str | None) -> Rows:
    """Give flat rows ``(n, d)`` the shape ``(n, *shape)`` that they were logged with."""
    if shape is None or rows.decoded is not None:
        return rows
    if not _SHAPE.fullmatch(shape):
        raise DataError(f"{rows.uri}: the tag fi.shape is {shape!r}; write it as 1,8,8")
    sizes = tuple(int(size) for size in shape.split(","))
    features = rows.features
    if isinstance(features, pd.DataFrame):
        features = features.to_numpy()
        if features.dtype.kind not in "biuf":
            raise DataError(f"{rows.uri}: the tag fi.shape is for numbers, but there are texts")
    if features[0].size != math.prod(sizes):
        raise DataError(
            f"{rows.uri}: the tag fi.shape is {shape}, but a row has {features[0].size} values"
        )
    return replace(rows, features=features.reshape(len(rows), *sizes))
