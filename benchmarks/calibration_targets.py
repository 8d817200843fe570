"""Gross errors of regression targets over hundreds of cheap draws: found, beside residuals, and are
promised error rates kept?

A draw takes rows of a data set at random, spoils some targets, trains small half-models as an audit
would, and judges. Errors: targets ten spreads off (far), multiplied by ten (unit), or other rows'
(swapped: those are targets like any other, and mostly cannot be seen). Beside ours: the audited
model's own residual, and that from the mean of the 15 nearest other rows, as average precision.

    OMP_NUM_THREADS=1 python benchmarks/calibration_targets.py [--draws 20] [--jobs 1] [--json FILE]

A draw takes about a second of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from measure import line, machine, write
from sklearn.datasets import load_breast_cancer, load_diabetes, make_friedman1
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from forward_inf_mlflow.detect.gross_errors import half_models, mislabeled_targets, near_medians
from forward_inf_mlflow.detect.neighbours import row_keys
from forward_inf_mlflow.halves import read_halves
from forward_inf_mlflow.trainers import Refitted

QUERIES, REPEATS, NEIGHBOURS = 140, 3, 15
MODELS: dict[str, Callable[[], Any]] = {
    "linear regression": LinearRegression,
    "random forest": lambda: RandomForestRegressor(30, random_state=0),
}
ERRORS = (("none", 0.0), ("far", 0.05), ("far", 0.2), ("unit", 0.05), ("swapped", 0.1))
SOURCES = ("diabetes", "tumours", "friedman")


def source(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and targets: disease after a year, a tumour's area, or Friedman's function."""
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
    elif name == "tumours":
        x, _ = load_breast_cancer(return_X_y=True)
        # Its area from what is neither its size nor derived from it.
        y, x = x[:, 3], np.delete(x, [0, 2, 3, 10, 12, 13, 20, 22, 23], axis=1)
    else:
        x, y = make_friedman1(600, random_state=seed)
    return StandardScaler().fit_transform(x), np.asarray(y, dtype=np.float64)


def draw(name: str, model: str, kind: str, share: float, seed: int) -> dict[str, float]:
    """Judge one draw; every figure is a share."""
    rng = np.random.default_rng([seed, 23])
    x, y = source(name, seed)
    order = rng.permutation(len(x))
    asked, rows = order[:QUERIES], order[QUERIES:]
    given, wrong = y[rows].copy(), np.zeros(len(rows), dtype=bool)
    wrong[rng.choice(len(rows), round(share * len(rows)), replace=False)] = True
    count = int(wrong.sum())
    if kind == "far":
        given[wrong] += 10 * y.std() * rng.choice([-1, 1], count)
    elif kind == "unit":
        given[wrong] *= 10
    elif kind == "swapped":
        given[wrong] = rng.choice(y, count)
    groups = row_keys(x[rows])
    fit = Refitted(MODELS[model](), x[rows], given, x[asked], None)
    held_out = read_halves(fit, given, repeats=REPEATS, seed=seed, groups=groups)
    near = near_medians(*(x[part].astype(np.float32) for part in (rows, asked)), given, groups)
    predictors = [half_models(held_out), *([] if near is None else [near])]
    found = mislabeled_targets(predictors, given, y[asked], np.ones(QUERIES, dtype=bool))
    audited = MODELS[model]().fit(x[rows], given)
    others = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(x[rows])
    neighbours = others.kneighbors(x[rows], return_distance=False)[:, 1:]

    def precision(scores: np.ndarray) -> float:
        return float(average_precision_score(wrong, scores)) if count else np.nan

    def false(flags: np.ndarray) -> float:
        return float((flags & ~wrong).sum() / max(1, flags.sum()))

    measure = found.measure
    return {
        "wrong": float(wrong.mean()),
        "ours": precision(found.suspicion),
        "own residual": precision(np.abs(given - audited.predict(x[rows]))),
        "neighbours' residual": precision(np.abs(given - given[neighbours].mean(1))),
        "certain, innocent": false(found.certain),
        "certain, found": float(found.certain[wrong].mean()) if count else np.nan,
        "anybody certain": float(found.certain.any()),
        "named, innocent": false(found.flags),
        "named, found": float(found.flags[wrong].mean()) if count else np.nan,
        "low": measure.rate_low,
        "estimate": measure.rate,
        "high": measure.rate_high,
        "low above the truth": float(measure.rate_low > wrong.mean()),
        "high below the truth": float(measure.rate_high < wrong.mean()),
        "abstained": float(measure.abstained is not None),
    }


def tables(draws: int, *, jobs: int) -> dict[str, dict[str, float]]:
    """Draw, judge, print and return the means of each setting."""
    parallel, found = Parallel(jobs, backend="multiprocessing"), {}
    for name in SOURCES:
        kinds = [(model, *error) for model in MODELS for error in ERRORS]
        drawn = parallel(
            delayed(draw)(name, *kind, seed) for kind in kinds for seed in range(draws)
        )
        for number, (model, kind, share) in enumerate(kinds):
            rows = drawn[number * draws : (number + 1) * draws]
            key = f"{name}, {model}, {kind}" + (f" {share:.0%}" if share else "")
            found[key] = {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0]}
            shown = ", ".join(f"{k} {v:.3f}" for k, v in found[key].items())
            print(f"{key}: {shown}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20, help="of each setting")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--jobs", type=int, default=1, help="draws at once")
    arguments = parser.parse_args()
    facts = machine("scikit-learn", "numpy")
    print(line(facts), end="\n\n")
    found = tables(arguments.draws, jobs=arguments.jobs)
    write(arguments.json, {"machine": facts, "settings": found})


if __name__ == "__main__":
    main()
