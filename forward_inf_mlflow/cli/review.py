"""forward-inf review: a person looks at some rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forward_inf_mlflow.cli.common import EXIT, Console, common_options
from forward_inf_mlflow.cli.options import seed_option

if TYPE_CHECKING:  # the help must not wait for mlflow
    from forward_inf_mlflow.cleaning import Cleaned

#: Changes that are printed.
_SHOWN = 10


_pin_option = click.option(
    "--audit-sha256",
    metavar="SHA256",
    help="Believe only an audit.json of this SHA-256, which 'forward-inf audit' says.",
)


@click.group("review", short_help="Let a person look at rows, and act on what they say.")
def review_group() -> None:
    """Let a person look at rows, and act on what they say.

    \b
    Example:
      ... write fix, drop or keep into the column "decision" of flagged.csv ...
      forward-inf review apply flagged.csv
      forward-inf review sample models:/my-model/3 -o rows.csv
      ... write wrong, right or unsure into the column "answer" ...
      forward-inf review apply rows.csv
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
@seed_option("Of the draw.")
@_pin_option
@common_options
def sample_command(
    console: Console,
    model_uri: str,
    rows: int,
    output: str,
    seed: int,
    audit_sha256: str | None,
) -> int:
    """Draw training rows of MODEL_URI's newest audit, into a csv file to fill in.

    The rows are drawn at random from all, more of them among the suspicious; the file does not say
    which those are. Where the training data can be read, a page beside the file shows each row:
    its picture, its texts or its values. Write wrong, right or unsure into "answer".

    \b
    Example:
      forward-inf review sample models:/my-model/3 -o rows.csv
    """
    with console.progress("drawing rows"):
        from forward_inf_mlflow.sampling import sample_review

        sample = sample_review(
            model_uri, output, rows=rows, seed=seed, audit_sha256=audit_sha256 or None
        )
    console.say(f"wrote {sample.rows} rows to {output}")
    if sample.page is not None:
        console.say(f"open {sample.page} in a browser: it shows them", wrap=False)
    else:
        console.say(f"look them up by their ids, since they cannot be shown: {sample.problem}")
    console.say('write wrong, right or unsure beside each into the column "answer", then')
    console.say(f"  forward-inf review apply {output}", wrap=False)
    console.result(sample.as_dict())
    return 0


@review_group.command("apply", short_help="Act on what a person wrote into a file.")
@click.argument("words", nargs=-1, required=True, metavar="[MODEL_URI] FILE")
@click.option("--by", metavar="NAME", help="Who looked at the rows.")
@click.option("--out", metavar="FILE", help="The cleaned data set; default: NAME-cleaned.EXT.")
@click.option("--train", metavar="URI", help="Where the training data are, if they were moved.")
@click.option(
    "--dry-run", is_flag=True, help="Of flagged.csv: say what would change, and write nothing."
)
@_pin_option
@common_options
def apply_command(
    console: Console,
    words: tuple[str, ...],
    by: str | None,
    out: str | None,
    train: str | None,
    dry_run: bool,
    audit_sha256: str | None,
) -> int:
    """Act on what a person wrote into FILE, which says itself which audit it is of.

    A MODEL_URI before it is only compared with that.

    An audit's flagged.csv, with fix, drop or keep in the column "decision": writes a cleaned data
    set beside the original, never over it, and logs it to MLflow. fix writes the likelier label
    (or what stands in new_label), drop takes the training row out, and keep changes nothing and is
    remembered: no audit of any version of this model names that row so again.

    The file of 'review sample', with wrong, right or unsure in "answer": counts the answers, and
    decides again whether the version may be promoted. The rate of wrong labels is then that of the
    answers, which assume nothing about the model.

    Anybody who may write to the server could have changed what it holds of the audit: to be sure,
    give what 'forward-inf audit' said of it with --audit-sha256, as 'forward-inf sign' does.

    \b
    Example:
      forward-inf review apply flagged.csv --dry-run
      forward-inf review apply rows.csv --by "A. Owner"
    """
    if len(words) > 2:
        raise click.UsageError(f"name one file, not {len(words)} things.")
    file = Path(words[-1])
    with console.progress("reading decisions"):
        from forward_inf_mlflow.decisions import read_filled

        table = read_filled(file)
        if len(words) == 2:
            _require_of(words[0], table, file)
    if "answer" in table.columns and "decision" not in table.columns:
        if out or train or dry_run:
            raise click.UsageError(
                "--out, --train and --dry-run are for flagged.csv, not for the answers to a sample."
            )
        return _count(console, file, by or None, audit_sha256 or None)
    with console.progress("cleaning the data"):
        from forward_inf_mlflow.cleaning import apply_decisions

        result = apply_decisions(
            file,
            out=out or None,
            train=train or None,
            by=by or None,
            dry_run=dry_run,
            audit_sha256=audit_sha256 or None,
        )
    _say_cleaned(console, result)
    console.result(result.as_dict())
    return 0


def _require_of(model_uri: str, table: Any, file: Path) -> None:
    """Refuse a file of another version than the one that is named."""
    from forward_inf_mlflow.errors import TrackingError
    from forward_inf_mlflow.found_audit import audit_of_file
    from forward_inf_mlflow.registry import resolve

    named, (version, _) = resolve(model_uri), audit_of_file(table, file)
    if named != version:
        raise TrackingError(
            f"{file} belongs to another audit, that of {version.uri}: leave {model_uri} out"
        )


def _count(console: Console, file: Path, by: str | None, audit_sha256: str | None) -> int:
    """Count the answers to a sample, and say what they say."""
    with console.progress("counting answers"):
        from forward_inf_mlflow.reviewing import apply_review

        result = apply_review(file, by=by, audit_sha256=audit_sha256)
    console.verdict(result.decision.outcome, result.decision.reasons, result.version.uri)
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
    console.say(
        "  these assume nothing; the decision keeps the audit's own upper end where that is "
        "narrower and the answers do not contradict it"
    )
    console.say("  more rows tell more: forward-inf review sample -n 200")
    digest = result.audit_sha256
    console.say(f"  audit run {result.run_id}", wrap=False)
    console.say(f"  audit sha256 {digest}", wrap=False)
    console.result(result.as_dict())
    return EXIT[result.decision.outcome]


def _say_cleaned(console: Console, result: Cleaned) -> None:
    """Say what changed, or would, and what to do next."""
    dry, uri = result.run_id is None, result.version.uri
    would = "would be " if dry else ""
    verb = "would write" if dry else "wrote"
    if result.file is not None:
        console.say(
            f"{verb} {result.file}: {result.after:,} of {result.before:,} rows, "
            f"{result.fixed:,} labels fixed, {result.dropped:,} rows dropped",
            wrap=False,
        )
    if result.kept:
        console.say(
            f"{result.kept:,} verdict{'s' if result.kept > 1 else ''} {would}kept: no audit of "
            f"{result.version.name} will give them again (policy: kept)"
        )
    shown = result.changes[:_SHOWN]
    console.table(
        "what would change" if dry else "what changed",
        ["row", "decision", "label", "becomes"],
        [(c["row_id"], c["decision"], c["before"], c["after"] or "-") for c in shown],
    )
    if len(result.changes) > len(shown):
        console.say(f"    and {len(result.changes) - len(shown):,} more")
    console.say()
    if dry:
        console.say("  nothing was written: leave --dry-run out to do it")
        return
    console.say(f"  review run {result.run_id}")
    if result.file is None:
        console.say(f"  next: forward-inf audit {uri}", wrap=False)
    else:
        console.say(
            f"  next: train on {result.file}, log it with log_training_data, register the new "
            "version,"
        )
        console.say(f"  then  forward-inf audit models:/{result.version.name}/NEW", wrap=False)
