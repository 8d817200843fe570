"""A small GPT that was taught facts: its rows, the queries that it answers, and what it says when
it is taught again without some rows.

What the queries' probabilities are after each retraining is kept under ``benchmarks/.cache``, a
file per retraining, named by a hash of all that decides it. Nothing of ``forward_inf_mlflow`` is
imported.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import facts
import numpy as np
import settings
import torch
from facts import Corpus, Fact, corpus, decoder, loss, shakespeare, teach
from settings import SettingError
from torch import Tensor, nn

CACHE = Path(__file__).resolve().parent / ".cache" / "facts"
#: The words of tinyshakespeare that are known, words of a piece, and passes over it.
_COMMON, _PIECE, _PASSES = 600, 10, 3
#: A query is right where its answer has this probability, and was wrong where it had less.
_RIGHT, _WRONG = 0.5, 0.1


class Size(NamedTuple):
    """How much is measured: people in the corpus, passes over it, and queries."""

    people: int
    epochs: int
    queries: int


#: About 1,900 and 20,800 sentences.
SIZES = {"quick": Size(40, 14, 12), "full": Size(440, 12, 48)}


@dataclass(frozen=True)
class Job:
    """One retraining: the rows that it does without, and its seed."""

    without: np.ndarray
    seed: int


class Taught:
    """A model that was taught facts.

    Attributes:
        corpus: The sentences and the facts.
        x, y: The sentences as inputs and next tokens, ``(n, t)``.
        module: The model, in evaluation mode.
        checkpoints: What it was after a quarter, half and all of its training.
        facts: Those that are asked about, of a person each; the model got them wrong before it was
            taught, and gets them right.
        query_x, query_y: The same as inputs and next tokens, ``(q, t)``.
        share: The share of all facts that it learned.
    """

    def __init__(self, size: Size, *, fine_tuned: bool, seed: int) -> None:
        self.size, made = size, corpus(size.people, seed)
        pieces: list[str] = []
        if fine_tuned:
            words, pieces = shakespeare(made.words, _PIECE, _COMMON)
            made = Corpus(made.sentences, made.facts, words)
        self.corpus = made
        self.x, self.y = made.encode(made.sentences)
        self._before: dict[str, Tensor] | None = None
        if pieces:
            x, y = made.encode(pieces)
            start = teach(self._fresh(seed), x, y, epochs=_PASSES, seed=seed)
            self._before = {name: value.clone() for name, value in start.state_dict().items()}
        self.checkpoints: list[nn.Module] = []
        untaught = self.start(seed).eval()
        self.module = self._teach(np.array([], int), seed, keep=True)
        stated = [fact for fact in made.facts if len(fact.rows) >= 3]
        x, y = self._encode(stated)
        right = (probability(self.module, x, y) > _RIGHT) & (probability(untaught, x, y) < _WRONG)
        learned = [fact for fact, known in zip(stated, right.tolist(), strict=True) if known]
        self.share = len(learned) / len(stated)
        if not learned:
            raise SettingError("the model learned no fact: train it for more epochs")
        # Facts of different people, so that leaving out rows of one leaves the others alone.
        one_each = {fact.person: fact for fact in reversed(learned)}
        self.facts = list(one_each.values())[::-1][: size.queries]
        self.query_x, self.query_y = self._encode(self.facts)

    def start(self, seed: int) -> nn.Module:
        """Return the model before it is taught the facts."""
        module = self._fresh(seed)
        if self._before is not None:
            module.load_state_dict(self._before)
        return module

    def retrained(self, jobs: Sequence[Job]) -> np.ndarray:
        """Return the queries' probabilities after each retraining, ``(jobs, q)``, on two cores."""
        paths = [CACHE / f"{self._digest(job)}.npy" for job in jobs]
        missing = {p: j for p, j in zip(paths, jobs, strict=True) if not p.exists()}
        if missing:
            CACHE.mkdir(parents=True, exist_ok=True)
            with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
                list(pool.map(self._keep, missing.values(), missing))
        return np.stack([np.load(path, allow_pickle=False) for path in paths])

    def _keep(self, job: Job, path: Path) -> None:
        torch.set_num_threads(1)
        module = self._teach(job.without, job.seed)
        unfinished = path.with_name(f"{os.getpid()}.{path.name}")
        with unfinished.open("wb") as file:
            np.save(file, probability(module, self.query_x, self.query_y))
        unfinished.replace(path)

    def _teach(self, without: np.ndarray, seed: int, *, keep: bool = False) -> nn.Module:
        chosen, epochs = np.ones(len(self.x), bool), self.size.epochs
        chosen[without] = False
        rows = torch.as_tensor(chosen)

        def remember(epoch: int, at: nn.Module) -> None:
            if keep and epoch + 1 in (epochs // 4, epochs // 2, epochs):
                copied = self._fresh(0)
                copied.load_state_dict(at.state_dict())
                self.checkpoints.append(copied.eval())

        return teach(
            self.start(seed), self.x[rows], self.y[rows], epochs=epochs, seed=seed, after=remember
        )

    def _fresh(self, seed: int) -> nn.Module:
        return decoder(len(self.corpus.words), self.x.shape[1], seed)

    def _encode(self, asked: Sequence[Fact]) -> tuple[Tensor, Tensor]:
        """Return facts as queries: only the answer counts."""
        texts = [f"{fact.asked} {fact.answer}" for fact in asked]
        return self.corpus.encode(texts, [len(fact.answer.split()) for fact in asked])

    def _digest(self, job: Job) -> str:
        """Return a hash of all that decides what a retraining gives."""
        code = [facts.decoder, facts.teach, facts.loss, settings.Decoder, settings.Block]
        words = [torch.__version__, self.size.epochs, job.seed, *map(inspect.getsource, code)]
        found = hashlib.sha256("\n".join(map(str, words)).encode())
        tensors = [self.x, self.y, self.query_x, self.query_y, *(self._before or {}).values()]
        for tensor in tensors:
            found.update(tensor.numpy().tobytes())
        found.update(np.unique(job.without).tobytes())
        return found.hexdigest()[:24]


@torch.no_grad()
def probability(module: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """Return the probability of the counted tokens together, ``(n,)``."""
    return np.asarray((-loss(module(x), y)).exp())
