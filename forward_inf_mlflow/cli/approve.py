"""forward-inf approve."""

from __future__ import annotations

from datetime import timedelta

import click

from forward_inf_mlflow.cli.common import Console, common_options, key_option, signing_key
from forward_inf_mlflow.cli.duration import Duration
from forward_inf_mlflow.clock import moment


@click.command("approve", short_help="Let a version have an alias, in a person's name.")
@click.argument("model_uri")
@click.option("--alias", required=True, help="The alias that it may have, such as champion.")
@click.option("--reason", required=True, help="Why, in a sentence that everybody will read.")
@key_option
@click.option(
    "--for",
    "lasts",
    type=Duration(),
    default="7d",
    show_default=True,
    help="For how long it counts, such as 12h or 7d.",
)
@common_options
def approve_command(
    console: Console,
    model_uri: str,
    alias: str,
    reason: str,
    key: str | None,
    lasts: timedelta,
) -> int:
    """Sign that MODEL_URI may have an alias, whatever its audit says.

    It counts for exactly this version and alias, until it expires, and only if the key may
    override. It moves nothing: 'forward-inf promote' does. Everybody sees it in the version's
    description, its history and its report.

    \b
    Example:
      forward-inf approve models:/my-model/3 --alias champion \\
        --reason "hot fix, mended data follow" --key ann.key
    """
    private = signing_key(key)
    with console.progress("asking MLflow"):
        from forward_inf_mlflow.approving import approve

        result = approve(model_uri, alias=alias, reason=reason, key=private, lasts=lasts)
    uri, until = result.version.uri, moment(result.override.expires)
    console.say(f"approved alias '{alias}' for {uri} until {until}, by key {result.sealed.key_id}")
    for note in result.notes:
        console.say(f"  note: {note}")
    console.say(f"  next: forward-inf promote {uri} --alias {alias}", wrap=False)
    console.result(result.as_dict())
    return 0
