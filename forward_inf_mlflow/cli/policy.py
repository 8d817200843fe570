"""forward-inf policy init and forward-inf policy check."""

from __future__ import annotations

from pathlib import Path

import click

from forward_inf_mlflow.cli.common import Console, common_options
from forward_inf_mlflow.errors import PolicyError


@click.group("policy")
def policy_group() -> None:
    """Write or check a policy file.

    \b
    Example:
      forward-inf policy init policy.yaml
      forward-inf policy check policy.yaml
    """


@policy_group.command("init", short_help="Write the default policy to a file.")
@click.argument("file", type=click.Path(dir_okay=False), default="policy.yaml")
@common_options
def init_command(console: Console, file: str) -> int:
    """Write the default policy, with comments, to FILE (policy.yaml); never over another file.

    \b
    Example:
      forward-inf policy init policy.yaml
    """
    from forward_inf_mlflow.policy import default_text

    try:
        with Path(file).open("x", encoding="utf-8") as new:
            new.write(default_text())
    except FileExistsError:
        raise PolicyError(f"{file} exists: name another file, or edit that one") from None
    except OSError as error:
        raise PolicyError(f"cannot write {file}: {error.strerror}") from error
    console.say(f"wrote {file}: edit it, then run 'forward-inf policy check {file}'")
    console.result({"file": file})
    return 0


@policy_group.command("check", short_help="Check a policy file.")
@click.argument("file", type=click.Path(dir_okay=False))
@common_options
def check_command(console: Console, file: str) -> int:
    """Check FILE; a mistake is named with its line.

    \b
    Example:
      forward-inf policy check policy.yaml
    """
    from forward_inf_mlflow.policy import load_policy

    policy = load_policy(Path(file))
    console.say(f"{file} is valid; its hash is {policy.sha256}")
    console.result({"file": file, **policy.as_dict()})
    return 0
