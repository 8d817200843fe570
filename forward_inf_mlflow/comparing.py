"""Comparing: the newest audits of two versions, side by side, logged beside the newer one."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient

from forward_inf_mlflow.comparison import Side, compare_sides
from forward_inf_mlflow.description import markdown
from forward_inf_mlflow.errors import ForwardInfError, TrackingError
from forward_inf_mlflow.found_audit import find_audit
from forward_inf_mlflow.mlflow_errors import impatient, translate_errors
from forward_inf_mlflow.record import write_record
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.verdicts.claims import RUN_TAG

#: Folder of comparisons in the newer audit's run.
FOLDER = "forward_inf_compare"
#: How many earlier versions are looked at for an audit.
_EARLIER = 20


@dataclass(frozen=True)
class Comparison:
    """What changed from one audit to another.

    Attributes:
        content: As ``compare.json`` holds it: rows, verdicts, rates, metrics, sentences.
        run_id: The newer audit's run, where it was logged.
        artifact: Its path there.
    """

    content: Mapping[str, Any]
    run_id: str
    artifact: str

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return it in words."""
        return tuple(self.content["sentences"])

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {**self.content, "run_id": self.run_id, "artifact": self.artifact}


def compare(old_uri: str, new_uri: str) -> Comparison:
    """Compare the newest finished audits of two versions, and log it to the run of the second.

    Needs neither the models nor their data.

    Args:
        old_uri: ``models:/name/1`` or ``models:/name@alias``.
        new_uri: The version that is held against it, of the same model or of another.

    Raises:
        TrackingError: One of them has no finished audit, or has lost its tables.
    """
    sides = [_side(resolve(uri)) for uri in (old_uri, new_uri)]
    content = _compared(*sides)
    old, new = sides
    stem = _stem(old.uri, new.uri)
    files = {"json": write_record(content), "md": _markdown(content).encode()}
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as name, translate_errors():
        for ending, data in files.items():
            (Path(name) / f"{stem}.{ending}").write_bytes(data)
        MlflowClient().log_artifacts(new.run_id, name, FOLDER)
    return Comparison(json.loads(files["json"]), new.run_id, f"{FOLDER}/{stem}.md")


def _stem(old: str, new: str) -> str:
    """Return a file name for two addresses that any store takes, and no other two have."""
    words = "-to-".join(re.sub(r"\W+", "-", uri.removeprefix("models:/")) for uri in (old, new))
    return f"{words[:80]}-{hashlib.sha256(f'{old} {new}'.encode()).hexdigest()[:8]}"


def since_previous(
    version: Version, run_id: str, record: Mapping[str, Any], scores: pd.DataFrame
) -> dict[str, Any] | None:
    """Return what changed since the previous version's audit, for the record of a new one.

    The previous version is that with the largest number below whose audit is finished. What cannot
    be read there is no reason against the new audit.

    Returns:
        The comparison; ``{"problem": ...}`` if there is one that cannot be read; None if there is
        no such version.
    """
    try:
        for earlier in _earlier(version):
            try:
                old = _side(earlier)
            except TrackingError:  # not finished, gone or changed: the one before it counts
                continue
            return _compared(old, Side(version.uri, run_id, record, scores))
    except ForwardInfError as error:
        return {"problem": str(error)}
    return None


def _earlier(version: Version) -> Iterator[Version]:
    """Yield the versions below this one that have an audit, the largest number first."""
    quotation = '"' if "'" in version.name else "'"
    with translate_errors(), impatient():
        found = MlflowClient().search_model_versions(
            f"name={quotation}{version.name}{quotation}",
            max_results=1000,
            order_by=["version_number DESC"],
        )
    audited = [one for one in found if RUN_TAG in one.tags]
    below = [int(one.version) for one in audited if int(one.version) < int(version.version)]
    for number in sorted(below, reverse=True)[:_EARLIER]:
        yield resolve(f"models:/{version.name}/{number}")


def _side(version: Version) -> Side:
    audit = find_audit(version)
    content = audit.fetch("scores.parquet")
    if content is None:
        raise TrackingError(
            f"run {audit.run_id} has lost its scores.parquet: audit {version.uri} again"
        )
    with _readable(version.uri):
        scores = pd.read_parquet(io.BytesIO(content))
    return Side(version.uri, audit.run_id, audit.record, scores)


def _compared(old: Side, new: Side) -> dict[str, Any]:
    with _readable(old.uri):
        return compare_sides(old, new)


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turn whatever another's record or table makes fail into one line."""
    try:
        yield
    except ForwardInfError:
        raise
    except Exception as error:
        raise TrackingError(
            f"the audit of {uri} cannot be compared, its record or its scores.parquet are not what "
            f"an audit writes ({type(error).__name__}): audit it again"
        ) from error


def _markdown(content: Mapping[str, Any]) -> str:
    """Return the comparison as a page of Markdown."""
    old, new = content["old"]["model"], content["new"]["model"]
    lines = [f"# {markdown(new)} since {markdown(old)}", ""]
    lines += [f"- {markdown(said)}" for said in content["sentences"]]
    for verdict, found in content["verdicts"].items():
        for word, part in (("no longer named", found["went"]), ("newly named", found["came"])):
            if part["ids"]:
                more = part["rows"] - len(part["ids"])
                names = ", ".join(markdown(name[:80]) for name in part["ids"])
                lines += ["", f"**{verdict}, {word}**: {names}{f' and {more:,} more' * (more > 0)}"]
    lines += ["", "| metric | before | now |", "|---|---|---|"]
    lines += [
        f"| {markdown(one['name'])} | {_number(one['old'])} | {_number(one['new'])} |"
        for one in content["metrics"]
    ]
    return "\n".join([*lines, ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
