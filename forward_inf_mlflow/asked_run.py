"""Asked run: the MLflow run that keeps an answer beside the audits', its pieces and its files."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from mlflow import MlflowClient

from forward_inf_mlflow import output, tracking
from forward_inf_mlflow.data.lineage import DataSet
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.mlflow_errors import translate_errors
from forward_inf_mlflow.record import write_record
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.workplace import Kept, earlier_runs, open_work


@dataclass(frozen=True)
class Answer:
    """What a version was asked, answered and kept in a run.

    Attributes:
        version: The version that was asked.
        run_id: The MLflow run that keeps the answer.
        page: Its address inside the MLflow UI.
        record: The content of the JSON file beside the page.
    """

    #: What the run's files are called after, and what ``--json`` shows of this record beside the
    #: costs, the data and the notes.
    KIND: ClassVar[str]
    KEYS: ClassVar[tuple[str, ...]]

    version: Version
    run_id: str
    page: str
    record: Mapping[str, Any]

    @property
    def artifact(self) -> str:
        """Return the page's path among the run's artifacts."""
        return f"{_folder(self.KIND)}/{self.KIND}.html"

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {
            "model": self.version.uri,
            "run_id": self.run_id,
            "page": self.page,
            **{key: self.record[key] for key in (*self.KEYS, "costs", "data", "notes", "repeat")},
        }


@contextmanager
def begun(version: Version, experiment: str | None, kind: str) -> Iterator[tracking.AuditRun]:
    """Begin a run beside the audits' that says what it is; no tag of the version is touched."""
    with tracking.audit_run(version, experiment=experiment, run_id=None) as run:
        client = MlflowClient()
        with translate_errors():
            client.set_tag(run.run_id, tracking.KIND_TAG, kind)
            if not os.environ.get("MLFLOW_RUN_ID"):  # a run of others keeps its name
                name = f"forward-inf {kind} {version.name} {version.version}"
                client.update_run(run.run_id, name=name)
        yield run


def pieces(
    run: tracking.AuditRun, root: str | Path | None, key: dict[str, object], *, fresh: bool
) -> tuple[Kept, int]:
    """Open the folder of pieces, and end the runs that were killed while they worked in it.

    Args:
        run: The run that works there now.
        root, key, fresh: As `workplace.open_work`.

    Returns:
        The folder, and how many of its pieces are notes of those runs.
    """
    work = open_work(root, key, fresh=fresh)
    earlier = earlier_runs(work, run.run_id)
    tracking.end_killed(earlier)
    return work, len(earlier)


def keep(
    run: tracking.AuditRun,
    version: Version,
    record: Mapping[str, Any],
    page: str,
    tables: Mapping[str, pd.DataFrame],
    *data: DataSet,
    out: str | Path | None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Log an answer, copy its files to ``out``, and return the page's address inside MLflow's UI.

    Args:
        run: Where it is logged.
        version: The version that was asked.
        record: The answer.
        page: The same as HTML.
        tables: By name, without an ending.
        data: The training data, and what else was read, to link the run to.
        out: Folder for a copy of all files; None for none.
        metrics: To log with the training data.

    Raises:
        ForwardInfError: It could not be written or logged.
    """
    kind = record["kind"]
    try:
        with tempfile.TemporaryDirectory(prefix="forward-inf-") as name:
            folder = Path(name)
            for called, table in tables.items():
                table.to_parquet(folder / f"{called}.parquet", index=False)
            (folder / f"{kind}.html").write_text(page, encoding="utf-8")
            (folder / f"{kind}.json").write_bytes(write_record(record))
            tracking.link_inputs(run, version, *data)
            if metrics is not None:
                tracking.log_metrics(run, version, data[0], metrics)
            with translate_errors():
                MlflowClient().log_artifacts(run.run_id, name, _folder(kind))
            if out is not None:
                output.publish(folder, Path(out))
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "check the folder"
        raise ForwardInfError(
            f"the answer could not be saved: {error.strerror or error}; {hint} and ask again"
        ) from error
    return f"{run.link()}/artifacts/{_folder(kind)}/{kind}.html"


def _folder(kind: str) -> str:
    """Return the folder of the run's artifacts: not an audit's, which may be in the same run."""
    return f"forward_inf_{kind}"
