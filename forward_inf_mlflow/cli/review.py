"""forward-inf review: a person looks at some rows."""

from __future__ import annotations

import click

from forward_inf_mlflow.cli.common import EXIT, Console, common_options


@click.group("review", short_help="Let a person look at some rows, and count what they say.")
def review_group() -> None:
    """Let a person look at some rows, and count what they say.

    \b
    Example:
      forward-inf review sample models:/my-model/3 -o rows.csv
      ... write wrong, right or unsure into the column "answer" ...
      forward-inf review apply models:/my-model/3 rows.csv
    """


@review_group.command("sample", short_help="Draw rows to look at.")
@click.argument("model_uri")
@click.option(
    "-n",
    "--rows",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="How many rows.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False), help="File to write."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the draw."
)
@common_options
def sample_command(console: Console, model_uri: str, rows: int, output: str, seed: int) -> int:
    """Draw training rows of MODEL_URI's newest audit, into a csv file to fill in.

    The rows are drawn at random from all, more of them among the suspicious; the file does not say
    which those are. Look each of them up, and write wrong, right or unsure into "answer".

    \b
    Example:
      forward-inf review sample models:/my-model/3 -o rows.csv
    """
    with console.progress("drawing rows"):
        from forward_inf_mlflow.reviewing import sample_review

        count = sample_review(model_uri, output, rows=rows, seed=seed)
    console.say(f"wrote {count} rows to {output}")
    console.say('write wrong, right or unsure into the column "answer", then')
    console.say(f"  forward-inf review apply {model_uri} {output}", wrap=False)
    console.result({"model": model_uri, "file": output, "rows": count})
    return 0


@review_group.command("apply", short_help="Count the answers and decide again.")
@click.argument("model_uri")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--by", metavar="NAME", help="Who looked at the rows.")
@common_options
def apply_command(console: Console, model_uri: str, file: str, by: str | None) -> int:
    """Count the answers in FILE, and decide again whether MODEL_URI may be promoted.

    The rate of wrong labels and its interval are then those of the answers, which assume nothing
    about the model. The audit is logged anew with them.

    \b
    Example:
      forward-inf review apply models:/my-model/3 rows.csv
    """
    with console.progress("counting answers"):
        from forward_inf_mlflow.reviewing import apply_review

        result = apply_review(model_uri, file, by=by or None)
    console.verdict(result.decision.outcome, result.decision.reasons, result.version.uri)
    console.say()
    verified = result.verified
    console.table(
        "what was seen",
        ["rows", "looked at", "wrong"],
        [(name, f"{verified.looked[name]}", f"{verified.wrong[name]}") for name in verified.looked],
    )
    for what, share in (("of all rows", verified.rate), ("of the named rows", verified.precision)):
        if share is not None:
            console.say(
                f"  wrong labels {what}: about {share.estimate:.1%} "
                f"({share.low:.1%} to {share.high:.1%})"
            )
    console.say(f"  audit run {result.run_id}")
    console.result(result.as_dict())
    return EXIT[result.decision.outcome]
