"""forward-inf sign."""

from __future__ import annotations

from datetime import timedelta

import click

from forward_inf_mlflow.cli.common import (
    EXIT,
    Console,
    common_options,
    key_option,
    policy_option,
    signing_key,
)
from forward_inf_mlflow.cli.duration import Duration
from forward_inf_mlflow.clock import moment


@click.command("sign", short_help="Sign what an audit says of its version.")
@click.argument("run_id")
@key_option
@policy_option
@click.option(
    "--gate",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="The server's gate.yaml, for the policy that it asks for.",
)
@click.option(
    "--expires",
    type=Duration(),
    default="30d",
    show_default=True,
    help="For how long it counts, such as 12h or 30d.",
)
@common_options
def sign_command(
    console: Console,
    run_id: str,
    key: str | None,
    policy: str | None,
    gate: str | None,
    expires: timedelta,
) -> int:
    """Decide from the audit in RUN_ID under a policy, and sign the verdict, whatever it is.

    The policy is that of --policy, or the one that --gate asks for, or the default. It must be the
    server's, which takes no verdict under another.

    Meant for a machine that people trust, such as a CI job that only this key is given to: it
    downloads the version's files and compares them with those that were audited, and loads nothing.
    The verdict becomes a tag of the version, which a server with a gate asks for. Exits with the
    decision; a refusal is signed too, so that it counts from now on instead of an older pass.

    \b
    Example:
      forward-inf sign 8e1a94a0c4d24d2fb7f3a0e0a1f7b1c2 --key ci.key
      forward-inf sign 8e1a94a0c4d24d2fb7f3a0e0a1f7b1c2 --gate gate.yaml
    """
    if policy and gate:
        raise click.UsageError("--policy and --gate name two policies: give one of them.")
    private = signing_key(key)  # a slip is told before MLflow is asked
    with console.progress("asking MLflow"):
        from forward_inf_mlflow.signing import sign

        result = sign(
            run_id, key=private, policy=policy or None, gate=gate or None, expires=expires
        )
    console.verdict(result.decision.outcome, result.decision.reasons, result.version.uri)
    console.say(f"  signed by key {result.sealed.key_id}, under policy {result.policy.sha256[:12]}")
    console.say(
        f"  counts until {moment(result.sealed.statement.expires)}; tag {result.sealed.tag}"
    )
    console.result(result.as_dict())
    return EXIT[result.decision.outcome]
