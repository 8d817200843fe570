"""Noise schedules: how much of an image is left after each step, and what a denoiser predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from forward_inf_mlflow.errors import ModelError
from forward_inf_mlflow.models.checkpoint import settings
from forward_inf_mlflow.tasks.denoising import Prediction, cosine_schedule

#: Where a version's MLmodel file says its schedule.
KEY = "noise_schedule"
#: What ``--schedule`` may name.
NAMES = ("cosine", "linear")
#: What a scheduler of diffusers may say that its model predicts.
_PREDICTIONS: dict[object, Prediction] = {
    "epsilon": "noise",
    "sample": "image",
    "v_prediction": "velocity",
}
#: What may be left of an image at the last step.
_MOST_LEFT = 0.99
#: The longest schedule that is believed.
_MOST_STEPS = 100_000
_FORMS = (
    'a scheduler\'s config, {"schedule": "cosine", "steps": 100}, {"betas": [...]} or '
    '{"alphas_cumprod": [...]}'
)
_ASK = "say it with --schedule cosine (or linear, or a JSON file) and --steps"


@dataclass(frozen=True)
class Schedule:
    """What a denoiser was trained under.

    Attributes:
        alphas_cumprod: Share of the image's variance that is left after each step, falling.
        predicts: What the model answers.
        said: Where it is from, in words.
    """

    alphas_cumprod: tuple[float, ...]
    predicts: Prediction
    said: str


def named_schedule(name: str, steps: int | None) -> Schedule:
    """Return a schedule by its name.

    "cosine" is Nichol and Dhariwal's; "linear" has steps of noise from .0001 to .02, which is the
    default of diffusers' schedulers (and, with 1,000 steps, that of DDPM).

    Raises:
        ModelError: There is no such schedule, or nobody says how many steps.
    """
    if steps is None:
        raise ModelError(f"the schedule {name!r} needs its number of steps: give --steps")
    if not 1 <= steps <= _MOST_STEPS:
        raise ModelError(f"a schedule has 1 to {_MOST_STEPS:,} steps, not {str(steps)[:20]}")
    if name == "cosine":
        left = cosine_schedule(steps)
    elif name == "linear":
        left = _left(np.linspace(1e-4, 0.02, steps))
    else:
        raise ModelError(f"there is no schedule {name!r:.60}: name one of {', '.join(NAMES)}")
    return Schedule(left, "noise", f"{name}, {steps:,} steps")


def read_schedule(content: Mapping[str, Any], said: str) -> Schedule:
    """Return the schedule that settings speak of; see ``_FORMS``.

    Of a scheduler's config everything that decides its noise is read: ``num_train_timesteps``,
    ``beta_start``, ``beta_end``, ``beta_schedule``, ``trained_betas``, ``prediction_type`` and
    ``rescale_betas_zero_snr``.

    Args:
        content: Other people's settings.
        said: Where they are from.

    Raises:
        ModelError: They describe none, or one that is not known here.
    """
    predicted = content.get("prediction_type", "epsilon")
    kind = _PREDICTIONS.get(predicted) if isinstance(predicted, str) else None
    if kind is None:
        raise ModelError(
            f"{said} says that the model predicts {predicted!r:.60}: only "
            f"{', '.join(map(str, _PREDICTIONS))} can be asked"
        )
    if content.get("rescale_betas_zero_snr"):
        raise ModelError(
            f"{said} leaves nothing of the image at the last step (rescale_betas_zero_snr), where "
            "noise cannot be told from an answer: such a model cannot be asked yet"
        )
    try:
        if content.get("alphas_cumprod") is not None:
            left = _numbers(content["alphas_cumprod"])
        elif (betas := content.get("trained_betas", content.get("betas"))) is not None:
            left = _left(np.array(_numbers(betas)))
        elif "schedule" in content:
            steps = content.get("steps")
            if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int)):
                raise TypeError("steps are a whole number")
            named = named_schedule(str(content["schedule"]), steps)
            return Schedule(named.alphas_cumprod, kind, f"{said} ({named.said})")
        elif "num_train_timesteps" in content:
            left = _left(_betas(content, said))
        else:
            raise ModelError(f"{said} holds no noise schedule: write {_FORMS}, or {_ASK}")
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{said} cannot be read as a noise schedule: write {_FORMS}") from error
    if not all(0 < a < 1 for a in left) or any(b > a for a, b in pairwise(left)):
        raise ModelError(
            f"{said} is no noise schedule: what is left of the image (alphas_cumprod) must fall "
            "from below 1 to above 0"
        )
    if left[-1] > _MOST_LEFT:
        raise ModelError(
            f"{said} leaves {left[-1]:.2%} of the image at its last step, so that there is no "
            "noise to predict: give the model's own"
        )
    return Schedule(left, kind, f"{said}, {len(left):,} steps")


def chosen_schedule(
    said: Schedule | ModelError | None, wanted: str | None, steps: int | None
) -> Schedule:
    """Return the schedule that the user names, else what the version says.

    What the model predicts, the version says, unless the user's file does.

    Args:
        said: By the version; None if it says none, an error if that cannot be read.
        wanted: "cosine", "linear" or a JSON file; None for what the version says.
        steps: Of a named schedule.

    Raises:
        ModelError: Nobody knows it, or what was named is none.
    """
    if wanted is None:
        if steps is not None:
            raise ModelError("--steps belong to a schedule: name it with --schedule too")
        if said is None:
            raise missing()
        if isinstance(said, ModelError):
            raise said
        return said
    if wanted in NAMES:
        named, told_there = named_schedule(wanted, steps), False
    elif steps is not None:
        raise ModelError("a file says its steps itself: leave --steps out")
    else:
        content = _own_file(wanted)
        named = read_schedule(content, f"the file {Path(wanted).name}")
        told_there = "prediction_type" in content
    if isinstance(said, Schedule) and not told_there and said.predicts != named.predicts:
        how = f"{named.said}; that it predicts the {said.predicts}, the version says"
        return replace(named, predicts=said.predicts, said=how)
    return named


def _own_file(name: str) -> dict[str, Any]:
    """Return the content of a user's file.

    Raises:
        ModelError: There is none, or it is no object of JSON.
    """
    try:
        there = Path(name).is_file()
    except (OSError, ValueError):  # no name that a file can have
        there = False
    if not there:
        raise ModelError(
            f"--schedule {name[:80]!r} is neither {' nor '.join(NAMES)} nor a JSON file: check it"
        )
    try:
        return settings(Path(name))
    except ModelError as error:
        raise ModelError(
            f"--schedule {name[:80]!r} is no file with one JSON object: write {_FORMS}"
        ) from error


def missing() -> ModelError:
    """Return what to say where nobody knows the schedule."""
    return ModelError(
        f"the version does not say its noise schedule: {_ASK}, or log the model with "
        f'metadata={{"{KEY}": ...}}, {_FORMS}'
    )


def _betas(config: Mapping[str, Any], said: str) -> np.ndarray:
    """Return the steps of noise of a scheduler of diffusers, by its config."""
    steps = int(config["num_train_timesteps"])
    if not 1 <= steps <= _MOST_STEPS:
        raise ModelError(
            f"{said}: a schedule has 1 to {_MOST_STEPS:,} steps, not {str(steps)[:20]}"
        )
    first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if not (0 <= first <= 1 and 0 <= last <= 1):
        raise ModelError(f"{said}: steps of noise (beta_start, beta_end) lie between 0 and 1")
    name = config.get("beta_schedule", "linear")
    if name == "linear":
        return np.linspace(first, last, steps)
    if name == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, steps) ** 2
    if name == "sigmoid":
        return (last - first) / (1 + np.exp(-np.linspace(-6, 6, steps))) + first
    if name == "squaredcos_cap_v2":

        def at(share: float) -> float:
            return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

        return np.array([min(1 - at((i + 1) / steps) / at(i / steps), 0.999) for i in range(steps)])
    raise ModelError(
        f"{said} names the beta_schedule {name!r:.60}, which is not known here: {_ASK}"
    )


def _left(betas: np.ndarray) -> tuple[float, ...]:
    return tuple(np.cumprod(1.0 - betas).tolist())


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= _MOST_STEPS:
        raise TypeError("not a list of numbers")
    return tuple(float(value) for value in values)
