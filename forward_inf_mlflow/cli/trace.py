"""forward-inf trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from forward_inf_mlflow.cli.common import Console, common_options

if TYPE_CHECKING:  # the help must not wait for torch
    from forward_inf_mlflow.language.tracing import Trace

#: Characters of a text, and tokens of a completion, that are printed.
_TEXT, _TOKENS = 80, 20


@click.command("trace", short_help="Say which training texts made a language model say this.")
@click.argument("model_uri")
@click.option("--prompt", required=True, help="What the model was given; may be empty.")
@click.option("--completion", required=True, help="What it said.")
@click.option("--train", metavar="URI", help="Training texts; default: the logged data.")
@click.option("--text", metavar="COLUMN", help="Column of the text.")
@click.option("--prompt-column", metavar="COLUMN", help="Column of what came before the text.")
@click.option("--id", "id_column", metavar="COLUMN", help="Column of the row ids.")
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
@click.option(
    "--direction",
    type=click.Choice(["auto", "gradient", "optimizer", "replay", "curvature"]),
    default="auto",
    show_default=True,
    help="How the completion moves the model.",
)
@click.option(
    "--readout",
    type=click.Choice(["auto", "loss", "margin"]),
    default="auto",
    show_default=True,
    help="What is read of a text.",
)
@click.option(
    "--weight-decay",
    type=click.FloatRange(min=0),
    help="The training objective's penalty; default: 0.",
)
@click.option("--max-rows", type=click.IntRange(min=1), help="Read only so many texts, drawn.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--batch-size", type=click.IntRange(min=1), help="Texts read at once.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Decides what is drawn at random.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Say what it would cost; ask nothing.")
@click.option("--work-dir", metavar="DIR", help="Folder of finished pieces, until the end.")
@click.option("--fresh", is_flag=True, help="Begin again, whatever an interrupted run left.")
@click.option("--allow-pickle", is_flag=True, help="Permit weights that are pickled.")
@click.option("--experiment", metavar="NAME", help="Experiment of the run.")
@click.option("--out", metavar="DIR", help="Folder for a copy of all artifacts.")
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
    plan = planned["plan"]
    costs = plan["forward_equivalents"]
    console.say(f"plan  {planned['model']}", bold=True)
    console.say(f"  direction: {plan['direction']}, readout: {plan['readout']}")
    console.say(f"  {plan['why']}")
    console.say(
        f"  about {costs['total']:,} forward passes of one text: {costs['direction']:,} to move "
        f"the model, {costs['sweep']:,} to read {planned['rows']:,} training texts"
    )
    console.result(planned)
    return 0


def _say(console: Console, result: Trace, out: str | None) -> None:
    """Print what the model says, and the texts behind it."""
    import mlflow

    from forward_inf_mlflow.mlflow_errors import redact

    record, server = result.record, redact(mlflow.get_tracking_uri()).rstrip("/")
    said, how, costs = record["completion"], record["trace"], record["costs"]
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
                row["text"] if len(row["text"]) <= _TEXT else f"{row['text'][: _TEXT - 1]}…",
            )
            for row in record["rows"]
        ],
    )
    console.say()
    for note in record["notes"]:
        console.say(f"  note: {note}")
    console.say(f"  plan: {how['why']}" + (f"; {how['read_why']}" if how["read_why"] else ""))
    if record["resumed_pieces"]:
        console.say(
            "  went on where an interrupted run stopped "
            f"({record['resumed_pieces']:,} pieces were found)"
        )
    console.say(
        f"  {costs['rows']:,} training texts: {costs['forward_passes']:,} forward passes beside "
        f"those that move the model; {costs['seconds']:.0f} s in all"
    )
    where = (
        f"{out}/trace.html"
        if out
        else f"mlflow artifacts download -r {result.run_id} -a {result.artifact} -d ."
    )
    page = f"{server}/{result.page}" if server.startswith("http") else result.page
    console.say(f"  page:   {where}", wrap=False)
    console.say(f"  in UI:  {page}", wrap=False)
