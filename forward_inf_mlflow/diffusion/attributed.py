"""Attributed: the training images behind generated ones, by influence and by the model's features.

Source: a diffusion model decides at its noisiest times what an image will be, so only these are
read: with every time that it knows, the gradients at low noise, which are mostly noise themselves,
drown the others. What the model's last layer sees of an image that is dimmed and not noised says
which images it takes for alike; it is wrong about other images than influence is, so both are
added, each in standard deviations over the training images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.memory import batches_that_fit
from forward_inf_mlflow.probe import Choice
from forward_inf_mlflow.sweep import Progress
from forward_inf_mlflow.task import Batch
from forward_inf_mlflow.tasks import Denoising
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Work

#: A time is noisy where less of the image's variance is left.
_NOISY = 0.2
#: What is left of an image at the time at which the model's features are asked for.
_DIMMED = 0.5


@dataclass(frozen=True)
class Attributed:
    """Training images behind generated ones.

    Attributes:
        influence: ``(m, n)`` how much the training image's loss falls per added copy.
        likeness: ``(m, n)`` cosines of what the model's last layer sees; None where nothing could
            be seen.
        score: ``(m, n)`` what proponents are ordered by.
        choice, facts: As of an `influence.Influence`.
        forward_passes: Rows passed forward, once for all times.
    """

    influence: np.ndarray
    likeness: np.ndarray | None
    score: np.ndarray
    choice: Choice
    facts: Mapping[str, object]
    forward_passes: int


def noisy_times(alphas_cumprod: tuple[float, ...], count: int) -> tuple[int, ...]:
    """Return times at which little is left of the image, spread evenly over these.

    Where there are fewer of them than wished, as many as wished, the noisiest.
    """
    steps = len(alphas_cumprod)
    noisy = sum(kept < _NOISY for kept in alphas_cumprod)  # they fall
    noisy = min(steps, max(noisy, count))
    width = noisy / min(count, noisy)
    return tuple(steps - noisy + int((i + 0.5) * width) for i in range(min(count, noisy)))


def attribute_images(
    engine: ForwardInfluence,
    module: nn.Module,
    features: Callable[..., Tensor] | None,
    queries: QueryGroups,
    train: Tensors,
    train_ids: np.ndarray,
    *,
    work: Work = KEEP_NOTHING,
    progress: Progress | None = None,
) -> Attributed:
    """Return influence and likeness of every training image on every generated one.

    Args:
        engine: How influence is computed; its task is a `Denoising`.
        module: In evaluation mode; left bit for bit as it was.
        features: From the module's inputs to what its last layer sees; None for influence alone.
        queries: Generated images, each a group.
        train: The training images.
        train_ids: ``(n,)`` strings.
        work: Where finished pieces are kept.
        progress: Called with the number of rows just read.

    Raises:
        ModelError, ForwardInfError: As `ForwardInfluence.influence`.
    """
    found = engine.influence(module, queries, train, train_ids, work=work, progress=progress)
    values = found.scores.values
    likeness = None
    if features is not None:
        assert isinstance(engine.task, Denoising)
        asked = [_seen(features, engine.task, rows) for rows in queries.rows]
        rows = nn.functional.normalize(_seen(features, engine.task, train))
        made = nn.functional.normalize(torch.cat(asked))
        likeness = np.asarray((made @ rows.T).cpu().numpy(), np.float32)
    score = _standard(values) if likeness is None else _standard(values) + _standard(likeness)
    return Attributed(values, likeness, score, found.choice, found.facts, found.forward_passes)


@torch.no_grad()
def _seen(features: Callable[..., Tensor], task: Denoising, rows: Tensors) -> Tensor:
    """Return the features ``(n, h)`` of images that are dimmed and not noised."""

    def of_batch(batch: Batch) -> Tensor:
        return dimmed(features, task, batch.inputs, batch.targets)

    return torch.cat(list(batches_that_fit(rows, of_batch)))


def dimmed(
    features: Callable[..., Tensor], task: Denoising, inputs: Tensor, labels: Tensor
) -> Tensor:
    """Return the features ``(B, h)`` float32 of images as they are halfway, but without noise.

    Args:
        features: From the module's inputs to what its last layer sees.
        task: Of the model.
        inputs: Images ``(B, ...)``, not noised.
        labels: ``(B,)``, for a conditional model.
    """
    kept = np.array(task.alphas_cumprod)
    time = int(np.argmin(np.abs(kept - _DIMMED)))
    times = torch.full((len(inputs),), time, device=inputs.device)
    told = (labels,) if task.conditional else ()
    return features(math.sqrt(kept[time]) * inputs, times, *told).float()


def _standard(values: np.ndarray) -> np.ndarray:
    """Return rows of mean 0 and spread 1; rows without spread are 0."""
    values = values.astype(np.float64)
    spread = values.std(1, keepdims=True)
    centred = values - values.mean(1, keepdims=True)
    found: np.ndarray = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return found
