"""What names the rows behind a fact: the product's method, its parts, and what the field has.

Each method takes a `Taught` model and returns scores ``(q, n)`` of its rows on its queries, the
larger the more a row has to do with it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from taught import Taught
from torch import nn

from forward_inf_mlflow.directions import Curvature, Direction, GradientStep, Replay
from forward_inf_mlflow.directions.held import held
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.language.traced import Traced, trace_one
from forward_inf_mlflow.probe import Method, Which
from forward_inf_mlflow.screen import last_layer, scores
from forward_inf_mlflow.tasks import CausalLM
from forward_inf_mlflow.tensors import Tensors

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"
#: Rows that the last layer points to and that are read under a move.
CANDIDATES = 200


class Bench:
    """A taught model as methods take it; the same rows each time, by which a curvature is known."""

    def __init__(self, taught: Taught) -> None:
        self.taught, self.module, self.facts = taught, taught.module, taught.facts
        cpu = torch.device("cpu")
        self.train = Tensors(taught.x, taught.y, cpu, 256)
        self.queries = Tensors(taught.query_x, taught.query_y, cpu, 256)
        self.query_texts = [f"{fact.asked} {fact.answer}" for fact in taught.facts]
        self.row_texts = list(taught.corpus.sentences)


def _random(bench: Bench) -> np.ndarray:
    return np.random.default_rng(0).random((len(bench.facts), len(bench.train)))


def _bm25(bench: Bench) -> np.ndarray:
    import bm25s

    index = bm25s.BM25()
    index.index([row.split() for row in bench.row_texts], show_progress=False)
    return np.stack([index.get_scores(query.split()) for query in bench.query_texts])


def _tfidf(bench: Bench) -> np.ndarray:
    vectorizer = TfidfVectorizer(token_pattern=r"\S+")
    known = vectorizer.fit_transform(bench.row_texts)
    return np.asarray((vectorizer.transform(bench.query_texts) @ known.T).todense())


def _hidden(bench: Bench, *, everywhere: bool) -> np.ndarray:
    """Cosines of hidden states: of the last tokens, or of the answer's with any of the row's."""
    task = CausalLM()
    asked, _ = last_layer(bench.module, task, bench.queries, queries=True)
    rows, _ = last_layer(bench.module, task, bench.train)
    asked, rows = (nn.functional.normalize(h, dim=-1) for h in (asked, rows))
    counted, inside = bench.queries.targets >= 0, bench.train.targets >= 0
    found = []
    for i in range(len(asked)):
        mine = asked[i][counted[i]]
        if everywhere:
            products = torch.einsum("qd,ntd->nqt", mine, rows)
            best = products.masked_fill(~inside[:, None], -torch.inf).amax(2)
            found.append(best.sum(1))
        else:
            last = inside.sum(1) - 1
            found.append(rows[torch.arange(len(rows)), last] @ mine[-1])
    return torch.stack(found).numpy()


def _last_layer(bench: Bench) -> np.ndarray:
    return scores(bench.module, CausalLM(), bench.queries, bench.train).numpy()


def _swept(
    bench: Bench, direction: Direction, readout: Which, method: Method = "auto"
) -> np.ndarray:
    engine = ForwardInfluence(task=CausalLM(), direction=direction, readout=readout, method=method)
    return _influence(engine, bench.module, bench)


def _influence(engine: ForwardInfluence, module: nn.Module, bench: Bench) -> np.ndarray:
    groups = QueryGroups.each(bench.queries, np.arange(len(bench.facts)).astype(str))
    ids = np.arange(len(bench.train)).astype(str)
    return engine.influence(module, groups, bench.train, ids).scores.values


def _tracin(bench: Bench) -> np.ndarray:
    engine = ForwardInfluence(task=CausalLM(), direction=GradientStep(), method="derivative")
    return np.sum([_influence(engine, m, bench) for m in bench.taught.checkpoints], axis=0)


@cache
def _candidates(bench: Bench, direction: Direction) -> list[Traced]:
    """Return the candidates behind each query, by screen and influence."""
    direction = held(direction)
    engine = ForwardInfluence(task=CausalLM(), direction=direction, readout="margin")
    return [
        trace_one(engine, bench.module, bench.queries.part(i, i + 1), bench.train, count=CANDIDATES)
        for i in range(len(bench.facts))
    ]


def _traced(bench: Bench, direction: Direction, *parts: str) -> np.ndarray:
    """Return candidates by the mean of their ranks by some parts, and after them all other rows."""
    found = _last_layer(bench) - 1e6
    for row, traced in zip(found, _candidates(bench, direction), strict=True):
        row[traced.rows] = sum(rankdata(getattr(traced, part)) for part in parts)
    return found


@cache
def _replayed(bench: Bench) -> np.ndarray:
    """Return influence by replay, whose control is shared by all queries."""
    return _swept(bench, REPLAY, "margin")


def _with_last_layer(bench: Bench, influence: np.ndarray) -> np.ndarray:
    """Return the last layer's candidates by the mean of both ranks, and after them the others."""
    found = _last_layer(bench)
    for row, mine in zip(found, influence, strict=True):
        first = np.argsort(-row, kind="stable")[:CANDIDATES]
        both = rankdata(row[first]) + rankdata(mine[first])
        row -= 1e6
        row[first] = both
    return found


def _stated(bench: Bench) -> np.ndarray:
    found = np.random.default_rng(1).random((len(bench.facts), len(bench.train)))
    for i, fact in enumerate(bench.facts):
        found[i][list(fact.rows)] += 1
    return found


@cache
def _ekfac(bench: Bench) -> dict[str, np.ndarray]:
    """Return kronfluence's scores by the rows' losses and margins.

    Raises:
        ImportError: There is no environment for peers.
    """
    if not PEERS_PYTHON.exists():
        raise ImportError("no peers here: make peers", name="kronfluence (make peers)")
    taught = bench.taught
    held = {
        "weights": taught.module.state_dict(),
        **{name: getattr(taught, name) for name in ("x", "y", "query_x", "query_y")},
    }
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "taught.pt", Path(folder) / "out.npz"
        torch.save(held, given)
        subprocess.run(
            [PEERS_PYTHON, HERE / "peers" / "facts_ekfac.py", given, out],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
        )
        with np.load(out, allow_pickle=False) as said:
            return dict(said)


#: What the command does: the mean of three ranks.
OURS = "curvature, last layer, hidden"
CURVATURE, REPLAY = Curvature(), Replay(most_steps=100, most_seeds=1)
METHODS: dict[str, Callable[[Bench], np.ndarray]] = {
    "random": _random,
    "rows that state the fact": _stated,
    "bm25": _bm25,
    "tfidf": _tfidf,
    "hidden, last token": lambda b: _hidden(b, everywhere=False),
    "hidden, answer": lambda b: _hidden(b, everywhere=True),
    "last layer": _last_layer,
    "curvature, margin": lambda b: _traced(b, CURVATURE, "influence"),
    "curvature and last layer": lambda b: _traced(b, CURVATURE, "influence", "screen"),
    OURS: lambda b: _traced(b, CURVATURE, "influence", "screen", "features"),
    "replay, margin": _replayed,
    "replay and last layer": lambda b: _with_last_layer(b, _replayed(b)),
    "plain step, loss": lambda b: _swept(b, GradientStep(), "loss"),
    "plain step, margin": lambda b: _swept(b, GradientStep(), "margin"),
    "both signs, margin": lambda b: _swept(
        b, GradientStep(relative_size=0.01, sign="both"), "margin", "difference"
    ),
    "both signs, loss": lambda b: _swept(
        b, GradientStep(relative_size=0.01, sign="both"), "loss", "difference"
    ),
    "tracin": _tracin,
    "EK-FAC (kronfluence), loss": lambda b: _ekfac(b)["loss"],
    "EK-FAC (kronfluence), margin": lambda b: _ekfac(b)["margin"],
}
