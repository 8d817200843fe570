"""forward-inf report."""

from __future__ import annotations

import click

from forward_inf_mlflow.cli.common import Console, common_options


@click.command("report", short_help="Write the HTML report of the newest audit.")
@click.argument("model_uri")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False),
    help="File to write, such as report.html.",
)
@common_options
def report_command(console: Console, model_uri: str, output: str) -> int:
    """Write the HTML report of MODEL_URI's newest finished audit to a file.

    \b
    Example:
      forward-inf report models:/my-model/3 -o report.html
    """
    with console.progress("fetching the report"):
        from forward_inf_mlflow.fetch_report import fetch_report

        rebuilt = fetch_report(model_uri, output)
    console.say(f"wrote {output}" + (" (rebuilt)" if rebuilt else ""))
    console.result({"model": model_uri, "file": output, "rebuilt": rebuilt})
    return 0
