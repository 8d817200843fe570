from __future__ import annotations

from dataclasses import replace

import pytest

from forward_inf_mlflow.directions import Curvature, GradientStep, OptimizerSteps, Replay
from forward_inf_mlflow.planner import SATURATED, Job, plan

JOB = Job(rows=1000, groups=11, queries=110, parameters=20_000, saturates=False, known=0.0)


@pytest.mark.parametrize(
    ("parameters", "solver", "why"),
    [
        (2_000, "dense", "few parameters"),
        (20_000, "fisher", "drawn gradients"),
        (10_000_000, "sketch", "many parameters"),
    ],
)
def test_the_solver_follows_from_the_number_of_parameters(
    parameters: int, solver: str, why: str
) -> None:
    job = replace(JOB, parameters=parameters, groups=2)
    found = plan(job)
    assert isinstance(found.direction, Curvature)
    assert found.direction.outlook(parameters, job.rows, job.groups) == (solver, 2)
    assert why in found.why


def test_a_convex_objective_with_a_known_penalty_is_not_damped() -> None:
    small = replace(JOB, parameters=2_000)
    found = plan(replace(small, linear=True, penalty=0.01)).direction
    assert (found.damping, found.penalty) == (0.0, 0.01)  # type: ignore[attr-defined]
    large = replace(JOB, linear=True, penalty=0.01)
    for job in (replace(small, linear=True), replace(small, penalty=0.01), large):
        assert plan(job).direction.damping is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("named", [Curvature(), Replay()], ids=["curvature", "replay"])
def test_a_direction_that_is_asked_for_takes_the_models_penalty_unless_it_has_its_own(
    named: Curvature | Replay,
) -> None:
    job = replace(JOB, penalty=0.01)
    assert plan(job, direction=named).direction == replace(named, penalty=0.01)
    own = replace(named, penalty=0.5)
    assert plan(job, direction=own).direction == own


def test_margins_are_read_only_of_saturated_models_whose_task_gains_by_it() -> None:
    full = replace(JOB, saturates=True, known=SATURATED)
    assert plan(full).readout == "margin"
    assert "saturated" in plan(full).why
    assert plan(full, readout="loss").readout == "loss"
    assert plan(replace(full, known=SATURATED - 0.01)).readout == "loss"
    assert plan(replace(full, saturates=False)).readout == "loss"


def test_costs_worked_by_hand() -> None:
    sweep = (11 + 1) * 1000
    step = plan(JOB, direction=GradientStep()).costs
    assert step == {"direction": 3 * 110, "sweep": sweep, "total": 3 * 110 + sweep}
    both = plan(JOB, direction=OptimizerSteps(steps=4, sign="both")).costs
    assert both["direction"] == 3 * 110 * 4 * 2
    assert both["sweep"] == (2 * 11 + 1) * 1000
    # 4 draws of 1,000 rows: twice the rows for their outputs, twice the draws for their gradients
    assert plan(JOB).costs["direction"] == 3 * 110 + 2 * 1000 + 2 * 4000
    few = plan(replace(JOB, parameters=100)).costs
    assert few["direction"] == 3 * 110 + round(3.5 * 100 * 1000)


def test_many_groups_share_moves_along_eigenvectors() -> None:
    found = plan(replace(JOB, groups=10_000, queries=10_000))
    assert found.costs["sweep"] == (1024 + 1) * 1000
    assert "10,000 query groups share 1,024 moves" in found.why


def test_a_plan_names_direction_readout_reason_and_costs() -> None:
    found = plan(JOB).as_dict()
    assert found["direction"] == "curvature"
    assert found["readout"] == "loss"
    assert found["why"]
    assert set(found["forward_equivalents"]) == {"direction", "sweep", "total"}


def test_candidates_cost_two_passes_each_beside_the_checked_queries() -> None:
    found = plan(JOB, candidates=50)
    assert found.candidates == 50
    assert found.costs["sweep"] == 2 * (4 * 1000 + 7 * 100)
    assert "over its 50 likeliest" in found.why
    assert plan(JOB, candidates=800).costs["sweep"] == 2 * 11 * 1000
    assert found.as_dict()["candidates"] == 50
    assert "candidates" not in plan(JOB).as_dict()


def test_moves_that_all_queries_share_need_no_candidates() -> None:
    many = replace(JOB, groups=10_000, queries=10_000)
    found = plan(many, candidates=50)
    assert found.candidates is None
    assert found.costs == plan(many).costs


def test_a_long_sweep_names_the_shorter_way() -> None:
    assert "--candidates" in plan(replace(JOB, rows=10**8)).why
    assert "--candidates" not in plan(JOB).why


def test_a_model_too_large_for_any_curvature_takes_a_plain_step_and_says_so() -> None:
    found = plan(replace(JOB, parameters=163_000_000))
    assert found.direction == GradientStep()
    assert "163 million parameters" in found.why
    assert "asked for" not in found.why
    asked = plan(replace(JOB, parameters=163_000_000), direction=Curvature())
    assert isinstance(asked.direction, Curvature)


@pytest.mark.parametrize(
    ("parameters", "memory", "solver"),
    [
        (100_000, 2**30, "fisher"),
        (100_000, 2**25, "sketch"),  # 83 gradients are too few
        (100_000, 2**22, None),  # 10 eigenvectors say next to nothing
        (163_000_000, 2**33, None),
        (163_000_000, 2**34, "sketch"),
    ],
)
def test_more_memory_makes_room_for_a_better_direction(
    parameters: int, memory: int, solver: str | None
) -> None:
    found = plan(replace(JOB, groups=2, parameters=parameters, memory=memory))
    if solver is None:
        assert found.direction == GradientStep()
        assert f"fits into {memory >> 20} MiB" in found.why or "fits into 8 GiB" in found.why
    else:
        assert isinstance(found.direction, Curvature)
        assert found.direction.outlook(parameters, 1000, 2)[0] == solver


def test_a_card_multiplies_more_gradients_in_the_same_time() -> None:
    large = replace(JOB, parameters=2_000_000, groups=2, rows=4000, memory=2**36)
    host, card = plan(large), plan(replace(large, device="cuda"))
    assert host.costs["direction"] < card.costs["direction"]
    assert "64 GiB of the host's memory" in host.why
    assert "64 GiB of the card's memory" in card.why
