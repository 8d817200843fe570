from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from engine import (
    CPU,
    TASKS,
    Setting,
    assert_close,
    gauss_newton,
    gradients,
    scores,
    setting,
)
from torch import nn

from forward_inf_mlflow.directions import Curvature, Replay
from forward_inf_mlflow.directions.reliability import reliability_of
from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.tasks import Regression
from forward_inf_mlflow.tensors import Tensors

cached = cache(setting)
SHORT = Replay(most_steps=5, most_seeds=2, batch=8, reliable=1.0)

#: Batches of so many rows, drawn again and again, that each is nearly all of them.
FULL = Replay(batch=4000, most_seeds=1, weight=1e-3)


def linear(n: int = 60, m: int = 2) -> Setting:
    """Least squares at its optimum, in directions of very different curvature."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + m, 4)) * np.array([3.0, 1.0, 0.5, 0.2])
    y = x @ np.ones(4) + rng.normal(size=n + m)
    module = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(np.linalg.lstsq(x[:n], y[:n], rcond=None)[0])[None])
    rows, queries = (
        Tensors(torch.as_tensor(x[part]), torch.as_tensor(y[part]), CPU, 4096)
        for part in (slice(0, n), slice(n, None))
    )
    return Setting(Regression(), module, rows, queries)


def test_no_steps_change_nothing() -> None:
    assert (scores(cached("classification"), replace(SHORT, most_steps=0)) == 0).all()


def test_a_query_without_gradient_influences_nothing() -> None:
    found = linear()
    still = replace(found.queries, inputs=torch.zeros_like(found.queries.inputs))
    assert (scores(replace(found, queries=still), SHORT) == 0).all()


@pytest.mark.parametrize("kind", ["regression", "causal_lm"])
def test_the_same_seed_gives_the_same_bits_and_another_one_others(kind: str) -> None:
    found = cached(kind)
    first, again = scores(found, SHORT), scores(found, SHORT)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, scores(found, replace(SHORT, seed=5)))


@pytest.mark.parametrize("kind", TASKS)
def test_the_first_step_is_the_gradients_of_the_queries(kind: str) -> None:
    # Control and treated differ by rate * weight * g after one step: influence is g . g * rate / n.
    found = cached(kind)
    direction = replace(SHORT, most_steps=1, most_seeds=1, rate=1e-4, weight=1e-3)
    moves = direction.plan(found.module, found.task, [found.queries], found.rows)
    products = gradients(found, found.queries) @ gradients(found, found.rows).T
    rate = float(moves.facts["rate_used"])  # type: ignore[arg-type]
    expected = products * rate / len(found.rows)
    assert_close(scores(found, direction, method="derivative"), expected, 1e-3)


def test_steps_on_all_rows_are_early_stopped_descent_in_closed_form() -> None:
    # Of an eigenvalue h, T steps at rate r leave (1 - (1 - r h)^T) / h of its inverse 1 / h.
    found, damping = linear(), 0.5
    direction = replace(FULL, damping=damping, momentum=0.0, rate=0.2)
    moves = direction.plan(found.module, found.task, [found.queries], found.rows)
    rate, steps = float(moves.facts["rate_used"]), int(moves.facts["steps"])  # type: ignore[call-overload,arg-type]
    assert moves.facts["damping_used"] == pytest.approx(damping, rel=0.01)
    assert rate * steps == pytest.approx(1 / damping, rel=0.01)
    values, vectors = np.linalg.eigh(gauss_newton(found).numpy())
    along = [gradients(found, rows) @ vectors for rows in (found.queries, found.rows)]
    left = (1 - (1 - rate * values) ** steps) / values
    expected = (along[0] * left) @ along[1].T / len(found.rows)
    read = scores(found, direction, method="derivative")
    assert_close(read, expected, 0.03)
    inverse = scores(found, Curvature(damping=damping, solver="dense"), method="derivative")
    assert np.corrcoef(read.ravel(), inverse.ravel())[0, 1] > 0.95


def test_ever_more_steps_lead_to_the_refitted_model() -> None:
    found = linear()
    direction = replace(FULL, damping=0.0, rate=0.3, most_steps=400)
    inverse = scores(found, Curvature(damping=0.0, solver="dense"), method="derivative")
    assert_close(scores(found, direction, method="derivative"), inverse, 0.1)


def test_the_penalty_pulls_at_both_runs() -> None:
    found, penalty = linear(), 0.5
    direction = replace(FULL, damping=0.0, rate=0.1, most_steps=300, penalty=penalty)
    matrix = gauss_newton(found).numpy()
    matrix += penalty * np.eye(len(matrix))
    x, y = found.rows.inputs.numpy(), found.rows.targets.numpy()
    optimum = np.linalg.solve(matrix, x.T @ y / len(y))  # where both runs lead
    asked = found.queries.inputs.numpy()
    of_queries = (asked @ optimum - found.queries.targets.numpy())[:, None] * asked
    of_rows = (x @ optimum - y)[:, None] * x
    expected = of_queries @ np.linalg.solve(matrix, of_rows.T) / len(y)
    assert_close(scores(found, direction, method="derivative"), expected, 0.05)


def test_the_control_is_shared_by_all_groups_of_a_seed() -> None:
    found = cached("regression")
    groups = [found.queries.part(i, i + 1) for i in range(3)]
    moves = list(SHORT.plan(found.module, found.task, groups, found.rows))
    assert len(moves) == 2 * 3
    controls = [{id(move.tangent.at) for move in moves[i : i + 3] if move.tangent} for i in (0, 3)]
    assert [len(seen) for seen in controls] == [1, 1]
    assert controls[0] != controls[1]


def test_seeds_are_added_until_the_scores_are_reliable_and_no_longer() -> None:
    found = cached("classification")

    def found_after(most_seeds: int, reliable: float) -> tuple[int, float]:
        direction = replace(SHORT, most_seeds=most_seeds, reliable=reliable)
        facts: Any = direction.plan(found.module, found.task, [found.queries], found.rows).facts
        return facts["seeds"], facts["reliability"]

    assert found_after(4, -1.0)[0] == 2
    seeds, reliability = found_after(4, 1.1)
    assert seeds == 4
    assert 0 < reliability < 1
    assert found_after(1, 0.9) == (1, pytest.approx(float("nan"), nan_ok=True))


def test_identical_scores_are_perfectly_reliable_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    same = np.repeat(rng.normal(size=(1, 3, 50)), 4, 0)
    assert reliability_of(same) == pytest.approx(1)
    assert abs(reliability_of(rng.normal(size=(4, 3, 4000)))) < 0.1


def test_reliability_is_stepped_up_by_spearman_and_brown_as_by_hand() -> None:
    # Ranks 1 2 3 4 against 1 2 4 3 correlate at .8; two of them at 2 * .8 / 1.8.
    pair = np.array([[[1.0, 2.0, 3.0, 4.0]], [[10.0, 20.0, 40.0, 30.0]]])
    assert reliability_of(pair) == pytest.approx(1.6 / 1.8)
    # With a third like the first the mean correlation is (.8 + 1 + .8) / 3.
    r = 2.6 / 3
    three = np.concatenate([pair, pair[:1]])
    assert reliability_of(three) == pytest.approx(3 * r / (1 + 2 * r))


def test_groups_without_any_influence_have_no_say_in_the_reliability() -> None:
    still = np.zeros((2, 1, 5))
    assert np.isnan(reliability_of(still))
    moving = np.tile(np.arange(5.0), (2, 1, 1))
    assert reliability_of(np.concatenate([still, moving], 1)) == pytest.approx(1)


def test_training_that_diverges_is_an_error_not_a_zero() -> None:
    with pytest.raises(ForwardInfError, match="diverges: take a smaller rate") as raised:
        scores(linear(), Replay(rate=1e3, damping=0.0, most_steps=400))
    assert "\n" not in str(raised.value)


class Dead(nn.Linear):
    """A model whose answers do not depend on its parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 0


def test_a_model_that_nothing_moves_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="no training row's loss changes") as raised:
        scores(replace(cached("regression"), module=Dead(4, 1).double()), SHORT)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"damping": -1.0},
        {"rate": 0.0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight": 0.0},
        {"batch": 0},
        {"most_steps": -1},
        {"most_seeds": 0},
        {"rows": 0},
        {"relative_size": float("nan")},
        {"sign": "sideways"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_cannot_be_used_are_named_in_one_line(settings: dict[str, object]) -> None:
    with pytest.raises(ForwardInfError, match=rf"{next(iter(settings))} must be") as raised:
        Replay(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
