"""What the detectors are compared with: each method's score of every row, the more suspicious the
larger, and what it costs in trainings of the audited model.

Methods say what they need: the *final model*, the *training run* (something recorded while the
audited model was trained) or *retraining*. TracIn runs among the peers (captum), in a process of
its own; see peers/self_influence.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cases import Case, answers
from scipy import special
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional

from forward_inf_mlflow.directions import GradientStep, OptimizerSteps
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.models.features import encoded, penultimate
from forward_inf_mlflow.tasks import Classification
from forward_inf_mlflow.tensors import Tensors

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = Path(os.environ.get("PEERS_PYTHON", HERE.parent / ".venv-peers" / "bin" / "python"))
FINAL, RUN, AGAIN = "final model", "training run", "retraining"
#: Neighbours that vote, folds of cross-validation, draws of an input's curvature and their length.
NEIGHBOURS, FOLDS, DRAWS, LENGTH = 20, 5, 5, 1e-2
#: Leaked and clean queries that the published recipe is asked of, each.
PUBLISHED = 40


@dataclass(frozen=True)
class Found:
    """One method on one case: ``(n,)`` scores, what it needs and costs in trainings."""

    scores: np.ndarray
    needs: str
    cost: float


def mislabeled(case: Case) -> Iterator[tuple[str, Found]]:
    """Yield every rival's score of every training row."""
    run, module = case.training(), case.network().to(case.device)
    given, rows = case.given.numpy(), np.arange(len(case.x))

    def timed(needs: str, score: Callable[[], np.ndarray]) -> Found:
        start = time.process_time()
        scores = score()
        return Found(scores, needs, (time.process_time() - start) / run.seconds)

    def loss(logits: np.ndarray) -> np.ndarray:
        return -special.log_softmax(logits.astype(np.float64), axis=-1)[..., rows, given]

    def margin(logits: np.ndarray) -> np.ndarray:
        others = logits.copy()
        others[..., rows, given] = -np.inf
        return np.asarray(others.max(-1) - logits[..., rows, given])

    def neighbours(features: Callable[[torch.Tensor], torch.Tensor] | None) -> np.ndarray:
        assert features is not None, "the networks here have linear layers"
        seen = unit(answers(features, case.x, case.device))
        found = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(seen)
        near = found.kneighbors(seen, return_distance=False)[:, 1:]
        return np.asarray((given[near] != given[:, None]).mean(1))

    yield "loss", timed(FINAL, lambda: loss(answers(module, case.x, case.device)))
    yield "margin", timed(FINAL, lambda: margin(answers(module, case.x, case.device)))
    yield "knn", timed(FINAL, lambda: neighbours(penultimate(module)))
    yield "knn_encodings", timed(FINAL, lambda: neighbours(encoded(module)))
    yield "input_curvature", timed(FINAL, lambda: input_curvature(case, module))
    yield "forward_inf_plain", timed(FINAL, lambda: plain(case, module))
    yield "random", Found(np.random.default_rng(case.seed).random(len(rows)), FINAL, 0.0)
    yield "aum", Found(margin(run.logits).mean(0), RUN, 0.0)
    yield "csl", Found(loss(run.logits).mean(0), RUN, 0.0)
    if (traced := tracin(case)) is not None:
        yield "tracin", traced
    else:
        print("tracin: not measured (make peers)", file=sys.stderr)
    yield "ssft", timed(AGAIN, lambda: second_split(case))
    yield "cleanlab", timed(AGAIN, lambda: -self_confidence(case))


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows at unit length, flat."""
    flat = rows.reshape(len(rows), -1)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))


def input_curvature(case: Case, module: nn.Module) -> np.ndarray:
    """Return how fast each row's loss bends around its input (Garg et al., ICML 2024)."""

    def slope(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        total = functional.cross_entropy(module(x), y, reduction="sum")
        return torch.autograd.grad(total, x)[0].flatten(1)

    draw, found = torch.Generator().manual_seed(0), []
    for x, y in zip(case.x.split(500), case.given.split(500), strict=True):
        x, y = x.to(case.device), y.to(case.device)
        here, bent = slope(x, y), torch.zeros(len(x), device=x.device)
        for _ in range(DRAWS):
            signs = (torch.randint(0, 2, x.shape, generator=draw) * 2.0 - 1).to(x.device)
            bent += (slope(x + LENGTH * signs, y) - here).square().sum(1)
        found.append(bent)
    return torch.cat(found).cpu().numpy()


def plain(case: Case, module: nn.Module) -> np.ndarray:
    """Return the harm that one plain step on all queries together shows of each row."""
    device = torch.device(case.device)
    train = Tensors(case.x, case.given, device, 500)
    queries = QueryGroups.together(Tensors(case.query_x, case.query_y, device, 500))
    engine = ForwardInfluence(task=Classification(), direction=GradientStep())
    return -engine.influence(module, queries, train, rows_named(len(train))).scores.values[0]


def rows_named(count: int) -> np.ndarray:
    """Return ids."""
    return np.arange(count).astype(str)


def second_split(case: Case) -> np.ndarray:
    """Return how early each row is forgotten in training without it (SSFT, NeurIPS 2022).

    A network is trained on one half, then for a quarter of the epochs on the other; both ways.
    """
    rng, score = np.random.default_rng(case.seed), np.zeros(len(case.x))
    half = rng.permutation(len(case.x)) < len(case.x) // 2
    for first in (half, ~half):
        rows, others = np.flatnonzero(first), np.flatnonzero(~first)
        module = case.fit(rows, case.seed + 70)
        x, y = case.x[rows], case.given[rows].numpy()
        inputs, targets = case.x.to(case.device), case.given.to(case.device)
        right: list[np.ndarray] = [answers(module, x, case.device).argmax(1) == y]
        optimizer = torch.optim.SGD(module.parameters(), case.recipe.rate / 5, momentum=0.9)
        order = torch.Generator().manual_seed(case.seed)
        for _ in range(max(2, case.recipe.epochs // 4)):
            module.train()
            chosen = torch.as_tensor(others)[torch.randperm(len(others), generator=order)]
            for part in chosen.split(case.recipe.batch):
                if len(part) > 1:  # one row alone has no batch statistics
                    optimizer.zero_grad()
                    part = part.to(case.device)
                    loss = functional.cross_entropy(module(inputs[part]), targets[part])
                    torch.autograd.backward(loss)
                    optimizer.step()
            right.append(answers(module.eval(), x, case.device).argmax(1) == y)
        # The share of epochs that a row stays wrong to the end; then that it is wrong at all.
        seen = np.stack(right)
        stays = np.logical_and.accumulate(~seen[::-1], axis=0).mean(0)
        score[rows] = stays + 1e-3 * (~seen).mean(0)
    return score


def self_confidence(case: Case) -> np.ndarray:
    """Return the given label's probability by models trained on other folds, from scratch.

    It is cleanlab's label quality score "self_confidence" with cross-validated probabilities.
    """
    folds = np.random.default_rng(case.seed).permutation(len(case.x)) % FOLDS
    confidence = np.zeros(len(case.x))
    for fold in range(FOLDS):
        out = np.flatnonzero(folds == fold)
        module = case.fit(np.flatnonzero(folds != fold), case.seed + 80 + fold)
        logits = answers(module, case.x[out], case.device).astype(np.float64)
        given = case.given[out].numpy()
        confidence[out] = special.softmax(logits, axis=1)[np.arange(len(out)), given]
    return confidence


def tracin(case: Case) -> Found | None:
    """Return each row's influence on itself over checkpoints, by captum; None without peers."""
    if not PEERS_PYTHON.exists():
        return None
    run = case.training()
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for epoch, state in run.states.items():
            paths.append(Path(folder) / f"{epoch}.pt")
            torch.save(state, paths[-1])
        torch.save({"x": case.x, "y": case.given}, Path(folder) / "rows.pt")
        torch.save(case.make(0), Path(folder) / "network.pt")
        command = [PEERS_PYTHON, HERE / "peers" / "self_influence.py", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        with np.load(Path(folder) / "scores.npz", allow_pickle=False) as said:
            return Found(said["scores"], RUN, float(said["seconds"]) / run.seconds)


def leaks(
    case: Case,
    images: tuple[np.ndarray, np.ndarray] | None,
    leaked: np.ndarray,
    asked: int = PUBLISHED,
) -> Iterator[tuple[str, Found, np.ndarray]]:
    """Yield every rival's score of every query, and the row that it takes for its copy.

    Args:
        case: The audited model and its rows.
        images: Training rows and queries as bytes ``(n, h, w, 3)``; None where they are no images.
        leaked: ``(m,)`` bool.
        asked: How many of either the published recipe is asked of: each takes a sweep.
    """
    run, module = case.training(), case.network().to(case.device)
    views = {"pixel": lambda x: x, "feature": penultimate(module), "encoding": encoded(module)}
    for name, view in views.items():
        assert view is not None, "the networks here have linear layers"
        start = time.process_time()
        seen = [answers(view, x, case.device) for x in (case.x, case.query_x)]
        if name == "pixel" and images is not None:  # each about its own mean
            seen = [x - x.mean(axis=(1, 2, 3), keepdims=True) for x in seen]
        train, queries = map(unit, seen)
        distance, near = NearestNeighbors(n_neighbors=5).fit(train).kneighbors(queries)
        cost = (time.process_time() - start) / run.seconds
        gap = np.log(distance[:, 4] + 1e-6) - np.log(distance[:, 0] + 1e-6)
        yield f"{name}_cosine", Found(-distance[:, 0], FINAL, cost), near[:, 0]
        yield f"{name}_gap", Found(gap, FINAL, cost), near[:, 0]
    if images is not None:
        start = time.process_time()
        hashes, theirs = (perceptual(x).astype(np.float32) * 2 - 1 for x in images)
        alike = theirs @ hashes.T
        near = alike.argmax(1)
        cost = (time.process_time() - start) / run.seconds
        yield "perceptual_hash", Found(alike.max(1), FINAL, cost), near
    start = time.process_time()
    some = np.r_[np.flatnonzero(leaked)[:asked], np.flatnonzero(~leaked)[:asked]]
    changed = published(case, module, some)
    cost = (time.process_time() - start) / run.seconds
    scores, named = np.full(len(case.query_x), np.nan), np.zeros(len(case.query_x), int)
    scores[some], named[some] = changed.max(1), changed.argmax(1)
    yield "forward_inf_published", Found(scores, FINAL, cost), named
    rng = np.random.default_rng(case.seed)
    count = len(case.query_x)
    yield "random", Found(rng.random(count), FINAL, 0.0), rng.integers(len(case.x), size=count)


def perceptual(images: np.ndarray) -> np.ndarray:
    """Return perceptual hashes ``(n, 63)``: signs of the lowest frequencies about their median."""
    from scipy.fft import dctn

    grey = images.astype(np.float64).mean(-1)
    low = dctn(grey, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(images), -1)[:, 1:]
    return np.asarray(low > np.median(low, axis=1, keepdims=True))


def published(case: Case, module: nn.Module, some: np.ndarray) -> np.ndarray:
    """Return how much each row's loss changes by the authors' step on some queries, ``(k, n)``."""
    device = torch.device(case.device)
    train = Tensors(case.x, case.given, device, 500)
    queries = Tensors(case.query_x, case.query_y, device, 500).take(some)
    engine = ForwardInfluence(
        task=Classification(), direction=OptimizerSteps(), method="difference"
    )
    groups = QueryGroups.each(queries, rows_named(len(queries)))
    try:
        found = engine.influence(module, groups, train, rows_named(len(train)))
    except ForwardInfError:  # the queries' losses are zero: the step is lost in rounding
        return np.zeros((len(some), len(train)))
    return np.abs(found.scores.values)
