"""What MLflow and the network raise, said in one line that never shows a password."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy.exc
from mlflow.exceptions import MlflowException, RestException

from forward_inf_mlflow.errors import ForwardInfError, ModelError, TrackingError

#: For small requests whose answer somebody waits for: MLflow's own patience is minutes.
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "FORWARD_INF_SIGNING_KEY")
_USERINFO = re.compile(r"://[^\s'\"]*@")  # a password may hold a slash
_SECRET_PARAMETER = re.compile(
    r"(?i)\b([\w-]*(?:passw|pwd|token|secret|sig|key|credential)[\w-]*)=[^&\s'\"]+"
)
_STATUS = re.compile(r"failed with error code ([0-9]{3})")


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables for a block and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def impatient() -> Iterator[None]:
    """Give up on an unreachable server within half a minute, unless the user set the patience."""
    unset = {name: value for name, value in _IMPATIENT.items() if name not in os.environ}
    with environment(**unset):
        yield


def redact(text: str, *, longest: int = 300) -> str:
    """Return ``text`` on one line of at most ``longest`` characters, without credentials."""
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    text = _USERINFO.sub("://***@", text)
    text = _SECRET_PARAMETER.sub(r"\1=***", text)
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn what MLflow, its stores and the network raise into an error that says what to do.

    Raises:
        ModelError: MLflow says that something does not exist.
        TrackingError: The server or the store cannot be reached, or refuses.
    """
    try:
        yield
    except ForwardInfError:
        raise
    # ``from None``: the original's text may hold the tracking URI with its password.
    except MlflowException as error:
        raise _translate(error) from None
    except (OSError, sqlalchemy.exc.SQLAlchemyError) as error:  # requests raises OSErrors
        raise TrackingError(
            f"The MLflow store cannot be used; check the tracking URI and the disk: "
            f"{redact(str(error))}"
        ) from None


def refusal(error: MlflowException) -> str | None:
    """Return the sentence with which a server's gate refuses; None if that is not what it says."""
    # The client gives this code also to what a proxy or a login says, of which no sentence is ours.
    if error.error_code != "PERMISSION_DENIED" or _STATUS.search(str(error.message)):
        return None
    return redact(str(error.message).removeprefix("PERMISSION_DENIED: "), longest=1000)


def is_missing(error: MlflowException) -> bool:
    """Say whether MLflow means that the thing asked for does not exist."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def _translate(error: MlflowException) -> ForwardInfError:
    text = str(error.message)
    found = _STATUS.search(text)
    status = int(found.group(1)) if found else None
    if isinstance(error, RestException):
        status = status or error.get_http_status_code()
    detail = redact(text)
    if status == 401 or "UNAUTHENTICATED" in text:
        return TrackingError(
            "The MLflow server wants a login: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    if status == 403 and "host header" in text.lower():
        return TrackingError(
            "The MLflow server does not know the host name in your tracking URI (403): start it "
            "with --allowed-hosts NAME, or set MLFLOW_SERVER_ALLOWED_HOSTS on the server."
        )
    if (said := refusal(error)) is not None:
        return TrackingError(f"The MLflow server refuses: {said}")
    if status == 403:
        return TrackingError(
            f"The MLflow server refuses (403): ask for permission; if the host name is new to it, "
            f"start it with --allowed-hosts NAME. It said: {detail}"
        )
    if "failed with exception" in text or "timeout exception" in text:
        return TrackingError(
            f"The MLflow server cannot be reached; is it running, and is the tracking URI right? "
            f"{detail}"
        )
    if status == 404 and not isinstance(error, RestException):
        return TrackingError(
            "What answers at the tracking URI is no MLflow server (404): check the URI."
        )
    if is_missing(error):
        return ModelError(f"MLflow does not have it: {detail}")
    return TrackingError(f"MLflow refuses: {detail}")
