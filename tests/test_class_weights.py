"""Weights of classes, and outputs that are named: what is read of them, and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.models.chosen import chosen, one_of
from forward_inf_mlflow.models.class_weights import class_weights
from forward_inf_mlflow.task import Batch
from forward_inf_mlflow.tasks import Classification, Weighted

CLASSES, TARGETS = np.array(["a", "b", "c"]), np.array([0, 0, 0, 1])


@pytest.mark.parametrize(
    ("estimator", "wanted", "weights"),
    [
        (None, None, None),
        (None, "1, 5,2", (1, 5, 2)),
        (None, "balanced", (2 / 3, 2, 1)),
        (LogisticRegression(), None, None),
        (LogisticRegression(class_weight={"b": 3}), None, (1, 3, 1)),
        (make_pipeline(StandardScaler(), SGDClassifier(class_weight="balanced")), None,
         (2 / 3, 2, 1)),
    ],
)  # fmt: skip
def test_weights_are_the_estimators_own_or_what_is_said(
    estimator: Any, wanted: str | None, weights: tuple[float, ...] | None
) -> None:
    assert class_weights(estimator, wanted, CLASSES, TARGETS) == (
        weights if weights is None else pytest.approx(weights)
    )


@pytest.mark.parametrize("wanted", ["1,2", "1,2,x", "1,2,0", "1,2,inf", "even"])
def test_other_weights_are_one_line(wanted: str) -> None:
    with pytest.raises(ForwardInfError, match="for each of the 3 classes") as caught:
        class_weights(None, wanted, CLASSES, TARGETS)
    assert "\n" not in str(caught.value)
    with pytest.raises(ForwardInfError, match="leave --class-weight out"):
        class_weights(LogisticRegression(), wanted, CLASSES, TARGETS)


def test_weights_are_in_the_loss_and_not_in_what_is_read() -> None:
    task, plain = Weighted((1.0, 5.0)), Classification()
    outputs = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    targets = torch.tensor([0, 1])
    torch.testing.assert_close(
        task.loss(outputs, targets), plain.loss(outputs, targets) * torch.tensor([1.0, 5.0])
    )
    batch = Batch(outputs, targets)
    assert all(map(torch.equal, task.readout_of(outputs, batch), plain.readout_of(outputs, batch)))
    assert task.describe() == {"name": "classification", "weights": (1.0, 5.0)}
    draw = torch.Generator().manual_seed(0)
    many = outputs[:1].expand(9000, 2), targets[1:].expand(9000)
    p = outputs[0].softmax(0)
    found = task.drawn(*many, draw)[:, 1].var()
    torch.testing.assert_close(found, 5 * p[0] * p[1], rtol=0.05, atol=0)


class Two(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = nn.Linear(3, 2), kind

    def forward(self, x: torch.Tensor) -> Any:
        said = self.inner(x)
        return {"hidden": x, "logits": said} if self.kind == "dict" else (x, (x, said), said)


@pytest.mark.parametrize(("kind", "name"), [("dict", "logits"), ("tuple", "2")])
def test_one_output_of_several_is_the_model(kind: str, name: str) -> None:
    module, x = Two(kind), torch.randn(4, 3)
    wanted = module.inner(x)
    batch = {0: torch.export.Dim("batch")}
    graph = torch.export.export(module, (x,), dynamic_shapes=(batch,)).module()
    for loaded in (module, graph):
        torch.testing.assert_close(one_of(loaded, name)(x), wanted)
    with pytest.raises(ModelError, match="has no output 'other'"):
        one_of(Two(kind), "other")(x)
    with pytest.raises(ModelError, match="one output: leave --output out"):
        chosen(x, "logits")
