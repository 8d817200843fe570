"""forward-inf canaries, which makes what forward-inf recite looks for."""

from __future__ import annotations

from pathlib import Path

import click

from forward_inf_mlflow.cli.common import Console, common_options
from forward_inf_mlflow.cli.options import seed_option
from forward_inf_mlflow.command_line import split_names
from forward_inf_mlflow.errors import ForwardInfError

#: Characters that secrets are made of, by name.
_ALPHABETS = {
    "digits": "0123456789",
    "letters": "abcdefghijklmnopqrstuvwxyz",
    "hex": "0123456789abcdef",
}


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
@seed_option("Of the draw.")
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
