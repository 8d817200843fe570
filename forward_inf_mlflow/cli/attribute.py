"""forward-inf attribute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from forward_inf_mlflow.cli.common import Console, common_options

if TYPE_CHECKING:  # the help must not wait for torch
    from forward_inf_mlflow.diffusion.attributing import Attribution

#: Generated images whose rows are printed.
_ANSWERS = 10


@click.command("attribute", short_help="Say which training images a generated image is made from.")
@click.argument("model_uri")
@click.option(
    "--generated",
    metavar="URI",
    required=True,
    help="Generated images: a npz file, or a folder of pictures.",
)
@click.option("--train", metavar="URI", help="Training images; default: the logged data.")
@click.option("--images", metavar="ARRAY", help="Array of the images in npz files; default: x.")
@click.option("--label", metavar="ARRAY", help="Array of the labels of a conditional model.")
@click.option("--id", "id_column", metavar="ARRAY", help="Array of the training images' ids.")
@click.option("--group-by", metavar="ARRAY", help="Array that says where an image came from.")
@click.option(
    "--schedule",
    metavar="NAME|FILE",
    help="cosine, linear, or a JSON file; default: what the version says.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of a named schedule.")
@click.option(
    "--pixels",
    type=click.Choice(["auto", "signed", "unit"]),
    default="auto",
    show_default=True,
    help="What the model takes: -1 to 1 (signed), 0 to 1 (unit).",
)
@click.option(
    "--parameters",
    metavar="GLOB,...",
    help="Move only parameters of such names, as '*attn*to_[kv]*'.",
)
@click.option(
    "--times",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Times of noise that each image is read at.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Proponents and opponents of each image.",
)
@click.option(
    "--direction",
    type=click.Choice(["auto", "gradient", "optimizer", "replay", "curvature"]),
    default="auto",
    show_default=True,
    help="How a generated image moves the model.",
)
@click.option(
    "--weight-decay",
    type=click.FloatRange(min=0),
    help="The training objective's penalty; default: 0.",
)
@click.option("--max-rows", type=click.IntRange(min=1), help="Read only so many images, drawn.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images read at once.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Decides what is drawn at random.",
)
@click.option("--work-dir", metavar="DIR", help="Folder of finished pieces, until the end.")
@click.option("--fresh", is_flag=True, help="Begin again, whatever an interrupted run left.")
@click.option("--allow-pickle", is_flag=True, help="Permit models whose loading runs their code.")
@click.option("--experiment", metavar="NAME", help="Experiment of the run.")
@click.option("--out", metavar="DIR", help="Folder for a copy of all artifacts.")
@common_options
def attribute_command(
    console: Console, model_uri: str, id_column: str | None, **options: Any
) -> int:
    """Say which training images made the diffusion model MODEL_URI generate some images.

    Moves the model along each generated image and reads the noise-prediction loss of every
    training image with forward passes, all with the same noise. A table and a page with pictures
    are logged to MLflow. Models of diffusers need: pip install 'forward-inf-mlflow[diffusion]'.

    \b
    Example:
      forward-inf attribute models:/my-model/3 --generated samples.npz
      forward-inf attribute models:/m/3 --generated made/ --schedule s.json
    """
    asked = {name: value for name, value in options.items() if value not in (None, "")}
    with console.progress("reading the model and its images") as progress:
        from forward_inf_mlflow.diffusion.attributing import attribute

        result = attribute(model_uri, id=id_column or None, progress=progress, **asked)
    answers = result.record["answers"]
    for answer in answers[:_ANSWERS]:
        _say_answer(console, answer, result.record)
    if len(answers) > _ANSWERS:
        console.say()
        console.say(f"and {len(answers) - _ANSWERS:,} more images, see attribution.parquet")
    _say_rest(console, result, options["out"])
    console.result(result.as_dict())
    return 0


def _say_answer(console: Console, answer: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Print the proponents of a generated image; opponents stand in the table and on the page."""
    console.say()
    label = f", label {answer['label']}" if answer["label"] is not None else ""
    console.say(
        f"generated image {answer['query_id']}{label}: loss {answer['loss']:.3g}", bold=True
    )
    rows = answer["proponents"]
    labels, sources = (any(r[name] != "" for r in rows) for name in ("label", "source"))
    console.table(
        f"proponents, influence in {record['unit']} per {record['per']}",
        ["image", *(["label"] if labels else []), "influence", *(["source"] if sources else [])],
        [
            (
                row["id"],
                *([row["label"]] if labels else []),
                f"{row['influence']:+.3g}",
                *([row["source"]] if sources else []),
            )
            for row in rows
        ],
    )
    if not rows:
        console.say("  no proponents")


def _say_rest(console: Console, result: Attribution, out: str | None) -> None:
    """Print how it was computed and where the page is."""
    import mlflow

    from forward_inf_mlflow.mlflow_errors import redact

    record, server = result.record, redact(mlflow.get_tracking_uri()).rstrip("/")
    how, costs = record["attribution"], record["costs"]
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
        f"  {costs['rows']:,} training images: {costs['forward_passes']:,} forward passes beside "
        f"those that move the model; {costs['seconds']:.0f} s in all"
    )
    where = (
        f"{out}/attribution.html"
        if out
        else f"mlflow artifacts download -r {result.run_id} -a {result.artifact} -d ."
    )
    page = f"{server}/{result.page}" if server.startswith("http") else result.page
    console.say(f"  page:   {where}", wrap=False)
    console.say(f"  in UI:  {page}", wrap=False)
