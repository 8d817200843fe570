"""Asked run: the MLflow run that keeps an answer beside the audits', and its files."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient

from forward_inf_mlflow import output, tracking
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.mlflow_errors import translate_errors
from forward_inf_mlflow.registry import Version


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


@contextmanager
def saved(run: tracking.AuditRun, place: str, out: str | Path | None) -> Iterator[Path]:
    """Yield an empty folder; what is written there is logged, and copied to ``out``.

    Args:
        run: Where it is logged.
        place: Folder among the run's artifacts.
        out: Folder for a copy; None for none.

    Raises:
        ForwardInfError: It could not be written or logged.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="forward-inf-") as name:
            yield Path(name)
            with translate_errors():
                MlflowClient().log_artifacts(run.run_id, name, place)
            if out is not None:
                output.publish(Path(name), Path(out))
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "check the folder"
        raise ForwardInfError(
            f"the answer could not be saved: {error.strerror or error}; {hint} and ask again"
        ) from error
