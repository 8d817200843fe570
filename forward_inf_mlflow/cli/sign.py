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
@click.argument("audit", metavar="RUN_OR_MODEL_URI")
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
@click.option(
    "--audit-sha256",
    metavar="SHA256",
    help="Sign only an audit.json of this SHA-256, which 'forward-inf audit' says.",
)
@click.option("--unpinned", is_flag=True, help="Sign whatever audit.json the server has now.")
@common_options
def sign_command(
    console: Console,
    audit: str,
    key: str | None,
    policy: str | None,
    gate: str | None,
    expires: timedelta,
    audit_sha256: str | None,
    unpinned: bool,
) -> int:
    """Decide from an audit under a policy, and sign the verdict, whatever it is.

    RUN_OR_MODEL_URI is the audit's run, or models:/NAME/3 for the newest finished audit of a
    version. Between audit and sign anybody who may write to the server can change what it holds of
    the audit: --audit-sha256 takes what 'forward-inf audit' said, past the server.

    The policy is that of --policy, or the one that --gate asks for, or the default. It must be the
    server's, which takes no verdict under another.

    Meant for a machine that people trust, such as a CI job that only this key is given to: it
    downloads the version's files and compares them with those that were audited, and loads nothing.
    The verdict becomes a tag of the version, which a server with a gate asks for. Exits with the
    decision; a refusal is signed too, so that it counts from now on instead of an older pass.

    \b
    Example:
      forward-inf sign models:/my-model/3 --key ci.key --audit-sha256 5f7e...
      forward-inf sign models:/my-model/3 --key ci.key --gate gate.yaml --unpinned
    """
    if policy and gate:
        raise click.UsageError("--policy and --gate name two policies: give one of them.")
    private = signing_key(key)  # a slip is told before MLflow is asked
    if unpinned == bool(audit_sha256):
        raise click.UsageError(
            "give one of --audit-sha256 (what 'forward-inf audit' said of audit.json) and "
            "--unpinned: anybody who may write to this server could have changed the audit since."
        )
    with console.progress("asking MLflow"):
        from forward_inf_mlflow.signing import sign

        result = sign(
            audit,
            key=private,
            policy=policy or None,
            gate=gate or None,
            expires=expires,
            audit_sha256=audit_sha256 or None,
            on_kept=lambda kept: console.say(f"  note: {kept}"),
        )
    console.verdict(result.decision.outcome, result.decision.reasons, result.version.uri)
    console.say(f"  signed by key {result.sealed.key_id}, under policy {result.policy.sha256[:12]}")
    console.say(
        f"  counts until {moment(result.sealed.statement.expires)}; tag {result.sealed.tag}"
    )
    console.result(result.as_dict())
    return EXIT[result.decision.outcome]
