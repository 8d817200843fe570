"""Denoising: the noise-prediction loss of a diffusion model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.task import Batch, Forward, Task

#: What a denoiser answers: the noise, the clean image, or ``sqrt(abar) noise - sqrt(1 - abar) x``.
Prediction = Literal["noise", "image", "velocity"]


def cosine_schedule(steps: int) -> tuple[float, ...]:
    """Return how much of the image's variance is left after each step of noise, ``abar_t``.

    Source: "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, ICML 2021),
    with their offset of .008 and at most .999 of the variance taken by one step.

    Raises:
        DataError: Fewer than one step.
    """
    if steps < 1:
        raise DataError(f"a schedule needs at least one step, not {steps}")
    angle = (np.linspace(0, 1, steps + 1) + 0.008) / 1.008 * math.pi / 2
    left = np.cos(angle) ** 2
    kept = np.maximum(left[1:] / left[:-1], 0.001)
    return tuple(np.cumprod(kept).tolist())


@dataclass(frozen=True, kw_only=True)
class Denoising(Task):
    """One image, or anything else that is noised, per row. Inputs: ``(B, ...)``, not noised.

    The model is asked ``module(x_t, t)``, or ``module(x_t, t, y)`` with the targets as y, for the
    noise in ``x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise``, t int64 ``(B,)``. Outputs: the noise
    that it answers, or that its answer implies, for every draw of noise at every time, ``(B, draws
    * times, ...)``. Targets: labels ``(B,)``, which a model without conditions never sees.

    Loss: the mean over draws, times and numbers of the weighted squared error of the noise. The
    noise depends on the seed, the draw and the row's shape alone: all rows, and a row under
    control and treated, meet the same, so that it cancels in their differences.

    Attributes:
        alphas_cumprod: ``abar_t`` of the model's schedule, falling from below 1 to above 0.
        times: How many times, spread evenly over the schedule, or which.
        draws: How many draws of noise are averaged.
        seed: Of the noise.
        clean_weight: Weight each time by ``(1 - abar) / abar``, at most by this: the error of the
            clean image that the prediction implies. Without it (None) the gradients at low noise
            are mostly noise themselves, and more draws are needed.
        conditional: Whether the model takes y.
        predicts: What it answers; an image or a velocity is turned into the noise that it implies.
    """

    alphas_cumprod: tuple[float, ...]
    times: int | tuple[int, ...] = 10
    draws: int = 1
    seed: int = 0
    clean_weight: float | None = 5.0
    conditional: bool = False
    predicts: Prediction = "noise"

    name = "denoising"
    unit = "units of weighted squared error"
    labelled = False
    damping = 0.01  # more of it, and influence finds fewer exemplars: benchmarks/diffusion.py

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            DataError: They cannot be used; says which and why.
        """
        kept, steps = np.array(self.alphas_cumprod, dtype=float), len(self.alphas_cumprod)
        if not steps or not (kept > 0).all() or not (kept < 1).all() or (np.diff(kept) > 0).any():
            raise DataError(
                "alphas_cumprod must fall from below 1 to above 0: give the model's own"
            )
        most = steps if isinstance(self.times, int) else len(self.times)
        if not 1 <= len(self.chosen_times) <= most or not set(self.chosen_times) <= {*range(steps)}:
            raise DataError(f"times must be 1 to {steps} of the schedule's steps, not {self.times}")
        if self.draws < 1 or self.seed < 0:
            raise DataError("draws must be at least 1 and the seed at least 0")
        if self.clean_weight is not None and not self.clean_weight > 0:
            raise DataError(f"clean_weight must be above 0 or None, not {self.clean_weight}")
        if self.predicts not in get_args(Prediction):
            raise DataError(f"predicts must be one of {', '.join(get_args(Prediction))}")

    @property
    def chosen_times(self) -> tuple[int, ...]:
        """Return the times that are asked, each in the middle of its part of the schedule."""
        if not isinstance(self.times, int):
            return self.times
        step = len(self.alphas_cumprod) / max(1, self.times)
        return tuple(int((i + 0.5) * step) for i in range(self.times))

    @property
    def weights(self) -> tuple[float, ...]:
        """Return the weight of each chosen time."""
        if self.clean_weight is None:
            return (1.0,) * len(self.chosen_times)
        kept = (self.alphas_cumprod[t] for t in self.chosen_times)
        return tuple(min(self.clean_weight, (1 - a) / a) for a in kept)

    @property
    def passes(self) -> int:
        """Return how often a row is passed forward: at every time, with every draw of noise."""
        return self.draws * len(self.chosen_times)

    def training_loss(self, forward: Forward, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the mean squared error ``(B,)`` of what the model answers.

        Each row has a time and noise of its own.
        """
        clean = batch.inputs
        t = torch.randint(len(self.alphas_cumprod), (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        left = torch.tensor(self.alphas_cumprod, dtype=clean.dtype)[t]
        kept = left.to(clean).view(-1, *[1] * (clean.ndim - 1))
        noised = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        told = (batch.targets,) if self.conditional else ()
        answer: object = forward(noised, t.to(clean.device), *told)
        wanted = {
            "noise": noise,
            "image": clean,
            "velocity": kept.sqrt() * noise - (1 - kept).sqrt() * clean,
        }[self.predicts]
        given = _like(getattr(answer, "sample", answer), clean)
        return (given - wanted).square().flatten(1).mean(1)

    def outputs(self, forward: Forward, batch: Batch) -> Tensor:
        """Return the predicted noise ``(B, draws * times, ...)`` float64; one forward pass each.

        The model may return the noise or an object that holds it as ``sample``.

        Raises:
            DataError: The inputs are integers.
            ModelError: The model does not return one number per number of the row.
        """
        clean = batch.inputs
        if not clean.is_floating_point():
            raise DataError(
                f"inputs are {clean.dtype}: scale them to what the model was trained on"
            )
        asked = (batch.targets,) if self.conditional else ()
        answers = []
        for noise in self._noise(clean):
            for t in self.chosen_times:
                kept = self.alphas_cumprod[t]
                noised = math.sqrt(kept) * clean + math.sqrt(1 - kept) * noise
                time = torch.full((len(clean),), t, device=clean.device)
                answer: object = forward(noised.contiguous(), time, *asked)
                given = _like(getattr(answer, "sample", answer), clean)
                answers.append(self._as_noise(given, noised, kept))
        return torch.stack(answers, 1).to(torch.float64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted mean squared error of each row's predicted noise, ``(B,)``."""
        wanted = self._noise(outputs[:, 0]).repeat_interleave(len(self.chosen_times), 0)
        errors = (outputs - wanted).square().reshape(*outputs.shape[:2], -1).mean(2)
        weights = torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device)
        return (errors * weights.repeat(self.draws)).mean(1)

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return normal noise as large as the loss is curved in each predicted number."""
        weights = torch.tensor(self.weights, dtype=outputs.dtype).repeat(self.draws)
        curved = 2 * weights / outputs[0].numel()  # the loss is a mean over times and numbers
        noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
        return (noise * curved.sqrt().view(-1, *[1] * (outputs.ndim - 2))).to(outputs)

    def skill(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the explained share of the noise: 0 is to answer that there is none, 1 perfect."""
        error = float(self.loss(outputs, targets).mean())
        return 1 - error / float(self.loss(torch.zeros_like(outputs[:1]), targets).mean())

    def _as_noise(self, answer: Tensor, noised: Tensor, kept: float) -> Tensor:
        """Return the noise that an answer implies."""
        if self.predicts == "image":
            return (noised - math.sqrt(kept) * answer) / math.sqrt(1 - kept)
        if self.predicts == "velocity":
            return math.sqrt(kept) * answer + math.sqrt(1 - kept) * noised
        return answer

    def _noise(self, like: Tensor) -> Tensor:
        """Return the noise of every draw for rows like ``(B, ...)``, ``(draws, ...)``.

        Drawn in float32 on the host, so that it is the same on every device.
        """
        draws = [
            np.random.default_rng([self.seed, draw]).standard_normal(like.shape[1:], np.float32)
            for draw in range(self.draws)
        ]
        return torch.from_numpy(np.stack(draws)).to(like)


def _like(answer: object, clean: Tensor) -> Tensor:
    """Return the answer if it is a tensor with the input's shape."""
    if isinstance(answer, Tensor) and answer.shape == clean.shape:
        return answer
    given = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    raise ModelError(
        f"a denoiser must return noise like its input {tuple(clean.shape)}, not {given}: "
        "choose another task, or wrap the model"
    )
