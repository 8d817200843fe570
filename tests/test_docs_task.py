"""What docs/writing-a-task.md shows can be run, and does what the page says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forward_inf_mlflow import tasks
from forward_inf_mlflow.directions import GradientStep
from forward_inf_mlflow.influence import ForwardInfluence
from forward_inf_mlflow.task import Task

PAGE = (Path(__file__).parents[1] / "docs" / "writing-a-task.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """The names that the page's code leaves behind."""
    names: dict[str, Any] = {"__name__": "page"}
    exec("\n".join(BLOCKS), names)
    return names


def test_the_scores_of_the_pages_task_are_the_products_of_its_gradients(
    shown: dict[str, Any],
) -> None:
    module, task, train = shown["module"], shown["task"], shown["train"]
    found = []
    for i in range(len(train)):
        loss = task.loss(module(train.inputs[i : i + 1]), train.targets[i : i + 1]).sum()
        parts = torch.autograd.grad(loss, list(module.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]).numpy())
    gradients = np.stack(found)
    engine = ForwardInfluence(task=task, direction=GradientStep())
    plain = engine.influence(module, shown["queries"], train, shown["ids"])
    expected, scores = gradients[:3] @ gradients.T, plain.scores.values
    assert shown["found"].scores.provenance["direction"] == "curvature"
    assert scores.shape == expected.shape
    np.testing.assert_allclose(scores, expected, atol=0.02 * np.abs(expected).max())


def test_the_pages_margin_is_the_log_odds_and_its_skill_runs_from_guess_to_perfect(
    shown: dict[str, Any],
) -> None:
    task, targets = shown["task"], shown["train"].targets
    outputs = torch.randn(targets.shape, generator=torch.Generator().manual_seed(0)).double()
    p = torch.where(targets > 0, outputs.sigmoid(), 1 - outputs.sigmoid())
    torch.testing.assert_close(task.margin(outputs, targets), (p / (1 - p)).log().sum(1))
    torch.testing.assert_close(task.loss(outputs, targets), -p.log().sum(1))
    often = torch.where(targets.mean(0) > 0.5, 1.0, -1.0).expand(targets.shape)
    assert task.skill(often, targets) == pytest.approx(0)
    assert task.skill(2 * targets - 1, targets) == 1


def test_the_pages_task_has_no_more_than_fifteen_lines() -> None:
    lines = BLOCKS[0][BLOCKS[0].index("class ") :].splitlines()
    assert len([line for line in lines if line.strip()]) <= 15
    assert all(len(line) <= 100 for block in BLOCKS for line in block.splitlines())


def test_the_page_lists_every_ready_task_and_every_method_that_may_be_written() -> None:
    ready = {name for name in tasks.__all__ if inspect.isclass(getattr(tasks, name))}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == ready
    described = set(re.findall(r"^- \*\*`(\w+)`\*\*", PAGE, re.MULTILINE))
    methods = {name for name, value in vars(Task).items() if inspect.isfunction(value)}
    assert described == methods - {"readout", "readout_of", "describe"} | {"labelled"}
