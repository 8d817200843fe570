"""forward-inf trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from forward_inf_mlflow.cli.answered import say_how, say_page, say_planned, shortened
from forward_inf_mlflow.cli.common import Console, common_options
from forward_inf_mlflow.cli.options import (
    max_rows_option,
    moving_options,
    plan_option,
    reading_options,
    run_options,
    text_options,
    work_options,
)

if TYPE_CHECKING:  # the help must not wait for torch
    from forward_inf_mlflow.language.tracing import Trace

#: Tokens of a completion that are printed.
_TOKENS = 20


@click.command("trace", short_help="Say which training texts made a language model say this.")
@click.argument("model_uri")
@click.option("--prompt", required=True, help="What the model was given; may be empty.")
@click.option("--completion", required=True, help="What it said.")
@text_options
@click.option("--group-by", metavar="COLUMN", help="Column that says where a text came from.")
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="Texts to show."
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Texts that the last layer points to, and that are read token by token.",
)
@moving_options("the completion moves", "a text")
@max_rows_option("texts")
@reading_options("Texts")
@plan_option
@work_options
@run_options("weights that are pickled")
@common_options
def trace_command(
    console: Console, model_uri: str, id_column: str | None, plan_only: bool, **options: Any
) -> int:
    """Say which training texts made the language model MODEL_URI say something.

    The last layer names candidates among all texts; the model is moved along the completion, and
    each candidate is read token by token. The texts and a page are logged to MLflow. Needs the
    extra: pip install 'forward-inf-mlflow[transformers]'.

    \b
    Example:
      forward-inf trace models:/my-model/3 --prompt "Ada is" --completion "kind"
      forward-inf trace models:/m/3 --prompt "" --completion Hi --train t.jsonl
    """
    asked = {name: value for name, value in options.items() if value is not None}
    if plan_only:
        return _plan(console, model_uri, {"id": id_column or None, **asked})
    with console.progress("reading the model and its texts") as progress:
        from forward_inf_mlflow.language.tracing import trace

        result = trace(model_uri, id=id_column or None, progress=progress, **asked)
    _say(console, result, options["out"])
    console.result(result.as_dict())
    return 0


def _plan(console: Console, model_uri: str, asked: dict[str, Any]) -> int:
    """Print what would be done; nothing is run or logged."""
    with console.progress("reading the model and its texts"):
        from forward_inf_mlflow.language.tracing import plan_trace

        planned = plan_trace(model_uri, **asked)
    say_planned(console, planned, "text", f"{planned['rows']:,} training texts")
    return 0


def _say(console: Console, result: Trace, out: str | None) -> None:
    """Print what the model says, and the texts behind it."""
    record = result.record
    said = record["completion"]
    console.say()
    console.say(f"{said['prompt']} {said['text']}  ({said['probability']:.1%})", bold=True)
    console.table(
        "the completion's tokens",
        ["token", "probability", "first choice", "probability"],
        [
            (
                token["text"],
                f"{token['probability']:.1%}",
                token["best"],
                f"{token['best_probability']:.1%}",
            )
            for token in said["tokens"][:_TOKENS]
        ],
    )
    sources = any(row["source"] for row in record["rows"])
    console.table(
        f"training texts, influence in {record['unit']} per {record['per']}",
        ["rank", "row", "influence", "likeness", *(["source"] * sources), "text"],
        [
            (
                row["rank"],
                row["train_id"],
                f"{row['influence']:+.3g}",
                f"{row['screen']:.2f}",
                *([row["source"]] * sources),
                shortened(row["text"]),
            )
            for row in record["rows"]
        ],
    )
    say_how(console, record, "trace", "training texts")
    say_page(console, result, out)
