"""The command line: parses and prints. The exit code is the decision.

0 allowed, 1 refused, 2 could not decide, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback

import click

from forward_inf_mlflow.cli.audit import audit_command
from forward_inf_mlflow.cli.demo import demo_command
from forward_inf_mlflow.cli.gate import gate_command, promote_command
from forward_inf_mlflow.cli.policy import policy_group
from forward_inf_mlflow.cli.report import report_command
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.version import __version__

CANNOT_DECIDE, INTERRUPTED = 2, 130
#: Switches that may carry a value, as ``mlflow run -P allow-pickle=true`` writes them.
_SWITCHES = ("--allow-pickle", "--json", "--quiet", "--verbose", "--debug")
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="forward-inf")
def cli() -> None:
    """Audit the training data behind a registered MLflow model version, and gate its promotion.

    \b
    Exit codes: 0 allowed, 1 refused, 2 could not decide, 130 interrupted.

    \b
    Example:
      forward-inf audit models:/my-model/3
    """


for command in (
    audit_command,
    gate_command,
    promote_command,
    report_command,
    policy_group,
    demo_command,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; never lets an error come out as allowed or refused."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return the exit code."""
    debug = "--debug" in arguments
    try:
        code = cli.main(_without_values(arguments), prog_name="forward-inf", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        click.echo("forward-inf: interrupted", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        return _say(f"{error.format_message()}", _help_for(error))
    except ForwardInfError as error:
        if debug:
            traceback.print_exc()
        return _say(str(error))
    except BrokenPipeError:
        # Whoever read our output left; what was decided can no longer be said.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - lives until the process ends
        return CANNOT_DECIDE
    except Exception as error:  # noqa: BLE001 - the last line of defence: never exit 0 or 1
        if debug:
            traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return _say(f"unexpected error: {text}", "see the traceback with --debug")
    return code if isinstance(code, int) else 0


def _say(message: str, hint: str = "") -> int:
    line = " ".join(message.split())
    click.echo(f"forward-inf: {line}{f' ({hint})' if hint else ''}", err=True)
    return CANNOT_DECIDE


def _help_for(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"see '{context.command_path} --help'" if context is not None else ""


def _without_values(arguments: list[str]) -> list[str]:
    """Turn ``--switch true`` into ``--switch`` and drop ``--switch false``."""
    result: list[str] = []
    rest = iter([*arguments, None])
    current = next(rest)
    while current is not None:
        following = next(rest)
        if current in _SWITCHES and following is not None and following.lower() in (*_YES, *_NO):
            if following.lower() in _YES:
                result.append(current)
            following = next(rest)
        else:
            result.append(current)
        current = following
    return result
