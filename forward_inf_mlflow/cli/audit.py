"""forward-inf audit."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from forward_inf_mlflow.cli.common import EXIT, Console, common_options, policy_option
from forward_inf_mlflow.cli.options import model_options, names_of

if TYPE_CHECKING:  # the help must not wait for torch
    from forward_inf_mlflow.auditing import AuditResult

#: Rows of each verdict that are printed: verdict, reasons and rows fit on one screen.
_WORST = 3
#: Sources that are printed, the worst first.
_SOURCES = 10
#: How a rate may differ from the previous version's.
_BEYOND = ("higher", "lower")
#: What the verdict's own note says where the half-models could not start afresh.
_REMEMBERS = "may still remember wrong labels"


@click.command("audit", short_help="Audit a model version and decide.")
@click.argument("model_uri")
@policy_option
@click.option(
    "--effort",
    type=click.Choice(["quick", "standard", "thorough"]),
    default="standard",
    show_default=True,
    help="quick trains no half-models, thorough eight pairs.",
)
@click.option(
    "--fdr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Largest share of innocent rows among the certainly mislabeled.",
)
@click.option(
    "--trainer",
    metavar="MODULE:FUNCTION",
    help="Your own training code: train(x, y, seed) -> model. Runs it.",
)
@click.option(
    "--influence-queries",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Queries to ask about one by one, a sweep each.",
)
@click.option(
    "--class-weight",
    metavar="balanced|1,5,...",
    help="How a module's training loss weighed its classes.",
)
@click.option(
    "--output",
    "chosen_output",
    metavar="NAME",
    help="Which output is meant of a module that returns several: key or position.",
)
@click.option(
    "--schedule",
    metavar="NAME|FILE",
    help="A diffusion model's: cosine, linear, or a JSON file; default: what the version says.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of a named schedule.")
@model_options
@common_options
def audit_command(
    console: Console,
    model_uri: str,
    id_column: str | None,
    features: str | None,
    plan_only: bool,
    **options: Any,
) -> int:
    """Audit MODEL_URI (models:/name/3 or models:/name@alias) and decide.

    Loads the version, moves it on the query rows, sweeps its training rows with forward passes,
    and names mislabeled, leaked and memorized rows. Everything is logged to MLflow.

    \b
    Example:
      forward-inf audit models:/my-model/3
      forward-inf audit models:/my-model@candidate \\
        --train rows.csv --queries test.csv --label y
    """
    names = names_of("--features", features) if features else None
    if plan_only:
        return _plan(console, model_uri, id=id_column, features=names, **_given(options))
    with console.progress("reading the model and its rows") as progress:
        from forward_inf_mlflow.auditing import audit

        result = audit(
            model_uri,
            id=id_column,
            features=names,
            progress=progress,
            on_plan=lambda planned: progress.say(
                f"plan: {planned['why']}; about "
                f"{planned['forward_equivalents']['total']:,} forward passes of one row in all"
                f"{_trainings(planned, options)}",
                always=bool(options.get("trainer")),  # which may take hours
            ),
            **_given(options),
        )
    console.verdict(result.decision.outcome, result.decision.reasons, result.version.uri)
    _say_where(console, result)
    _say_rows(console, result)
    _say_rest(console, result.record)
    if result.warning:
        console.say(f"  warning: {result.warning}")
    console.result(result.as_dict())
    return EXIT[result.decision.outcome]


def _plan(console: Console, model_uri: str, **options: Any) -> int:
    """Print what an audit would do; nothing is logged."""
    with console.progress("reading the model and its rows"):
        from forward_inf_mlflow.planning import plan_audit

        logging = ("policy", "out", "experiment", "work_dir", "fresh")
        asked = {name: value for name, value in options.items() if name not in logging}
        planned = plan_audit(model_uri, **asked)
    console.say(f"plan  {planned['model']}", bold=True)
    console.say(f"  {planned['why']}")
    console.say(f"  readout: {planned['readout']}, task: {planned['task']}")
    console.say(f"  {planned['rows']:,} training rows, {planned['queries']:,} query rows")
    costs = planned["forward_equivalents"]
    console.say(
        f"  about {costs['total']:,} forward passes of one row: {costs['direction']:,} to move the "
        f"model, {costs['sweep']:,} to read the rows, {costs['answers']:,} to read the moved "
        f"model's answers, {costs['halves']:,} to train and read "
        "half-models"
    )
    if told := _trainings(planned, options):
        console.say(f"  {told.removeprefix(', ')}")
    console.result(planned)
    return 0


def _trainings(planned: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return what a plan's trainings are, one clause; "" for none."""
    if not planned["trainings"]:
        return ""
    whose = "trainings by your trainer" if options.get("trainer") else "fits of the estimator"
    said = f", and up to {planned['trainings']} {whose}, on half of the rows and more"
    seconds = planned["training_seconds"]
    return (
        said if seconds is None else f"{said}: about {_duration(seconds)} by a fit that was timed"
    )


def _duration(seconds: float) -> str:
    """Return a time in the unit that fits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1g} s"


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Drop options that are empty: ``mlflow run`` hands on ``''`` for what nobody set."""
    return {name: value for name, value in options.items() if value not in (None, "")}


def _say_where(console: Console, result: AuditResult) -> None:
    """Say how to open the report, and how to go on."""
    import mlflow

    from forward_inf_mlflow.mlflow_errors import redact

    uri, server = result.version.uri, redact(mlflow.get_tracking_uri()).rstrip("/")
    page = f"{server}/{result.report}" if server.startswith("http") else result.report
    console.say()
    console.say(f"  report:   forward-inf report {uri} -o report.html", wrap=False)
    console.say(f"  or in UI: {page}", wrap=False)
    digest = result.audit_sha256
    console.say(f"  audit run {result.run_id}", wrap=False)
    console.say(f"  audit sha256 {digest}", wrap=False)
    if result.decision.allowed:
        sign = f"forward-inf sign {uri} --key KEY --audit-sha256 {digest}"
        console.say(f"  sign:     {sign}  (a server with a gate wants this first)", wrap=False)
        console.say(f"  promote:  forward-inf promote {uri} --alias champion", wrap=False)


def _say_rows(console: Console, result: AuditResult) -> None:
    """Print the first rows of each verdict that counts against a version."""
    wrong, leaks = (
        result.flagged[result.flagged["verdict"] == verdict] for verdict in ("mislabeled", "leaked")
    )
    sources = result.record["sources"] is not None
    console.table(
        f"mislabeled, {_surest(len(wrong))}",
        ["row", "labeled", "likelier", *(["source"] if sources else [])],
        [
            (
                row.row_id,
                _label(row.given_label),
                _label(row.likelier_label),
                *([row.source] if sources else []),
            )
            for row in wrong.head(_WORST).itertuples()
        ],
    )
    console.table(
        f"leaked, {_surest(len(leaks))}",
        ["query row", "training row", "how", "evidence"],
        [
            (row.query_id, row.row_id, row.kind, row.evidence)
            for row in leaks.head(_WORST).itertuples()
        ],
    )


def _label(value: object) -> object:
    """Return a class as it is, and a target in four digits."""
    number = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    return f"{value:.4g}" if number else value


def _say_since(console: Console, since: Any) -> None:
    """Say in a line or two what changed since the previous version, if anything is known of it."""
    if not since or since.get("problem"):
        return
    rows = since["rows"]
    console.say()
    console.say(
        f"  since version {since['old']['version']}: {rows['same']:,} training rows are the same, "
        f"{rows['relabelled']:,} relabelled, {rows['removed']:,} went, {rows['added']:,} came; "
        + ", ".join(
            f"{name} {found['went']['rows']:,} flags went and {found['came']['rows']:,} came"
            + (
                f" ({differs} beyond chance)"
                if (differs := found["rate"]["differs"]) in _BEYOND
                else ""
            )
            for name, found in since["verdicts"].items()
        )
    )


def _surest(count: int) -> str:
    return f"the surest {_WORST} of {count:,}" if count > _WORST else "the surest first"


def _say_rest(console: Console, record: Any) -> None:
    """Print all measures, the sources, notes and costs."""
    from forward_inf_mlflow.detect.sources import sentence

    measures = []
    for name, rows in (("mislabeled", "training"), ("leaked", "query"), ("memorized", "training")):
        measure = record["measures"][name]
        if not measure["applies"]:
            measures.append((name, f"does not apply, because {measure['abstained']}"))
        elif measure["abstained"]:
            measures.append((name, f"no verdict, because {measure['abstained']}"))
        else:
            low, high = measure["rate_low"], measure["rate_high"]
            doubt = f" ({low:.1%} to {high:.1%})" if low < high else ""
            sure = measure["certain"]
            certain = "" if sure is None else f", {sure:,} of them certain"
            measures.append(
                (
                    name,
                    f"about {measure['rate']:.1%} of {measure['total']:,} {rows} rows{doubt}; "
                    f"{measure['count']:,} named{certain}",
                )
            )
    console.say()
    for name, found in measures:
        console.say(f"  {name:<11} {found}")
    for part in ("leak_worth", "duplicates", "membership", "receipt"):
        said = (record[part] or {}).get("sentence")
        if said and said not in record["decision"]["reasons"]:
            console.say(f"  {said}")
    if record["sources"]:
        console.say()
        console.say("  sources, with 95 % intervals", bold=True)
    sources = record["sources"] or []
    for source in sources[:_SOURCES]:
        console.say(f"    {sentence(source)}")
    if len(sources) > _SOURCES:
        console.say(f"    and {len(sources) - _SOURCES:,} more, see the report")
    _say_since(console, record["since"])
    costs, how = record["costs"], record["influence"]
    console.say()
    fits = record["measures"]["mislabeled"]["note"]
    for note in (*record["notes"], *([f"mislabeled: {fits}"] if _REMEMBERS in fits else [])):
        console.say(f"  note: {note}")
    console.say(f"  influence: {how['why']}" + (f"; {how['read_why']}" if how["read_why"] else ""))
    if record["resumed_pieces"]:
        console.say(
            f"  went on where an interrupted audit stopped ({record['resumed_pieces']:,} pieces "
            "were found)"
        )
    if record["reused"]:
        console.say(f"  {record['reused']['sentence']}")
    console.say(
        f"  {costs['rows']:,} training rows, {costs['queries']:,} query rows, "
        f"{costs['forward_passes']:,} forward passes of one row to read them (planned were about "
        f"{costs['forward_equivalents']:,}, with what moves and trains models), "
        f"{costs['seconds']:.0f} s"
    )
