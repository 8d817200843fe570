"""Tried: does a diffusion model answer for these images, and is its answer worth anything?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from forward_inf_mlflow.directions.moves import at_rest
from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.memory import first_that_fits, is_out_of_memory
from forward_inf_mlflow.task import Batch
from forward_inf_mlflow.tasks import Denoising
from forward_inf_mlflow.tensors import Tensors


def try_images(module: nn.Module, task: Denoising, rows: Tensors) -> float:
    """Ask a model once, with the smallest and the largest labels.

    Returns:
        Its skill: 0 is to answer that there is no noise, 1 is perfect; NaN where it answers with
        what is no number.

    Raises:
        ModelError: It cannot answer; the message says why in one line.
    """
    order = torch.argsort(rows.targets, stable=True).numpy()
    half = max(1, rows.batch_size // 2)
    extreme = rows.take(np.unique(np.concatenate([order[:half], order[-half:]])))
    base = at_rest(module)

    @torch.no_grad()
    def asked(batch: Batch) -> Tensor:
        return torch.tensor(task.skill(task.outputs(base, batch), batch.targets))

    try:
        return float(first_that_fits(extreme, asked))
    except ForwardInfError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        told = ""
        if task.conditional:
            low, high = int(rows.targets.min()), int(rows.targets.max())
            told = f", labels from {low} to {high} (whole numbers that the model knows, or names)"
        raise ModelError(
            f"the model cannot answer for images of {tuple(rows.inputs.shape[1:])}, times up to "
            f"{max(task.chosen_times)}{told}: {reason}"
        ) from error


def require_skill(skill: float, rows: Tensors) -> None:
    """Refuse a model that explains none of the noise: what it says of images says nothing.

    Raises:
        ModelError: It is so; NaN is left to whoever looks at single images.
    """
    if skill <= 0:
        low, high = float(rows.inputs.min()), float(rows.inputs.max())
        raise ModelError(
            "the model explains none of the noise in these images, whose numbers go from "
            f"{low:.3g} to {high:.3g}: it was trained on another scale (--pixels), under another "
            "noise schedule (--schedule), or not at all"
        )
