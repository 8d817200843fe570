"""forward-inf demo."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import click

from forward_inf_mlflow.cli.common import EXIT, Console, common_options


@click.command("demo", short_help="See the gate refuse spoiled data and pass it cleaned.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Decides the split, what is planted, and the training.",
)
@common_options
def demo_command(console: Console, seed: int) -> int:
    """Spoil a real data set, see the gate refuse it, clean it, see it pass.

    Uses the tracking server that MLflow is set to, else sqlite:///mlflow.db in this folder. Run
    again, it adds two more versions.

    \b
    Example:
      forward-inf demo
    """
    with console.progress("training") as progress:
        import mlflow

        from forward_inf_mlflow.demo import ALIAS, MODEL_NAME, tell
        from forward_inf_mlflow.mlflow_errors import redact

        if not (os.environ.get("MLFLOW_TRACKING_URI") or mlflow.is_tracking_uri_set()):
            mlflow.set_tracking_uri("sqlite:///mlflow.db")

        def say(text: str) -> None:
            progress.close()
            console.say(text)
            progress.wait("   working")

        story = tell(seed, say, progress)
    name, now = MODEL_NAME, story.promotion.now
    console.say()
    console.say("5. See it in the MLflow UI:")
    server = redact(mlflow.get_tracking_uri())
    if server.startswith("http"):
        console.say(f"   open {server} and click Models, then", wrap=False)
    else:
        words = [_mlflow(), "server", "--backend-store-uri", server, "--workers", "1"]
        console.say(f"     {shlex.join(words)}", wrap=False)
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


def _mlflow() -> str:
    """Return how to call the MLflow that this process uses, from the folder that it runs in."""
    ours = Path(sys.executable).parent / "mlflow"
    on_path = shutil.which("mlflow")
    if not ours.exists() or (on_path is not None and Path(on_path).resolve() == ours.resolve()):
        return "mlflow"
    return str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours)
