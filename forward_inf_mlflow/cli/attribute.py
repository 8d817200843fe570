"""forward-inf attribute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import click

from forward_inf_mlflow.cli.answered import say_how, say_page
from forward_inf_mlflow.cli.common import Console, common_options
from forward_inf_mlflow.cli.options import (
    max_rows_option,
    moving_options,
    reading_options,
    run_options,
    work_options,
)

#: Generated images whose rows are printed.
_ANSWERS = 10
#: What `audit` calls ranges of pixels.
_RANGES = {"-1:1": "signed", "0:1": "unit"}


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
    type=click.Choice(["auto", "signed", "unit", *_RANGES]),
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
@moving_options("a generated image moves", "an image", readout=False)
@max_rows_option("images")
@reading_options("Images")
@work_options
@run_options()
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
    asked["pixels"] = _RANGES.get(asked["pixels"], asked["pixels"])
    with console.progress("reading the model and its images") as progress:
        from forward_inf_mlflow.diffusion.attributing import attribute

        result = attribute(model_uri, id=id_column or None, progress=progress, **asked)
    answers = result.record["answers"]
    for answer in answers[:_ANSWERS]:
        _say_answer(console, answer, result.record)
    if len(answers) > _ANSWERS:
        console.say()
        console.say(f"and {len(answers) - _ANSWERS:,} more images, see attribution.parquet")
    say_how(
        console,
        result.record,
        "attribution",
        "training images",
        [f"images stand {result.record['attribution']['order']}"],
    )
    say_page(console, result, options["out"])
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
    # The order is that of both together.
    alike = any(math.isfinite(r["likeness"] or math.nan) for r in rows)
    console.table(
        f"proponents, influence in {record['unit']} per {record['per']}",
        [
            "image",
            *(["label"] if labels else []),
            "influence",
            *(["likeness"] if alike else []),
            *(["source"] if sources else []),
        ],
        [
            (
                row["id"],
                *([row["label"]] if labels else []),
                f"{row['influence']:+.3g}",
                *([f"{row['likeness']:.2f}"] if alike else []),
                *([row["source"]] if sources else []),
            )
            for row in rows
        ],
    )
    if not rows:
        console.say("  no proponents")
