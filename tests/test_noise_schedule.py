from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forward_inf_mlflow.diffusion.attributed import noisy_times
from forward_inf_mlflow.errors import ModelError
from forward_inf_mlflow.models.denoiser import said_schedule
from forward_inf_mlflow.models.noise_schedule import (
    KEY,
    chosen_schedule,
    named_schedule,
    read_schedule,
)
from forward_inf_mlflow.tasks import cosine_schedule


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
)
def test_a_schedule_is_what_the_scheduler_of_diffusers_makes_of_its_config(
    settings: dict[str, Any],
) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(50, **settings)
    found = read_schedule(dict(scheduler.config), "it")
    np.testing.assert_allclose(found.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4)
    assert found.predicts == "noise"


def test_named_schedules_and_lists_are_read() -> None:
    assert named_schedule("cosine", 10).alphas_cumprod == cosine_schedule(10)
    assert named_schedule("linear", 2).alphas_cumprod == pytest.approx((0.9999, 0.9999 * 0.98))
    assert read_schedule({"betas": [0.5, 0.5]}, "it").alphas_cumprod == (0.5, 0.25)
    told = read_schedule({"schedule": "cosine", "steps": 4, "prediction_type": "sample"}, "it")
    assert (told.alphas_cumprod, told.predicts) == (cosine_schedule(4), "image")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "holds no noise schedule"),
        ({"betas": "many"}, "cannot be read as a noise schedule"),
        ({"betas": [0.5, -1.0]}, "must fall"),
        ({"alphas_cumprod": [0.5, 0.6]}, "must fall"),
        ({"schedule": "cosine"}, "give --steps"),
        ({"schedule": "cosine", "steps": 10**9}, "has 1 to 100,000 steps"),
        ({"num_train_timesteps": 5, "beta_schedule": "odd"}, "is not known here"),
        ({"prediction_type": "flow"}, "only epsilon, sample, v_prediction"),
        ({"prediction_type": []}, "only epsilon, sample, v_prediction"),
        (
            {"num_train_timesteps": 9, "beta_start": -1, "beta_schedule": "scaled_linear"},
            "lie between 0 and 1",
        ),
        ({"rescale_betas_zero_snr": True}, "cannot be asked yet"),
    ],
)
def test_what_is_no_schedule_is_said_in_one_line(content: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says) as raised:
        read_schedule(content, "it")
    assert "\n" not in str(raised.value)


def test_the_noisiest_times_are_read() -> None:
    left = (0.9, 0.5, 0.19, 0.15, 0.1, 0.05)
    assert noisy_times(left, 2) == (3, 5)
    assert noisy_times(left, 4) == (2, 3, 4, 5)
    assert noisy_times(left, 5) == (1, 2, 3, 4, 5)  # as many as wished
    assert noisy_times(left, 10) == (0, 1, 2, 3, 4, 5)


def test_a_named_schedule_counts_whatever_the_version_says() -> None:
    broken = said_schedule({KEY: {"betas": [5]}})
    assert isinstance(broken, ModelError)
    with pytest.raises(ModelError, match="must fall"):
        chosen_schedule(broken, None, None)
    assert chosen_schedule(broken, "cosine", 20).said == "cosine, 20 steps"


def test_what_a_model_predicts_the_version_says() -> None:
    config = {"num_train_timesteps": 20, "prediction_type": "v_prediction"}
    said = read_schedule(config, "the version's metadata")
    found = chosen_schedule(said, "cosine", 20)
    assert found.predicts == "velocity"
    assert "the version says" in found.said


@pytest.mark.parametrize(
    "content",
    [
        {"alphas_cumprod": [0.9999] * 20},
        {"schedule": "cosine", "steps": True},
        {"schedule": "cosine", "steps": 5.9},
        {"schedule": "x" * 9999, "steps": 5},
        {"num_train_timesteps": 10**400},
    ],
)
def test_schedules_that_are_none_are_refused_in_one_short_line(content: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as refused:
        read_schedule(content, "the version")
    assert len(str(refused.value)) < 300
