"""Our blocks of a version's description: the verdict, where to look, and why; and approvals."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient

from forward_inf_mlflow.clock import moment
from forward_inf_mlflow.mlflow_errors import translate_errors
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.tracking import AuditRun
from forward_inf_mlflow.verdicts.blocks import APPROVALS, VERDICT, block, without_block
from forward_inf_mlflow.verdicts.seal import Sealed
from forward_inf_mlflow.verdicts.statement import Override

#: Characters: of our block, of what MLflow's stores hold, and of one reason.
_MAX_BLOCK, _MAX_DESCRIPTION, _MAX_REASON = 2000, 5000, 300
_VERDICTS = {"pass": "passed", "fail": "refused", "undecided": "undecided"}


def describe_version(version: Version, decision: Mapping[str, Any], run: AuditRun) -> str | None:
    """Write our block into the version's description, in place of our own earlier one only.

    What people wrote stays as it is. Where it leaves too little room, reasons are left out first;
    where not even the verdict and its links fit, an earlier block, now stale, is taken away.

    Args:
        version: What was audited.
        decision: Outcome and reasons, as a record keeps them.
        run: The audit's run.

    Returns:
        What to tell the user if the verdict could not be written, one sentence.
    """
    if _write(version, VERDICT, lambda room: _block(version, decision, run, room)):
        return None
    return (
        f"the description of {version.uri} leaves no room for the verdict, which stands only in "
        "its tags: shorten the description and audit again"
    )


def describe_approvals(version: Version, approvals: Sequence[Sealed]) -> str | None:
    """Write who may move which alias to the version, in a block of its own beside the verdict's.

    Args:
        version: What was approved.
        approvals: Overrides, newest first.

    Returns:
        What to tell the user if that could not be written, one sentence.
    """
    if _write(version, APPROVALS, lambda room: _approvals(approvals, room)):
        return None
    return (
        f"the description of {version.uri} leaves no room for the approval, which stands only in "
        "its tags: shorten the description"
    )


def _write(version: Version, name: str, make: Callable[[int], str | None]) -> bool:
    """Write a block, in place of an earlier one of its name; return whether there was room.

    Args:
        version: Whose description.
        name: Of the block.
        make: From how many characters there is room for to the text; None if it does not fit.
    """
    client = MlflowClient()
    with translate_errors():
        text = client.get_model_version(version.name, version.version).description or ""
        rest = without_block(text, name)
        before = f"{rest}\n\n" if rest else ""
        room = min(_MAX_BLOCK, _MAX_DESCRIPTION - len(before)) - len(block(name, ""))
        made = make(room)
        whole = rest if made is None else f"{before}{block(name, made)}"
        if whole != text.rstrip():
            client.update_model_version(version.name, version.version, whole)
    return made is not None


def _approvals(approvals: Sequence[Sealed], room: int) -> str | None:
    """Return at most ``room`` characters, the newest approvals first; None if not one fits."""
    text = ""
    for sealed in approvals:
        override = sealed.statement
        assert isinstance(override, Override)  # find_approvals() chose them
        line = (
            f"\n\n**Approved for alias {markdown(override.alias)}** until "
            f"{moment(override.expires)}, by key {markdown(sealed.key_id)}: "
            f"{markdown(_short(override.reason))}"
        )
        if len(text) + len(line) > room:
            break
        text += line
    return text.strip() or None


def _block(version: Version, decision: Mapping[str, Any], run: AuditRun, room: int) -> str | None:
    """Return at most ``room`` characters; None if the verdict and its links do not fit.

    It names the version: MLflow copies a description along with a version.
    """
    text = (
        f"**Data audit of {markdown(version.uri)}: {_VERDICTS[decision['outcome']]}**\n\n"
        f"[Report]({run.link('report.html')}) · [flagged rows]({run.link('flagged.json')}) · "
        f"[audit run]({run.link()})\n"
    )
    if len(text) > room:
        return None
    reasons = list(decision["reasons"])
    for i, reason in enumerate(reasons):
        line = f"\n- {markdown(_short(reason))}"
        more = f"\n- and {len(reasons) - i} more, see the report"
        last = i == len(reasons) - 1
        if len(text) + len(line) + (0 if last else len(more)) > room:
            return text + more if len(text) + len(more) <= room else text
        text += line
    return text


def _short(text: str) -> str:
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"


def markdown(text: str) -> str:
    """Return text with everything that Markdown or HTML would act on made harmless."""
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in " ".join(text.split())
    )
    escaped = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", escaped.replace(">", "&gt;"))
