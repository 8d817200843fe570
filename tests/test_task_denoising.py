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
from forward_inf_mlflow.tasks import Denoising, cosine_schedule
from forward_inf_mlflow.tensors import Tensors

STEPS, N, M, CLASSES = 100, 24, 4, 3
KEPT = cosine_schedule(STEPS)
TASK = Denoising(alphas_cumprod=KEPT)


class Net(nn.Module):
    """A small convolutional denoiser with group norm that is told the time and the class."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.time, self.label = nn.Linear(1, width), nn.Embedding(CLASSES, width)
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.last = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        told = self.time(t[:, None].to(x.dtype) / STEPS) + self.label(y)
        h = self.norm(self.first(x) + told[..., None, None])
        return self.last(h.tanh())


def images(n: int, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    pixels = torch.as_tensor(rng.normal(size=(n, 2, 5, 5)))
    return Tensors(pixels, torch.as_tensor(rng.integers(CLASSES, size=n)), torch.device("cpu"), 5)


def fitted(task: Denoising, train: Tensors, steps: int = 40) -> Net:
    torch.manual_seed(0)
    module = Net().double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    whole = train.batch(slice(None))
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(task.outputs(module, whole), whole.targets).sum().backward()
        optimizer.step()
    return module.eval()


def asked(task: Denoising, inputs: Tensor) -> list[tuple[Tensor, ...]]:
    """What a model is given for some rows, call by call."""
    calls: list[tuple[Tensor, ...]] = []

    def forward(*given: Tensor) -> Tensor:
        calls.append(given)
        return given[0]

    task.outputs(forward, Batch(inputs, torch.arange(len(inputs))))
    return calls


def test_one_number_at_two_times_worked_by_hand() -> None:
    # Two times weigh 1 and 3. Of the row 0 the model sees sqrt(1 - abar) noise; answering that
    # misses the noise by the factor 1 - sqrt(1 - abar).
    task = Denoising(alphas_cumprod=(0.5, 0.25), times=(0, 1))
    batch = Batch(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1))
    first = asked(task, batch.inputs)[0]
    noise = float(first[0]) / math.sqrt(0.5)
    assert noise != 0
    loss = task.loss(task.outputs(lambda x, t: x, batch), batch.targets)
    missed = [1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    by_hand = noise**2 * (1 * missed[0] ** 2 + 3 * missed[1] ** 2) / 2
    assert float(loss) == pytest.approx(by_hand)
    assert float(task.margin(task.outputs(lambda x, t: x, batch), batch.targets)) == -float(loss)


def test_rows_are_noised_to_the_stated_variance_with_the_same_noise() -> None:
    # Between a row of zeros and a row of ones lies sqrt(abar) once the noise is the same.
    task = Denoising(alphas_cumprod=KEPT, draws=2)
    rows = torch.stack([torch.zeros(4, 3), torch.ones(4, 3)]).double()
    calls = asked(task, rows)
    assert len(calls) == 2 * len(task.chosen_times)
    noises = set()
    for k, (noised, time) in enumerate(calls):
        t = task.chosen_times[k % len(task.chosen_times)]
        assert time.dtype == torch.int64
        assert time.tolist() == [t, t]
        between = torch.full((4, 3), math.sqrt(KEPT[t]), dtype=torch.float64)
        torch.testing.assert_close(noised[1] - noised[0], between)
        noises.add(tuple((noised[0] / math.sqrt(1 - KEPT[t])).round(decimals=9).flatten().tolist()))
    assert len(noises) == 2  # one a draw, whatever the time


def test_times_are_spread_evenly_over_the_schedule() -> None:
    assert TASK.chosen_times == (5, 15, 25, 35, 45, 55, 65, 75, 85, 95)
    assert Denoising(alphas_cumprod=KEPT, times=1).chosen_times == (50,)
    assert Denoising(alphas_cumprod=KEPT, times=STEPS).chosen_times == tuple(range(STEPS))
    assert Denoising(alphas_cumprod=KEPT, times=(3, 1)).chosen_times == (3, 1)


def test_times_are_weighted_towards_the_clean_image_up_to_the_bound() -> None:
    kept = (0.9, 0.5, 0.2, 0.01)
    task = Denoising(alphas_cumprod=kept, times=4)
    assert task.weights == pytest.approx((1 / 9, 1, 4, 5))
    assert Denoising(alphas_cumprod=kept, times=4, clean_weight=None).weights == (1, 1, 1, 1)


def test_without_bound_the_loss_is_the_error_of_the_implied_clean_image() -> None:
    task = Denoising(alphas_cumprod=KEPT, times=(30,), clean_weight=math.inf)
    batch = images(3).batch(slice(None))
    ((noised, _),) = asked(task, batch.inputs)
    predicted = task.outputs(lambda x, t: x.tanh(), batch)
    implied = (noised - math.sqrt(1 - KEPT[30]) * predicted[:, 0]) / math.sqrt(KEPT[30])
    error = (implied - batch.inputs).square().flatten(1).mean(1)
    torch.testing.assert_close(task.loss(predicted, batch.targets), error)


def test_who_knows_the_noise_has_no_loss_and_full_skill() -> None:
    batch = Batch(torch.zeros(3, 2, 2, dtype=torch.float64), torch.zeros(3))
    kept = torch.tensor(KEPT, dtype=torch.float64)
    outputs = TASK.outputs(lambda x, t: x / (1 - kept[t]).sqrt()[:, None, None], batch)
    torch.testing.assert_close(TASK.loss(outputs, batch.targets), torch.zeros(3).double())
    assert TASK.skill(outputs, batch.targets) == pytest.approx(1)
    assert TASK.skill(torch.zeros_like(outputs), batch.targets) == 0


def test_the_loss_of_several_draws_is_the_mean_of_each_draw() -> None:
    batch = images(3).batch(slice(None))
    outputs, losses = [], []
    for draws in (1, 2):
        task = Denoising(alphas_cumprod=KEPT, draws=draws)
        outputs.append(task.outputs(lambda x, t: x.tanh(), batch))
        losses.append(task.loss(outputs[-1], batch.targets))
    torch.testing.assert_close(outputs[1][:, :10], outputs[0])
    errors = 2 * losses[1] - losses[0]
    assert (errors > 0).all()
    assert not torch.allclose(errors, losses[0])


def test_noise_depends_on_the_seed_alone() -> None:
    rows = images(2).inputs
    same = zip(asked(TASK, rows), asked(Denoising(alphas_cumprod=KEPT), rows), strict=True)
    assert all(torch.equal(a[0], b[0]) for a, b in same)
    other = asked(Denoising(alphas_cumprod=KEPT, seed=1), rows)
    assert not torch.equal(asked(TASK, rows)[0][0], other[0][0])


def test_a_row_is_read_the_same_alone_and_among_others() -> None:
    task, rows = Denoising(alphas_cumprod=KEPT, conditional=True), images(6)
    module = fitted(task, rows, steps=1)
    with torch.no_grad():
        whole = task.readout(module, rows.batch(slice(None)))
        for i in range(6):
            one = task.readout(module, rows.batch(slice(i, i + 1)))
            torch.testing.assert_close(one.loss[0], whole.loss[i])
            torch.testing.assert_close(one.margin[0], whole.margin[i])


def test_only_a_conditional_model_is_told_the_targets() -> None:
    rows = images(2).inputs
    assert all(len(given) == 2 for given in asked(TASK, rows))
    calls = asked(Denoising(alphas_cumprod=KEPT, conditional=True), rows)
    assert all(given[2].tolist() == [0, 1] for given in calls)


def test_noise_is_found_in_what_diffusers_return() -> None:
    batch = images(2).batch(slice(None))
    wrapped = TASK.outputs(lambda x, t: SimpleNamespace(sample=x), batch)  # type: ignore[arg-type]
    assert torch.equal(wrapped, TASK.outputs(lambda x, t: x, batch))


def test_a_schedule_falls_from_nearly_all_to_nearly_nothing() -> None:
    assert len(KEPT) == STEPS
    assert (np.diff(KEPT) < 0).all()
    assert 0.999 < KEPT[0] < 1
    assert 0 < KEPT[-1] < 1e-5
    half = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2
    assert KEPT[49] == pytest.approx(half / math.cos(0.008 / 1.008 * math.pi / 2) ** 2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alphas_cumprod": ()}, "alphas_cumprod"),
        ({"alphas_cumprod": (1.0, 0.5)}, "alphas_cumprod"),
        ({"alphas_cumprod": (0.5, 0.0)}, "alphas_cumprod"),
        ({"alphas_cumprod": (0.5, 0.6)}, "alphas_cumprod"),
        ({"alphas_cumprod": (0.5, math.nan)}, "alphas_cumprod"),
        ({"times": 0}, "times"),
        ({"times": STEPS + 1}, "times"),
        ({"times": ()}, "times"),
        ({"times": (STEPS,)}, "times"),
        ({"times": (-1,)}, "times"),
        ({"draws": 0}, "draws"),
        ({"seed": -1}, "seed"),
        ({"clean_weight": 0.0}, "clean_weight"),
        ({"clean_weight": math.nan}, "clean_weight"),
    ],
)
def test_settings_that_cannot_be_used_are_named_in_one_line(
    settings: dict[str, object], says: str
) -> None:
    with pytest.raises(DataError, match=says) as raised:
        Denoising(**{"alphas_cumprod": KEPT, **settings})  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_a_schedule_without_steps_is_refused() -> None:
    with pytest.raises(DataError, match="at least one step"):
        cosine_schedule(0)


@pytest.mark.parametrize(
    ("inputs", "answer", "error", "says"),
    [
        (torch.zeros(2, 4), lambda x, t: x[:, :2], ModelError, r"\(2, 2\)"),
        (torch.zeros(2, 4), lambda x, t: {"noise": x}, ModelError, "dict"),
        (torch.zeros(2, 4, dtype=torch.uint8), lambda x, t: x, DataError, "uint8"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    inputs: Tensor, answer: object, error: type[ForwardInfError], says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        TASK.outputs(answer, Batch(inputs, torch.zeros(2)))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_the_loss_can_be_differentiated_forwards_and_twice() -> None:
    task = Denoising(alphas_cumprod=KEPT, times=3, draws=2)
    outputs = torch.randn(2, 6, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(2)
    assert torch.autograd.gradcheck(lambda z: task.loss(z, targets), outputs, check_forward_ad=True)
    hessian = torch.autograd.functional.hessian(lambda z: task.loss(z, targets).sum(), outputs)
    assert torch.linalg.eigvalsh(hessian.reshape(48, 48)).min() > 0


def test_the_derivative_along_a_direction_is_the_limit_of_differences() -> None:
    # Through group norm, which has a forward-mode rule for contiguous inputs only.
    task = Denoising(alphas_cumprod=KEPT, conditional=True)
    rows = images(6)
    pixels_last = rows.inputs.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    batch = Batch(pixels_last, rows.targets)
    module = fitted(task, rows)
    theta = {name: p.detach() for name, p in module.named_parameters()}
    along = {name: torch.randn_like(p) for name, p in theta.items()}

    def read(parameters: dict[str, Tensor]) -> Tensor:
        return task.readout(lambda *x: functional_call(module, parameters, x), batch).loss

    def at(step: float) -> Tensor:
        return read({name: p + step * along[name] for name, p in theta.items()})

    _, exact = jvp(read, (theta,), (along,))
    torch.testing.assert_close(exact, (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-6)


def test_scores_are_the_products_of_gradients_and_a_copy_is_the_first_proponent() -> None:
    task = Denoising(alphas_cumprod=KEPT, conditional=True)
    train, queries = images(N), images(N).take(np.arange(M))
    module = fitted(task, train)
    engine = ForwardInfluence(task=task, direction=GradientStep(relative_size=1e-5, sign="both"))
    groups = QueryGroups.each(queries, np.arange(M).astype(str))
    scores = engine.influence(module, groups, train, np.arange(N).astype(str)).scores

    gradients = []
    for i in range(N):
        one = train.batch(slice(i, i + 1))
        loss = task.loss(task.outputs(module, one), one.targets).sum()
        parts = torch.autograd.grad(loss, list(module.parameters()))
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    expected = np.stack(gradients[:M]) @ np.stack(gradients).T
    np.testing.assert_allclose(scores.values, expected, atol=1e-4 * np.abs(expected).max())
    assert scores.proponents(1)[:, 0].tolist() == list(range(M))


@pytest.mark.parametrize("predicts", ["image", "velocity"])
def test_whoever_answers_the_image_or_the_velocity_truly_has_no_loss(predicts: str) -> None:
    rows = images(2)
    task = Denoising(alphas_cumprod=KEPT, times=(20, 60), predicts=predicts)  # type: ignore[arg-type]
    batch = rows.batch(slice(None))
    clean = batch.inputs

    def truth(x: Tensor, t: Tensor) -> Tensor:
        kept = KEPT[int(t[0])]
        noise = (x - math.sqrt(kept) * clean) / math.sqrt(1 - kept)
        velocity = math.sqrt(kept) * noise - math.sqrt(1 - kept) * clean
        return clean if predicts == "image" else velocity

    loss = task.loss(task.outputs(truth, batch), batch.targets)
    torch.testing.assert_close(loss, torch.zeros(2, dtype=torch.float64))
