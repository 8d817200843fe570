"""Approving: a person lets a version have an alias, in their name and for all to see."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from forward_inf_mlflow import tracking
from forward_inf_mlflow.clock import now
from forward_inf_mlflow.description import describe_approvals
from forward_inf_mlflow.errors import NoAuditError, VerdictError
from forward_inf_mlflow.found_audit import fetch_artifact, find_audit
from forward_inf_mlflow.mlflow_errors import translate_errors
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.sealed_tags import attach, find_approvals, subject_of, tags_of
from forward_inf_mlflow.verdicts.keys import PrivateKey
from forward_inf_mlflow.verdicts.names import is_text
from forward_inf_mlflow.verdicts.seal import Sealed
from forward_inf_mlflow.verdicts.statement import Override, as_dict

#: Characters of a reason; it stands in a tag, the description and the report.
_LONGEST = 500


@dataclass(frozen=True)
class Approved:
    """An approval that was signed and set.

    Attributes:
        version: The version that has it as a tag.
        override: What was signed.
        sealed: The same with its signature.
        notes: Where it could not be shown, sentences.
    """

    version: Version
    override: Override
    sealed: Sealed
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        return {
            "model": self.version.uri,
            **as_dict(self.override),
            "key": self.sealed.key_id,
            "tag": self.sealed.tag,
            "notes": list(self.notes),
        }


def approve(
    model_uri: str,
    *,
    alias: str,
    reason: str,
    key: PrivateKey,
    lasts: timedelta = timedelta(days=7),
) -> Approved:
    """Sign that a version may have an alias whatever its audit says; move nothing.

    It is set as a tag, and shown in the version's description and in the report of its audit, of
    which nothing else changes: ``audit.json``, which verdicts name, stays as it is.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``, which means the version that has
            that alias now.
        alias: The alias that it may have.
        reason: Why; everybody will read it.
        key: Signs.
        lasts: For how long the approval counts.

    Raises:
        VerdictError: The alias or the reason is empty, too long, or not UTF-8.
        TrackingError: The server cannot be reached or refuses.
    """
    alias, reason = alias.strip(), " ".join(reason.split())
    if not alias or not reason:
        raise VerdictError("an approval names an alias and a reason: neither may be empty")
    if not (is_text(alias) and is_text(reason)):
        raise VerdictError("the alias or the reason is not UTF-8: check the terminal")
    if len(reason) > _LONGEST:
        raise VerdictError(f"the reason has {len(reason)} characters: say it in {_LONGEST}")
    version = resolve(model_uri)
    issued = now()
    override = Override(
        subject=subject_of(version),
        alias=alias,
        reason=reason,
        issued=issued,
        expires=issued + int(lasts.total_seconds() * 1000),
    )
    sealed = attach(version, override, key)
    approvals = find_approvals(version, tags_of(version))
    notes = (describe_approvals(version, approvals), _show_in_report(version, approvals))
    return Approved(version, override, sealed, tuple(note for note in notes if note))


def _show_in_report(version: Version, approvals: tuple[Sealed, ...]) -> str | None:
    """Bring the report of the newest audit up to date; return what to tell if that cannot be."""
    from forward_inf_mlflow.report.approvals import with_approvals

    try:
        audit = find_audit(version)
    except NoAuditError as error:
        return f"no report shows it: {error}"
    content = fetch_artifact(audit.run_id, "report.html")
    report = None if content is None else content.decode("utf-8", "replace")
    changed = None if report is None else with_approvals(report, approvals)
    if changed is None:
        return f"the report of run {audit.run_id} is gone or has no place for it; the next has"
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder, translate_errors():
        file = Path(folder, "report.html")
        file.write_text(changed, encoding="utf-8")
        MlflowClient().log_artifact(audit.run_id, str(file), tracking.FOLDER)
    return None
