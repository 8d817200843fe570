"""The detectors beside the trivial baselines, on models that generalise and models that memorised.

Mislabeled rows: the audit's score against the row's own loss, kNN label disagreement and chance, as
AUROC and average precision; and what the verdict's promise was worth: share of flips found, and
share of false accusations among the accused (promised: 10 % expected).
Leaks: share of clean queries accused, on data without any, and real leaks of ciFAIR if that file is
in the folder that BENCH_DATA names.

    python benchmarks/baselines.py [--seeds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.detect.leakage import leaked
from forward_inf_mlflow.examine import Settings, examine
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.estimator import audited_estimator
from forward_inf_mlflow.models.torch_module import audited_module
from forward_inf_mlflow.preparation import choose_device, prepare


def rows(x: np.ndarray, y: np.ndarray) -> Rows:
    return Rows(x, y, np.arange(len(y)).astype(str), None, "memory", "")


def spoil(y: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Flip a share of the labels to any other class; return labels and which were flipped."""
    classes = y.max() + 1
    bad = rng.random(len(y)) < share
    noisy = y.copy()
    noisy[bad] = (y[bad] + rng.integers(1, classes, bad.sum())) % classes
    return noisy, bad


def net(x: np.ndarray, y: np.ndarray, seed: int, epochs: int) -> AuditedModel:
    """Train a small net on flat rows for so many epochs."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, int(y.max()) + 1))
    inputs, labels = torch.as_tensor(x), torch.as_tensor(y)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(x)), 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[part]), labels[part]).backward()
            optimizer.step()
    return audited_module(model.eval(), kind="pickle")


def logistic(x: np.ndarray, y: np.ndarray, seed: int, epochs: int) -> AuditedModel:
    return audited_estimator(make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y))


SETTINGS = {
    "digits, net, generalising (15 epochs)": (load_digits, net, 15),
    "digits, net, memorised (300 epochs)": (load_digits, net, 300),
    "breast cancer, logistic regression": (load_breast_cancer, logistic, 0),
    "wine, logistic regression": (load_wine, logistic, 0),
}


def mislabeled(seeds: int, noise: float) -> dict[str, dict[str, float]]:
    """Return the mean of every figure for each setting."""
    table = {}
    for setting, (load, train, epochs) in SETTINGS.items():
        figures: dict[str, list[float]] = defaultdict(list)
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            x, y = load(return_X_y=True)
            x = (x / np.abs(x).max(0).clip(1e-9)).astype(np.float32)
            order = rng.permutation(len(x))
            cut = len(x) * 2 // 3
            a, b = order[:cut], order[cut:]
            noisy, bad = spoil(y[a], noise, rng)
            model = train(x[a], noisy, seed, epochs)
            problem = prepare(
                model,
                rows(x[a], noisy),
                rows(x[b], y[b]),
                task="auto",
                device=choose_device("cpu"),
                batch_size=None,
            )
            found = examine(model, problem, Settings(seed=seed), lambda *_: None)
            flags = found.mislabeled.flags
            figures["flips found"].append(float(flags[bad].mean()) if bad.any() else np.nan)
            figures["false accusations"].append(
                float((flags & ~bad).sum() / flags.sum()) if flags.any() else 0.0
            )
            figures["clean rows accused"].append(float(flags[~bad].mean()))
            figures["refused at 3 %"].append(float(found.mislabeled.measure.rate_low > 0.03))
            if not bad.any():
                continue
            near = NearestNeighbors(n_neighbors=11).fit(x[a]).kneighbors(x[a])[1][:, 1:]
            scores = {
                "audit": found.mislabeled.score,
                "own loss": found.loss,
                "kNN": (noisy[near] != noisy[:, None]).mean(1),
                "influence on queries": -found.influence,
                "chance": rng.random(len(bad)),
            }
            for name, score in scores.items():
                figures[f"AUROC {name}"].append(roc_auc_score(bad, score))
                figures[f"AP {name}"].append(average_precision_score(bad, score))
        table[setting] = {name: float(np.nanmean(values)) for name, values in figures.items()}
    return table


def leaks(seeds: int) -> dict[str, dict[str, float]]:
    """Return shares of accused queries on clean splits, and on ciFAIR where it is."""
    table = {}
    for load in (load_digits, load_breast_cancer, load_wine, load_diabetes):
        accused, total, refused = 0, 0, 0
        for seed in range(seeds):
            x = load(return_X_y=True)[0]
            order = np.random.default_rng(seed).permutation(len(x))
            cut = len(x) * 2 // 3
            if load is load_digits:
                x = x.reshape(-1, 1, 8, 8).astype(np.float32)
            measure = leaked(x[order[cut:]], x[order[:cut]], None).measure
            accused, total = accused + measure.count, total + measure.total
            refused += measure.rate_low > 0.01
        name = load.__name__.removeprefix("load_")
        table[name] = {"clean queries accused": accused / total, "refused at 1 %": refused / seeds}
    file = Path(os.environ.get("BENCH_DATA", "../shared/data")) / "cifair_leakage.npz"
    if file.exists():
        data = np.load(file, allow_pickle=False)
        train, test = (data[f"{k}_x"].astype(np.float32) / 255 for k in ("train", "test"))
        flags = leaked(test, train, None).flags
        table["ciFAIR (real leaks)"] = {
            "leaks found": float(flags[data["test_leaked"]].mean()),
            "clean queries accused": float(flags[~data["test_leaked"]].mean()),
            "look-alikes accused": float(flags[data["test_lookalike_absent"]].mean()),
        }
    return table


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}")
    for setting, figures in table.items():
        print(f"  {setting}")
        for name, value in figures.items():
            print(f"    {name:28} {value:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = {}
    for noise in (0.0, 0.05, 0.2):
        result[f"mislabeled, noise {noise:.0%}"] = mislabeled(arguments.seeds, noise)
        show(f"mislabeled rows, {noise:.0%} flipped", result[f"mislabeled, noise {noise:.0%}"])
    result["leaks"] = leaks(arguments.seeds)
    show("leaks", result["leaks"])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
