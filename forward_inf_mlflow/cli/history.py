"""forward-inf history."""

from __future__ import annotations

import sys

import click

from forward_inf_mlflow.cli.common import Console, common_options, ring_option
from forward_inf_mlflow.clock import moment

#: Characters of a cell on a terminal; elsewhere, and with --json, it is whole.
_LONGEST = 120


@click.command("history", short_help="List audits, verdicts, moves and approvals of a version.")
@click.argument("model_uri")
@ring_option()
@common_options
def history_command(console: Console, model_uri: str, ring: str | None) -> int:
    """List what happened to MODEL_URI, newest first.

    Audits, signed verdicts, approvals, and moves and refusals of aliases. With --ring signatures
    are verified; without they are what whoever set the tag says.

    \b
    Example:
      forward-inf history models:/my-model/3 --ring keys.yaml
    """
    with console.progress("asking MLflow"):
        from forward_inf_mlflow.history import history

        result = history(model_uri, ring=ring or None)
    console.table(
        f"history of {result.version.uri}",
        ["when", "what", "outcome", "by", "more"],
        [
            (moment(one.at), one.kind, *map(_short, (one.outcome, one.by, one.detail)))
            for one in result.entries
        ],
    )
    if not result.entries:
        console.say(f"nothing is known of {result.version.uri}: audit it first")
    signed = any(one.kind in ("verdict", "override") for one in result.entries)
    if signed and not ring:
        console.say("  note: no signature was verified: name the keys with --ring keys.yaml")
    for note in result.notes:
        console.say(f"  note: {note}")
    console.result(result.as_dict())
    return 0


def _short(text: str) -> str:
    whole = len(text) <= _LONGEST or not sys.stdout.isatty()
    return text if whole else f"{text[: _LONGEST - 1]}…"
