from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.detect.experts import Expert
from forward_inf_mlflow.detect.leakage import Leaked
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.influence import ForwardInfluence
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.moved import moved_expert
from forward_inf_mlflow.preparation import Problem, prepare
from forward_inf_mlflow.tasks import Classification
from forward_inf_mlflow.unlearned import margin_changes
from forward_inf_mlflow.work import KEEP_NOTHING

ENGINE = ForwardInfluence(task=Classification())
K, N, M = 3, 300, 200


def problem(seed: int = 0, m: int = M) -> tuple[Problem, np.ndarray]:
    """Rows of class 0 on one side of a line are called 1, and the model has learned it."""
    rng = np.random.default_rng(seed)
    centres = np.array([[3.0, 0], [0, 3.0], [-3.0, -3.0]])
    true = rng.integers(K, size=N + m)
    x = (centres[true] + rng.normal(size=(N + m, 2))).astype(np.float32)
    given = true.copy()
    wrong = (true == 0) & (x[:, 1] > 0) & (np.arange(N + m) < N)
    given[wrong] = 1
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, K))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    rows, labels = torch.as_tensor(x[:N]), torch.as_tensor(given[:N])
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(rows), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model = AuditedModel(net.eval(), lambda r: np.asarray(r), "pt2", lambda r: np.asarray(r))
    train, queries = (
        Rows(x[part], given[part], np.arange(N + m)[part].astype(str), None, "memory", "")
        for part in (slice(0, N), slice(N, N + m))
    )
    host = torch.device("cpu")
    return prepare(model, train, queries, task="auto", device=host, batch_size=None), wrong[:N]


def expert(some: Problem, seed: int = 0) -> Expert | None:
    return moved_expert(ENGINE, some, np.ones(len(some.queries), bool), seed, KEEP_NOTHING)


def test_queries_contradict_labels_that_are_wrong_by_a_rule() -> None:
    some, wrong = problem()
    found = expert(some)
    assert found is not None
    given = found.train[np.arange(N), some.train.targets.numpy()] - found.train.mean(1)
    right = found.train[np.arange(N), 0] - found.train.mean(1)
    assert (given[wrong] < 0).mean() > 0.9, "the moved model turns from the wrong label"
    assert (right[wrong] > 0).mean() > 0.9, "towards the right one"


def test_the_model_is_left_as_it_was_and_a_seed_repeats_everything() -> None:
    some, _ = problem()
    before = [p.clone() for p in some.module.parameters()]
    first, again, other = expert(some), expert(some), expert(some, seed=1)
    assert first is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(first.train, again.train)
    assert not np.array_equal(first.train, other.train)
    for p, q in zip(some.module.parameters(), before, strict=True):
        assert torch.equal(p, q)


def test_no_query_has_moved_the_model_that_it_is_asked_of() -> None:
    # A query whose label is changed changes what is said of others, not of itself.
    some, _ = problem()
    changed = some.queries.targets.clone()
    changed[7] = (changed[7] + 1) % K
    found = expert(some)
    spoiled = expert(replaced(some, changed))
    assert found is not None
    assert spoiled is not None
    unit = [e.queries / np.abs(e.queries).max() for e in (found, spoiled)]
    scale = float((unit[0][7] * unit[1][7]).sum() / np.square(unit[0][7]).sum())
    np.testing.assert_allclose(unit[1][7], scale * unit[0][7], rtol=1e-3, atol=1e-6)
    assert not np.allclose(unit[1][8:20], scale * unit[0][8:20], rtol=1e-3)


def replaced(some: Problem, targets: torch.Tensor) -> Problem:
    from dataclasses import replace

    return replace(some, queries=replace(some.queries, targets=targets))


@pytest.mark.parametrize("m", [39, 40])
def test_few_queries_move_nothing(m: int) -> None:
    assert (expert(problem(m=m)[0]) is None) == (m < 40)


def test_untrusted_queries_move_nothing() -> None:
    some, _ = problem()
    trusted = np.arange(M) < 39
    assert moved_expert(ENGINE, some, trusted, 0, KEEP_NOTHING) is None


def test_moves_that_are_lost_in_rounding_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    some, _ = problem()

    def lost(*_: object, **__: object) -> None:
        raise ForwardInfError("the step is lost in rounding")

    monkeypatch.setattr(ForwardInfluence, "plan_moves", lost)
    assert expert(some) is None
    nobody = np.full(M, "", dtype=object)
    kind = nobody.copy()
    kind[:3] = "exact"
    zeros, unknown = np.zeros(M, int), np.full(M, np.nan)
    leaks = Leaked(kind, zeros, np.zeros(N, bool), unknown, unknown, nobody, Measure.none(M, ""))
    assert np.isnan(margin_changes(ENGINE, some, leaks, 10, KEEP_NOTHING)).all()
