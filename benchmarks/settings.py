"""Three settings that methods of data attribution are judged on: rows, a network, a recipe.

Each is small enough to be retrained hundreds of times on two cores, and the same on every run: a
seed decides the first weights and the order of the rows, and nothing else is random. Nothing of
``forward_inf_mlflow`` is imported, so that peers can use the settings in an environment of their
own.

A recipe was chosen by how well the audited model fits its training rows and its queries, never by
how well any method then explains it.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

#: Where the data are that scikit-learn does not ship; BENCH_DATA names another folder.
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class SettingError(Exception):
    """A setting cannot be had here; the message is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a setting's network is trained: minimise the mean row loss, rate falling to 0 linearly.

    Attributes:
        optimizer: "sgd" (momentum .9) or "adam" (PyTorch's defaults).
        rate: The learning rate at the first step.
        epochs: Passes over the rows; a model of half the rows takes half the steps.
        batch: Rows of a step.
        weight_decay: Half of it times the squared norm of all weights is added to the mean loss.
    """

    optimizer: Literal["sgd", "adam"]
    rate: float
    epochs: int
    batch: int
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """Rows, queries, a network and a recipe.

    Attributes:
        name: What it is called.
        kind: "classification" (labels ``(n,)``) or "causal_lm" (next tokens ``(n, t)``).
        train_x: Training inputs ``(n, ...)``, contiguous.
        train_y: Training targets ``(n,)`` or ``(n, t)`` int64, wrong ones included.
        query_x: Query inputs ``(q, ...)``.
        query_y: Query targets, ``(q,)`` or ``(q, t)`` int64.
        make: Seed to a fresh network.
        recipe: How it is trained.
    """

    name: str
    kind: Literal["classification", "causal_lm"]
    train_x: Tensor
    train_y: Tensor
    query_x: Tensor
    query_y: Tensor
    make: Callable[[int], nn.Module]
    recipe: Recipe

    @property
    def weight_decay(self) -> float:
        """Return the penalty that the training objective carries."""
        return self.recipe.weight_decay

    def fit(self, index: np.ndarray | None, seed: int) -> nn.Module:
        """Return a network trained on some rows, in evaluation mode.

        Args:
            index: The rows, as positions or as a mask ``(n,)``; None means all of them.
            seed: Decides the first weights and the order of the rows.
        """
        x, y = self.train_x, self.train_y
        if index is not None:
            x, y = x[torch.as_tensor(index)], y[torch.as_tensor(index)]
        recipe, module = self.recipe, self.make(seed)
        order = torch.Generator().manual_seed(seed)
        steps = recipe.epochs * -(-len(x) // recipe.batch)
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                module.parameters(), recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay
            )
        else:
            optimizer = torch.optim.Adam(
                module.parameters(), recipe.rate, weight_decay=recipe.weight_decay
            )
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps
        )
        for _ in range(recipe.epochs):
            for rows in torch.split(torch.randperm(len(x), generator=order), recipe.batch):
                optimizer.zero_grad()
                torch.autograd.backward(self.loss(module(x[rows]), y[rows]).mean())
                optimizer.step()
                schedule.step()
        return module.eval()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each row's cross-entropy in nats, ``(n,)``; over a row's tokens, their sum."""
        losses = functional.cross_entropy(
            outputs.flatten(0, -2), targets.flatten(), reduction="none"
        )
        return losses.view(len(targets), -1).sum(1)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each row's log-odds of its label, ``(n,)``; for texts minus the loss."""
        if self.kind == "causal_lm":
            return -self.loss(outputs, targets)
        chosen = outputs.gather(1, targets[:, None])
        others = outputs.scatter(1, targets[:, None], -torch.inf)
        return chosen[:, 0] - others.logsumexp(1)

    def digest(self) -> str:
        """Return a hash of all that decides what a retraining gives: rows, recipe, code."""
        fresh = self.make(0)
        own = {type(m) for m in fresh.modules() if type(m).__module__ == __name__}
        code = [
            repr(self.recipe),
            repr(fresh),
            inspect.getsource(self.make),
            inspect.getsource(Setting.fit),
            inspect.getsource(Setting.loss),
            inspect.getsource(Setting.margin),
            *sorted(inspect.getsource(kind) for kind in own),
        ]
        found = hashlib.sha256("\n".join(code).encode())
        for rows in (self.train_x, self.train_y, self.query_x, self.query_y):
            found.update(str((rows.dtype, tuple(rows.shape))).encode())
            found.update(rows.numpy().tobytes())
        return found.hexdigest()[:16]


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network with first weights by the seed, leaving the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _mlp(seed: int) -> nn.Module:
    """Return 64-32-10, 2,410 parameters."""
    return _seeded(
        lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        seed,
    )


def digits_mlp() -> Setting:
    """Return scikit-learn's digits, 1,000 rows with 10 % of the labels flipped, 100 queries.

    The network agrees with 89 % of its training labels: it fits the right ones and resists the
    wrong ones; 94 to 95 % of the queries are right.
    """
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))
    train, query = order[:1000], order[1000:1100]
    given = y[train].copy()
    flipped = rng.choice(1000, 100, replace=False)
    given[flipped] = (given[flipped] + rng.integers(1, 10, 100)) % 10
    inputs = (x / 16).astype(np.float32)
    return Setting(
        name="digits_mlp",
        kind="classification",
        train_x=torch.from_numpy(inputs[train]),
        train_y=torch.from_numpy(given),
        query_x=torch.from_numpy(inputs[query]),
        query_y=torch.from_numpy(y[query]),
        make=_mlp,
        recipe=Recipe(optimizer="sgd", rate=0.1, epochs=40, batch=50),
    )


def _cnn(seed: int) -> nn.Module:
    """Return three strided convolutions with group norm and a linear layer, 21,430 parameters."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 36)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(4, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36 * 16, 10))

    return _seeded(build, seed)


def cifar10n_cnn() -> Setting:
    """Return 1,500 CIFAR-10 images with the labels that people gave (CIFAR-10N), 60 queries.

    A strong penalty keeps the network from memorising wrong labels: trained to the end it agrees
    with 54 % of its training labels and is right on 53 to 55 % of the queries; with a tenth of the
    penalty it agrees with 99 % and its loss on the queries is a quarter higher.
    """
    path = _data("cifar10n_10k.npz")
    with np.load(path, allow_pickle=False) as data:
        pixels = {
            name: data[f"{name}_x"][:count] for name, count in (("train", 1500), ("test", 60))
        }
        given, true = data["train_y_human"][:1500], data["test_y"][:60]
    mean = pixels["train"].mean((0, 1, 2), dtype=np.float64)
    spread = pixels["train"].std((0, 1, 2), dtype=np.float64)
    inputs = {
        name: np.ascontiguousarray(((x - mean) / spread).astype(np.float32).transpose(0, 3, 1, 2))
        for name, x in pixels.items()
    }
    return Setting(
        name="cifar10n_cnn",
        kind="classification",
        train_x=torch.from_numpy(inputs["train"]),
        train_y=torch.from_numpy(given.astype(np.int64)),
        query_x=torch.from_numpy(inputs["test"]),
        query_y=torch.from_numpy(true.astype(np.int64)),
        make=_cnn,
        recipe=Recipe(optimizer="sgd", rate=0.03, epochs=15, batch=50, weight_decay=0.05),
    )


class Block(nn.Module):
    """One layer of a decoder: causal attention and an MLP, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.mix(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.join(mixed.transpose(1, 2).reshape(b, t, width))
        added: Tensor = self.narrow(functional.gelu(self.widen(self.norm2(x))))
        return x + added


class Decoder(nn.Module):
    """A small GPT: tokens ``(b, t)`` to the logits of each next token ``(b, t, vocabulary)``."""

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.randn(context, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.token(tokens) + self.place[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def _decoder(seed: int) -> nn.Module:
    return _seeded(lambda: Decoder(65, 32, width=48, heads=3, layers=2), seed)


def small_lm() -> Setting:
    """Return 1,000 rows of 32 characters from tinyshakespeare, 50 queries from a bit further on.

    A row's loss is the sum over its characters. Rows are consecutive pieces of text, and so are
    queries, every fifth piece of those that follow. The network's loss is 1.78 nats a character on
    its rows and 2.07 on the queries (it can memorise: after more epochs the first falls alone).
    """
    text = _data("tinyshakespeare.txt").read_text(encoding="utf-8")
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([number[character] for character in text[: 1250 * 32 + 1]])
    x, y = tokens[:-1].view(-1, 32), tokens[1:].view(-1, 32)
    return Setting(
        name="small_lm",
        kind="causal_lm",
        train_x=x[:1000].clone(),
        train_y=y[:1000].clone(),
        query_x=x[1000::5].clone(),
        query_y=y[1000::5].clone(),
        make=_decoder,
        recipe=Recipe(optimizer="adam", rate=3e-3, epochs=15, batch=20),
    )


#: Every setting, by name; each is built when it is called.
SETTINGS: dict[str, Callable[[], Setting]] = {
    "digits_mlp": digits_mlp,
    "cifar10n_cnn": cifar10n_cnn,
    "small_lm": small_lm,
}


@cache
def load(name: str) -> Setting:
    """Return a setting.

    Raises:
        SettingError: There is no such setting, or its data are not here.
    """
    if name not in SETTINGS:
        raise SettingError(f"no setting is called {name!r}: take one of {', '.join(SETTINGS)}")
    return SETTINGS[name]()


def _data(name: str) -> Path:
    """Return the path of a data file."""
    path = Path(os.environ.get("BENCH_DATA", DEFAULT_DATA)) / name
    if not path.is_file():
        raise SettingError(f"{path} is missing: set BENCH_DATA to the folder that holds {name}")
    return path
