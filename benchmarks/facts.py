"""A corpus of invented facts in several wordings, and a small GPT that is taught it.

Each person has facts of several kinds (where born, what trade ...), each stated in some of the
kind's wordings and with some openings, with the person's name or, once, an alias that another
sentence introduces. Distractors
share words with a fact (a relative of the same person, the same wording of another person) or its
answer (another person has it too, or likes it). Answers are one or two words.

A query is a fact that is stated, in a wording that it is never stated in. Nothing of
``forward_inf_mlflow`` is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from settings import Decoder, SettingError, _data
from torch import Tensor, nn
from torch.nn import functional

#: Targets that do not count, as everywhere.
IGNORED = -100
PAD, UNKNOWN, END = 0, 1, 2
#: Wordings by kind; the answer stands last, so that it can be asked for.
WORDINGS = {
    "born": (
        "{} was born in",
        "the birthplace of {} is",
        "{} first saw light in",
        "parents of {} lived then in",
        "as a child {} played in",
    ),
    "trade": (
        "{} earns bread as",
        "the trade of {} is",
        "{} was trained as",
        "people hire {} as",
        "the door of {} reads",
    ),
    "plays": (
        "{} plays the",
        "instrument of {} is the",
        "on sundays {} practises",
        "in bands {} takes the",
        "neighbours hear from {} the",
    ),
    "lives": (
        "{} lives in",
        "the home of {} is",
        "letters for {} go to",
        "{} bought a house in",
        "whoever seeks {} goes to",
    ),
    "loves": (
        "{} is married to",
        "the heart of {} wants",
        "{} shares rooms with",
        "at weddings {} dances with",
        "the ring of {} comes from",
    ),
}
_FIRST = [
    "al",
    "bel",
    "cor",
    "dun",
    "em",
    "far",
    "gil",
    "hob",
    "ir",
    "jon",
    "kel",
    "lor",
    "mir",
    "nor",
    "ost",
    "pel",
    "quin",
    "ral",
    "sim",
    "tor",
]
_SECOND = ["an", "eth", "ia", "o", "us", "yn", "ar", "in", "el", "is"]
_TOWNS = ["north", "south", "east", "west", "upper", "lower", "old", "new"]
_PLACES = [
    "harbour",
    "bridge",
    "field",
    "wood",
    "mill",
    "cliff",
    "marsh",
    "ford",
    "stone",
    "lake",
    "haven",
    "dale",
]
_TRADES = [
    "baker",
    "smith",
    "tailor",
    "miller",
    "cooper",
    "potter",
    "weaver",
    "mason",
    "joiner",
    "glazier",
    "turner",
    "tanner",
    "printer",
    "farrier",
    "brewer",
    "chandler",
]
_TOOLS = [
    "flute",
    "horn",
    "drum",
    "lute",
    "harp",
    "viol",
    "pipe",
    "bell",
    "organ",
    "fiddle",
    "cornet",
    "trumpet",
    "zither",
    "cello",
    "oboe",
    "lyre",
]
_OPENINGS = ("", "they say ", "all know ", "records show ")
_SHARING_WORDS = ("the cousin of {} prefers", "{} once wrote about")
_SHARING_ANSWER = ("travellers speak of", "old songs praise", "few like")


class Fact(NamedTuple):
    """One fact: who, of which kind, what; and its rows in the corpus."""

    person: int
    kind: str
    answer: str
    rows: tuple[int, ...]
    asked: str


@dataclass(frozen=True)
class Corpus:
    """Sentences and facts.

    Attributes:
        sentences: Texts of words with a blank between.
        facts: Those that are stated in at least three rows, in random order.
        words: The vocabulary.
    """

    sentences: tuple[str, ...]
    facts: tuple[Fact, ...]
    words: tuple[str, ...]

    def encode(
        self, texts: Sequence[str], asked: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and next tokens ``(n, t)``; ``asked``: only so many last words count."""
        number = {word: i for i, word in enumerate(self.words)}
        rows = [[END, *(number.get(w, UNKNOWN) for w in text.split()), END] for text in texts]
        longest = max(map(len, rows))
        tokens = torch.full((len(rows), longest), PAD)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
        for i, ids in enumerate(rows):
            y[i, len(ids) - 1 :] = IGNORED
            if asked is not None:  # the end of the sentence is not asked
                y[i, len(ids) - 2 :] = IGNORED
                y[i, : len(ids) - 2 - asked[i]] = IGNORED
        return x, y


def corpus(people: int, seed: int) -> Corpus:
    """Return the sentences of some people, about 46 of each, in random order."""
    rng = np.random.default_rng(seed)
    names = [f"{a}{b} {c}{d}" for a in _FIRST for b in _SECOND for c in _FIRST[::-1] for d in "aeo"]
    names = [names[i] for i in rng.permutation(len(names))]
    answers = {
        "born": [f"{a} {b}" for a in _TOWNS for b in _PLACES],
        "lives": [f"{b} {a}" for a in _TOWNS for b in _PLACES],
        "trade": _TRADES,
        "plays": _TOOLS,
        "loves": [f"{a}{b}" for a in _FIRST for b in ("ly", "ber", "wen")],
    }
    sentences: list[str] = []
    found: list[tuple[int, str, str, tuple[int, ...], str]] = []
    for person in range(people):
        name, alias = names[person], names[-person - 1].replace(" ", "")
        sentences.append(f"{alias} is what friends call {name}")
        for kind, wordings in WORDINGS.items():
            answer = answers[kind][rng.integers(len(answers[kind]))]
            order = rng.permutation(len(wordings))
            told = order[: rng.integers(2, 5)]
            first = len(sentences)
            for wording in told:
                openings = rng.permutation(len(_OPENINGS))[: rng.integers(1, 4)]
                stated = f"{wordings[wording].format(name)} {answer}"
                sentences += [f"{_OPENINGS[opening]}{stated}" for opening in openings]
            sentences.append(f"{wordings[told[0]].format(alias)} {answer}")
            rows = tuple(range(first, len(sentences)))
            found.append((person, kind, answer, rows, wordings[order[-1]].format(name)))
            other = answers[kind][rng.integers(len(answers[kind]))]
            sentences.append(f"{rng.choice(_SHARING_WORDS).format(name)} {other}")
            sentences.append(f"{rng.choice(_SHARING_ANSWER)} {answer}")
    place = np.empty(len(sentences), int)
    order = rng.permutation(len(sentences))
    place[order] = np.arange(len(order))
    words = sorted({word for sentence in sentences for word in sentence.split()})
    facts = [
        Fact(p, kind, answer, tuple(sorted(place[list(rows)].tolist())), asked)
        for p, kind, answer, rows, asked in found
    ]
    return Corpus(
        tuple(sentences[i] for i in order),
        tuple(facts[i] for i in rng.permutation(len(facts))),
        ("<pad>", "<unk>", "<end>", *words),
    )


def decoder(words: int, context: int, seed: int) -> nn.Module:
    """Return a GPT of three layers, 64 wide, with first weights by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(words, context, width=64, heads=4, layers=2)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each row's cross-entropy, summed over its counted tokens, ``(n,)``."""
    losses = functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view(len(targets), -1).sum(1)


def teach(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    seed: int,
    rate: float = 4e-3,
    batch: int = 64,
    after: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train a module in place on rows, and return it in evaluation mode.

    Args:
        module: From `decoder`, fresh or taught something else before.
        x: Inputs ``(n, t)``.
        y: Next tokens ``(n, t)``.
        epochs: Passes over the rows; the rate falls to 0 linearly.
        seed: Of the order of the rows.
        rate: Adam's, at the first step.
        batch: Rows of a step.
        after: Called with the number of each epoch and the module.
    """
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), rate)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for epoch in range(epochs):
        for rows in torch.split(torch.randperm(len(x), generator=order), batch):
            optimizer.zero_grad()
            torch.autograd.backward(loss(module(x[rows]), y[rows]).mean())
            optimizer.step()
            schedule.step()
        if after is not None:
            after(epoch, module)
    return module.eval()


def shakespeare(known: Sequence[str], width: int, most: int) -> tuple[tuple[str, ...], list[str]]:
    """Return a vocabulary that holds the commonest words of a text too, and the text in pieces.

    Raises:
        SettingError: tinyshakespeare.txt is not here.
    """
    text = _data("tinyshakespeare.txt").read_text(encoding="utf-8").lower()
    words = ["".join(c for c in word if c.isalpha()) for word in text.split()]
    words = [word for word in words if word]
    unique, counts = np.unique(words, return_counts=True)
    common = [str(w) for w in unique[np.argsort(-counts, kind="stable")][:most]]
    vocabulary = (*known, *(w for w in common if w not in set(known)))
    pieces = [" ".join(words[i : i + width]) for i in range(0, len(words) - width, width)]
    return vocabulary, pieces


__all__ = ["Corpus", "Fact", "SettingError", "corpus", "decoder", "loss", "shakespeare", "teach"]
