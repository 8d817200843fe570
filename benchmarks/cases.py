"""Audited models for the detectors' benchmark: rows, labels that are partly wrong, a network.

Each setting is one kind of rows, one kind of errors and one state of the model: *generalising*
(trained with augmentation, dropout or few epochs: it resists wrong labels) or *memorised* (trained
until it knows every label by heart). A seed decides the first weights, the order of the rows and
the errors that are drawn. Networks are kept under ``benchmarks/.cache`` by a hash of all that
decides them.

Rows come from a file (its keys are in README.md), and from scikit-learn's digits.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from banks import CACHE
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn
from torch.nn import functional

#: Rows that a network is trained on, by its state.
ROWS = {"memorised": 4000, "generalising": 6000}
#: Queries, their labels trusted.
QUERIES = 1000
#: Share of labels that are spoiled where people did not.
NOISE = 0.2
#: Share of digits that lie on their side, where rare rows are asked about.
RARE = 0.04


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: SGD with momentum .9, its rate up and down in one cycle.

    Attributes:
        epochs: Passes over the rows.
        rate: The largest learning rate.
        batch: Rows of a step.
        weight_decay: SGD's.
        augment: Whether images are shifted by up to four pixels and mirrored at random.
        dropout: Share of the inputs that are set to zero at random, where they are no images.
    """

    epochs: int
    rate: float = 0.05
    batch: int = 64
    weight_decay: float = 5e-4
    augment: bool = False
    dropout: float = 0.0


@dataclass(frozen=True, eq=False)
class Training:
    """What was seen while a network was trained.

    Attributes:
        states: Its weights after a quarter, half, three quarters and all of the epochs.
        logits: ``(epochs, n, K)`` float32, of the training rows after each epoch.
        seconds: Of the processor, without the watching.
    """

    states: dict[int, dict[str, Tensor]]
    logits: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False)
class Case:
    """One audited model.

    Attributes:
        setting: Its name.
        seed: See the module.
        x: ``(n, ...)`` float32 training inputs.
        given, true: ``(n,)`` int64 labels.
        query_x, query_y: The queries.
        make: Seed to a fresh network.
        recipe: How it is trained.
        device: Where networks are trained and read.
        rare: ``(n,)`` bool, rows of a small subgroup whose labels are right; None where none is.
    """

    setting: str
    seed: int
    x: Tensor
    given: Tensor
    true: Tensor
    query_x: Tensor
    query_y: Tensor
    make: Callable[[int], nn.Module]
    recipe: Recipe
    device: str = "cpu"
    rare: np.ndarray | None = None

    @property
    def wrong(self) -> np.ndarray:
        """Return which labels are wrong, ``(n,)`` bool."""
        return (self.given != self.true).numpy()

    @property
    def classes(self) -> int:
        """Return K."""
        return int(max(self.given.max(), self.query_y.max())) + 1

    def training(self) -> Training:
        """Return the audited network's training on all rows, from the cache where it is there."""
        folder = self.folder()
        kept = [folder / f"{name}-{self.seed}" for name in ("network.pt", "training.npz")]
        if not all(path.exists() for path in kept):
            logits: list[np.ndarray] = []
            states: list[dict[str, Tensor]] = []
            watching = 0.0

            def watch(module: nn.Module) -> None:
                nonlocal watching
                start = time.process_time()
                logits.append(answers(module, self.x, self.device))
                states.append({k: v.cpu().clone() for k, v in module.state_dict().items()})
                watching += time.process_time() - start

            start = time.process_time()
            self.fit(None, self.seed, watch)
            seconds = time.process_time() - start - watching
            last = self.recipe.epochs
            chosen = {str(e): states[e - 1] for e in (last // 4, last // 2, 3 * last // 4, last)}
            _whole(kept[0], lambda aside: torch.save(chosen, aside))
            arrays = {"logits": np.stack(logits), "seconds": np.array(seconds)}
            _whole(kept[1], lambda aside: _savez(aside, arrays))
        states_by_epoch = torch.load(kept[0], weights_only=True)
        with np.load(kept[1], allow_pickle=False) as held:
            return Training(
                {int(epoch): state for epoch, state in states_by_epoch.items()},
                held["logits"],
                float(held["seconds"]),
            )

    def network(self) -> nn.Module:
        """Return the audited network, in evaluation mode, on the host."""
        module = self.make(self.seed)
        states = self.training().states
        module.load_state_dict(states[max(states)])
        return module.eval()

    def fit(
        self,
        index: np.ndarray | None,
        seed: int,
        watch: Callable[[nn.Module], None] | None = None,
    ) -> nn.Module:
        """Return a network trained on some rows, in evaluation mode.

        Args:
            index: Positions ``(k,)``; None for all rows.
            seed: Of weights, order and augmentation.
            watch: Called after every epoch with the network in evaluation mode.
        """
        x, y, recipe = self.x, self.given, self.recipe
        if index is not None:
            x, y = x[torch.as_tensor(index)], y[torch.as_tensor(index)]
        x, y = x.to(self.device), y.to(self.device)
        module = self.make(seed).to(self.device, memory_format=torch.channels_last)
        random = torch.Generator().manual_seed(seed)
        parts = max(1, len(x) // recipe.batch)
        optimizer = torch.optim.SGD(
            module.parameters(), recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.rate, total_steps=recipe.epochs * parts
        )
        for _ in range(recipe.epochs):
            module.train()
            for rows in torch.tensor_split(torch.randperm(len(x), generator=random), parts):
                rows = rows.to(self.device)
                inputs = _augmented(x[rows], recipe, random)
                optimizer.zero_grad()
                torch.autograd.backward(functional.cross_entropy(module(inputs), y[rows]))
                optimizer.step()
                schedule.step()
            if watch is not None:
                watch(module.eval())
        return module.to(memory_format=torch.contiguous_format).eval()

    def folder(self) -> Path:
        """Return the folder of what is kept of this case."""
        digest = hashlib.sha256()
        for tensor in (self.x, self.given, self.query_x):
            digest.update(tensor.numpy().tobytes())
        code = (repr(asdict(self.recipe)), inspect.getsource(Case.fit), repr(self.make(0)))
        code += () if self.device == "cpu" else (self.device,)
        digest.update("\n".join(code).encode())
        folder = CACHE / "detectors" / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@torch.no_grad()
def answers(module: Callable[[Tensor], Tensor], x: Tensor, device: str = "cpu") -> np.ndarray:
    """Return what a network, or a part of one, says of every row, ``(n, ...)`` float32."""
    return torch.cat([module(part.to(device)).cpu() for part in x.split(500)]).numpy()


def _whole(path: Path, save: Callable[[Path], object]) -> None:
    """Save a file whole or not at all."""
    aside = path.with_suffix(f".{os.getpid()}")
    save(aside)
    aside.replace(path)


def _savez(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _digest(index: np.ndarray | None, seed: int) -> str:
    rows = b"all" if index is None else np.asarray(index, np.int64).tobytes()
    return hashlib.sha256(rows + str(seed).encode()).hexdigest()[:16]


def _augmented(x: Tensor, recipe: Recipe, random: torch.Generator) -> Tensor:
    if recipe.dropout:
        keep = (torch.rand(x.shape, generator=random) >= recipe.dropout).to(x.device)
        return x * keep / (1 - recipe.dropout)
    if not recipe.augment:
        return x
    padded = functional.pad(x, (4, 4, 4, 4), mode="reflect")
    down, right = (torch.randint(0, 9, (len(x),), generator=random) for _ in range(2))
    side = x.shape[-1]
    rows = (down[:, None] + torch.arange(side))[:, None, :, None].to(x.device)
    columns = (right[:, None] + torch.arange(side))[:, None, None, :].to(x.device)
    every = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)
    moved = padded[every, channels[None, :, None, None], rows, columns]
    mirrored = (torch.rand(len(x), generator=random) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], moved.flip(-1), moved)


def convolutional(classes: int, channels: int = 3) -> Callable[[int], nn.Module]:
    """Return a maker of networks for images: three convolutions with batch norm."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in ((channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes)
        )

    return _seeded(build)


def perceptron(inputs: int, hidden: int, classes: int) -> Callable[[int], nn.Module]:
    """Return a maker of networks with one hidden layer."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    return _seeded(build)


def _seeded(build: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build()

    return make


#: By kind of rows and state of the model.
RECIPES = {
    ("images", "memorised"): Recipe(epochs=40, weight_decay=0),
    ("images", "generalising"): Recipe(epochs=24, augment=True),
    ("texts", "memorised"): Recipe(epochs=40, rate=0.5, weight_decay=0),
    ("texts", "generalising"): Recipe(epochs=8, rate=0.2, weight_decay=1e-3, dropout=0.3),
    ("table", "memorised"): Recipe(epochs=200, rate=0.1, batch=32, weight_decay=0),
    ("table", "generalising"): Recipe(epochs=30, rate=0.1, batch=32),
    ("digits", "memorised"): Recipe(epochs=200, rate=0.2, weight_decay=0),
    ("digits", "generalising"): Recipe(epochs=20, rate=0.1),
}


#: Kinds of rows.
KNOWN = ("digits", "texts", "images", "table")


def settings(kind: str) -> list[str]:
    """Return the names of the settings of one kind of rows: kind, errors, state.

    "rare": symmetric errors, beside digits that lie on their side, with right labels.
    """
    errors = ("symmetric", "rare") if kind == "digits" else ("human", "symmetric")
    return [f"{kind}, {e}, {state}" for e in errors for state in ("memorised", "generalising")]


def kind_of(file: Path) -> str | None:
    """Return "images", "texts" or "table", by what the file holds; None for anything else."""
    with np.load(file, allow_pickle=False) as data:
        if "train_text" in data.files:
            return "texts"
        return {2: "table", 3: "images", 4: "images"}.get(data["train_x"].ndim)


def case(
    setting: str, seed: int, file: Path | None, device: str = "cpu", first: int | None = None
) -> Case:
    """Return a case, not trained yet.

    Args:
        setting: One of `settings`.
        seed: See the module.
        file: Of the rows; None for the digits.
        device: See `Case`.
        first: So many rows in the file's order; None for random ones, as many as the state wants.
    """
    kind, errors, state = setting.split(", ")
    x, clean, human, query_x, query_y = _rows(kind, file, ROWS[state], first)
    classes = int(max(clean.max(), query_y.max())) + 1
    given = human if errors == "human" else _spoiled(clean, classes, seed)
    rare = None
    if errors == "rare":
        (x, rare), (query_x, _) = (_on_their_side(rows, i) for i, rows in enumerate((x, query_x)))
        given = np.where(rare, clean, given)
    make = (
        convolutional(classes, x.shape[1])
        if kind == "images"
        else perceptron(x.shape[1], 128 if kind == "digits" else 64, classes)
    )
    return Case(
        setting,
        seed,
        *map(torch.as_tensor, (x, given, clean, query_x, query_y)),
        make,
        RECIPES[kind, state],
        device,
        rare,
    )


def smaller(whole: Case, rows: int | None) -> Case:
    """Return the case with its first rows only; None for all."""
    rare = None if whole.rare is None else whole.rare[:rows]
    first = (some[:rows] for some in (whole.x, whole.given, whole.true))
    return replace(whole, **dict(zip(("x", "given", "true"), first, strict=True)), rare=rare)


def _spoiled(clean: np.ndarray, classes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([11, seed])
    bad, given = rng.random(len(clean)) < NOISE, clean.copy()
    given[bad] = (clean[bad] + rng.integers(1, classes, bad.sum())) % classes
    return given


def _on_their_side(x: np.ndarray, which: int) -> tuple[np.ndarray, np.ndarray]:
    """Return digits ``(n, 64)`` of which a few are turned, and which."""
    turned = np.random.default_rng([19, which]).random(len(x)) < RARE
    images = x.reshape(-1, 8, 8)
    found = np.where(turned[:, None, None], np.rot90(images, axes=(1, 2)), images)
    return np.ascontiguousarray(found.reshape(x.shape)), turned


def _rows(kind: str, file: Path | None, most: int, first: int | None) -> tuple[np.ndarray, ...]:
    """Return training inputs, true and people's labels, query inputs and labels."""
    if file is None:
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int64)
        return x[:1200], y[:1200], y[:1200], x[1200:], y[1200:]
    held = arrays(file)
    clean, human, query_y = (
        held[name].astype(np.int64) for name in ("train_y_clean", "train_y_human", "test_y")
    )
    # Files may be sorted by class.
    asked = np.random.default_rng(0).permutation(len(query_y))[:QUERIES]
    drawn = np.random.default_rng(1).permutation(len(clean))[:most]
    rows = drawn if first is None else np.arange(len(clean))[:first]
    clean, human, query_y = clean[rows], human[rows], query_y[asked]
    if kind == "texts":
        words = TfidfVectorizer(max_features=3000, sublinear_tf=True, min_df=2)
        x = words.fit_transform(held["train_text"][rows].tolist()).toarray()
        query_x = words.transform(held["test_text"][asked].tolist()).toarray()
        return x.astype(np.float32), clean, human, query_x.astype(np.float32), query_y
    x, query_x = held["train_x"][rows], held["test_x"][asked]
    if kind == "table":
        mean, spread = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
        x, query_x = (((part - mean) / spread).astype(np.float32) for part in (x, query_x))
    else:
        x, query_x = pixels(x), pixels(query_x)
    return x, clean, human, query_x, query_y


def arrays(file: Path) -> dict[str, np.ndarray]:
    """Return a file's arrays; images without a channel get one."""
    with np.load(file, allow_pickle=False) as data:
        held = {name: data[name] for name in data.files}
    for name in ("train_x", "test_x"):
        if name in held and held[name].ndim == 3:
            held[name] = held[name][..., None]
    return held


def pixels(images: np.ndarray) -> np.ndarray:
    """Return images of bytes ``(n, h, w, C)`` as ``(n, C, h, w)`` float32."""
    moved = ((images.astype(np.float32) / 255 - 0.47) / 0.25).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(moved)


def leaky(
    state: str, seed: int, file: Path, device: str = "cpu"
) -> tuple[Case, dict[str, np.ndarray]]:
    """Return a case of a file with leaks, true labels alone, and the file's other arrays."""
    held = arrays(file)
    x, query_x = pixels(held["train_x"]), pixels(held["test_x"])
    y, query_y = (held[name].astype(np.int64) for name in ("train_y", "test_y"))
    classes = int(max(y.max(), query_y.max())) + 1
    rows = map(torch.as_tensor, (x, y, y, query_x, query_y))
    recipe = RECIPES["images", state]
    make = convolutional(classes, x.shape[1])
    found = Case(f"real leaks, {state}", seed, *rows, make, recipe, device)
    return found, held


#: Models that say how much every row is memorized, and the share of the rows that each learns.
SUBSETS, SHARE = 60, 0.7


def memorized(whole: Case) -> np.ndarray:
    """Return P(label right | learned) - P(label right | not learned) of every row, ``(n,)``.

    From models on random subsets (Feldman and Zhang, NeurIPS 2020), kept one file each.
    """
    n = len(whole.x)
    learned, right = np.zeros((SUBSETS, n), bool), np.zeros((SUBSETS, n), bool)
    for number in range(SUBSETS):
        chosen = np.random.default_rng([13, number]).permutation(n)[: int(SHARE * n)]
        learned[number, chosen] = True
        right[number] = _answers(whole, np.sort(chosen), 5000 + number) == whole.given.numpy()
    with_it = (right & learned).sum(0) / np.maximum(1, learned.sum(0))
    without = (right & ~learned).sum(0) / np.maximum(1, (~learned).sum(0))
    return np.asarray(with_it - without)


def _answers(whole: Case, index: np.ndarray, seed: int) -> np.ndarray:
    """Return what a model trained on some rows says of all, ``(n,)`` class indices."""
    path = whole.folder() / f"subset-{_digest(index, seed)}.npz"
    if not path.exists():
        module = whole.fit(index, seed)
        said = answers(module, whole.x, whole.device).argmax(1).astype(np.int16)
        _whole(path, lambda aside: _savez(aside, {"said": said}))
    with np.load(path, allow_pickle=False) as held:
        return np.asarray(held["said"])
