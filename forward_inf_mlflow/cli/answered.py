"""What commands print that ask a version something: how it was answered, where the page is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from forward_inf_mlflow.cli.common import Console

if TYPE_CHECKING:  # the help must not wait for torch
    from forward_inf_mlflow.asked_run import Answer

#: Characters of a text that are printed.
_TEXT = 80


def say_planned(
    console: Console, planned: Mapping[str, Any], row: str, read: str, asked: str | None = None
) -> None:
    """Print what would be done, and that as JSON.

    Args:
        console: Where.
        planned: From a function such as `plan_trace`.
        row: What passes are counted in.
        read: What is read.
        asked: A sentence about the question.
    """
    plan = planned["plan"]
    costs = plan["forward_equivalents"]
    console.say(f"plan  {planned['model']}", bold=True)
    console.say(f"  direction: {plan['direction']}, readout: {plan['readout']}")
    console.say(f"  {plan['why']}")
    if asked is not None:
        console.say(f"  {asked}")
    console.say(
        f"  about {costs['total']:,} forward passes of one {row}: {costs['direction']:,} to move "
        f"the model, {costs['sweep']:,} to read {read}"
    )
    console.result(dict(planned))


def say_notes(console: Console, record: Mapping[str, Any]) -> None:
    """Print what a reader must know of model and rows."""
    console.say()
    for note in record["notes"]:
        console.say(f"  note: {note}")


def say_how(
    console: Console, record: Mapping[str, Any], part: str, rows: str, more: Iterable[str] = ()
) -> None:
    """Print notes, the plan and what it cost.

    Args:
        console: Where.
        record: Of the answer.
        part: Where it says how it was computed.
        rows: What was read.
        more: Sentences about how good that is.
    """
    how, costs = record[part], record["costs"]
    say_notes(console, record)
    console.say(f"  plan: {how['why']}" + (f"; {how['read_why']}" if how["read_why"] else ""))
    for sentence in more:
        console.say(f"  {sentence}")
    if record["resumed_pieces"]:
        console.say(
            "  went on where an interrupted run stopped "
            f"({record['resumed_pieces']:,} pieces were found)"
        )
    console.say(
        f"  {costs['rows']:,} {rows}: {costs['forward_passes']:,} forward passes beside those that "
        f"move the model; {costs['seconds']:.0f} s in all"
    )


def say_page(console: Console, answer: Answer, out: str | None) -> None:
    """Print where the page is."""
    import mlflow

    from forward_inf_mlflow.mlflow_errors import redact

    server = redact(mlflow.get_tracking_uri()).rstrip("/")
    where = (
        f"{out}/{PurePosixPath(answer.artifact).name}"
        if out
        else f"mlflow artifacts download -r {answer.run_id} -a {answer.artifact} -d ."
    )
    page = f"{server}/{answer.page}" if server.startswith("http") else answer.page
    console.say(f"  page:   {where}", wrap=False)
    console.say(f"  in UI:  {page}", wrap=False)


def shortened(text: str) -> str:
    """Return a text, or as much of it as fits into a table."""
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
