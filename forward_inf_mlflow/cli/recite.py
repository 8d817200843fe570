"""forward-inf recite, and forward-inf canaries, which makes what it looks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forward_inf_mlflow.cli.common import Console, common_options
from forward_inf_mlflow.command_line import split_names
from forward_inf_mlflow.errors import ForwardInfError

if TYPE_CHECKING:  # the help must not wait for torch
    from forward_inf_mlflow.language.reciting import Recitation

#: Characters of a text, and lines of a part, that are printed.
_TEXT, _LINES = 80, 10
#: Characters that secrets are made of, by name.
_ALPHABETS = {
    "digits": "0123456789",
    "letters": "abcdefghijklmnopqrstuvwxyz",
    "hex": "0123456789abcdef",
}


@click.command("recite", short_help="Say what a language model knows word for word.")
@click.argument("model_uri")
@click.option("--train", metavar="URI", help="Training texts; default: the logged data.")
@click.option("--text", metavar="COLUMN", help="Column of the text.")
@click.option("--prompt-column", metavar="COLUMN", help="Column of what came before the text.")
@click.option("--id", "id_column", metavar="COLUMN", help="Column of the row ids.")
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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--batch-size", type=click.IntRange(min=1), help="Texts read at once.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Decides what is drawn at random.",
)
@click.option("--allow-pickle", is_flag=True, help="Permit weights that are pickled.")
@click.option("--experiment", metavar="NAME", help="Experiment of the run.")
@click.option("--out", metavar="DIR", help="Folder for a copy of all artifacts.")
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


@click.command("canaries", short_help="Make texts to plant, for forward-inf recite.")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--format", "text", required=True, help="A text with {} in the place of the secret.")
@click.option(
    "--secret",
    default="digits",
    show_default=True,
    help="digits, letters, hex, or a list of words with commas between.",
)
@click.option(
    "--length",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Symbols of a secret.",
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="How many canaries.",
)
@click.option(
    "--repeats",
    default="0,1,4,16",
    show_default=True,
    help="How often each is planted, in turn; 0: kept out, as a control.",
)
@click.option("--texts", metavar="FILE", type=click.Path(dir_okay=False), help="Rows to plant.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the draw."
)
@common_options
def canaries_command(
    console: Console,
    file: str,
    text: str,
    secret: str,
    length: int,
    count: int,
    repeats: str,
    texts: str | None,
    seed: int,
) -> int:
    """Make canaries, texts with a secret drawn at random, and write them into FILE.

    Put the rows of --texts, which holds each canary as often as it is to be planted, among the
    training texts, train, and ask the model with 'forward-inf recite MODEL_URI --canaries FILE'.
    Neither file may exist.

    \b
    Example:
      forward-inf canaries c.jsonl --format "pin of dan: {}" --texts rows.jsonl
    """
    import json

    from forward_inf_mlflow.language import canaries

    try:
        often = [int(n) for n in split_names(repeats)]
    except ValueError:
        often = []
    if not often or min(often) < 0:
        raise ForwardInfError(f"--repeats is {repeats!r}: write numbers such as 0,1,4,16")
    symbols = list(_ALPHABETS.get(secret, "")) or split_names(secret)
    made = canaries.make(text, symbols, length=length, count=count, repeats=often, seed=seed)
    _write_new(file, canaries.lines(made))
    planted = [canary.text for canary in made for _ in range(canary.repeats)]
    if texts:
        _write_new(texts, "".join(json.dumps({"text": t}) + "\n" for t in planted))
    console.say(f"{file}: {len(made):,} canaries of {made[0].space:,} possible secrets each")
    if texts:
        console.say(f"{texts}: {len(planted):,} rows to put among the training texts")
    console.result({"file": file, "texts": texts, "canaries": len(made), "rows": len(planted)})
    return 0


def _write_new(file: str, content: str) -> None:
    try:
        with Path(file).open("x", encoding="utf-8") as new:
            new.write(content)
    except FileExistsError as error:
        raise ForwardInfError(f"{file} exists: name another, or remove it") from error
    except OSError as error:
        raise ForwardInfError(f"cannot write {file}: {error.strerror or error}") from error


def _say(console: Console, result: Recitation, out: str | None) -> None:
    """Print what the model knows, part by part."""
    import mlflow

    from forward_inf_mlflow.mlflow_errors import redact

    record, server = result.record, redact(mlflow.get_tracking_uri()).rstrip("/")
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
                    _short(f"{row['given'].rstrip()} | {row['continuation'].strip()}"),
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
                    _short(row["text"]),
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
                    _short(row["text"]),
                )
                for row in told["rows"][:_LINES]
            ],
        )
    console.say()
    for note in record["notes"]:
        console.say(f"  note: {note}")
    where = (
        f"{out}/recite.html"
        if out
        else f"mlflow artifacts download -r {result.run_id} -a {result.artifact} -d ."
    )
    page = f"{server}/{result.page}" if server.startswith("http") else result.page
    console.say(f"  page:   {where}", wrap=False)
    console.say(f"  in UI:  {page}", wrap=False)


def _between(share: dict[str, Any]) -> str:
    return f"{share['rate']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
