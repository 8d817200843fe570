"""The detectors beside the trivial baselines, on models that generalise and models that memorised.

Mislabeled rows: the audit's score against the row's own loss, kNN label disagreement and chance, as
AUROC and average precision; and what the verdict's promise was worth: share of flips found, and
share of false accusations among the accused (promised: 10 % expected).
Leaks: share of clean queries accused, on data without any, and real leaks of ciFAIR if that file is
in the folder that BENCH_DATA names.

    python benchmarks/baselines.py [--seeds 5] [--human 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
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
from forward_inf_mlflow.decision import Facts, decide
from forward_inf_mlflow.detect.leakage import leaked
from forward_inf_mlflow.detect.measure import binomial_interval
from forward_inf_mlflow.examine import examine, plan_influence
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.estimator import audited_estimator
from forward_inf_mlflow.models.torch_module import audited_module
from forward_inf_mlflow.policy import Policy
from forward_inf_mlflow.preparation import choose_device, prepare
from forward_inf_mlflow.settings import Settings

DATA = Path(os.environ.get("BENCH_DATA", "../shared/data"))


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


def judge(
    model: AuditedModel, train: Rows, queries: Rows, bad: np.ndarray, seed: int
) -> dict[str, float]:
    """Audit one model and hold scores and verdicts against the rows that are wrong."""
    problem = prepare(
        model, train, queries, task="auto", device=choose_device("cpu"), batch_size=None
    )
    settings = Settings(seed=seed)
    planned = plan_influence(model, problem, settings)
    found = examine(model, problem, planned, settings, lambda *_: None)
    flags, measure = found.labels.mislabeled.flags, found.labels.mislabeled.measure
    decision = decide(found.measures, Facts(), Policy(max_leakage_rate=None))
    figures = {
        "wrong rows found": float(flags[bad].mean()) if bad.any() else np.nan,
        "false accusations": float((flags & ~bad).sum() / flags.sum()) if flags.any() else 0.0,
        "clean rows accused": float(flags[~bad].mean()),
        "lower bound over truth": measure.rate_low / bad.mean() if bad.any() else np.nan,
        "refused": float(decision.outcome == "fail"),
        "undecided": float(decision.outcome == "undecided"),
    }
    if bad.any():
        x = train.features.reshape(len(train), -1)
        near = NearestNeighbors(n_neighbors=11).fit(x).kneighbors(x)[1][:, 1:]
        scores = {
            "audit": np.nan_to_num(found.labels.mislabeled.score),
            "own loss": found.loss,
            "kNN, inputs": (train.labels[near] != train.labels[:, None]).mean(1),
            "influence": -found.influence,
            "chance": np.random.default_rng(seed).random(len(bad)),
        }
        for name, score in scores.items():
            figures[f"AUROC {name}"] = roc_auc_score(bad, score)
            figures[f"AP {name}"] = average_precision_score(bad, score)
    return figures


def spread(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return mean, and a normal 95 % interval of it over seeds, for each figure."""
    table = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
        table[name] = [
            float(values.mean()),
            float(values.mean() - half),
            float(values.mean() + half),
        ]
    return table


def mislabeled(seeds: int, noise: float) -> dict[str, dict[str, list[float]]]:
    """Return the figures for each setting with planted flips."""
    table = {}
    for setting, (load, train, epochs) in SETTINGS.items():
        results = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            x, y = load(return_X_y=True)
            x = (x / np.abs(x).max(0).clip(1e-9)).astype(np.float32)
            order = rng.permutation(len(x))
            cut = len(x) * 2 // 3
            a, b = order[:cut], order[cut:]
            noisy, bad = spoil(y[a], noise, rng)
            model = train(x[a], noisy, seed, epochs)
            results.append(judge(model, rows(x[a], noisy), rows(x[b], y[b]), bad, seed))
        table[setting] = spread(results)
    return table


def human(seeds: int, file: Path, count: int = 3000) -> dict[str, dict[str, list[float]]]:
    """Return the figures on CIFAR-10N: labels that a person got wrong, a model that memorised."""
    data = np.load(file, allow_pickle=False)
    results = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(data["train_x"]), count, replace=False))
        train, test = (
            ((x.astype(np.float32) / 255 - 0.47) / 0.25).transpose(0, 3, 1, 2)
            for x in (data["train_x"][chosen], data["test_x"])
        )
        given = data["train_y_human"][chosen].astype(np.int64)
        bad = given != data["train_y_clean"][chosen]
        model = convolutional(train, given, seed)
        queries = rows(test, data["test_y"].astype(np.int64))
        results.append(judge(model, rows(train, given), queries, bad, seed))
    return {f"CIFAR-10N, {count:,} rows, human errors, CNN, memorised": spread(results)}


def convolutional(x: np.ndarray, y: np.ndarray, seed: int, epochs: int = 20) -> AuditedModel:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    inputs, labels = torch.as_tensor(np.ascontiguousarray(x)), torch.as_tensor(y)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(x)), 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[part]), labels[part]).backward()
            optimizer.step()
    return audited_module(model.eval(), kind="pickle")


def leaks(seeds: int) -> dict[str, dict[str, list[float]]]:
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
        low, high = binomial_interval(accused, total)
        table[name] = {
            "clean queries accused": [accused / total, low, high],
            "refused at 1 %": [refused / seeds, np.nan, np.nan],
        }
    file = DATA / "cifair_leakage.npz"
    if file.exists():
        data = np.load(file, allow_pickle=False)
        train, test = (data[f"{k}_x"].astype(np.float32) / 255 for k in ("train", "test"))
        flags = leaked(test, train, None).flags
        groups = {
            "leaks found": data["test_leaked"],
            "clean queries accused": ~data["test_leaked"],
            "look-alikes accused": data["test_lookalike_absent"],
        }
        table["ciFAIR (real leaks), pixels alone"] = {
            name: [
                float(flags[group].mean()),
                *binomial_interval(int(flags[group].sum()), int(group.sum())),
            ]
            for name, group in groups.items()
        }
    return table


def show(title: str, table: dict[str, dict[str, list[float]]]) -> None:
    print(f"\n{title}")
    for setting, figures in table.items():
        print(f"  {setting}")
        for name, (mean, low, high) in figures.items():
            if not np.isnan(mean):
                interval = "" if np.isnan(low) else f"  [{low:.3f}, {high:.3f}]"
                print(f"    {name:24} {mean:.3f}{interval}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--human", type=int, default=1, help="seeds on CIFAR-10N, if it is there")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = {}
    for noise in (0.0, 0.05, 0.2):
        name = f"mislabeled rows, {noise:.0%} flipped"
        result[name] = mislabeled(arguments.seeds, noise)
        show(name, result[name])
    if (DATA / "cifar10n_10k.npz").exists() and arguments.human:
        result["human errors"] = human(arguments.human, DATA / "cifar10n_10k.npz")
        show("mislabeled rows, human errors", result["human errors"])
    result["leaks"] = leaks(arguments.seeds)
    show("leaks", result["leaks"])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
