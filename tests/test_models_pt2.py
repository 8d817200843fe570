from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.models import torch_module
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.modes import in_training, set_training
from forward_inf_mlflow.models.parity import check_parity, half_tolerance
from forward_inf_mlflow.models.placing import place
from forward_inf_mlflow.models.torch_module import audited_module
from forward_inf_mlflow.registry import load_folder

IMAGES = np.random.default_rng(0).normal(size=(9, 1, 8, 8)).astype(np.float32)


def network() -> nn.Sequential:
    """A small network with all that a mode changes, its batch norm already trained a little."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(0.3),
        nn.Flatten(),
        nn.Linear(144, 8),
        nn.AlphaDropout(0.2),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )
    module(torch.as_tensor(IMAGES))
    return module


def saved(module: nn.Module, folder: Path, example: np.ndarray = IMAGES) -> Path:
    import mlflow

    mlflow.pytorch.save_model(module, str(folder), input_example=example, pip_requirements=[])
    return folder


def load(folder: Path) -> AuditedModel:
    return load_folder(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(network().eval(), tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(network().train(), tmp_path_factory.mktemp("trained") / "model")


def test_an_exported_network_answers_as_the_one_that_was_logged(plain: Path) -> None:
    model = load(plain)
    with torch.no_grad():
        expected = network().eval()(torch.as_tensor(IMAGES)).numpy()
    np.testing.assert_allclose(model.original(IMAGES), expected, atol=1e-5)
    assert check_parity(model, IMAGES) <= 1e-6
    assert (model.kind, model.task, model.max_batch, model.notes) == ("pt2", None, None, ())
    assert all(p.requires_grad for p in model.module.parameters())


def test_a_network_logged_in_train_mode_answers_as_in_evaluation_mode(trained: Path) -> None:
    model = load(trained)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with torch.no_grad():
        expected = network_like(model.module).eval()(torch.as_tensor(IMAGES)).numpy()
    np.testing.assert_allclose(model.original(IMAGES), expected, atol=1e-5)
    assert check_parity(model, IMAGES) <= 1e-6
    assert any("train mode" in note for note in model.notes)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed by predicting"


@pytest.mark.parametrize("name", ["plain", "trained"])
def test_a_copy_of_an_exported_network_trains_as_the_module_would(
    name: str, request: pytest.FixtureRequest
) -> None:
    model = load(request.getfixturevalue(name))
    module = copy.deepcopy(model.module)
    set_training(module, True)
    assert in_training(module)
    assert not in_training(model.module)
    inputs, reference = torch.as_tensor(IMAGES), network_like(module).train()
    mean = module.get_buffer("1.running_mean").clone()
    torch.manual_seed(1)
    found = module(inputs)
    torch.manual_seed(1)
    torch.testing.assert_close(found, reference(inputs))
    assert not torch.equal(module.get_buffer("1.running_mean"), mean)
    set_training(module, False)
    torch.testing.assert_close(module(inputs), module(inputs))
    torch.testing.assert_close(module(inputs), network_like(module).eval()(inputs))


def network_like(module: nn.Module) -> nn.Module:
    """The plain network with this module's weights, its statistics as before its last forward."""
    plain = network()
    plain.load_state_dict(dict(module.state_dict()), strict=False)
    return plain


@pytest.mark.parametrize("layer", ["recurrent", "attention"])
def test_dropout_inside_layers_is_switched_too(layer: str) -> None:
    torch.manual_seed(0)

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 4, 2, dropout=0.5, batch_first=True)
            self.attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            states = self.gru(inputs)[0] if layer == "recurrent" else self.attention(inputs)
            return self.head(states.mean(1))  # type: ignore[no-any-return]

    module, inputs = Sequence().train(), torch.randn(3, 5, 4)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (inputs,), dynamic_shapes=shapes)
    model = audited_module(program.module(), kind="pt2")
    torch.testing.assert_close(model.module(inputs), module.eval()(inputs))
    set_training(model.module, True)
    assert not torch.equal(model.module(inputs), model.module(inputs))


def test_modes_of_a_plain_module_are_its_own() -> None:
    module = network()
    set_training(module, False)
    assert not in_training(module)
    set_training(module, True)
    assert in_training(module)


@pytest.mark.parametrize("kind", ["exported", "plain"])
def test_the_last_layer_on_the_features_gives_the_output(plain: Path, kind: str) -> None:
    if kind == "exported":
        model = load(plain)
    else:
        model = audited_module(network(), kind="pickle", shape=(-1, 1, 8, 8))
    assert model.features is not None
    inputs = torch.as_tensor(IMAGES)
    seen = model.features(inputs)
    assert seen.shape == (9, 8)
    weight, bias = model.module.get_parameter("8.weight"), model.module.get_parameter("8.bias")
    torch.testing.assert_close(seen @ weight.T + bias, model.module(inputs))


def test_features_follow_the_weights(plain: Path) -> None:
    model = load(plain)
    assert model.features is not None
    before = model.features(torch.as_tensor(IMAGES))
    with torch.no_grad():
        model.module.get_parameter("5.bias").add_(1)
        model.module.get_buffer("1.running_mean").add_(1)
    assert not torch.allclose(before, model.features(torch.as_tensor(IMAGES)))


def test_a_static_batch_of_one_is_read_row_by_row(tmp_path: Path) -> None:
    model = load(saved(network().eval(), tmp_path / "model", IMAGES[:1]))
    assert model.max_batch == 1
    assert any("batch of 1" in note for note in model.notes)
    assert check_parity(model, IMAGES) <= 1e-6


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs.reshape(3, 4))  # type: ignore[no-any-return]


def test_another_static_batch_is_refused(tmp_path: Path) -> None:
    folder = saved(FixedBatch().eval(), tmp_path / "model", np.ones((3, 4), np.float32))
    with pytest.raises(ModelError, match="exactly 3 rows"):
        load(folder)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["pt2", "pickle"])
def test_half_precision_is_read_in_float32_and_compared_with_the_half(
    kind: str, half: torch.dtype
) -> None:
    module, images = network().eval().to(half), torch.as_tensor(IMAGES).to(half)
    with torch.no_grad():
        expected = module(images).double().numpy()
    if kind == "pt2":
        shapes = ({0: torch.export.Dim("batch")},)
        loaded = torch.export.export(module, (images,), dynamic_shapes=shapes).module()
    else:
        loaded = module
    model = audited_module(loaded, kind=kind, shape=(-1, 1, 8, 8))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert model.prepare(IMAGES).dtype == np.float32
    assert any("half precision" in note for note in model.notes)
    assert model.half == half
    np.testing.assert_array_equal(model.original(IMAGES), expected)
    assert 0 < check_parity(model, IMAGES) <= half_tolerance(half)
    with torch.no_grad():
        model.module.get_parameter("8.bias").add_(2 * half_tolerance(half))
    with pytest.raises(ModelError, match="disagree"):
        check_parity(model, IMAGES)


@pytest.mark.parametrize("step", ["set_training", "widen", "_softmax_to_logits"])
def test_a_step_that_spoils_the_weights_shows_as_a_difference(
    step: str, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_step = getattr(torch_module, step)

    def spoiling(module: nn.Module, *arguments: Any) -> Any:
        with torch.no_grad():
            module.get_parameter("8.weight").mul_(1.01)
        return true_step(module, *arguments)

    monkeypatch.setattr(torch_module, step, spoiling)
    with pytest.raises(ModelError, match="disagree"):
        check_parity(load(plain), IMAGES)


def test_token_ids_stay_whole_numbers(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)).eval()
    model = load(saved(module, tmp_path / "model", np.zeros((3, 5), np.int64)))
    tokens = np.arange(10).reshape(2, 5) % 9
    assert model.prepare(tokens.astype(float)).dtype == np.int64
    assert check_parity(model, tokens) <= 1e-6
    with pytest.raises(DataError, match=r"Row 1, column 0.*whole"):
        model.prepare(np.array([[1.0] * 5, [0.5] * 5]))


def test_probabilities_become_logits_that_give_them_back(tmp_path: Path) -> None:
    module = nn.Sequential(network(), nn.Softmax(dim=1)).eval()
    model = load(saved(module, tmp_path / "model"))
    inputs = torch.as_tensor(IMAGES)
    torch.testing.assert_close(model.module(inputs).softmax(1), module(inputs))
    assert any("probabilities" in note for note in model.notes)
    np.testing.assert_allclose(model.original(IMAGES), module(inputs).detach(), atol=1e-6)
    assert check_parity(model, IMAGES) <= 1e-6
    with torch.no_grad():
        model.module.get_parameter("0.8.bias").add_(torch.tensor([0.01, 0, 0]))
    with pytest.raises(ModelError, match="disagree"):
        check_parity(model, IMAGES)


def test_a_softmax_over_the_batch_is_no_probability_of_a_row(tmp_path: Path) -> None:
    model = load(saved(nn.Sequential(network(), nn.Softmax(dim=0)).eval(), tmp_path / "model"))
    assert not model.probabilities
    with pytest.raises(ModelError, match="mixes rows"):
        check_parity(model, IMAGES)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor, nn.Linear], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.function = function

    def forward(self, inputs: torch.Tensor) -> object:
        return self.function(inputs, self.layer)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, f: (f(x), x), "not one tensor"),
        (lambda x, f: f(x).argmax(1), r"not logits"),
        (lambda x, f: f(x)[:, None], r"not logits"),
        (lambda x, f: f(x).detach(), "differentiated"),
        (lambda x, f: f(x) + torch.rand_like(f(x)), "random numbers"),
        (lambda x, f: x, "no floating-point parameters|differentiated"),
    ],
    ids=["tuple", "argmax", "rank 3", "detached", "noise", "no parameters"],
)
def test_models_that_cannot_be_audited_are_refused(
    function: Callable[[torch.Tensor, nn.Linear], object], reason: str, tmp_path: Path
) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(
        Lambda(function).eval(), (torch.ones(3, 4),), dynamic_shapes=shapes
    )
    with pytest.raises(ModelError, match=reason):
        audited_module(program.module(), kind="pt2")


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.layer(a + b)  # type: ignore[no-any-return]

    program = torch.export.export(Two().eval(), (torch.ones(3, 4), torch.ones(3, 4)))
    with pytest.raises(ModelError, match="2 inputs"):
        audited_module(program.module(), kind="pt2")


def test_something_that_is_no_module_is_refused() -> None:
    with pytest.raises(ModelError, match=r"not a torch.nn.Module"):
        audited_module({"weight": 1}, kind="pickle")


def test_a_model_that_mixes_rows_is_refused() -> None:
    centred = Lambda(lambda x, f: f(x - x.mean(0)))
    with pytest.raises(ModelError, match="mixes rows"):
        check_parity(audited_module(centred, kind="pickle"), np.eye(4))
    bare = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ModelError, match="mixes rows"):
        check_parity(audited_module(bare, kind="pickle"), np.eye(4))


def test_a_module_that_answers_differently_from_the_original_is_refused(plain: Path) -> None:
    model = load(plain)
    with torch.no_grad():
        model.module.get_parameter("8.bias").add_(0.01)
    with pytest.raises(ModelError, match="disagree"):
        check_parity(model, IMAGES)


@pytest.mark.parametrize(
    ("width", "task", "refused"),
    [(3, None, True), (3, "classification", True), (1, "regression", False), (1, None, False)],
)
def test_a_difference_is_absolute_for_logits_and_relative_for_a_regression(
    width: int, task: str | None, refused: bool
) -> None:
    rows = np.eye(4)
    module = nn.Linear(4, width).double()
    with torch.no_grad():
        module.weight.fill_(1000.0)
    shifted = copy.deepcopy(module)
    with torch.no_grad():
        shifted.bias.add_(0.01)

    def answer(features: object) -> np.ndarray:
        return shifted(torch.as_tensor(features)).detach().numpy()  # type: ignore[no-any-return]

    model = AuditedModel(module, np.asarray, "pt2", answer, task=task)
    if refused:
        with pytest.raises(ModelError, match=r"disagree by 1\.0e-02 \(at most 1e-04\)"):
            check_parity(model, rows)
    else:
        assert check_parity(model, rows) == pytest.approx(1e-5, rel=1e-2)


def test_no_rows_is_a_data_error(plain: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        check_parity(load(plain), IMAGES[:0])


class Positions(nn.Module):
    """A module that makes a tensor, and holds one that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shift = nn.Linear(4, 3), torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + torch.arange(4, device=x.device) + self.shift)


def test_an_exported_graph_runs_where_it_is_placed() -> None:
    example = torch.zeros(2, 4)
    graph = torch.export.export(Positions(), (example,)).module()
    elsewhere = torch.device("meta")
    with pytest.raises((RuntimeError, TypeError)):
        graph.to(elsewhere)(example.to(elsewhere))
    assert place(graph, elsewhere)(example.to(elsewhere)).device == elsewhere
