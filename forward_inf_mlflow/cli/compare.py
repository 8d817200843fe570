"""forward-inf compare."""

from __future__ import annotations

import click

from forward_inf_mlflow.cli.common import Console, common_options

#: Rows of each kind that are named.
_NAMED = 5
#: Metrics that say how long an audit took, not what it found.
_COSTS = ("seconds", "forward_passes", "forward_equivalents")


@click.command("compare", short_help="Say what changed from one version's audit to another's.")
@click.argument("old_uri", metavar="OLD")
@click.argument("new_uri", metavar="NEW")
@common_options
def compare_command(console: Console, old_uri: str, new_uri: str) -> int:
    """Say what changed from the newest audit of OLD to that of NEW.

    Which rows went, stayed and came among the flagged, and why; which training rows were added,
    removed and relabelled; whether the rates differ beyond chance; all metrics side by side. Logged
    to the newer audit's run. Needs neither the models nor their data.

    \b
    Example:
      forward-inf compare models:/my-model/3 models:/my-model/4
    """
    with console.progress("asking MLflow"):
        from forward_inf_mlflow.comparing import compare

        found = compare(old_uri, new_uri)
    first, *rest = found.sentences
    console.say(first, bold=True)
    for said in rest:
        console.say(f"  {said}")
    for verdict, flags in found.content["verdicts"].items():
        for word, part in (("no longer named", flags["went"]), ("newly named", flags["came"])):
            if part["ids"]:
                more = part["rows"] - len(part["ids"][:_NAMED])
                names = ", ".join(part["ids"][:_NAMED]) + (f" and {more:,} more" if more else "")
                console.say(f"  {verdict}, {word}: {names}")
    console.table(
        "metrics",
        ["", "before", "now"],
        [
            (
                one["name"],
                *("-" if one[key] is None else f"{one[key]:.4g}" for key in ("old", "new")),
            )
            for one in found.content["metrics"]
            if one["old"] != one["new"] and one["name"] not in _COSTS
        ],
    )
    console.say()
    console.say(f"  logged to run {found.run_id}: {found.artifact}", wrap=False)
    console.result(found.as_dict())
    return 0
