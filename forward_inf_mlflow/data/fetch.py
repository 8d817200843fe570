"""From a URI to a local file, and to a form of the URI that may be shown."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow.artifacts
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.utils.file_utils import local_file_uri_to_path

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.mlflow_errors import redact

#: Two characters or more: ``C:\data`` is a path.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
#: What stands before the @; Azure's storage URIs name a container there.
_USER = re.compile(r"(?<![\w+.-])(?!abfss?:|wasbs?:)([A-Za-z][\w+.-]*://)[^/\s]*@", re.IGNORECASE)
_QUERY = re.compile(r"([A-Za-z][\w+.-]*://[^\s?#]*)[?#][^\s'\")]*")


def download(uri: str, *, into: Path) -> Path:
    """Bring a file or folder to this machine.

    Args:
        uri: A path, absolute or relative to the working folder; ``file:`` and ``http(s):`` URIs;
            or what MLflow can download (``runs:/``, ``models:/``, ``mlflow-artifacts:/``, ``s3:``).
        into: An existing folder for what is downloaded. Local files stay where they are.

    Returns:
        The path of the file or folder.

    Raises:
        DataError: It is not there or cannot be downloaded; the message holds no credentials.
    """
    scheme = _SCHEME.match(uri)
    kind = scheme[1].lower() if scheme else "file"
    if kind == "file":
        path = Path(local_file_uri_to_path(uri) if scheme else uri).expanduser()
        if not path.exists():
            raise DataError(f"no such file: {public_uri(uri)}; check the path")
        return path
    try:
        if kind in {"http", "https"}:
            return Path(HTTPDatasetSource(uri).load(dst_path=str(into)))
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into)))
    except Exception as error:  # noqa: BLE001 - every storage client raises its own kind
        reason = redact(public_uri(str(error)))
        raise DataError(
            f"{public_uri(uri)} cannot be downloaded ({reason}); check the URI and the permissions"
        ) from None  # the original's text may hold a token


def is_local(uri: str) -> bool:
    """Say whether a URI is a path on this machine, with or without ``file:``."""
    scheme = _SCHEME.match(uri)
    return scheme is None or scheme[1].lower() == "file"


def public_uri(uri: str) -> str:
    """Return a URI, or a text with URIs in it, without user, password, query and fragment.

    Tokens stand there, as in signed URLs. Paths without ``://`` are kept. What is not printable
    becomes a space: the URI may be somebody's tag, and the message is one line.
    """
    uri = "".join(character if character.isprintable() else " " for character in uri)
    return _QUERY.sub(r"\1", _USER.sub(r"\1", uri))
