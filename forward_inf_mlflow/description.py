"""Our block of a version's description: the verdict, where to look, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient

from forward_inf_mlflow.mlflow_errors import translate_errors
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.tracking import AuditRun

_BEGIN, _END = "<!-- forward-inf -->", "<!-- /forward-inf -->"
_OUR_BLOCK = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
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
    client = MlflowClient()
    with translate_errors():
        text = client.get_model_version(version.name, version.version).description or ""
        rest = _OUR_BLOCK.sub("", text).rstrip()
        before = f"{rest}\n\n" if rest else ""
        room = min(_MAX_BLOCK, _MAX_DESCRIPTION - len(before)) - len(_BEGIN) - len(_END) - 2
        block = _block(decision, run, room)
        if block is not None:
            whole = f"{before}{_BEGIN}\n{block}\n{_END}"
            client.update_model_version(version.name, version.version, whole)
            return None
        if _OUR_BLOCK.search(text):
            client.update_model_version(version.name, version.version, rest)
    return (
        f"the description of {version.uri} leaves no room for the verdict, which stands only in "
        "its tags: shorten the description and audit again"
    )


def _block(decision: Mapping[str, Any], run: AuditRun, room: int) -> str | None:
    """Return at most ``room`` characters; None if the verdict and its links do not fit."""
    block = (
        f"**Data audit: {_VERDICTS[decision['outcome']]}**\n\n"
        f"[Report]({run.link('report.html')}) · [flagged rows]({run.link('flagged.json')}) · "
        f"[audit run]({run.link()})\n"
    )
    if len(block) > room:
        return None
    reasons = list(decision["reasons"])
    for i, reason in enumerate(reasons):
        line = f"\n- {markdown(_short(reason))}"
        more = f"\n- and {len(reasons) - i} more, see the report"
        last = i == len(reasons) - 1
        if len(block) + len(line) + (0 if last else len(more)) > room:
            return block + more if len(block) + len(more) <= room else block
        block += line
    return block


def _short(text: str) -> str:
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"


def markdown(text: str) -> str:
    """Return text with everything that Markdown or HTML would act on made harmless."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", escaped.replace(">", "&gt;"))
