"""The training data of an audit, found again and held against its digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from forward_inf_mlflow.data.lineage import Original, declared_original, logged_original
from forward_inf_mlflow.data.pictures import PictureForm, form_of
from forward_inf_mlflow.data.reading import Columns
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.registry import Version


@contextmanager
def audited_data(
    version: Version, record: Mapping[str, Any], train: str | None = None
) -> Iterator[Original]:
    """Yield the training data that an audit read, if they are still what it read.

    Args:
        version: The audited version.
        record: The content of ``audit.json``.
        train: Where the data are now; None for where they were.

    Raises:
        DataError: They are not there, or no longer what was audited.
    """
    audited = record["data"]["train"]
    columns = _columns(record.get("columns"))
    if train is not None:
        opened = declared_original(train, "train", columns)
    elif audited["origin"] == "logged":
        opened = logged_original(version, "train", columns)
    else:
        opened = declared_original(str(audited["uri"]), "train", columns)
    with ExitStack() as stack:
        try:
            original = stack.enter_context(opened)
        except DataError as error:
            if train is not None:
                raise
            raise DataError(f"{error} (or say where the training data are with --train)") from None
        if original.data.rows.sha256 != audited["sha256"]:
            raise DataError(
                f"{original.data.rows.uri} no longer holds what was audited (run "
                f"{record['run']['run_id']}): its digest differs; audit the version again, or name "
                "the data with --train"
            )
        yield original


def _columns(stored: Any) -> Columns:
    """Return which columns the audit was told to read."""
    given = stored if isinstance(stored, Mapping) else {}
    label, id_, source = (
        value if isinstance(value := given.get(key), str) else None
        for key in ("label", "id", "group_by")
    )
    features = given.get("features")
    named = tuple(map(str, features)) if isinstance(features, list) and features else None
    return Columns(
        label,
        id_,
        named,
        source,
        labelled=given.get("labelled") is not False,
        pictures=form_of(given.get("pictures")) or PictureForm(),
    )
