"""What a final model can be asked: further training with a row's weight raised, as the truth.

From the audited network, training goes on with the recipe's batches at a tenth of its rate, once as
it is and once for every perturbation, on the same batches: w times the mean loss of some training
rows is added to the mean loss. The truth is how much each query's loss falls, divided by the w n
copies that were added, averaged over seeds that no score has seen. Perturbed are 24 single rows and
12 groups of 20, drawn at random.

Scores ask the other way round: they move along a query and read the rows. Beside their agreement
with the truth (over the perturbations, averaged over queries) stands the truth's own reliability
between seeds, stepped up to all of them; its root bounds what any score can reach.

w is not small: two runs that differ infinitely little drift apart along the network's kinks.

Source: FiMODA ("final-model-only data attribution", NeurIPS 2025).

    OMP_NUM_THREADS=1 python benchmarks/further_training.py [--quick] [--json FILE]

About 15 minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from measure import line, machine, write
from scipy.stats import spearmanr, t
from settings import Setting, SettingError, load
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from forward_inf_mlflow.directions import (
    Curvature,
    Direction,
    GradientStep,
    OptimizerSteps,
    Replay,
)
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.tasks import Classification
from forward_inf_mlflow.tensors import Tensors

QUERIES, SINGLE, GROUPS, GROUP = 24, 24, 12, 20
#: Epochs after which the queries are read; the last is longer than any direction's own steps.
HORIZONS = (5, 50, 200)
#: Seeds of further training start here: no score draws from them.
FIRST_SEED = 5000

DIRECTIONS: dict[str, Direction] = {
    "gradient": GradientStep(),
    "optimizer": OptimizerSteps(),
    "curvature": Curvature(),
    "replay": Replay(),
}
Figures = dict[str, float]


def perturbed_rows(count: int) -> np.ndarray:
    """Return the rows of each perturbation, ``(36, 20)``; a single row stands there 20 times."""
    rng = np.random.default_rng(0)
    single = rng.choice(count, SINGLE, replace=False)
    groups = [rng.choice(count, GROUP, replace=False) for _ in range(GROUPS)]
    return np.concatenate([np.repeat(single[:, None], GROUP, 1), np.stack(groups)])


def further(
    setting: Setting,
    module: nn.Module,
    rows: np.ndarray,
    *,
    weight: float,
    seed: int,
    horizons: tuple[int, ...],
) -> np.ndarray:
    """Return by how much queries' losses fall per added copy, ``(horizons, perturbations, q)``.

    All runs are trained at once, as one stack of networks; the first is the control.
    """
    x, y, recipe = setting.train_x, setting.train_y, setting.recipe
    chosen = torch.as_tensor(np.concatenate([rows[:1], rows]))
    weights = torch.full((len(chosen),), weight)
    weights[0] = 0.0
    theta = {
        name: p.detach().expand(len(chosen), *p.shape).clone()
        for name, p in module.named_parameters()
    }
    velocity = {name: torch.zeros_like(p) for name, p in theta.items()}

    def losses(one: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return setting.loss(functional_call(module, dict(one), (x,)), y)

    def objective(one: dict[str, Tensor], added: Tensor, w: Tensor, batch: Tensor) -> Tensor:
        ours = losses(one, x[batch], y[batch]).mean()
        return ours + w * losses(one, x[added], y[added]).mean()

    pull = vmap(grad(objective), in_dims=(0, 0, 0, None))
    read = vmap(losses, in_dims=(0, None, None))
    generator, found = torch.Generator().manual_seed(seed), []
    for epoch in range(1, max(horizons) + 1):
        for batch in torch.split(torch.randperm(len(x), generator=generator), recipe.batch):
            for name, g in pull(theta, chosen, weights, batch).items():
                step = g + recipe.weight_decay * theta[name]
                velocity[name].mul_(0.9).add_(step)
                theta[name] = theta[name] - 0.1 * recipe.rate * velocity[name]
        if epoch in horizons:
            after = read(theta, setting.query_x[:QUERIES], setting.query_y[:QUERIES])
            found.append(((after[:1] - after[1:]) / (weight * len(x))).numpy())
    return np.stack(found)


def scores(setting: Setting, module: nn.Module, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return each direction's score of every perturbation for every query, ``(36, q)``."""
    host, ids = torch.device("cpu"), np.arange(QUERIES)
    train = Tensors(setting.train_x, setting.train_y, host, 250)
    queries = Tensors(setting.query_x[:QUERIES], setting.query_y[:QUERIES], host, 250)
    found = {}
    for name, direction in DIRECTIONS.items():
        engine = ForwardInfluence(task=Classification(), direction=direction)
        influence = engine.influence(
            module, QueryGroups.each(queries, ids), train, np.arange(len(train))
        )
        found[name] = influence.scores.values[:, rows].mean(2).T
    return found


def agreement(found: np.ndarray, truth: np.ndarray) -> Figures:
    """Return cosine and Spearman over perturbations ``(k, q)``, averaged over queries."""
    lengths = np.linalg.norm(found, axis=0) * np.linalg.norm(truth, axis=0)
    cosine = (found * truth).sum(0) / lengths
    ranks = [spearmanr(a, b).statistic for a, b in zip(found.T, truth.T, strict=True)]
    return {"cosine": float(np.mean(cosine)), "spearman": float(np.mean(ranks))}


def reliability(truths: np.ndarray) -> Figures:
    """Return the truth's agreement with itself, from ``(seeds, k, q)``.

    The mean between two seeds, stepped up to all of them by the Spearman-Brown formula.
    """
    s = len(truths)
    pairs = [agreement(truths[i], truths[j]) for i in range(s) for j in range(i)]
    means = {kind: float(np.mean([pair[kind] for pair in pairs])) for kind in pairs[0]}
    return {kind: s * r / (1 + (s - 1) * r) for kind, r in means.items()}


def one_model(
    setting: Setting, seed: int, *, weight: float, seeds: int, horizons: tuple[int, ...]
) -> dict[str, dict[str, Figures]]:
    """Return the figures of one audited network: cell, method, kind."""
    module, rows = setting.fit(None, seed), perturbed_rows(len(setting.train_y))
    found = scores(setting, module, rows)
    runs = [
        further(setting, module, rows, weight=weight, seed=FIRST_SEED + s, horizons=horizons)
        for s in range(seeds)
    ]
    truths, figures = np.stack(runs), {}
    parts = {"rows": slice(0, SINGLE), "groups": slice(SINGLE, None)}
    for h, horizon in enumerate(horizons):
        for kind, part in parts.items():
            truth = truths[:, h, part]
            cell = {name: agreement(s[part], truth.mean(0)) for name, s in found.items()}
            figures[f"{kind}, {horizon} epochs"] = {**cell, "reliability": reliability(truth)}
    return figures


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return mean and half the width of its 95 % interval over networks."""
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=3, help="audited networks")
    parser.add_argument("--seeds", type=int, default=6, help="of further training")
    parser.add_argument("--weight", type=float, default=0.1, help="w, relative to the mean loss")
    parser.add_argument("--quick", action="store_true", help="one network, two seeds, 10 epochs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine("numpy", "scipy")
    print(line(facts))
    try:
        setting = load("digits_mlp")
    except SettingError as error:
        parser.exit(2, f"{error}\n")
    models, seeds = (1, 2) if arguments.quick else (arguments.models, arguments.seeds)
    horizons = (5, 10) if arguments.quick else HORIZONS
    found = []
    for seed in range(models):
        start = time.perf_counter()
        found.append(
            one_model(setting, seed, weight=arguments.weight, seeds=seeds, horizons=horizons)
        )
        print(f"network {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    results: dict[str, object] = {"machine": facts, "weight": arguments.weight}
    for cell, methods in found[0].items():
        print(f"\n{cell:20} {'cosine':>16} {'Spearman':>16}")
        row = {}
        for method in methods:
            kinds = {
                kind: interval(np.array([f[cell][method][kind] for f in found]))
                for kind in ("cosine", "spearman")
            }
            row[method] = {kind: [round(x, 3) for x in pair] for kind, pair in kinds.items()}
            print(f"{method:20}", *(f"{mean:8.3f} ± {half:5.3f}" for mean, half in kinds.values()))
        results[cell] = row
    write(arguments.json, results)


if __name__ == "__main__":
    main()
