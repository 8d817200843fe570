"""Question: what is asked of a diffusion model about images, and how it is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from forward_inf_mlflow.data.images import Images
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.diffusion.attributed import noisy_times
from forward_inf_mlflow.diffusion.labels import label_numbers, numbered
from forward_inf_mlflow.diffusion.pixels import Pixels, scaled, shaped
from forward_inf_mlflow.diffusion.tried import try_images
from forward_inf_mlflow.directions import Direction
from forward_inf_mlflow.directions.moves import trainable
from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.influence import QueryGroups
from forward_inf_mlflow.memory import room
from forward_inf_mlflow.models.denoiser import Denoiser
from forward_inf_mlflow.models.noise_schedule import Schedule
from forward_inf_mlflow.models.placing import place
from forward_inf_mlflow.planner import Job, Plan, plan, suited
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.shards import digest_arrays, digest_module
from forward_inf_mlflow.sweep import read
from forward_inf_mlflow.tasks import Denoising
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.version import __version__

#: Numbers in a batch that is chosen automatically: each image is passed forward many times.
_BATCH_NUMBERS = 2**16
#: Gradients that the curvature is drawn from.
GRADIENTS = 2000
#: Parameters that a message names.
_NAMED = 5


@dataclass(frozen=True)
class Asked:
    """A question: the model, its training images, and the generated ones.

    Attributes:
        module: On the device; parameters that may not move do not require gradients.
        features: From its inputs to what its last layer sees.
        task: Its loss at the noisiest times, weighted towards the clean image.
        train, queries: Images as the model takes them, and labels (0 where it takes none).
        train_rows, query_rows: The same as stored.
        moved: How many numbers of the model may move.
        notes: Sentences for the reader.
    """

    module: nn.Module
    features: Callable[..., Tensor] | None
    task: Denoising
    train: Tensors
    queries: Tensors
    train_rows: Rows
    query_rows: Rows
    moved: int
    notes: tuple[str, ...]

    @property
    def groups(self) -> QueryGroups:
        """Return every generated image alone."""
        return QueryGroups.each(self.queries, self.query_rows.ids)


def pose_images(
    model: Denoiser,
    schedule: Schedule,
    train: Images,
    generated: Images,
    *,
    pixels: Pixels,
    parameters: str | None,
    times: int,
    device: torch.device,
    batch_size: int | None,
    seed: int,
) -> Asked:
    """Bring model and images together.

    Raises:
        DataError: Images do not fit the model, or each other; a label is missing or unknown.
        ModelError: The model cannot answer for them.
        ForwardInfError: No parameter has such a name.
    """
    notes = [f"the model {note}" for note in model.notes]
    x_train, x_queries = (
        shaped(_array(images.rows), model.shape, images.rows.uri) for images in (train, generated)
    )
    if x_train.shape[1:] != x_queries.shape[1:]:
        raise DataError(
            f"a training image has the shape {x_train.shape[1:]}, a generated one "
            f"{x_queries.shape[1:]}: give both alike"
        )
    x_train, x_queries, said = scaled(x_train, x_queries, pixels, train.rows, generated.rows)
    notes.append(said)
    y_train, y_queries = _labels(model, train, generated)
    if batch_size is None:
        numbers = max(1, int(np.prod(x_train.shape[1:])))
        batch_size = min(256, max(1, _BATCH_NUMBERS // numbers))
    batch_size = min(batch_size, model.max_batch or batch_size)
    module = place(model.module, device)
    chosen = choose_parameters(module, parameters)
    task = Denoising(
        alphas_cumprod=schedule.alphas_cumprod,
        times=noisy_times(schedule.alphas_cumprod, times),
        seed=seed,
        conditional=model.conditional,
        predicts=schedule.predicts,
    )
    train_tensors, query_tensors = (
        Tensors(torch.as_tensor(x), torch.as_tensor(y), device, batch_size)
        for x, y in ((x_train, y_train), (x_queries, y_queries))
    )
    try_images(module, task, train_tensors)
    try_images(module, task, query_tensors)
    (train_tensors, train_rows), lost = _readable(module, task, train_tensors, train.rows)
    if lost:
        notes.append(f"{lost:,} training images were left out: the model's loss is no number there")
    return Asked(
        module=module,
        features=model.features,
        task=task,
        train=train_tensors,
        queries=query_tensors,
        train_rows=train_rows,
        query_rows=generated.rows,
        moved=chosen,
        notes=tuple(notes),
    )


def choose_parameters(module: nn.Module, pattern: str | None) -> int:
    """Let only the parameters move whose names match a pattern; return how many numbers these are.

    Args:
        module: Is changed.
        pattern: As file names are matched, ``*attn*to_[kv]*``; several are separated by commas.

    Raises:
        ForwardInfError: It matches none.
    """
    if pattern is not None:
        wanted = [part.strip() for part in pattern.split(",") if part.strip()]
        # The registered model's own names: ours stands around it.
        own = {name: name.partition(".")[2] for name in trainable(module)}
        names = list(own.values())
        kept = {n for n, said in own.items() if any(fnmatchcase(said, part) for part in wanted)}
        if not kept:
            shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            raise ForwardInfError(
                f"no parameter is called like {pattern[:80]!r}: the model's {len(names):,} are "
                f"called {shown}; name others with --parameters"
            )
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in kept)
    return sum(p.numel() for p in trainable(module).values())


def planned(
    question: Asked, *, direction: Direction | None, weight_decay: float | None, seed: int
) -> Plan:
    """Choose what nobody has chosen, and say what it costs in forward-equivalents of one row.

    A row's loss is the mean over several times, each of which is a pass of its own.
    """
    groups, rows = len(question.query_rows), question.train
    job = Job(
        rows=len(rows),
        groups=groups,
        queries=groups,
        parameters=question.moved,
        saturates=False,
        known=0.0,
        penalty=weight_decay,
        quadratic=False,
        device=rows.device.type,
        memory=room(rows.device),
    )
    found = plan(job, direction=direction, readout="loss", gradients=GRADIENTS, seed=seed)
    return suited(found, question.task, asked=direction is not None)


def attribution_key(version: Version, question: Asked, chosen: Plan) -> dict[str, object]:
    """Return all that the pieces of an attribution depend on."""
    train, queries = question.train, question.queries
    return {
        "what": "attribution",
        "model": [version.uri, version.creation_timestamp, digest_module(question.module)],
        "moved": sorted(trainable(question.module)),
        "train": digest_arrays(train.inputs, train.targets),
        "queries": digest_arrays(queries.inputs, queries.targets),
        "task": question.task.describe(),
        "direction": chosen.direction.describe(),
        "batch_size": train.batch_size,
        "device": [str(train.device), room(train.device)],
        "threads": torch.get_num_threads(),
        "versions": [__version__, torch.__version__],
    }


def _array(rows: Rows) -> np.ndarray:
    assert isinstance(rows.features, np.ndarray)  # read from an array, or from pictures
    return rows.features


def _labels(model: Denoiser, train: Images, generated: Images) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as the model takes them, int64; all 0 where it takes none."""
    if not model.conditional:
        return np.zeros(len(train.rows), np.int64), np.zeros(len(generated.rows), np.int64)
    for images, what in ((train, "training"), (generated, "generated")):
        if not images.labelled:
            raise DataError(
                f"the model is told a label with each image, and the {what} images of "
                f"{images.rows.uri} have none: add an array y, or name one with --label"
            )
    known = label_numbers(train.rows.labels, model.classes)
    return numbered(train.rows, known, "training"), numbered(generated.rows, known, "generated")


def _readable(
    module: nn.Module, task: Denoising, tensors: Tensors, rows: Rows
) -> tuple[tuple[Tensors, Rows], int]:
    """Leave out the training images whose loss is not a number; say how many these are."""
    fine = torch.isfinite(read(module, task, tensors).loss).numpy()
    if fine.all():
        return (tensors, rows), 0
    if not fine.any():
        raise ModelError("the model's loss is not a number on any image: log one that is trained")
    return (tensors.take(np.flatnonzero(fine)), rows.take(fine)), int((~fine).sum())
