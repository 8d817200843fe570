"""A model version's files where the server keeps them, hashed as an audit hashes them."""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from forward_inf_mlflow.errors import VerdictError
from forward_inf_mlflow.models.content import content_sha256

#: No honest model has as many files; listing them must end.
_MOST_FILES = 10_000

_logger = logging.getLogger(__name__)
#: One at a time: each takes as much room as the model.
_turn = threading.Lock()


def stored_sha256(place: str, limit: int) -> str:
    """Return the digest of the files at a version's storage location.

    Args:
        place: Its address, such as ``s3://...``, a path, or ``mlflow-artifacts:/...``, which the
            server that runs this serves itself.
        limit: Bytes, above which nothing is read.

    Raises:
        VerdictError: There are more bytes, or they cannot be read.
    """
    with _turn:
        try:
            repository, path = _find(place)
            size = _size(repository, path)
            if size > limit:
                raise VerdictError(
                    f"the model's files have {size} bytes and the server reads up to {limit} "
                    "('hash_artifacts' in its gate file)"
                )
            with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
                # A copy, so that what was measured is what is hashed.
                return content_sha256(Path(repository.download_artifacts(path, folder)))
        except VerdictError:
            raise
        except Exception as error:
            _logger.exception("a model's files cannot be hashed")
            raise VerdictError("the server cannot read the model's files") from error


def _find(place: str) -> tuple[Any, str]:
    """Return the repository that holds the files, and the path in it."""
    handlers = sys.modules.get("mlflow.server.handlers")  # there only in a server
    if handlers is None or not handlers._is_servable_proxied_run_artifact_root(place):
        return get_artifact_repository(place), ""
    # As the server's own page of a version's files does it.
    path = handlers._get_proxied_run_artifact_destination_path(place)
    path = handlers._get_workspace_scoped_repo_path_if_enabled(path)
    return handlers._get_artifact_repo_mlflow_artifacts(), path


def _size(repository: Any, path: str) -> int:
    """Return the bytes of all files below a path, as the store says."""
    size, count, folders = 0, 0, [path]
    while folders:
        for entry in repository.list_artifacts(folders.pop() or None):
            count += 1
            if count > _MOST_FILES:
                raise VerdictError(f"the model has more than {_MOST_FILES} files")
            if entry.is_dir:
                folders.append(entry.path)
            else:
                size += entry.file_size or 0
    return size
