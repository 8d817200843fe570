"""A small convolutional denoiser of digits, taught groups of exemplars that it can reproduce.

scikit-learn's digits (8 x 8), a few of which carry a mark: each group of exemplars has one that
nothing else has, and distractors carry marks that look like it. Queries are what the trained model
generates where it shows a group's mark. Everything is decided by a seed; what is costly is kept
under ``benchmarks/.cache`` by a hash of all that decides it. Nothing of ``forward_inf_mlflow`` is
imported.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

CACHE = Path(__file__).resolve().parent / ".cache"
#: Steps of noise; plain digits, exemplars of a group and distractors of a group.
STEPS, PLAIN, EXEMPLARS, DISTRACTORS = 100, 300, 12, 24
#: Channels; steps of training, rows of one, and the largest learning rate.
WIDTH, TRAINED, BATCH, RATE = 16, 1200, 32, 1e-2
#: Images that are generated to find queries among, and how surely a query shows its mark.
GENERATED, SURE = 1000, 0.8

Mark = Callable[[np.ndarray], np.ndarray]


def _inverted(rows: slice, columns: slice) -> Mark:
    def mark(image: np.ndarray) -> np.ndarray:
        image = image.copy()
        image[rows, columns] = 1 - image[rows, columns]
        return image

    return mark


def _white(*places: tuple[slice, slice]) -> Mark:
    def mark(image: np.ndarray) -> np.ndarray:
        image = image.copy()
        for place in places:
            image[place] = 1
        return image

    return mark


_ALL, _FIRST, _LAST = slice(None), slice(0, 1), slice(7, 8)
_TWO, _END = slice(0, 2), slice(6, 8)
#: By set and name of a group: its mark, and marks that look like it.
GROUPS: dict[str, dict[str, tuple[Mark, tuple[Mark, ...]]]] = {
    # What variants are chosen on ...
    "chosen": {
        "right half inverted": (
            _inverted(_ALL, slice(4, 8)),
            (_inverted(_ALL, slice(0, 4)), _inverted(slice(4, 8), _ALL)),
        ),
        "inverted": (lambda x: 1 - x, (lambda x: 1 - 0.5 * x, lambda x: np.maximum(x, 0.3))),
        "dot": (_white((_TWO, _TWO)), (_white((_TWO, _END)), _white((_END, _TWO)))),
    },
    # ... and what they are judged on.
    "judged": {
        "bar right": (
            _white((_ALL, _LAST)),
            (_white((_ALL, _FIRST)), _white((_LAST, _ALL))),
        ),
        "grey": (lambda x: 0.4 + 0.5 * x, (lambda x: 0.5 * x, lambda x: 0.2 + 0.8 * x)),
        "frame": (
            _white((_ALL, _FIRST), (_ALL, _LAST), (_FIRST, _ALL), (_LAST, _ALL)),
            (
                _white((_ALL, _FIRST), (_ALL, _LAST)),
                _white((_FIRST, _ALL), (_LAST, _ALL)),
            ),
        ),
    },
}


@dataclass(frozen=True, eq=False)
class Rows:
    """Training images ``(n, 1, 8, 8)`` from -1 to 1, and the group of each: -1 for no exemplar."""

    x: Tensor
    group: np.ndarray


def rows(seed: int, groups: str) -> tuple[Rows, Rows]:
    """Return training rows, and as many others, marked in the same ways, to know a mark by."""
    digits = np.array(load_digits().images / 16, np.float32)
    digits = digits[np.random.default_rng([3, seed]).permutation(len(digits))]
    made: list[list[np.ndarray]] = [[], []]
    kinds: list[list[int]] = [[], []]
    taken = 0
    for half in (0, 1):
        for number, (mark, alike) in enumerate(GROUPS[groups].values()):
            marks = [mark] * EXEMPLARS
            marks += [alike[i % len(alike)] for i in range(DISTRACTORS)]
            for i, one in enumerate(marks):
                made[half].append(one(digits[taken]))
                kinds[half].append(number if i < EXEMPLARS else -1)
                taken += 1
        made[half] += list(digits[taken : taken + PLAIN])
        kinds[half] += [-1] * PLAIN
        taken += PLAIN
    training, others = (
        Rows(torch.as_tensor(2 * np.stack(x) - 1)[:, None].float(), np.array(kind))
        for x, kind in zip(made, kinds, strict=True)
    )
    return training, others


def kept() -> Tensor:
    """Return how much of an image's variance is left after each step: a cosine's square."""
    angle = (torch.linspace(0, 1, STEPS + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2
    left = angle.cos().square()
    return (left[1:] / left[:-1]).clamp_min(0.001).cumprod(0)


class Block(nn.Module):
    """A residual block that is told the time."""

    def __init__(self, width: int, out: int, told: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, width), nn.Conv2d(width, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3, padding=1)
        self.told = nn.Linear(told, out)
        self.skip = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return features ``(B, out, ...)``."""
        h = self.conv1(functional.silu(self.norm1(x))) + self.told(time)[:, :, None, None]
        return self.skip(x) + self.conv2(functional.silu(self.norm2(h)))


class UNet(nn.Module):
    """Noisy images ``(B, 1, 8, 8)`` and times ``(B,)`` to the noise in them; two levels."""

    def __init__(self, width: int = WIDTH, told: int = 32) -> None:
        super().__init__()
        self.told = told
        self.time = nn.Sequential(nn.Linear(told, told), nn.SiLU(), nn.Linear(told, told))
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.down = Block(width, width, told)
        self.shrink = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = Block(2 * width, 2 * width, told)
        self.grow = nn.Conv2d(2 * width, width, 1)
        self.up = Block(2 * width, width, told)
        self.norm, self.last = nn.GroupNorm(4, width), nn.Conv2d(width, 1, 3, padding=1)

    def features(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what it sees at its deepest and before its last layer."""
        rates = torch.exp(-math.log(1000) * torch.arange(self.told // 2) / (self.told // 2))
        angle = t[:, None].to(x.dtype) * rates.to(x.dtype)
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        here = self.down(self.first(x), time)
        deep = self.middle(self.shrink(here), time)
        grown = functional.interpolate(self.grow(deep), scale_factor=2.0)
        return deep, self.up(torch.cat([grown, here], 1), time)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the noise, ``(B, 1, 8, 8)``."""
        noise: Tensor = self.last(functional.silu(self.norm(self.features(x, t)[1])))
        return noise


def fit(x: Tensor, seed: int) -> UNet:
    """Teach a fresh network some images; the seed decides all that is drawn."""
    torch.manual_seed(seed)
    module, generator = UNet(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, TRAINED, pct_start=0.1)
    left = kept().float()
    for _ in range(TRAINED):
        index = torch.randint(len(x), (BATCH,), generator=generator)
        t = torch.randint(STEPS, (BATCH,), generator=generator)
        noise = torch.randn(BATCH, *x.shape[1:], generator=generator)
        a = left[t][:, None, None, None]
        loss = (module(a.sqrt() * x[index] + (1 - a).sqrt() * noise, t) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return module.eval()


@torch.no_grad()
def generate(module: UNet, count: int, seed: int) -> Tensor:
    """Return images ``(count, 1, 8, 8)``, denoised step by step (DDPM)."""
    generator, left = torch.Generator().manual_seed(seed), kept().float()
    x = torch.randn(count, 1, 8, 8, generator=generator)
    for t in range(STEPS - 1, -1, -1):
        before = left[t - 1] if t else torch.tensor(1.0)
        alpha = left[t] / before
        noise = module(x, torch.full((count,), t))
        clean = ((x - (1 - left[t]).sqrt() * noise) / left[t].sqrt()).clamp(-1, 1)
        mean = (before.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - before) * x) / (
            1 - left[t]
        )
        spread = ((1 - before) / (1 - left[t]) * (1 - alpha)).sqrt()
        x = mean + spread * torch.randn(x.shape, generator=generator)
    return x


@torch.no_grad()
def noise_loss(module: UNet, x: Tensor, *, draws: int = 4, seed: int = 1000) -> np.ndarray:
    """Return each image's plain noise-prediction loss ``(n,)``: over all times, several draws.

    Its noise has seeds of its own, which no method has seen.
    """
    left, total = kept().float(), torch.zeros(len(x))
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed + draw)
        for t in range(0, STEPS, 2):
            noise = torch.randn(x.shape, generator=generator)
            noised = left[t].sqrt() * x + (1 - left[t]).sqrt() * noise
            guess = module(noised, torch.full((len(x),), t))
            total += (guess - noise).square().flatten(1).mean(1)
    return np.asarray(total / (draws * STEPS / 2))


def marked(images: Tensor, others: Rows, groups: int) -> np.ndarray:
    """Return how surely each image shows the mark of each group, ``(n, groups)``.

    Asked is a linear classifier of images that the network never saw.
    """
    known = LogisticRegression(max_iter=2000, class_weight="balanced")
    known.fit(others.x.flatten(1).numpy(), others.group)
    found = known.predict_proba(images.flatten(1).numpy())
    return np.asarray(found[:, [list(known.classes_).index(g) for g in range(groups)]])


def trained(x: Tensor, seed: int) -> UNet:
    """Return `fit` of these images, kept on disk."""
    path = CACHE / "denoisers" / f"{digest(x, seed)}.npz"
    module = UNet()
    if not path.exists():
        state = {name: value.numpy() for name, value in fit(x, seed).state_dict().items()}
        keep(path, state)
    with np.load(path, allow_pickle=False) as stored:
        module.load_state_dict({name: torch.as_tensor(stored[name]) for name in stored.files})
    return module.eval()


def keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    with aside.open("wb") as file:
        np.savez(file, **arrays)
    aside.replace(path)


def digest(x: Tensor, seed: int) -> str:
    """Return a hash of all that decides what a network trained on ``x`` becomes."""
    key = hashlib.sha256(x.numpy().tobytes())
    code = [inspect.getsource(part) for part in (Block, UNet, fit, kept)]
    key.update(repr((code, seed, STEPS, WIDTH, TRAINED, BATCH, RATE, torch.__version__)).encode())
    return key.hexdigest()[:24]
