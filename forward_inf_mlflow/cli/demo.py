"""forward-inf demo."""

from __future__ import annotations

import click

from forward_inf_mlflow.cli.common import EXIT, Console, common_options


@click.command("demo")
@click.option("--seed", type=int, default=0, show_default=True)
@common_options
def demo_command(console: Console, seed: int) -> int:
    """Spoil a real data set, see the gate refuse it, clean it, see it pass.

    Uses the tracking server that MLflow is set to, else sqlite:///mlflow.db in this folder. Run
    again, it adds two more versions.

    \b
    Example:
      forward-inf demo
    """
    import os

    import mlflow

    from forward_inf_mlflow.demo import ALIAS, MODEL_NAME, tell

    if not (os.environ.get("MLFLOW_TRACKING_URI") or mlflow.is_tracking_uri_set()):
        mlflow.set_tracking_uri("sqlite:///mlflow.db")
    with console.progress() as progress:
        story = tell(seed, console.say, progress)
    name, now = MODEL_NAME, story.promotion.now
    console.say()
    console.say("5. See it in the MLflow UI:")
    console.say(f"     mlflow server --backend-store-uri {mlflow.get_tracking_uri()} --workers 1")
    console.say("   then open http://127.0.0.1:5000 and click Models, then")
    console.say(f"     {name}: alias '{ALIAS}' stands at version {now}, tag fi.gate says why")
    console.say(
        f"     version {story.spoiled.version.version}: its description links to the report"
    )
    console.result(
        {
            "spoiled": story.spoiled.as_dict(),
            "cleaned": story.cleaned.as_dict(),
            "found": vars(story.found),
            "promoted": story.promotion.now if story.promotion.gate.decision.allowed else None,
        }
    )
    refused = story.spoiled.decision.outcome == "fail"
    return EXIT[story.promotion.gate.decision.outcome] if refused else 2
