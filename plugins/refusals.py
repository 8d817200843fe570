"""Refusals: what a client is told where the gate stays closed, or fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from sqlalchemy.exc import IntegrityError

from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.verdicts.names import shown

_logger = logging.getLogger(__name__)


@contextmanager
def refusing() -> Iterator[None]:
    """Turn whatever goes wrong in the gate into a refusal."""
    try:
        yield
    except MlflowException:
        raise
    except ForwardInfError as error:
        _logger.error("the gate is closed: %s", error)
        raise refusal(f"the gate is closed, {error}: ask whoever runs this server") from error
    except Exception as error:
        _logger.exception("the gate failed")
        raise refusal("the gate failed, so it is closed: the server's log says why") from error


def settled(write: Callable[[], None]) -> None:
    """Write, and once more where somebody else made the same row at the same moment."""
    try:
        write()
    except MlflowException as error:
        if not isinstance(error.__cause__, IntegrityError):
            raise
        write()


def refusal(sentence: str) -> MlflowException:
    """Return the error that the client gets as 403."""
    return MlflowException(sentence, error_code=PERMISSION_DENIED)


def uri_of(found: ModelVersion) -> str:
    """Return a version's address, as a sentence may hold it."""
    return shown(f"models:/{found.name}/{found.version}", 300)
