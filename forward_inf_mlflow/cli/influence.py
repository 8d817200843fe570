"""forward-inf influence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from forward_inf_mlflow.cli.answered import say_how, say_page, say_planned
from forward_inf_mlflow.cli.common import Console, common_options
from forward_inf_mlflow.cli.options import model_options, names_of

#: Queries whose rows are printed.
_ANSWERS = 10
#: Sources that are printed of a query, the largest sums first and last.
_SOURCES = 10
#: What is read of training rows, in the plural.
_READ = {"loss": "losses", "margin": "margins"}
#: What only matters where something is logged.
_LOGGING = ("top", "work_dir", "fresh", "experiment", "out")


@click.command("influence", short_help="Say which training rows made the model say this.")
@click.argument("model_uri")
@click.option(
    "--query-rows", metavar="ID,ID,...|all", required=True, help="Query rows to ask about."
)
@click.option("--together", is_flag=True, help="Ask about the rows together, not one by one.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Proponents and opponents of each query.",
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    help="Sweep each query over so many rows of each kind that the last layer points to.",
)
@model_options
@common_options
def influence_command(
    console: Console,
    model_uri: str,
    query_rows: str,
    id_column: str | None,
    features: str | None,
    plan_only: bool,
    **options: Any,
) -> int:
    """Say which training rows speak for and against what MODEL_URI says of some query rows.

    Moves the model on each query row and reads every training row with forward passes. The rows,
    the sums by source and a page with pictures are logged to MLflow.

    \b
    Example:
      forward-inf influence models:/my-model/3 --query-rows 3,17
      forward-inf influence models:/my-model/3 --query-rows 3 --group-by source
    """
    asked = {name: value for name, value in options.items() if value not in (None, "")}
    asked |= {"query_rows": names_of("--query-rows", query_rows), "id": id_column or None}
    asked |= {"features": names_of("--features", features) if features else None}
    if plan_only:
        return _plan(console, model_uri, asked)
    with console.progress("reading the model and its rows") as progress:
        from forward_inf_mlflow.explaining import explain

        result = explain(model_uri, progress=progress, **asked)
    answers = result.record["answers"]
    for answer in answers[:_ANSWERS]:
        _say_answer(console, answer, result.record)
    if len(answers) > _ANSWERS:
        console.say()
        console.say(f"and {len(answers) - _ANSWERS:,} more queries, see influence.parquet")
    how = result.record["influence"]
    read = f"training rows read by {how['read_by']} of {_READ[how['readout']]}"
    say_how(console, result.record, "influence", read, _how_good(how))
    say_page(console, result, asked.get("out"))
    console.result(result.as_dict())
    return 0


def _plan(console: Console, model_uri: str, asked: dict[str, Any]) -> int:
    """Print what would be done; nothing is run or logged."""
    with console.progress("reading the model and its rows"):
        from forward_inf_mlflow.explaining import plan_explanation

        planned = plan_explanation(
            model_uri, **{name: value for name, value in asked.items() if name not in _LOGGING}
        )
    rows = f"{planned['rows']:,} training rows, {planned['queries']:,} query row(s) to ask about"
    say_planned(console, planned, "row", "the rows", rows)
    return 0


def _say_answer(console: Console, answer: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Print what the model says of a query, and who made it say so."""
    console.say()
    queries = answer["queries"]
    if len(queries) > 1:
        console.say(f"{answer['query_id']}", bold=True)
    for query in queries[:_ANSWERS]:
        console.say(f"{query['id']}: {_said(query)}", bold=len(queries) == 1)
    if len(queries) > _ANSWERS:
        console.say(f"and {len(queries) - _ANSWERS:,} more query rows")
    for kind in ("proponents", "opponents"):
        sources = answer["sources"] is not None
        console.table(
            f"{kind}, influence in {record['unit']} per {record['per']}",
            ["row", "label", "influence", *(["source"] if sources else [])],
            [
                (
                    row["id"],
                    _short(row["label"]),
                    f"{row['influence']:+.3g}",
                    *([row["source"]] * sources),
                )
                for row in answer[kind]
            ],
        )
        if not answer[kind]:
            console.say(f"  no {kind}")
    _say_sources(console, answer["sources"] or [])


def _said(query: Mapping[str, Any]) -> str:
    if "probability" not in query:
        return f"target {_short(query['label'])}, the model says {_short(query['answer'])}"
    said = f"{query['answer']} ({query['probability']:.1%})"
    text = f"label {_short(query['label'])}, the model says {said}"
    if not query["right"]:
        text += f"; its label gets {query['label_probability']:.1%}: look at the opponents first"
    return text


def _short(label: object) -> object:
    return f"{label:.6g}" if isinstance(label, float) else label


def _say_sources(console: Console, sources: Sequence[Mapping[str, Any]]) -> None:
    shown = sources
    if len(sources) > _SOURCES:
        shown = [*sources[: _SOURCES // 2], *sources[-_SOURCES // 2 :]]
    console.table(
        "sources, sums over their rows with 95 % intervals",
        ["source", "rows", "influence", "from", "to"],
        [
            (s["source"], f"{s['rows']:,}", *(f"{s[n]:+.3g}" for n in ("influence", "low", "high")))
            for s in shown
        ],
    )
    if len(sources) > len(shown):
        console.say(f"    and {len(sources) - len(shown):,} between them, see sources.parquet")


def _how_good(how: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known of how reliable and how complete the answer is."""
    if math.isfinite(how.get("reliability", math.nan)):
        drawn = f"{how['seeds']} seeds" if "seeds" in how else "two halves of what was drawn"
        yield f"reliability, from {drawn}: {how['reliability']:.2f} of 1"
    if "held" in how:
        yield f"the {how['rank']:,} shared moves hold {how['held']:.0%} of what the queries ask"
    if "recall" in how:
        yield (
            f"candidates: {how['candidates']:,} of each kind a query hold {how['recall']:.0%} of "
            f"the top rows (measured on {how['recall_queries']} queries)"
        )
