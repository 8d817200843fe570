"""The options of every command that reads a model and its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from forward_inf_mlflow.command_line import split_names

F = TypeVar("F", bound=Callable[..., Any])

_ROWS = (
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
    click.option(
        "--max-rows",
        type=click.IntRange(min=1),
        help="Read only so many training rows, drawn at random.",
    ),
    click.option("--pixels", metavar="LOW:HIGH", help="What 0 and 255 of a picture become."),
    click.option("--resize", is_flag=True, help="Resize pictures to what the model takes."),
)
_ENGINE = (
    click.option(
        "--direction",
        type=click.Choice(["auto", "gradient", "optimizer", "replay", "curvature"]),
        default="auto",
        show_default=True,
        help="How queries move the model.",
    ),
    click.option(
        "--readout",
        type=click.Choice(["auto", "loss", "margin"]),
        default="auto",
        show_default=True,
        help="What is read of a training row.",
    ),
    click.option(
        "--weight-decay",
        type=click.FloatRange(min=0),
        help="The training objective's penalty; default: an estimator's own, else 0.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ..."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Rows read at once."),
    click.option("--compiled", is_flag=True, help="Compile the passes (torch.compile)."),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        show_default=True,
        help="Decides what is drawn at random.",
    ),
)
_RUN = (
    click.option(
        "--plan", "plan_only", is_flag=True, help="Say what would be done and what it costs."
    ),
    click.option("--work-dir", metavar="DIR", help="Folder of finished pieces, until the end."),
    click.option("--fresh", is_flag=True, help="Begin again, whatever an interrupted run left."),
    click.option(
        "--allow-pickle", is_flag=True, help="Permit models whose loading runs their code."
    ),
    click.option("--experiment", metavar="NAME", help="Experiment of the run."),
    click.option("--out", metavar="DIR", help="Folder for a copy of all artifacts."),
)


def model_options(function: F) -> F:
    """Add the options that say which rows, by which engine, and where the outcome goes."""
    for option in reversed((*_ROWS, *_ENGINE, *_RUN)):
        function = option(function)
    return function


def names_of(option: str, text: str) -> list[str]:
    """Return the names in the value of an option.

    Raises:
        click.UsageError: There is none.
    """
    names = split_names(text)
    if not names:
        raise click.UsageError(f'{option} names nothing: write it as A,B,C (or "A,1",B).')
    return names
