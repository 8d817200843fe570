from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from engine import (
    TASKS,
    Setting,
    assert_close,
    correlation,
    gauss_newton,
    gradients,
    names,
    scores,
    setting,
)
from torch import Tensor, nn

from forward_inf_mlflow.directions import Curvature, GradientStep, curvature, held
from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.tasks import Regression

cached = cache(setting)
dense = cache(lambda kind: gauss_newton(cached(kind)))
EXACT = Curvature(solver="dense", by_layer=False, damping=0.1)
SOLVERS = {
    "dense": EXACT,
    "cg": replace(EXACT, solver="cg", tolerance=1e-9, iterations=400),
    "sketch": replace(EXACT, solver="sketch", rank=10**6),
    "fisher": replace(EXACT, solver="fisher", gradients=2000),
}


def expected(found: Setting, damping: float, penalty: float = 0.0) -> np.ndarray:
    """The influence function from whole matrices and a backward pass a row, ``(m, n)``."""
    matrix = gauss_newton(found).numpy()
    g, asked = gradients(found, found.rows), gradients(found, found.queries)
    solved = np.linalg.solve(matrix + (damping + penalty) * np.eye(len(matrix)), asked.T)
    return solved.T @ g.T / len(found.rows)


@pytest.mark.parametrize("kind", TASKS)
def test_influence_is_the_influence_function_from_whole_matrices(kind: str) -> None:
    found = cached(kind)
    assert_close(
        scores(found, replace(EXACT, penalty=0.05), method="derivative"),
        expected(found, 0.1, 0.05),
    )


@pytest.mark.parametrize("kind", TASKS)
def test_by_layer_every_layer_is_inverted_by_itself(kind: str) -> None:
    found = cached(kind)
    of_layer = [
        sum(p.numel() for p in part.parameters(recurse=False)) for part in found.module.modules()
    ]
    blocks = torch.block_diag(*[torch.ones(size, size) for size in of_layer if size]).double()
    matrix = (dense(kind) * blocks).numpy() + 0.1 * np.eye(len(dense(kind)))
    g, asked = gradients(found, found.rows), gradients(found, found.queries)
    blockwise = np.linalg.solve(matrix, asked.T).T @ g.T / len(found.rows)
    exact = scores(found, replace(EXACT, by_layer=True), method="derivative")
    assert_close(exact, blockwise)
    drawn = replace(SOLVERS["fisher"], by_layer=True, damping=None)
    ruled = scores(found, replace(EXACT, by_layer=True, damping=None), method="derivative")
    assert correlation(scores(found, drawn, method="derivative"), ruled) > 0.95


@pytest.mark.parametrize("kind", TASKS)
def test_a_small_step_reads_the_same_influence(kind: str) -> None:
    found = cached(kind)
    direction = replace(EXACT, relative_size=1e-6, sign="both")
    assert_close(scores(found, direction, method="difference"), expected(found, 0.1), 1e-4)


@pytest.mark.parametrize("solver", ["cg", "sketch"])
@pytest.mark.parametrize("kind", TASKS)
def test_every_exact_solver_gives_the_same_scores(kind: str, solver: str) -> None:
    found = cached(kind)
    exact = scores(found, EXACT, method="derivative")
    assert_close(scores(found, SOLVERS[solver], method="derivative"), exact, 1e-4)


@pytest.mark.parametrize("kind", TASKS)
def test_drawn_gradients_give_nearly_the_same_scores(kind: str) -> None:
    found = cached(kind)
    exact = scores(found, replace(EXACT, damping=None), method="derivative")
    drawn = replace(SOLVERS["fisher"], damping=None)
    assert correlation(scores(found, drawn, method="derivative"), exact) > 0.95


def test_a_sketch_of_low_rank_is_close_to_the_inverse_at_a_large_damping() -> None:
    found = cached("classification")
    exact = scores(found, replace(EXACT, damping=0.3), method="derivative")
    low = replace(EXACT, damping=0.3, solver="sketch", rank=8)
    assert correlation(scores(found, low, method="derivative"), exact) > 0.98


def test_an_infinite_damping_leaves_the_gradient_divided_by_it() -> None:
    found, damping = cached("classification"), 1e7
    plain = gradients(found, found.queries) @ gradients(found, found.rows).T
    for solver in SOLVERS.values():
        direction = replace(solver, damping=damping)
        read = scores(found, direction, method="derivative")
        assert_close(read * damping * len(found.rows), plain)


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_group_is_the_mean_of_its_queries(solver: str) -> None:
    found = cached("classification")
    engine = ForwardInfluence(task=found.task, direction=SOLVERS[solver], method="derivative")
    groups = QueryGroups.together(found.queries)
    together = engine.influence(found.module, groups, found.rows, names(len(found.rows))).scores
    each = scores(found, SOLVERS[solver], method="derivative")
    assert_close(together.values[0], each.mean(0))


@pytest.mark.parametrize("solver", ["dense", "sketch", "cg", "fisher"])
def test_moves_for_many_groups_give_what_a_move_for_each_gives(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cached("regression")
    each = scores(found, SOLVERS[solver], method="derivative")
    monkeypatch.setattr(curvature, "_OWN", 0)
    full = replace(SOLVERS[solver], rank=10**6)
    # Drawn gradients leave out eigenvectors that float32 could not tell from rounding.
    share = 1e-2 if solver == "fisher" else 1e-4
    assert_close(scores(found, full, method="derivative"), each, share)


def test_many_queries_share_moves_and_the_facts_say_what_these_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = setting("classification", n=12, m=130)
    groups = [found.queries.part(i, i + 1) for i in range(130)]
    monkeypatch.setattr(curvature, "_OWN", 100)
    held = []
    for rank in (8, 16, 32):
        monkeypatch.setattr(curvature, "_SHARED", rank)
        moves = EXACT.plan(found.module, found.task, groups, found.rows)
        assert len(moves) == moves.facts["rank"] == rank
        assert moves.coefficients.shape == (130, rank)
        assert EXACT.outlook(1000, 12, 130)[1] == rank
        held.append(moves.facts["held"])
    assert 0 < held[0] < held[1] < held[2] <= 1 + 1e-9


# Settings and refusals


def test_the_damping_is_a_multiple_of_the_mean_eigenvalue_plus_the_penalty() -> None:
    found = cached("classification")
    groups = [found.queries]
    for solver in SOLVERS.values():
        direction = replace(solver, damping=None, multiple=2.0, penalty=0.5)
        facts = direction.plan(found.module, found.task, groups, found.rows).facts
        assert facts["damping_used"] == pytest.approx(2 * facts["mean_eigenvalue"] + 0.5)  # type: ignore[operator]
        trace = float(dense("classification").trace())
        assert facts["mean_eigenvalue"] == pytest.approx(
            trace / len(dense("classification")), rel=0.2
        )


def test_auto_takes_the_matrix_for_few_parameters_and_drawn_gradients_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = cached("classification")

    def solver(some: Setting, memory: int = 2**30) -> object:
        direction = Curvature(memory=memory)
        return direction.plan(some.module, some.task, [some.queries], some.rows).facts["solver"]

    assert solver(found) == "dense"
    monkeypatch.setattr(curvature, "DENSE", 10)
    assert solver(found) == "fisher"
    assert solver(found, memory=4 * 10 * len(dense("classification"))) == "sketch"


class Undrawn(Regression):
    """A task that does not say how targets are drawn."""

    name = "undrawn"

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> None:  # type: ignore[override]
        return None


def test_where_rows_cannot_be_differentiated_alone_products_are_taken_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(curvature, "DENSE", 10)
    found = replace(cached("regression"), task=Undrawn())
    moves = Curvature().plan(found.module, found.task, [found.queries], found.rows)
    assert moves.facts["solver"] == "sketch"
    assert "undrawn draws no targets" in str(moves.facts["note"])
    with pytest.raises(ModelError, match="take the solver 'sketch'") as raised:
        replace(SOLVERS["fisher"]).plan(found.module, found.task, [found.queries], found.rows)
    assert "\n" not in str(raised.value)


def test_rows_without_any_number_for_a_loss_are_refused_in_one_line() -> None:
    found = cached("regression")
    rows = replace(found.rows, targets=torch.full_like(found.rows.targets, torch.nan))
    with pytest.raises(DataError, match="no training row's loss is a number") as raised:
        EXACT.plan(found.module, found.task, [found.queries], rows)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("solver", ["fisher", "sketch", "cg"])
def test_only_the_whole_matrix_has_an_inverse_without_damping(solver: str) -> None:
    found = cached("regression")
    with pytest.raises(ForwardInfError, match="needs a damping or a penalty above 0") as raised:
        scores(found, replace(SOLVERS[solver], damping=0.0))
    assert "\n" not in str(raised.value)
    assert np.isfinite(scores(found, replace(EXACT, damping=0.0))).all()


def test_a_damping_below_rounding_is_refused_not_divided_by() -> None:
    found = cached("regression")
    with pytest.raises(ForwardInfError, match="lost in rounding: give a larger one"):
        scores(found, replace(SOLVERS["fisher"], damping=1e-300))


class Dead(nn.Linear):
    """A model whose answers do not depend on its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0


@pytest.mark.parametrize("many", [False, True], ids=["a move each", "shared moves"])
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_model_that_nothing_moves_has_no_influence(
    solver: str, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:
        monkeypatch.setattr(curvature, "_OWN", 0)
    found = replace(cached("regression"), module=Dead(4, 1).double())
    assert (scores(found, replace(SOLVERS[solver], rank=3)) == 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"damping": -1.0},
        {"damping": float("nan")},
        {"multiple": -1.0},
        {"penalty": float("inf")},
        {"rank": 0},
        {"rows": 0},
        {"gradients": 0},
        {"iterations": 0},
        {"tolerance": 0.0},
        {"relative_size": 0.0},
        {"solver": "magic"},
        {"sign": "sideways"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_cannot_be_used_are_named_in_one_line(settings: dict[str, object]) -> None:
    with pytest.raises(ForwardInfError, match=rf"{next(iter(settings))} must be") as raised:
        Curvature(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_held_curvature_is_computed_once_and_changes_no_bit(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, direction = cached("classification"), replace(SOLVERS[solver], damping=None)
    made: list[object] = []
    prepare = Curvature.prepare

    def counted(self: Curvature, *args: object) -> curvature.Prepared:
        made.append(args)
        return prepare(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Curvature, "prepare", counted)
    shared = held(direction)
    first, second = scores(found, shared), scores(found, shared)
    assert len(made) == 1
    alone = scores(found, direction)
    assert (first == alone).all()
    assert (second == alone).all()
    assert shared.describe() == direction.describe()
    other = cached("regression")
    assert (scores(other, shared) == scores(other, direction)).all(), "another model is another one"
    assert held(GradientStep()) == GradientStep()
