"""The engine on a CUDA device says what it says on the host; skipped where there is no card."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import (
    KINDS,
    D,
    K,
    Setting,
    assert_close,
    correlation,
    exported,
    influence,
    mlp,
    names,
    scores,
    setting,
)
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from forward_inf_mlflow.directions import Curvature, Direction, GradientStep, OptimizerSteps, Replay
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.models.placing import place
from forward_inf_mlflow.shards import WorkFolder
from forward_inf_mlflow.streams import IterableStream
from forward_inf_mlflow.tasks import Classification
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import Arrays

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CUDA = torch.device("cuda")
DIRECTIONS: dict[str, Direction] = {
    "gradient": GradientStep(),
    "adam": OptimizerSteps(steps=2),
    "dense": Curvature(solver="dense"),
    "fisher": Curvature(solver="fisher"),
    "cg": Curvature(solver="cg", tolerance=1e-7),
    "sketch": Curvature(solver="sketch", rank=8),
    "replay": Replay(most_steps=5, most_seeds=2, batch=8),
}
each = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=list(DIRECTIONS))
cached = cache(setting)


def there(found: Setting) -> Setting:
    """Return the same setting, its model on the card."""
    rows, queries = (replace(t, device=CUDA) for t in (found.rows, found.queries))
    module = place(copy.deepcopy(found.module), CUDA)
    return replace(found, module=module, rows=rows, queries=queries)


@each
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_host(kind: str, direction: Direction) -> None:
    found = cached(kind)
    assert_close(scores(there(found), direction), scores(found, direction), 1e-4)


@pytest.mark.parametrize("kind", ["classification", "causal_lm"])
def test_an_exported_module_gives_the_same_scores(kind: str) -> None:
    found = cached(kind)
    graph = there(replace(found, module=exported(found)))
    assert_close(scores(graph, Curvature()), scores(found, Curvature()), 1e-4)


@pytest.mark.parametrize("half", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_in_lower_precision_is_read_in_float32(half: torch.dtype) -> None:
    found = cached("classification")
    rows, queries = (replace(t, inputs=t.inputs.to(half)) for t in (found.rows, found.queries))
    host = Setting(found.task, copy.deepcopy(found.module).to(half), rows, queries)
    assert correlation(scores(there(host), Curvature()), scores(host, Curvature())) > 0.999


def test_a_convolution_in_float32_is_read_as_such() -> None:
    # TF32, which convolutions take by default, would drown the step.
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(),
        nn.Linear(32 * 36, K),
    ).eval()  # fmt: skip
    rng = np.random.default_rng(0)
    images = torch.as_tensor(rng.normal(size=(64, 3, 8, 8)), dtype=torch.float32)
    rows = Tensors(images, torch.as_tensor(rng.integers(K, size=64)), torch.device("cpu"), 16)
    host = Setting(Classification(), module, rows, rows.part(0, 3))
    found = influence(there(host), GradientStep(), method="difference").scores.values
    assert correlation(found, scores(host, GradientStep(), method="derivative")) > 0.999


def test_a_stream_is_read_as_rows_in_memory_are() -> None:
    found = there(cached("classification"))
    x, y = found.rows.inputs, found.rows.targets
    stream = IterableStream(lambda: [(x, y)], len(y), device=CUDA, batch_size=5)
    streamed = ForwardInfluence(task=found.task, direction=GradientStep()).top(
        found.module, QueryGroups.each(found.queries, names(3)), stream, names(24), 24
    )
    whole = influence(found, GradientStep()).scores.top(24)
    merged = whole.merge(streamed.rows, on=["query_id", "train_id", "kind"])
    assert len(merged) == 3 * 48
    assert_close(merged["influence_y"].to_numpy(), merged["influence_x"].to_numpy(), 1e-4)


class StopError(Exception):
    pass


def test_an_interrupted_sweep_goes_on_with_bit_identical_scores(tmp_path: Path) -> None:
    found = there(cached("cnn"))
    expected = scores(found, Curvature(), shard_rows=7)
    folder = WorkFolder.open(tmp_path, {"what": "this"}, fresh=False)

    class Interrupted:
        made = 0

        def once(self, name: str, make: Callable[[], Arrays]) -> Arrays:
            self.made += 1
            if self.made > 4:
                raise StopError
            return folder.once(name, make)

    with pytest.raises(StopError):
        scores(found, Curvature(), shard_rows=7, work=Interrupted())
    again = WorkFolder.open(tmp_path, {"what": "this"}, fresh=False)
    assert again.done >= 3
    assert np.array_equal(scores(found, Curvature(), shard_rows=7, work=again), expected)


def test_batches_that_do_not_fit_on_the_card_are_halved() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(D, 200_000), nn.Tanh(), nn.Linear(200_000, K)).eval()
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(4096, D)), dtype=torch.float32)
    rows = Tensors(x, torch.as_tensor(rng.integers(K, size=4096)), CUDA, 4096)
    found = there(Setting(Classification(), wide, rows, rows.part(0, 1)))
    held = torch.cuda.mem_get_info()[1]
    expected = scores(replace(found, rows=replace(rows, batch_size=64)), GradientStep())
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / held)  # a batch alone takes 3 GiB
    try:
        with pytest.raises(torch.OutOfMemoryError):
            found.module(rows.batch(slice(None)).inputs)
        assert_close(scores(found, GradientStep()), expected, 1e-2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_compiled_passes_give_the_same_scores() -> None:
    found = there(cached("cnn"))
    groups = QueryGroups.each(found.queries, np.arange(3))
    engine = ForwardInfluence(task=found.task, direction=Curvature(), compiled=True)
    compiled = engine.influence(found.module, groups, found.rows, np.arange(24)).scores.values
    assert_close(compiled, scores(found, Curvature()), 1e-4)


def test_everything_that_an_audit_computes_runs_there() -> None:
    from forward_inf_mlflow.data.rows import Rows
    from forward_inf_mlflow.examine import Findings, examine, plan_influence
    from forward_inf_mlflow.models.audited import AuditedModel
    from forward_inf_mlflow.preparation import prepare
    from forward_inf_mlflow.settings import Settings

    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, D)).astype(np.float32)
    y = x[:, :K].argmax(1)
    wrong = np.arange(0, 400, 20)
    labels = y.copy()
    labels[wrong] = (y[wrong] + 1) % K

    def rows(part: slice, given: np.ndarray, what: str) -> Rows:
        ids = np.array([f"{what}{i}" for i in range(len(given[part]))])
        return Rows(x[part], given[part], ids, None, uri=what, sha256="")

    module = mlp(K).eval()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            module(torch.as_tensor(x[:400])), torch.as_tensor(labels[:400])
        )
        loss.backward()
        optimizer.step()

    def original(features: object) -> np.ndarray:
        with torch.no_grad():
            answers: Tensor = module.cpu()(torch.as_tensor(features))
        return answers.numpy()

    train, queries = rows(slice(400), labels, "train"), rows(slice(400, 500), y, "query")
    settings = Settings(influence_queries=5)

    def audited(device: str) -> Findings:
        model = AuditedModel(copy.deepcopy(module), np.asarray, "pickle", original)
        problem = prepare(
            model, train, queries, task="auto", device=torch.device(device), batch_size=None
        )
        planned = plan_influence(model, problem, settings)
        return examine(model, problem, planned, settings, lambda stage, done, total: None)

    there, here = audited("cuda"), audited("cpu")
    np.testing.assert_allclose(there.loss, here.loss, atol=1e-5)
    assert correlation(there.influence[None], here.influence[None]) > 0.99
    # Half-models are trained, so that roundings grow.
    both = there.labels, here.labels
    assert correlation(*(labels.mislabeled.suspicion[None] for labels in both)) > 0.95
    assert correlation(*(labels.memorized.score[None] for labels in both)) > 0.95
    assert roc_auc_score(np.isin(np.arange(400), wrong), there.labels.mislabeled.suspicion) > 0.95
