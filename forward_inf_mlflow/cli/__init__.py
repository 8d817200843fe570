"""The command line: parses and prints. The exit code is the decision.

0 allowed, 1 refused, 2 could not decide, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from forward_inf_mlflow.cli.approve import approve_command
from forward_inf_mlflow.cli.attribute import attribute_command
from forward_inf_mlflow.cli.audit import audit_command
from forward_inf_mlflow.cli.canaries import canaries_command
from forward_inf_mlflow.cli.common import printable
from forward_inf_mlflow.cli.compare import compare_command
from forward_inf_mlflow.cli.demo import demo_command
from forward_inf_mlflow.cli.gate import gate_command, promote_command
from forward_inf_mlflow.cli.gate_file import gate_file_group
from forward_inf_mlflow.cli.history import history_command
from forward_inf_mlflow.cli.influence import influence_command
from forward_inf_mlflow.cli.keys import keys_group
from forward_inf_mlflow.cli.policy import policy_group
from forward_inf_mlflow.cli.recite import recite_command
from forward_inf_mlflow.cli.report import report_command
from forward_inf_mlflow.cli.review import review_group
from forward_inf_mlflow.cli.sign import sign_command
from forward_inf_mlflow.cli.trace import trace_command
from forward_inf_mlflow.errors import ForwardInfError, RefusedError
from forward_inf_mlflow.version import __version__

REFUSED, CANNOT_DECIDE, INTERRUPTED = 1, 2, 130
#: Switches that may carry a value, as ``mlflow run -P allow-pickle=true`` writes them.
_SWITCHES = (
    *("--allow-pickle", "--compiled", "--dry-run", "--fresh", "--plan", "--resize", "--together"),
    *("--json", "--quiet", "--verbose", "--debug"),
)
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
    influence_command,
    trace_command,
    recite_command,
    canaries_command,
    attribute_command,
    gate_command,
    sign_command,
    promote_command,
    approve_command,
    history_command,
    report_command,
    compare_command,
    review_group,
    policy_group,
    keys_group,
    gate_file_group,
    demo_command,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; never lets an error come out as allowed or refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter of a label
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return the exit code."""
    arguments = _without_values(arguments)
    fail = _Failure(as_json="--json" in arguments, debug="--debug" in arguments)
    try:
        code = cli.main(arguments, prog_name="forward-inf", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        kept = "; finished pieces are kept, so the same command goes on"
        long = {"audit", "influence", "trace", "attribute"} & set(arguments)
        return fail("interrupted" + (kept if long else ""), code=INTERRUPTED)
    except NoArgsIsHelpError as error:  # a stranger's first step
        click.echo(error.format_message(), err=True)
        return CANNOT_DECIDE
    except click.ClickException as error:
        return fail(error.format_message(), _help_for(error))
    except RefusedError as error:
        return fail(str(error), code=REFUSED)
    except ForwardInfError as error:
        return fail(str(error))
    except SystemExit:  # click's answer to a reader that left, which would come out as refused
        return fail("whoever reads stopped reading: what was finished stands in MLflow")
    except Exception as error:  # noqa: BLE001 - the last line of defence: never exit 0 or 1
        return fail(*_unexpected(error))
    return code if isinstance(code, int) else fail("the command ended without a decision")


@dataclass(frozen=True)
class _Failure:
    """Says on stderr, and as JSON on stdout where that was asked for, why there is no decision."""

    as_json: bool
    debug: bool

    def __call__(self, message: str, hint: str = "", *, code: int = CANNOT_DECIDE) -> int:
        if self.debug and sys.exc_info()[0] is not None:
            traceback.print_exc()
        line = printable(" ".join(message.split())) + (f" ({hint})" if hint else "")
        # Where nobody reads any more, only the exit code is left to say it.
        with contextlib.suppress(OSError, ValueError):
            click.echo(f"forward-inf: {line}", err=True)
        if self.as_json:
            with contextlib.suppress(OSError, ValueError):
                click.echo(json.dumps({"error": line}))
        return code


def _interrupt(*_: object) -> NoReturn:
    """End on SIGTERM as on Ctrl-C, so that the run is marked KILLED."""
    raise KeyboardInterrupt


def _unexpected(error: Exception) -> tuple[str, str]:
    """Return what to say of an error that nobody foresaw, without credentials."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if "mlflow" in sys.modules:
        from forward_inf_mlflow.mlflow_errors import redact

        text = redact(text)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: try a smaller --batch-size, or --max-rows", ""
    if isinstance(error, ModuleNotFoundError) and error.name:  # such as a database's driver
        return f"this needs the Python package '{error.name}': install it, then run again", ""
    return f"unexpected error: {text[:300]}", "see the traceback with --debug"


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
