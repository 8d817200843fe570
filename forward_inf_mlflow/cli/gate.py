"""forward-inf gate and forward-inf promote."""

from __future__ import annotations

import click

from forward_inf_mlflow.cli.common import (
    EXIT,
    Console,
    common_options,
    policy_option,
    ring_option,
)


@click.command("gate", short_help="Decide from the newest audit of a version.")
@click.argument("model_uri")
@policy_option
@common_options
def gate_command(console: Console, model_uri: str, policy: str | None) -> int:
    """Decide whether MODEL_URI may be promoted, from its newest finished audit.

    Needs neither the model nor its data. Without --policy, the policy of the audit is used. Exits
    with 0 if it may, 1 if it may not, 2 if that cannot be decided.

    \b
    Example:
      forward-inf gate models:/my-model/3 --policy policy.yaml
    """
    with console.progress("asking MLflow"):
        from forward_inf_mlflow.promotion import gate

        result = gate(model_uri, policy=policy or None)
    console.verdict(result.decision.outcome, result.decision.reasons, result.version.uri)
    console.say(f"  audit run {result.run_id}, policy {result.policy.sha256[:12]}")
    console.result(result.as_dict())
    return EXIT[result.decision.outcome]


@click.command("promote", short_help="Move an alias to a version if the gate passes it.")
@click.argument("model_uri")
@click.option("--alias", required=True, help="Alias to move, such as champion.")
@policy_option
@ring_option()
@common_options
def promote_command(
    console: Console, model_uri: str, alias: str, policy: str | None, ring: str | None
) -> int:
    """Move an alias to MODEL_URI if the gate passes it; leave it alone if not.

    The version's files are downloaded, never loaded, and held against those that were audited.
    If a person approved this move ('forward-inf approve'), it is tried although the gate refuses:
    a server with a gate judges the approval; on any other, name with --ring whose keys count.

    \b
    Example:
      forward-inf promote models:/my-model/3 --alias champion
      forward-inf promote models:/my-model/3 --alias champion --ring keys.yaml
    """
    with console.progress("asking MLflow"):
        from forward_inf_mlflow.promotion import promote

        result = promote(model_uri, alias=alias, policy=policy or None, ring=ring or None)
    decision = result.gate.decision
    console.verdict(decision.outcome, decision.reasons, result.gate.version.uri)
    before = f"version {result.before}" if result.before else "nowhere"
    for note in result.notes:
        console.say(f"  note: {note}")
    if result.approval is not None:
        console.say(f"  tried all the same, because a person approved it: {result.approval.reason}")
    if not result.allowed:
        console.say(f"  alias '{alias}' stays where it was: {before}")
    elif result.before == result.now:
        console.say(f"  alias '{alias}' already pointed to version {result.now}")
    else:
        console.say(f"  alias '{alias}' moved from {before} to version {result.now}")
    console.result(result.as_dict())
    return 0 if result.allowed else EXIT[decision.outcome]
