"""The demo's story over several seeds: how much of what was planted is found, and at what price.

Each seed splits the digits anew, flips and plants anew, trains anew; the audits go through a real
MLflow store. The same split unspoiled is audited too: it must pass every time. So is the story's
second version, whose rows are those that the first audit did not accuse. Rates stand beside the
default policy's bounds: the first version's lower bound, the second's estimate, in multiples of the
bound.

    python benchmarks/demo_seeds.py [--seeds 10] [--first 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import numpy as np

from forward_inf_mlflow import AuditResult, audit
from forward_inf_mlflow.cli.common import hush
from forward_inf_mlflow.demo import TRAINER, compare, digits, register

SHARES = ("flips", "exact", "shifted", "accused_clean")


def one_seed(seed: int) -> dict[str, float | str]:
    """Audit one seed's spoiled and one unspoiled version."""
    data = digits(seed)
    spoiled = audit(register(data, seed)[0], seed=seed, trainer=TRAINER)
    clean_data = digits(seed, spoiled=False)
    clean = audit(register(clean_data, seed)[0], seed=seed)
    bad = spoiled.scores["mislabeled"].to_numpy() | spoiled.scores["leaked"].to_numpy()
    second = audit(register(data.without(bad), seed)[0], seed=seed)
    bounds = {"mislabeled": "max_mislabeled_rate", "leaked": "max_leakage_rate"}

    def multiples(result: AuditResult, end: str) -> dict[str, float]:
        measures = result.record["measures"]
        policy = result.record["policy"]
        return {name: measures[name][end] / policy[key] for name, key in bounds.items()}

    before, after = multiples(spoiled, "rate_low"), multiples(second, "rate")
    return {
        **vars(compare(spoiled, data)),
        **{f"first, {name}": value for name, value in before.items()},
        **{f"second, {name}": value for name, value in after.items()},
        "second": second.decision.outcome,
        "spoiled": spoiled.decision.outcome,
        "unspoiled": clean.decision.outcome,
        "unspoiled_accused": compare(clean, clean_data).accused_clean,
        "seconds": spoiled.record["costs"]["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    hush()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("seeds", artifact_location=f"{folder}/artifacts")
        mlflow.set_experiment("seeds")
        print(f"{'seed':>5} {'flips':>6} {'exact':>6} {'shift':>6} {'accused':>8} {'spoiled':>9}"
              f" {'unspoiled':>10} {'accused':>8} {'second':>9} {'first/bound':>12}"
              f" {'second/bound':>13} {'seconds':>8}")  # fmt: skip
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            row = one_seed(seed)
            rows.append(row)
            print(
                f"{seed:5} {row['flips']:6.1%} {row['exact']:6.0%} {row['shifted']:6.0%} "
                f"{row['accused_clean']:8.2%} {row['spoiled']:>9} {row['unspoiled']:>10} "
                f"{row['unspoiled_accused']:8.2%} {row['second']:>9} "
                f"{row['first, mislabeled']:6.1f}{row['first, leaked']:6.1f} "
                f"{row['second, mislabeled']:7.2f}{row['second, leaked']:6.2f} "
                f"{row['seconds']:8.1f}",
                flush=True,
            )
    mean = {name: float(np.mean([row[name] for row in rows])) for name in SHARES}
    print(
        f" mean {mean['flips']:6.1%} {mean['exact']:6.0%} {mean['shifted']:6.0%} "
        f"{mean['accused_clean']:8.2%}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"mean": mean, "seeds": rows}, indent=1))


if __name__ == "__main__":
    main()
