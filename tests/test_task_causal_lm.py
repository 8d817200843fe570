from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from forward_inf_mlflow.directions import GradientStep
from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.task import Batch
from forward_inf_mlflow.tasks import CausalLM
from forward_inf_mlflow.tensors import Tensors

TASK = CausalLM()
V, L, N, M = 11, 7, 24, 4


class Net(nn.Module):
    """One causal attention layer between an embedding and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(V, width), nn.Embedding(L, width)
        self.mix, self.head = nn.Linear(width, 3 * width), nn.Linear(width, V)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        query, key, value = self.mix(h).chunk(3, -1)
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        seen = (query @ key.mT).masked_fill(later, -torch.inf).softmax(-1)
        return self.head(h + seen @ value)


def sequences(n: int, seed: int = 0) -> Tensors:
    """Random sequences of different lengths; the first token is a prompt."""
    rng = np.random.default_rng(seed)
    ids = torch.as_tensor(rng.integers(1, V, size=(n, L + 1)))
    targets = ids[:, 1:].clone()
    targets[:, 0] = -100
    for row, length in enumerate(rng.integers(3, L + 1, size=n)):
        targets[row, length:] = -100
        ids[row, length:] = 0
    return Tensors(ids[:, :-1], targets, torch.device("cpu"), 5)


def fitted(train: Tensors, steps: int = 60) -> Net:
    torch.manual_seed(0)
    module = Net().double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        TASK.loss(module(train.inputs), train.targets).sum().backward()
        optimizer.step()
    return module.eval()


def logits(*shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_a_sequence_of_two_tokens_worked_by_hand() -> None:
    # p = 3/4, then p = 1/2; the third does not count.
    outputs = torch.tensor([[[0.0, math.log(3.0)], [1.0, 1.0], [5.0, 0.0]]])
    targets = torch.tensor([[1, 0, -100]])
    by_token = [math.log(4 / 3), math.log(2), 0.0]
    assert TASK.token_losses(outputs, targets)[0].tolist() == pytest.approx(by_token)
    assert float(TASK.loss(outputs, targets)) == pytest.approx(math.log(8 / 3))
    assert float(TASK.margin(outputs, targets)) == pytest.approx(math.log(3.0))
    assert float(CausalLM(mean=True).loss(outputs, targets)) == pytest.approx(math.log(8 / 3) / 2)
    assert float(CausalLM(mean=True).margin(outputs, targets)) == pytest.approx(math.log(3.0) / 2)


def test_token_losses_are_the_cross_entropies_and_add_up_to_the_rows() -> None:
    outputs, targets = logits(5, L, V, scale=3), sequences(5).targets
    found = TASK.token_losses(outputs, targets)
    expected = nn.functional.cross_entropy(outputs.mT, targets, reduction="none")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), TASK.loss(outputs, targets))


@pytest.mark.parametrize("task", [TASK, CausalLM(mean=True)], ids=["sum", "mean"])
def test_whatever_a_model_says_of_padding_changes_nothing(task: CausalLM) -> None:
    outputs, targets = logits(5, L, V), sequences(5).targets
    longer = torch.cat([outputs, torch.full((5, 3, V), torch.nan)], 1)
    padded = nn.functional.pad(targets, (0, 3), value=-100)
    for read in (task.loss, task.margin):
        torch.testing.assert_close(read(longer, padded), read(outputs, targets))


def test_only_counted_tokens_have_a_gradient() -> None:
    outputs, targets = logits(5, L, V).requires_grad_(), sequences(5).targets
    for read in (TASK.loss, TASK.margin):
        (gradient,) = torch.autograd.grad(read(outputs, targets).sum(), outputs)
        assert torch.equal(gradient.abs().sum(-1) > 0, targets != -100)


@pytest.mark.parametrize("task", [TASK, CausalLM(mean=True)], ids=["sum", "mean"])
def test_a_row_where_nothing_counts_is_zero(task: CausalLM) -> None:
    outputs, targets = logits(2, 3, V), torch.full((2, 3), -100)
    assert task.loss(outputs, targets).tolist() == [0, 0]
    assert task.margin(outputs, targets).tolist() == [0, 0]
    assert task.skill(outputs, targets) == 0


def test_a_row_is_read_the_same_alone_and_among_longer_ones() -> None:
    rows = sequences(8)
    module = fitted(rows, steps=1)
    with torch.no_grad():
        whole = TASK.readout(module, rows.batch(slice(None)))
        for i in range(8):
            length = int((rows.targets[i] != -100).nonzero().max()) + 1
            alone = Batch(rows.inputs[i : i + 1, :length], rows.targets[i : i + 1, :length])
            one = TASK.readout(module, alone)
            torch.testing.assert_close(one.loss[0], whole.loss[i])
            torch.testing.assert_close(one.margin[0], whole.margin[i])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.989, 0.991, 0.9999, 1 - 1e-9])
def test_the_margin_has_the_stated_slope_in_log_p(p: float) -> None:
    # By the target's logit z, d log p / dz = 1 - p.
    z = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64, requires_grad=True)
    outputs = torch.stack([z, torch.zeros_like(z)])[None, None]
    margin = TASK.margin(outputs, torch.tensor([[0]]))
    (slope,) = torch.autograd.grad(margin.sum(), z)
    assert float(slope) / (1 - p) == pytest.approx(1 / max(1 - p, 0.01), rel=1e-5)
    if p < 0.99:
        assert float(margin.detach()) == pytest.approx(math.log(p / (1 - p)))


def test_the_margin_is_continuous_where_it_becomes_linear() -> None:
    edge = math.log(0.99 / 0.01)
    z = torch.tensor([edge - 1e-9, edge + 1e-9], dtype=torch.float64)
    outputs = torch.stack([z, torch.zeros(2, dtype=torch.float64)], 1)[:, None]
    margin = TASK.margin(outputs, torch.zeros(2, 1, dtype=torch.int64))
    torch.testing.assert_close(margin, z, rtol=0, atol=1e-8)


def test_a_token_known_by_heart_keeps_its_digits_in_float32() -> None:
    outputs = torch.tensor([[[30.0, 0.0]], [[30.00001, 0.0]]])
    loss = TASK.readout(lambda x: x, Batch(outputs, torch.tensor([[0], [0]]))).loss
    assert loss.dtype == torch.float64
    assert float(loss[0]) == pytest.approx(math.log1p(math.exp(-30)), rel=1e-6)
    assert loss[0] > loss[1] > 0


@pytest.mark.parametrize(
    ("given", "kept"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)]
)
def test_logits_are_float32_at_least_and_not_more_than_they_came(
    given: torch.dtype, kept: torch.dtype
) -> None:
    batch = Batch(torch.zeros(2, 3, V, dtype=given), torch.zeros(2, 3, dtype=torch.int64))
    assert TASK.outputs(lambda x: x, batch).dtype == kept


@pytest.mark.parametrize("wrap", [lambda x: (x, "cache"), lambda x: SimpleNamespace(logits=x)])
def test_logits_are_found_in_what_transformers_return(wrap: object) -> None:
    batch = Batch(logits(2, 3, V), torch.zeros(2, 3, dtype=torch.int64))
    assert torch.equal(TASK.outputs(wrap, batch), batch.inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outputs", "targets", "error", "says"),
    [
        (torch.zeros(2, V), torch.zeros(2, dtype=torch.int64), ModelError, "(2, 11)"),
        (torch.zeros(2, 3, V), torch.zeros(2, 2, dtype=torch.int64), DataError, "(2, 2)"),
        (torch.zeros(2, 3, V), torch.zeros(2, 3), DataError, "float32"),
        (torch.zeros(1, 1, V), torch.tensor([[V]]), DataError, "token 11"),
        (torch.zeros(1, 1, V), torch.tensor([[-1]]), DataError, "token -1"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    outputs: Tensor, targets: Tensor, error: type[ForwardInfError], says: str
) -> None:
    with pytest.raises(error) as raised:
        TASK.readout(lambda x: x, Batch(outputs, targets))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_skill_is_zero_for_the_tokens_frequencies_and_one_for_certainty() -> None:
    targets = torch.tensor([[0, 1, -100], [0, 0, -100]])
    frequencies = torch.log(torch.tensor([0.75, 0.25])).expand(2, 3, 2)
    assert TASK.skill(frequencies, targets) == pytest.approx(0, abs=1e-6)
    assert TASK.skill(100 * torch.eye(2)[targets.clamp(min=0)], targets) == pytest.approx(1)
    assert TASK.skill(torch.zeros(2, 3, 2), targets) < 0


def test_losses_and_margins_can_be_differentiated_forwards_and_twice() -> None:
    outputs, targets = logits(2, L, V, scale=3).requires_grad_(), sequences(2).targets
    for read in (TASK.loss, TASK.margin):
        assert torch.autograd.gradcheck(lambda z: read(z, targets), outputs, check_forward_ad=True)  # noqa: B023
    assert torch.autograd.gradgradcheck(lambda z: TASK.loss(z, targets), outputs)


def test_the_loss_is_convex_in_the_logits() -> None:
    targets = sequences(1).targets
    hessian = torch.autograd.functional.hessian(
        lambda z: TASK.loss(z, targets).sum(), logits(1, L, V, scale=3)
    ).reshape(L * V, L * V)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12


def test_the_derivative_along_a_direction_is_the_limit_of_differences() -> None:
    rows = sequences(6)
    module = fitted(rows)
    theta = {name: p.detach() for name, p in module.named_parameters()}
    along = {name: torch.randn_like(p) for name, p in theta.items()}

    def read(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return tuple(  # type: ignore[return-value]
            TASK.readout(lambda *x: functional_call(module, parameters, x), rows.batch(slice(None)))
        )

    def at(step: float) -> tuple[Tensor, Tensor]:
        return read({name: p + step * along[name] for name, p in theta.items()})

    _, exact = jvp(read, (theta,), (along,))
    for derivative, up, down in zip(exact, at(1e-6), at(-1e-6), strict=True):
        torch.testing.assert_close(derivative, (up - down) / 2e-6, rtol=1e-4, atol=1e-4)


def test_scores_are_the_products_of_gradients_and_a_copy_is_the_first_proponent() -> None:
    train, queries = sequences(N), sequences(N).take(np.arange(M))
    module = fitted(train)
    engine = ForwardInfluence(task=TASK, direction=GradientStep(relative_size=1e-5, sign="both"))
    groups = QueryGroups.each(queries, np.arange(M).astype(str))
    scores = engine.influence(module, groups, train, np.arange(N).astype(str)).scores

    gradients = []
    for i in range(N):
        one = train.batch(slice(i, i + 1))
        loss = TASK.loss(module(one.inputs), one.targets).sum()
        parts = torch.autograd.grad(loss, list(module.parameters()))
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    expected = np.stack(gradients[:M]) @ np.stack(gradients).T
    np.testing.assert_allclose(scores.values, expected, atol=1e-4 * np.abs(expected).max())
    assert scores.proponents(1)[:, 0].tolist() == list(range(M))
