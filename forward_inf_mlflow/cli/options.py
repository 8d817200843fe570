"""The options that commands share which read a model and its rows, texts or images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from forward_inf_mlflow.command_line import split_names

#: Adds options to a command.
Options = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*options: Options) -> Options:
    """Return what adds several options, in their order in the help."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def moving_options(what: str, row: str, *, penalty: str = "0", readout: bool = True) -> Options:
    """Return ``--direction``, ``--readout`` and ``--weight-decay``.

    Args:
        what: "queries move", say: what moves the model.
        row: What is read under it.
        penalty: What ``--weight-decay`` is by default.
        readout: Whether there is a choice of what is read.
    """
    direction = click.option(
        "--direction",
        type=click.Choice(["auto", "gradient", "optimizer", "replay", "curvature"]),
        default="auto",
        show_default=True,
        help=f"How {what} the model.",
    )
    readouts = click.option(
        "--readout",
        type=click.Choice(["auto", "loss", "margin"]),
        default="auto",
        show_default=True,
        help=f"What is read of {row}.",
    )
    weight_decay = click.option(
        "--weight-decay",
        type=click.FloatRange(min=0),
        help=f"The training objective's penalty; default: {penalty}.",
    )
    return together(direction, *([readouts] if readout else []), weight_decay)


def max_rows_option(rows: str) -> Options:
    """Return ``--max-rows``."""
    return click.option(
        "--max-rows",
        type=click.IntRange(min=1),
        help=f"Read only so many {rows}, drawn at random.",
    )


def reading_options(rows: str, *more: Options) -> Options:
    """Return ``--device``, ``--batch-size`` (of such rows), more options, and ``--seed``."""
    return together(
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ..."
        ),
        click.option("--batch-size", type=click.IntRange(min=1), help=f"{rows} read at once."),
        *more,
        seed_option("Decides what is drawn at random."),
    )


def seed_option(help: str) -> Options:
    """Return ``--seed``."""
    return click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help=help
    )


plan_option: Options = click.option(
    "--plan", "plan_only", is_flag=True, help="Say what would be done and what it costs."
)
work_options: Options = together(
    click.option("--work-dir", metavar="DIR", help="Folder of finished pieces, until the end."),
    click.option("--fresh", is_flag=True, help="Begin again, whatever an interrupted run left."),
)


def run_options(pickled: str = "models whose loading runs their code") -> Options:
    """Return ``--allow-pickle`` (of what), ``--experiment`` and ``--out``."""
    return together(
        click.option("--allow-pickle", is_flag=True, help=f"Permit {pickled}."),
        click.option("--experiment", metavar="NAME", help="Experiment of the run."),
        click.option("--out", metavar="DIR", help="Folder for a copy of all artifacts."),
    )


#: Which texts, and what in them.
text_options: Options = together(
    click.option("--train", metavar="URI", help="Training texts; default: the logged data."),
    click.option("--text", metavar="COLUMN", help="Column of the text."),
    click.option("--prompt-column", metavar="COLUMN", help="Column of what came before the text."),
    click.option("--id", "id_column", metavar="COLUMN", help="Column of the row ids."),
)
_rows: Options = together(
    click.option("--train", metavar="URI", help="Training rows; default: the logged data."),
    click.option("--queries", metavar="URI", help="Query (test) rows, labels trusted; as above."),
    click.option("--label", metavar="COLUMN", help="Column of the label."),
    click.option("--id", "id_column", metavar="COLUMN", help="Column of the row ids."),
    click.option("--features", metavar="A,B,...", help="Columns the model reads; default: all."),
    click.option("--group-by", metavar="COLUMN", help="Column that says where a row came from."),
    click.option(
        "--task",
        type=click.Choice(["auto", "classification", "regression"]),
        default="auto",
        show_default=True,
        help="What the model does.",
    ),
    max_rows_option("training rows"),
    click.option("--pixels", metavar="LOW:HIGH", help="What 0 and 255 of a picture become."),
    click.option("--resize", is_flag=True, help="Resize pictures to what the model takes."),
)
#: Of audit and influence: which rows, by which engine, and where the outcome goes.
model_options: Options = together(
    _rows,
    moving_options("queries move", "a training row", penalty="an estimator's own, else 0"),
    reading_options(
        "Rows", click.option("--compiled", is_flag=True, help="Compile the passes (torch.compile).")
    ),
    plan_option,
    work_options,
    run_options(),
)


def names_of(option: str, text: str) -> list[str]:
    """Return the names in the value of an option.

    Raises:
        click.UsageError: There is none.
    """
    names = split_names(text)
    if not names:
        raise click.UsageError(f'{option} names nothing: write it as A,B,C (or "A,1",B).')
    return names
