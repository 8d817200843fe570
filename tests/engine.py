"""Small models of every kind, their rows, and slow obvious references, for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from forward_inf_mlflow.directions import Direction
from forward_inf_mlflow.directions.moves import Point, at_rest
from forward_inf_mlflow.influence import ForwardInfluence, Influence, QueryGroups
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tasks import (
    CausalLM,
    Classification,
    Denoising,
    Regression,
    cosine_schedule,
)
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Work

CPU = torch.device("cpu")
D, K, V, L = 4, 3, 6, 4


@dataclass(frozen=True)
class Setting:
    """A model in evaluation mode, float64, with rows that it can be asked about."""

    task: Task
    module: nn.Module
    rows: Tensors
    queries: Tensors

    @property
    def base(self) -> Point:
        return at_rest(self.module)


class Sequences(nn.Module):
    """One causal attention layer between an embedding and a linear layer."""

    def __init__(self, width: int = 4, *, fused: bool = False) -> None:
        super().__init__()
        self.tokens, self.fused = nn.Embedding(V, width), fused
        self.mix, self.head = nn.Linear(width, 3 * width), nn.Linear(width, V)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids)
        query, key, value = self.mix(h).chunk(3, -1)
        if self.fused:
            attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            later = torch.ones(L, L, dtype=torch.bool, device=h.device).triu(1)
            attended = (query @ key.mT).masked_fill(later, -torch.inf).softmax(-1) @ value
        return self.head(h + attended)


class Denoiser(nn.Module):
    """A denoiser that is told the time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D + 1, 5), nn.Tanh(), nn.Linear(5, D))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None].to(x.dtype) / 10], 1))


class Narrow(nn.Module):
    """A module for which more than a few rows at a time are too many."""

    def __init__(self, inner: nn.Module, most: int, error: type[BaseException]) -> None:
        super().__init__()
        self.inner, self.most, self.error = inner, most, error

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        output: Tensor = self.inner(x, *more)
        return output


def mlp(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, outputs))


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, K),
    )


def _vectors(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
    x = torch.as_tensor(rng.normal(size=(n, D)))
    return x, torch.as_tensor(rng.integers(K, size=n))


def _numbers(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(rng.normal(size=(n, D))), torch.as_tensor(rng.normal(size=n))


def _tokens(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
    ids = torch.as_tensor(rng.integers(V, size=(n, L + 1)))
    targets = ids[:, 1:].clone()
    targets[torch.arange(n) % 3 == 0, -1] = -100
    return ids[:, :-1], targets


def _images(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(rng.normal(size=(n, 1, 6, 6))), torch.as_tensor(rng.integers(K, size=n))


_DENOISING = Denoising(alphas_cumprod=cosine_schedule(10), times=2)
_KINDS: dict[str, tuple[Task, Callable[[], nn.Module], Callable[..., tuple[Tensor, Tensor]]]] = {
    "classification": (Classification(), lambda: mlp(K), _vectors),
    "regression": (Regression(), lambda: mlp(1), _numbers),
    "causal_lm": (CausalLM(), Sequences, _tokens),
    "denoising": (_DENOISING, Denoiser, _vectors),
    "cnn": (Classification(), cnn, _images),
    "attention": (CausalLM(mean=True), lambda: Sequences(fused=True), _tokens),
}
#: One setting a task.
TASKS = ("classification", "regression", "causal_lm", "denoising")
#: And other architectures.
KINDS = tuple(_KINDS)


def setting(kind: str, n: int = 24, m: int = 3, *, batch_size: int = 7, fit: int = 30) -> Setting:
    """Return a model that was fitted for a few steps; its queries are rows that it has not seen."""
    task, make, draw = _KINDS[kind]
    torch.manual_seed(0)
    module = make().double()
    rows, queries = (
        Tensors(*draw(np.random.default_rng(seed), size), CPU, batch_size)
        for seed, size in ((1, n), (2, m))
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    whole = rows.batch(slice(None))
    for _ in range(fit):
        optimizer.zero_grad()
        task.loss(task.outputs(module, whole), whole.targets).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return Setting(task, module.eval(), rows, queries)


def exported(found: Setting) -> nn.Module:
    """Return the setting's module as ``torch.export`` logs it, for batches of any size."""
    calls: list[tuple[Tensor, ...]] = []

    def record(*given: Tensor) -> Tensor:
        calls.append(given)
        output: Tensor = found.module(*given)
        return output

    found.task.outputs(record, found.rows.batch(slice(0, 3)))
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in calls[0])
    module: nn.Module = torch.export.export(
        found.module, calls[0], dynamic_shapes=shapes, strict=False
    ).module()
    return module


def with_batches_of(rows: Tensors, batch_size: int) -> Tensors:
    return replace(rows, batch_size=batch_size)


def names(n: int) -> np.ndarray:
    return np.arange(n).astype(str)


def influence(
    found: Setting,
    direction: Direction,
    *,
    method: str = "auto",
    readout: str = "loss",
    shard_rows: int = 8192,
    work: Work | None = None,
) -> Influence:
    """Ask about every query alone."""
    engine = ForwardInfluence(
        task=found.task,
        direction=direction,
        method=method,  # type: ignore[arg-type]
        readout=readout,  # type: ignore[arg-type]
        shard_rows=shard_rows,
    )
    groups = QueryGroups.each(found.queries, names(len(found.queries)))
    return engine.influence(
        found.module, groups, found.rows, names(len(found.rows)), work=work or KEEP_NOTHING
    )


def scores(found: Setting, direction: Direction, **options: object) -> np.ndarray:
    """Influence of every row on every query, ``(m, n)``."""
    return influence(found, direction, **options).scores.values  # type: ignore[arg-type]


def gradients(found: Setting, rows: Tensors) -> np.ndarray:
    """One backward pass a row, ``(n, P)``."""
    parts = []
    for i in range(len(rows)):
        batch = rows.batch(slice(i, i + 1))
        loss = found.task.loss(found.task.outputs(found.module, batch), batch.targets).sum()
        grads = torch.autograd.grad(loss, list(found.module.parameters()))
        parts.append(torch.cat([g.reshape(-1) for g in grads]).numpy())
    return np.stack(parts)


def gauss_newton(found: Setting, rows: Tensors | None = None) -> Tensor:
    """The matrix itself, ``mean J^T H J``, from whole Jacobians and Hessians of single rows."""
    rows = rows or found.rows
    theta = dict(found.module.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in theta.values()])
    total = torch.zeros(len(flat), len(flat), dtype=flat.dtype)
    for i in range(len(rows)):
        batch = rows.batch(slice(i, i + 1))

        def outputs(vector: Tensor, batch: object = batch) -> Tensor:
            parts = torch.split(vector, [p.numel() for p in theta.values()])
            at = {n: q.view_as(p) for (n, p), q in zip(theta.items(), parts, strict=True)}
            return found.task.outputs(lambda *x: functional_call(found.module, at, x), batch)  # type: ignore[arg-type]

        answers = outputs(flat).detach()
        jacobian = torch.autograd.functional.jacobian(outputs, flat).reshape(-1, len(flat))
        hessian = torch.autograd.functional.hessian(
            lambda z, y=batch.targets: found.task.loss(z, y).sum(), answers
        ).reshape(len(jacobian), -1)
        total += jacobian.T @ hessian @ jacobian
    return total / len(rows)


def assert_close(found: np.ndarray, expected: np.ndarray, share: float = 1e-5) -> None:
    """Hold every number to a share of the largest expected one."""
    scale = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * scale)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The mean Pearson correlation over queries."""
    return float(np.mean([np.corrcoef(i, j)[0, 1] for i, j in zip(a, b, strict=True)]))
