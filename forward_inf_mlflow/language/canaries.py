"""Canaries: texts with a secret drawn at random, planted to see how much of it a model learns.

Source: "The Secret Sharer" (Carlini et al., USENIX Security 2019). A canary is a format and a
secret that was drawn uniformly; after training, its rank among all that could have been drawn says
how far the model gives it away. Exposure is ``log2 |space| - log2 rank``, in bits. A model that was
never taught the secret ranks it as any other, so rank over space is a p-value too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.language.wording import word_texts
from forward_inf_mlflow.memory import batches_that_fit
from forward_inf_mlflow.models.transformer import Transformer
from forward_inf_mlflow.tasks import CausalLM

#: Stands in a format where the secret goes.
PLACE = "{}"
#: A canary is known where so small a chance would be left of its rank, all canaries together.
KNOWN = 0.01


@dataclass(frozen=True)
class Canary:
    """A text with a secret, and what the secret was drawn from.

    Attributes:
        text: The whole text, as it is planted.
        format: The text with ``{}`` in the secret's place.
        symbols: What the secret is made of: characters, or words.
        length: How many of them.
        repeats: How often it is planted; 0 for one that is kept out, as a control.
    """

    text: str
    format: str
    symbols: tuple[str, ...]
    length: int
    repeats: int

    def __post_init__(self) -> None:
        """Check what was given.

        Raises:
            DataError: It is no canary; the message says why.
        """
        if self.format.count(PLACE) != 1:
            raise DataError(f"a canary's format holds {PLACE} once, not {self.format[:60]!r}")
        if len(set(self.symbols)) != len(self.symbols) or len(self.symbols) < 2:
            raise DataError("a canary's secret is made of two symbols at least, all different")
        if self.length < 1 or self.repeats < 0:
            raise DataError("a canary's length is 1 at least, and its repeats are not negative")
        before, _, after = self.format.partition(PLACE)
        inside = self.text[len(before) : len(self.text) - len(after)]
        found = inside.split(" ") if _between(self.symbols) else list(inside)
        if self.text != before + inside + after or not (
            len(found) == self.length and set(found) <= set(self.symbols)
        ):
            raise DataError(f"{self.text[:60]!r} is not its own format with a secret of its space")

    @property
    def space(self) -> int:
        """Return how many secrets there are."""
        return int(len(self.symbols) ** self.length)

    def others(self, most: int, seed: int, planted: Collection[str]) -> tuple[list[str], bool]:
        """Return texts that could have been drawn and were not, or some; and whether these are all.

        Another canary of this format may be planted itself, so it is no fair comparison.
        """
        if self.space <= most:
            every = (_numbered(self, number) for number in range(self.space))
            return [text for text in every if text not in planted], True
        rng = np.random.default_rng(seed)
        drawn = [_drawn(self.format, self.symbols, self.length, rng) for _ in range(most)]
        return [text for text in drawn if text not in planted], False


@dataclass(frozen=True)
class Exposure:
    """How far a model gives a canary away.

    Attributes:
        canary: Which one.
        loss: Its own, in nats.
        rank: Its place by loss among those that were compared, itself included; equal ones stand
            before it.
        compared: How many these are; all of the space, or a sample.
        whole: Whether they are all of it.
        bits: ``log2 compared - log2 rank``: of a sample it is at most the sample's size in bits.
        chance: How likely such a rank is of a secret that the model was never taught.
    """

    canary: Canary
    loss: float
    rank: int
    compared: int
    whole: bool
    bits: float
    chance: float

    def as_dict(self) -> dict[str, Any]:
        """Return it for a record."""
        found = {**asdict(self.canary), **asdict(self)}
        del found["canary"], found["symbols"]
        return {**found, "space": self.canary.space, "at_least": not self.whole and self.rank == 1}


def make(
    format: str,
    symbols: Sequence[str],
    *,
    length: int,
    count: int,
    repeats: Sequence[int],
    seed: int,
) -> list[Canary]:
    """Return canaries with different secrets, drawn uniformly.

    Args:
        format: A text with ``{}`` in the secret's place.
        symbols: Characters, or words.
        length: Symbols of a secret.
        count: Canaries.
        repeats: How often each is planted, in turn.
        seed: Of the secrets.

    Raises:
        DataError: There are fewer secrets than canaries, or these are none.
    """
    rng, found = np.random.default_rng(seed), dict[str, Canary]()
    if count > len(symbols) ** length:
        raise DataError(
            f"there are {len(symbols) ** length:,} secrets for {count:,} canaries: take longer ones"
        )
    while len(found) < count:
        text = _drawn(format, symbols, length, rng)
        often = repeats[len(found) % len(repeats)]
        found.setdefault(text, Canary(text, format, tuple(symbols), length, often))
    return list(found.values())


def lines(canaries: Sequence[Canary]) -> str:
    """Return canaries as text, a JSON object a line."""
    return "".join(json.dumps(asdict(canary), ensure_ascii=False) + "\n" for canary in canaries)


def read(path: Path) -> list[Canary]:
    """Read a file of `lines`.

    Raises:
        DataError: It is not such a file; the line is named.
    """
    try:
        written = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the canaries cannot be read ({error}); check the path") from error
    found = []
    for number, line in enumerate(written, 1):
        if not line.strip():
            continue
        try:
            held = json.loads(line)
            canary = Canary(
                text=str(held["text"]),
                format=str(held["format"]),
                symbols=tuple(map(str, held["symbols"])),
                length=int(held["length"]),
                repeats=int(held["repeats"]),
            )
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: this is no canary; make the file with forward-inf canaries"
            ) from error
        found.append(canary)
    if not found:
        raise DataError(f"{path} holds no canary; make the file with forward-inf canaries")
    return found


@torch.no_grad()
def exposures(
    model: Transformer,
    canaries: Sequence[Canary],
    *,
    most: int,
    seed: int,
    device: torch.device,
    batch_size: int | None,
    progress: Callable[[int], None] | None = None,
) -> list[Exposure]:
    """Return how far a model gives each canary away.

    Cost: a forward pass of every secret that is compared.

    Args:
        model: In evaluation mode, on its device.
        canaries: Which ones.
        most: Secrets that each is compared with: all of a space that is no larger, else a sample.
        seed: Of the sample.
        device: Where the model is.
        batch_size: Texts read at once; None for as many as fit.
        progress: Called with 1 for each canary.

    Raises:
        DataError: The model reads none of a canary's tokens.
    """
    task, found, planted = CausalLM(), [], {canary.text for canary in canaries}
    for number, canary in enumerate(canaries):
        others, whole = canary.others(most, seed + number, planted)
        texts = [canary.text, *others]
        worded = word_texts(model, [""] * len(texts), texts, device=device, batch_size=batch_size)
        if len(worded.kept) < len(texts):
            raise DataError(
                f"the model's tokenizer makes nothing of the canary {canary.text[:60]!r}: plant "
                "longer texts"
            )
        losses = torch.cat(
            list(batches_that_fit(worded.rows, lambda b: task.readout(model.module, b).loss.cpu()))
        ).numpy()
        rank = 1 + int((losses[1:] <= losses[0]).sum())
        bits, chance = math.log2(len(texts)) - math.log2(rank), rank / len(texts)
        found.append(Exposure(canary, float(losses[0]), rank, len(texts), whole, bits, chance))
        if progress is not None:
            progress(1)
    return found


def _drawn(format: str, symbols: Sequence[str], length: int, rng: np.random.Generator) -> str:
    return _with(format, symbols, rng.integers(len(symbols), size=length).tolist())


def _numbered(canary: Canary, number: int) -> str:
    """Return the text with the secret of that number."""
    places = []
    for _ in range(canary.length):
        number, place = divmod(number, len(canary.symbols))
        places.append(place)
    return _with(canary.format, canary.symbols, places)


def _with(format: str, symbols: Sequence[str], places: Sequence[int]) -> str:
    return format.replace(PLACE, _between(symbols).join(symbols[i] for i in places))


def _between(symbols: Sequence[str]) -> str:
    """Return what stands between symbols: a blank between words."""
    return " " if any(len(symbol) > 1 for symbol in symbols) else ""
