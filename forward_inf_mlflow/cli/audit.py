"""forward-inf audit."""

from __future__ import annotations

from typing import Any

import click

from forward_inf_mlflow.cli.common import EXIT, Console, common_options, policy_option


@click.command("audit")
@click.argument("model_uri")
@click.option("--train", metavar="URI", help="Training rows; default: the version's logged data.")
@click.option("--queries", metavar="URI", help="Query (test) rows with trusted labels; as above.")
@click.option("--label", metavar="COLUMN", help="Column of the label.")
@click.option("--id", "id_column", metavar="COLUMN", help="Column of the row ids.")
@click.option("--features", metavar="A,B,...", help="Columns the model reads; default: the rest.")
@click.option("--group-by", metavar="COLUMN", help="Column that says where a row came from.")
@click.option(
    "--task",
    type=click.Choice(["auto", "classification", "regression"]),
    default="auto",
    show_default=True,
)
@policy_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--batch-size", type=int, help="Rows read at once; default: chosen.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--max-rows", type=int, help="Audit only so many training rows (marked partial).")
@click.option("--allow-pickle", is_flag=True, help="Permit models whose loading runs their code.")
@click.option("--experiment", metavar="NAME", help="Experiment of the audit run.")
@click.option("--out", metavar="DIR", help="Folder for a copy of all artifacts.")
@common_options
def audit_command(
    console: Console, model_uri: str, id_column: str | None, features: str | None, **options: Any
) -> int:
    """Audit MODEL_URI (models:/name/3 or models:/name@alias) and decide.

    Loads the version, moves it on the query rows, sweeps its training rows with forward passes,
    and names mislabeled, leaked and memorized rows. Everything is logged to MLflow.

    \b
    Example:
      forward-inf audit models:/my-model/3
      forward-inf audit models:/my-model@candidate --train rows.csv --queries test.csv --label y
    """
    from forward_inf_mlflow.auditing import audit

    names = [name.strip() for name in features.split(",") if name.strip()] if features else None
    with console.progress() as progress:
        result = audit(
            model_uri, id=id_column, features=names, progress=progress, **_given(options)
        )
    console.verdict(result.decision.outcome, list(result.decision.reasons), result.version.uri)
    measures = result.record["measures"]
    console.say()
    for name, word in (
        ("mislabeled", "mislabeled training rows"),
        ("leaked", "leaked query rows"),
        ("memorized", "memorized training rows"),
    ):
        measure = measures[name]
        if measure["abstained"]:
            console.say(f"  {word}: no verdict, because {measure['abstained']}")
        else:
            console.say(
                f"  {word}: {measure['count']:,} of {measure['total']:,} ({measure['rate']:.1%})"
            )
    _worst(console, result.flagged)
    for source in result.record["sources"] or []:
        console.say(
            f"  source {source['source']}: {source['mislabeled_rate']:.1%} of {source['rows']:,} "
            f"rows mislabeled ({source['mislabeled_low']:.1%} to {source['mislabeled_high']:.1%})"
        )
    for note in result.record["notes"]:
        console.say(f"  note: {note}")
    costs = result.record["costs"]
    console.say()
    console.say(
        f"  {costs['rows']:,} training rows, {costs['queries']:,} query rows, "
        f"{costs['forward_passes']:,} forward passes, {costs['seconds']:.0f} s"
    )
    console.say(f"  report: {result.report} (run {result.run_id})")
    console.result(result.as_dict())
    return EXIT[result.decision.outcome]


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Drop options that are empty: ``mlflow run`` hands on ``''`` for what nobody set."""
    return {name: value for name, value in options.items() if value not in (None, "")}


def _worst(console: Console, flagged: Any) -> None:
    """Print the first few rows of each verdict that counts against a version."""
    for verdict in ("mislabeled", "leaked"):
        rows = flagged[flagged["verdict"] == verdict]
        if len(rows):
            console.say()
            console.say(f"  {verdict}, the surest first:")
        for row in rows.head(5).itertuples():
            if verdict == "mislabeled":
                what = f"{row.row_id}: labeled {row.given_label}, likelier {row.likelier_label}"
            else:
                what = f"query {row.query_id} is training row {row.row_id} ({row.kind})"
            console.say(f"    {what}; {row.evidence}")
        if len(rows) > 5:
            console.say(f"    and {len(rows) - 5:,} more in flagged.csv")
    console.say()
