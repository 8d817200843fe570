"""A small denoiser of digits, and how much it memorized of each image.

The UNet of denoisers.py is trained on 300 digits: one in ten stands there eight times, one in ten
is noise of black and white and stands there three times, the others stand there once. The audit is
given each image once. Of its 200 queries 20 are training images that were changed: moved by a
pixel, darker, noisier, or as they are.

**Truth** is counterfactual memorization (Zhang and others, NeurIPS 2023) in the noise-prediction
loss at the noisier half of the times, with noise that no method saw: the share of the loss that
six networks have on an image without it, and six do not with it, each trained as the audited one
on a random half.

Others: the image's own loss, how far its nearest neighbour among the others is, and the share of
the loss that is saved beside networks of five folds, which is what only the trainer can measure.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import torch
from denoisers import BATCH, RATE, STEPS, UNet, kept
from kinds_rivals import Case, Said, registered, timed
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from rivals import FOLDS
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from forward_inf_mlflow import log_training_data

#: How often an image is seen that is repeated, and one of noise; pairs of halves; batches.
REPEATED, STRANGE, PAIRS, TRAINED = 8, 3, 6, 1200
#: Queries that are changed training images; they come first. Draws of noise of the truth.
LEAKED, DRAWS = 20, 4


def diffusion(seed: int, *, quick: bool) -> Case:
    """Return a denoiser whose images it knows unequally well."""
    count, asked, steps = (60, 60, 150) if quick else (300, 200, TRAINED)
    rng = np.random.default_rng([seed, 67])
    digits = load_digits().images / 8 - 1
    x, queries = np.split(digits[rng.permutation(len(digits))[: count + asked]], [count])
    times = np.ones(count, dtype=int)
    times[: count // 10] = REPEATED
    times[count // 10 : count // 5] = STRANGE
    x[times == STRANGE] = rng.choice([-1.0, 1.0], (int((times == STRANGE).sum()), 8, 8))
    plain = np.flatnonzero(times != STRANGE)
    for query, row in enumerate(rng.choice(plain, LEAKED, replace=False)):
        queries[query] = changed(x[row], query % 4, rng)
    rows, others = (torch.as_tensor(some[:, None]).float() for some in (x, queries))

    def taught(index: np.ndarray, seed: int) -> UNet:
        return fit(rows[index], times[index], seed, steps)

    model, seconds = timed(lambda: taught(np.arange(count), seed))
    own = losses(model, rows, draw=1)

    def out_of_sample() -> np.ndarray:
        folds, found = np.random.default_rng([seed, 31]).permutation(count) % FOLDS, np.zeros(count)
        for fold in range(FOLDS):
            left = np.flatnonzero(folds == fold)
            found[left] = losses(taught(np.flatnonzero(folds != fold), seed + 80 + fold),
                                 rows[left], draw=1)  # fmt: skip
        return found

    without, took = timed(out_of_sample)
    flat = x.reshape(count, -1)
    near = NearestNeighbors(n_neighbors=2).fit(flat).kneighbors(flat)[0][:, 1]
    said: Said = {
        "own loss": (-own, 0.0),
        "distance of the nearest": (near, 0.0),
        "loss beside five folds, share": (1 - own / without, took),
    }
    truth = memorization(taught, rows, seed)
    takes = [TensorSpec(np.dtype(np.float32), (-1, 1, 8, 8), "images"),
             TensorSpec(np.dtype(np.int64), (-1,), "times")]  # fmt: skip
    with mlflow.start_run():
        log_training_data((rows.numpy(), None), (others.numpy(), None))
        info = mlflow.pytorch.log_model(
            model, name="denoiser", signature=ModelSignature(inputs=Schema(takes)),
            input_example=(np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, int)),
            metadata={"noise_schedule": {"alphas_cumprod": kept().tolist()}},
            pip_requirements=["torch"], registered_model_name="denoiser",
        )  # fmt: skip
    facts = {
        "loss": float(own.mean()),
        "loss, queries": float(losses(model, others[LEAKED:], draw=1).mean()),
        "memorization, repeated": float(truth[times == REPEATED].mean()),
        "memorization, noise": float(truth[times == STRANGE].mean()),
        "memorization, once": float(truth[times == 1].mean()),
    }
    return Case(registered(info), truth, said, seconds, facts=facts)


def changed(image: np.ndarray, how: int, rng: np.random.Generator) -> np.ndarray:
    """Return an image ``(8, 8)`` that was moved, darkened or saved with noise; or as it is."""
    if how == 1:
        return np.pad(image, ((1, 0), (0, 0)), constant_values=-1)[:-1]
    if how == 2:
        return 0.9 * (image + 1) - 1
    return np.clip(image + (how == 3) * rng.normal(0, 0.05, image.shape), -1, 1)


def fit(rows: Tensor, times: np.ndarray, seed: int, steps: int) -> UNet:
    """Teach a fresh network images ``(n, 1, 8, 8)``, each seen in proportion to its times."""
    torch.manual_seed(seed)
    module = UNet()
    optimizer = torch.optim.Adam(module.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    seen, left = rows[torch.as_tensor(np.repeat(np.arange(len(rows)), times))], kept().float()
    for _ in range(steps):
        clean = seen[torch.randint(len(seen), (BATCH,))]
        t = torch.randint(STEPS, (BATCH,))
        noise, a = torch.randn_like(clean), left[t][:, None, None, None]
        loss = (module(a.sqrt() * clean + (1 - a).sqrt() * noise, t) - noise).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return module.eval()


@torch.no_grad()
def losses(module: UNet, rows: Tensor, *, draw: int) -> np.ndarray:
    """Return each image's noise-prediction loss ``(n,)`` at every fifth of the noisier times."""
    left, total = kept().float(), torch.zeros(len(rows))
    generator = torch.Generator().manual_seed(draw)
    chosen = range(STEPS // 2, STEPS, 5)
    for t in chosen:
        noise = torch.randn(rows.shape, generator=generator)
        noised = left[t].sqrt() * rows + (1 - left[t]).sqrt() * noise
        guess = module(noised, torch.full((len(rows),), t))
        total += (guess - noise).square().flatten(1).mean(1)
    return np.asarray(total / len(chosen), dtype=float)


def memorization(taught: Any, rows: Tensor, seed: int) -> np.ndarray:
    """Return which share of an image's loss networks save that saw it, ``(n,)``."""
    rng, count = np.random.default_rng([seed, 61]), len(rows)
    saw, did_not = np.zeros(count), np.zeros(count)
    for pair in range(PAIRS):
        half = rng.permutation(count) < count // 2
        for side, index in enumerate((half, ~half)):
            module = taught(np.flatnonzero(index), 1000 + 2 * pair + side)
            found = np.mean([losses(module, rows, draw=100 + d) for d in range(DRAWS)], axis=0)
            saw += np.where(index, found, 0)
            did_not += np.where(index, 0, found)
    return 1 - saw / did_not
