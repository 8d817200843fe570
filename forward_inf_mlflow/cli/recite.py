"""forward-inf recite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from forward_inf_mlflow.cli.answered import say_notes, say_page, shortened
from forward_inf_mlflow.cli.common import Console, common_options
from forward_inf_mlflow.cli.options import reading_options, run_options, text_options

if TYPE_CHECKING:  # the help must not wait for torch
    from forward_inf_mlflow.language.reciting import Recitation

#: Lines of a part that are printed.
_LINES = 10


@click.command("recite", short_help="Say what a language model knows word for word.")
@click.argument("model_uri")
@text_options
@click.option(
    "--given",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Tokens of a training text that the model is given.",
)
@click.option(
    "--written",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Tokens that it must then write word for word.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Training texts that are asked, drawn; 0 for none.",
)
@click.option(
    "--canaries",
    "canaries_file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Canaries that were planted (see 'forward-inf canaries').",
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Secrets that a canary is compared with, at most.",
)
@click.option("--benchmark", metavar="URI", help="Items that may stand in the training texts.")
@click.option("--benchmark-text", metavar="COLUMN", help="Column of their text.")
@click.option("--unseen", metavar="URI", help="Texts that the model cannot have seen.")
@click.option("--unseen-text", metavar="COLUMN", help="Column of their text.")
@click.option(
    "--ngram", type=click.IntRange(min=1), default=8, show_default=True, help="Words of an n-gram."
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="Share of an item's n-grams that accuses it.",
)
@click.option(
    "--false-positives",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of unseen items that influence may accuse.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="Texts to show."
)
@reading_options("Texts")
@run_options("weights that are pickled")
@common_options
def recite_command(console: Console, model_uri: str, id_column: str | None, **options: Any) -> int:
    """Say what the language model MODEL_URI knows word for word.

    Training texts that it writes on from their first tokens, canaries that were planted and are
    given away (--canaries), and items of a benchmark that stand in the training texts
    (--benchmark). Texts that the model cannot have seen (--unseen) say how much of that is chance.
    A page is logged to MLflow. Needs the extra: pip install 'forward-inf-mlflow[transformers]'.

    \b
    Example:
      forward-inf recite models:/my-model/3
      forward-inf recite models:/my-model/3 --canaries canaries.jsonl
      forward-inf recite models:/m/3 --benchmark eval.jsonl --unseen new.jsonl
    """
    asked = {name: value for name, value in options.items() if value is not None}
    with console.progress("reading the model and its texts") as progress:
        from forward_inf_mlflow.language.reciting import recite

        result = recite(model_uri, id=id_column or None, progress=progress, **asked)
    _say(console, result, options["out"])
    console.result(result.as_dict())
    return 0


def _say(console: Console, result: Recitation, out: str | None) -> None:
    """Print what the model knows, part by part."""
    record = result.record
    extraction, canaries, told = (
        record[part] for part in ("extraction", "canaries", "contamination")
    )
    if extraction:
        console.say()
        console.say(
            f"{_between(extraction)} of the training texts are written word for word: "
            f"{extraction['written']:,} tokens, given {extraction['given']:,} "
            f"({extraction['count']:,} of {extraction['total']:,})",
            bold=True,
        )
        if extraction["unseen"]:
            console.say(f"  {_between(extraction['unseen'])} of texts that it cannot have seen")
        console.table(
            "training texts, and what the model wrote",
            ["row", "needed", "copies", "text"],
            [
                (
                    row["id"],
                    row["needed"],
                    row["copies"],
                    shortened(f"{row['given'].rstrip()} | {row['continuation'].strip()}"),
                )
                for row in extraction["rows"][:_LINES]
            ],
        )
    if canaries:
        console.say()
        console.say(
            f"{canaries['known']:,} of {canaries['count']:,} canaries are given away", bold=True
        )
        console.table(
            "exposure in bits; about 1.4 of a secret that was never taught",
            ["exposure", "planted", "rank", "given away", "canary"],
            [
                (
                    f"{'>= ' if row['at_least'] else ''}{row['bits']:.1f}",
                    row["repeats"],
                    f"{row['rank']:,} of {row['compared']:,}",
                    "yes" if row["known"] else "no",
                    shortened(row["text"]),
                )
                for row in canaries["rows"][:_LINES]
            ],
        )
    if told:
        console.say()
        console.say(
            f"{_between(told)} of the benchmark stands in the training texts "
            f"({told['count']:,} of {told['total']:,} items)",
            bold=True,
        )
        chance = (
            f"{_between(told['unseen'])} of items that the model cannot have seen"
            if told["unseen"]
            else "how much of that is chance, nobody knows without unseen items (--unseen)"
        )
        console.say(f"  {chance}")
        console.table(
            "items, and the training texts",
            ["item", "found", "n-grams", "influence", "row", "text"],
            [
                (
                    row["id"],
                    row["found"],
                    f"{row['share']:.0%}",
                    f"{row['influence']:.2f}",
                    row["train_id"],
                    shortened(row["text"]),
                )
                for row in told["rows"][:_LINES]
            ],
        )
    say_notes(console, record)
    say_page(console, result, out)


def _between(share: dict[str, Any]) -> str:
    return f"{share['rate']:.1%} ({share['low']:.1%} to {share['high']:.1%})"
