"""forward-inf gate-file init and forward-inf gate-file check."""

from __future__ import annotations

from pathlib import Path

import click

from forward_inf_mlflow.cli.common import Console, common_options
from forward_inf_mlflow.errors import VerdictError


@click.group("gate-file")
def gate_file_group() -> None:
    """Write or check the file by which an MLflow server refuses aliases.

    \b
    Example:
      forward-inf gate-file init gate.yaml
      forward-inf gate-file check gate.yaml
    """


@gate_file_group.command("init", short_help="Write the default gate file.")
@click.argument("file", type=click.Path(dir_okay=False), default="gate.yaml")
@common_options
def init_command(console: Console, file: str) -> int:
    """Write the default gate, with comments, to FILE (gate.yaml); never over another file.

    \b
    Example:
      forward-inf gate-file init gate.yaml
    """
    from forward_inf_mlflow.verdicts.gate_file import default_gate_text

    try:
        with Path(file).open("x", encoding="utf-8") as new:
            new.write(default_gate_text())
    except FileExistsError:
        raise VerdictError(f"{file} exists: name another file, or edit that one") from None
    except OSError as error:
        raise VerdictError(f"cannot write {file}: {error.strerror}") from error
    console.say(f"wrote {file}: edit it, then run 'forward-inf gate-file check {file}'")
    console.result({"file": file})
    return 0


@gate_file_group.command("check", short_help="Check a gate file, its keys and policies.")
@click.argument("file", type=click.Path(dir_okay=False))
@common_options
def check_command(console: Console, file: str) -> int:
    """Check FILE, and the keys and policies that it names; a mistake is named with its line.

    \b
    Example:
      forward-inf gate-file check gate.yaml
    """
    from forward_inf_mlflow.verdicts.gate_file import load_gate

    gate = load_gate(Path(file))
    keys = [key for key in gate.ring.keys if key.revoked is None]
    console.say(f"{file} is valid; keys that count: {', '.join(k.name for k in keys) or 'none'}")
    for rule in gate.rules:
        what = ", ".join([*rule.aliases, *(f"stage {stage}" for stage in rule.stages)])
        policies = " or ".join(policy[:12] for policy in rule.policies)
        console.say(f"  {', '.join(rule.models)}: {what} under policy {policies}")
    console.result(
        {
            "file": file,
            "keys": [key.as_dict() for key in gate.ring.keys],
            "protect": [
                {
                    "models": list(rule.models),
                    "aliases": list(rule.aliases),
                    "stages": list(rule.stages),
                    "policies": list(rule.policies),
                    "max_age_days": rule.max_age_days,
                    "overrides": rule.overrides,
                }
                for rule in gate.rules
            ],
            "hash_up_to": gate.hash_up_to,
        }
    )
    return 0
