"""Whole audits of rows that are hardly fit for one: each gives a result, or a sentence why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.decision import Facts, decide
from forward_inf_mlflow.detect.leakage import Leaked
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.directions import Curvature, Direction, GradientStep
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.examine import Findings, examine, plan_influence
from forward_inf_mlflow.influence import ForwardInfluence
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.policy import Policy
from forward_inf_mlflow.preparation import Problem, prepare
from forward_inf_mlflow.settings import Settings
from forward_inf_mlflow.tables import influence_table
from forward_inf_mlflow.tasks import Classification
from forward_inf_mlflow.trainers import Recipe
from forward_inf_mlflow.unlearned import margin_changes
from forward_inf_mlflow.work import KEEP_NOTHING

D = 6
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(1000, D)).astype(np.float32) * 3
#: Half-models that cost nothing.
SHORT = Recipe(epochs=3)


def trained(x: np.ndarray, y: np.ndarray, classes: int, epochs: int = 60) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(D, 32), nn.ReLU(), nn.Linear(32, classes))
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    inputs, labels = torch.as_tensor(x), torch.as_tensor(y)
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(module(inputs), labels))
        optimizer.step()
    return module.eval()


def posed(
    x: np.ndarray, y: np.ndarray, q: np.ndarray, z: np.ndarray, module: nn.Module
) -> tuple[AuditedModel, Problem]:
    model = AuditedModel(module, np.asarray, "pt2", np.asarray)
    train, queries = (
        Rows(rows, labels, np.array([f"{name}{i}" for i in range(len(rows))]), None, "memory", "")
        for name, rows, labels in (("t", x, y), ("q", q, z))
    )
    host = torch.device("cpu")
    task = "classification"
    return model, prepare(model, train, queries, task=task, device=host, batch_size=None)


def audited(
    x: np.ndarray,
    y: np.ndarray,
    q: np.ndarray,
    z: np.ndarray,
    module: nn.Module | None = None,
    direction: Direction | None = None,
) -> Findings:
    classes = int(max(y.max(), z.max())) + 1
    model, problem = posed(x, y, q, z, module or trained(x, y, max(2, classes)))
    settings = Settings(influence_queries=5, recipe=SHORT, direction=direction)
    planned = plan_influence(model, problem, settings)
    return examine(model, problem, planned, settings, lambda stage, done, total: None)


def blobs(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return (CENTRES[y] + rng.normal(size=(n, D))).astype(np.float32), y


def no_guess(found: Findings) -> None:
    """Nobody is accused for sure, nothing is refused, and every number is one."""
    assert not found.labels.mislabeled.certain.any()
    assert decide(found.measures, Facts(), Policy()).outcome != "fail"
    for measure in found.measures.values():
        assert 0 <= measure.rate_low <= measure.rate <= measure.rate_high <= 1
        assert measure.abstained is None or len(measure.abstained) > 20


def test_a_class_with_one_row() -> None:
    x, y = blobs(200, 3, 0)
    y[7] = 3
    q, z = blobs(100, 3, 1)
    found = audited(x, y, q, z)
    no_guess(found)
    assert not found.labels.mislabeled.certain[7]


def test_two_classes() -> None:
    found = audited(*blobs(200, 2, 0), *blobs(100, 2, 1))
    no_guess(found)
    assert found.measures["mislabeled"].abstained is None


def test_a_thousand_classes() -> None:
    step = GradientStep()  # the curvature of so wide an output takes half a minute
    found = audited(*blobs(2000, 1000, 0), *blobs(600, 1000, 1), direction=step)
    no_guess(found)
    assert found.measures["mislabeled"].abstained is not None, "two rows of a class teach nothing"


def test_all_labels_equal() -> None:
    x, y = blobs(200, 1, 0)
    with pytest.raises(DataError, match="every training row has the same label"):
        audited(x, y, *blobs(100, 1, 1), module=trained(x, y, 2))


def test_nothing_but_copies_of_a_few_rows() -> None:
    x, y = blobs(6, 3, 0)
    q, z = blobs(100, 3, 1)
    found = audited(np.tile(x, (40, 1)), np.tile(y, 40), q, z)
    no_guess(found)
    assert "copies" in str(found.measures["mislabeled"].abstained)
    assert (found.duplicates.twin >= 0).all()


def test_every_row_the_same() -> None:
    x, q = np.ones((200, D), np.float32), np.ones((60, D), np.float32)
    found = audited(x, np.arange(200) % 2, q, np.arange(60) % 2)
    assert not found.labels.mislabeled.certain.any()
    assert found.measures["mislabeled"].abstained is not None
    assert decide(found.measures, Facts(), Policy()).outcome != "pass"


def test_a_model_at_chance() -> None:
    x, y = blobs(200, 4, 0)
    y = np.random.default_rng(5).integers(4, size=200)
    found = audited(x, y, *blobs(100, 4, 1), module=trained(x, y, 4, epochs=0))
    assert not found.labels.mislabeled.certain.any()
    assert decide(found.measures, Facts(), Policy()).outcome == "undecided"


def test_a_model_that_is_right_on_every_training_row_with_zero_loss() -> None:
    x, y = blobs(200, 3, 0)
    module = trained(x, y, 3, epochs=300)
    with torch.no_grad():
        module[2].weight *= 1000  # type: ignore[index, operator]
        module[2].bias *= 1000  # type: ignore[index, operator]
    right = module(torch.as_tensor(x)).argmax(1).numpy() == y
    x, y = x[right], y[right]
    found = audited(x, y, *blobs(100, 3, 1), module=module)
    assert (found.loss == 0).any()
    assert np.isfinite(found.influence).all()
    no_guess(found)


@pytest.mark.parametrize("count", [1, 5, 19, 49])
def test_fewer_than_fifty_queries(count: int) -> None:
    found = audited(*blobs(200, 3, 0), *blobs(count, 3, 1))
    no_guess(found)
    if count < 20:
        assert f"only {count} query rows" in str(found.measures["mislabeled"].abstained)


def test_queries_that_are_the_training_set() -> None:
    x, y = blobs(150, 3, 0)
    found = audited(x, y, x.copy(), y.copy())
    assert found.leaked.flags.all()
    assert found.measures["leaked"].rate_low > 0.9
    assert "only 0 query rows" in str(found.measures["mislabeled"].abstained)
    assert decide(found.measures, Facts(), Policy()).outcome == "fail"


def test_without_its_training_row_a_leaked_query_is_answered_less_surely() -> None:
    x, y = blobs(300, 3, 0)
    q, z = blobs(60, 3, 1)
    odd = np.array([4, 9, 14])
    y[odd] = z[:3] = (y[odd] + 1) % 3  # only the training row teaches these labels
    q[:3] = x[odd]
    module = trained(x, y, 3, epochs=400)
    _, problem = posed(x, y, q, z, module)
    kind = np.full(60, "", dtype=object)
    kind[:3] = "exact"
    index = np.r_[odd, np.zeros(57, int)]
    unknown, empty = np.full(60, np.nan), np.full(60, "", dtype=object)
    leaks = Leaked(
        kind, index, np.isin(np.arange(300), odd), unknown, unknown, empty, Measure.none(60, "")
    )
    engine = ForwardInfluence(task=Classification(), direction=Curvature(gradients=300))
    changes = margin_changes(engine, problem, leaks, 100, KEEP_NOTHING)
    assert (changes[:3] < 0).all()
    assert np.isnan(changes[3:]).all()
    few = margin_changes(engine, problem, leaks, 1, KEEP_NOTHING)
    assert np.isfinite(few).tolist() == [True] + [False] * 59
    nobody = np.full(60, "", dtype=object)
    none = Leaked(nobody, index, np.zeros(300, bool), unknown, unknown, empty, Measure.none(60, ""))
    assert np.isnan(margin_changes(engine, problem, none, 100, KEEP_NOTHING)).all()


def test_gross_errors_that_ruin_half_models_are_named_in_a_whole_audit() -> None:
    rng = np.random.default_rng(0)
    x, q = (rng.normal(size=(n, D)).astype(np.float32) for n in (600, 200))
    y, z = ((rows @ CENTRES[0] + rng.normal(size=len(rows))) for rows in (x, q))
    wrong = rng.random(600) < 0.1
    y[wrong] += 15 * y.std() * rng.choice([-1, 1], wrong.sum())
    model = AuditedModel(nn.Linear(D, 1).eval(), np.asarray, "pt2", np.asarray)
    train, queries = (
        Rows(rows, t.astype(np.float32), np.arange(len(t)).astype(str), None, "memory", "")
        for rows, t in ((x, y), (q, z))
    )
    host = torch.device("cpu")
    problem = prepare(model, train, queries, task="regression", device=host, batch_size=None)
    settings = Settings(influence_queries=5, recipe=SHORT, direction=GradientStep())
    planned = plan_influence(model, problem, settings)
    found = examine(model, problem, planned, settings, lambda stage, done, total: None)
    judged = found.labels.mislabeled
    assert judged.certain[wrong].mean() > 0.9
    assert judged.certain[~wrong].mean() < 0.02
    assert judged.measure.abstained is None
    assert 0.05 < judged.measure.rate_low <= wrong.mean() <= judged.measure.rate_high


def test_one_curvature_serves_influence_answers_and_margins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []
    prepare_once = Curvature.prepare

    def counted(self: Curvature, *args: Any) -> Any:
        made.append(self)
        return prepare_once(self, *args)

    monkeypatch.setattr(Curvature, "prepare", counted)
    x, y = blobs(300, 3, 0)
    q, z = blobs(100, 3, 1)
    q[:10], z[:10] = x[:10], y[:10]
    found = audited(x, y, q, z)
    assert np.isfinite(found.margin_change[:5]).all()
    assert len(made) == 1


def test_a_mislabeled_row_is_asked_about_with_its_own_label_and_never_speaks_for_itself() -> None:
    x, y = blobs(300, 3, 0)
    wrong = np.arange(0, 60, 3)
    y[wrong] = (y[wrong] + 1) % 3
    found = audited(x, y, *blobs(100, 3, 1), module=trained(x, y, 3, epochs=300))
    asked = found.asked.rows
    assert len(asked.query_ids) == 2, "half of five, rounded down"
    assert len(asked.query_ids) + len(found.asked.queries.query_ids) == 5
    table = influence_table(found, 10)
    assert table["asked"].value_counts().to_dict() == {"train": 40, "query": 60}
    for row, values in zip(asked.query_ids, asked.values, strict=True):
        position = int(row.removeprefix("t"))
        assert found.labels.mislabeled.flags[position]
        assert np.flatnonzero(np.isnan(values)).tolist() == [position]
        mine = table[(table["asked"] == "train") & (table["query_id"] == row)]
        assert row not in set(mine["train_id"])
        helps = mine[mine["kind"] == "proponent"].head(3)["train_id"]
        taught = y[[int(name.removeprefix("t")) for name in helps]]
        assert (taught == y[position]).any(), "who has that label speaks for it"
