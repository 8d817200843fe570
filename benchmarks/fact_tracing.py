"""Which training sentences made a small GPT state a fact: ours beside what the field has.

Invented facts in several wordings, with look-alikes that share their words or their answer (see
`facts`), are taught to a small GPT. Queries are facts in a wording that is held out; it gets them
right after training and not before. MRR and recall@10: how far up the rows stand that state the
fact. Leave-k-out, the causal truth: how far the fact's probability falls when the model is trained
again without the top k rows of a method; those of all queries are left out together, of which a
query's own are few, and the fall of random rows says what that costs.

    OMP_NUM_THREADS=1 python benchmarks/fact_tracing.py [--quick] [--fine-tuned] [--json FILE]

``--quick``: about 2,500 sentences; half an hour on two idle cores at most (estimated). Without it
20,000 and more: hours. ``--fine-tuned`` starts from a GPT that was taught tinyshakespeare first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache, cached_property, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from facts import Corpus, Fact, corpus, decoder, loss, shakespeare, teach
from measure import line, machine, write
from scipy.stats import rankdata
from settings import SettingError
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from forward_inf_mlflow.directions import Curvature, Direction, GradientStep, Replay
from forward_inf_mlflow.directions.held import held
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.probe import Method, Which
from forward_inf_mlflow.screen import last_layer, scores
from forward_inf_mlflow.tasks import CausalLM
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.traced import Traced, trace_one

KS, SEEDS, CANDIDATES, TOP = (5, 10, 20), (1, 2), 200, 10
#: People, epochs, queries that are ranked, and those of them that are left out.
SIZES = {"quick": (55, 18, 30, 12), "full": (460, 18, 100, 24)}
#: Words of tinyshakespeare that are known, words of a piece, and passes over it.
_COMMON, _PIECE, _EPOCHS = 2000, 13, 3


class Bench:
    """A model that was taught facts, its rows, and the queries that it learned to answer."""

    def __init__(self, size: str, *, fine_tuned: bool, seed: int = 0) -> None:
        people, self.epochs, asked, left_out = SIZES[size]
        made = corpus(people, seed)
        self.before: Mapping[str, Tensor] | None = None
        pieces: list[str] = []
        if fine_tuned:
            words, pieces = shakespeare(made.words, _PIECE, _COMMON)
            made = Corpus(made.sentences, made.facts, words)
        self.corpus = made
        self.x, self.y = made.encode(made.sentences)
        self.checkpoints: list[nn.Module] = []
        if pieces:
            x, y = made.encode(pieces)
            start = teach(self._fresh(seed), x, y, epochs=_EPOCHS, seed=seed)
            self.before = {name: value.clone() for name, value in start.state_dict().items()}
        untaught = self.start(seed)
        self.module = self.taught(None, seed, keep=True)
        facts = [fact for fact in made.facts if len(fact.rows) >= 3]
        x, y = self.encode(facts)
        right = (_probability(self.module, x, y) > 0.5) & (_probability(untaught, x, y) < 0.1)
        learned = [fact for fact, known in zip(facts, right.tolist(), strict=True) if known]
        self.share = len(learned) / len(facts)
        if not learned:
            raise SettingError("the model learned no fact: train it for more epochs")
        self.facts = learned[:asked]
        self.left_out = min(left_out, len(self.facts))
        self.query_x, self.query_y = self.encode(self.facts)

    def _fresh(self, seed: int) -> nn.Module:
        return decoder(len(self.corpus.words), self.x.shape[1], seed)

    def start(self, seed: int) -> nn.Module:
        """Return the model before it is taught."""
        module = self._fresh(seed)
        if self.before is not None:
            module.load_state_dict(self.before)
        return module

    def taught(self, without: np.ndarray | None, seed: int, *, keep: bool = False) -> nn.Module:
        """Return a model taught all rows but some."""
        rest = np.ones(len(self.x), bool)
        if without is not None:
            rest[without] = False
        chosen, module = torch.as_tensor(rest), self.start(seed)

        def remember(epoch: int, at: nn.Module) -> None:
            if keep and epoch in (self.epochs // 4, self.epochs // 2, self.epochs - 1):
                copied = decoder(len(self.corpus.words), self.x.shape[1], 0)
                copied.load_state_dict(at.state_dict())
                self.checkpoints.append(copied.eval())

        return teach(
            module, self.x[chosen], self.y[chosen], epochs=self.epochs, seed=seed, after=remember
        )

    def encode(self, facts: list[Fact]) -> tuple[Tensor, Tensor]:
        """Return facts as queries: only the answer counts."""
        texts = [f"{fact.asked} {fact.answer}" for fact in facts]
        x, y = self.corpus.encode(texts, [len(fact.answer.split()) for fact in facts])
        return x, y

    @cached_property
    def train(self) -> Tensors:
        """Return the rows; the same object each time, by which a curvature is known again."""
        return Tensors(self.x, self.y, torch.device("cpu"), 256)

    @property
    def queries(self) -> Tensors:
        """Return the queries."""
        return Tensors(self.query_x, self.query_y, torch.device("cpu"), 256)

    @property
    def texts(self) -> tuple[list[str], list[str]]:
        """Return queries and rows as texts."""
        return [f"{f.asked} {f.answer}" for f in self.facts], list(self.corpus.sentences)


@torch.no_grad()
def _probability(module: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    return np.asarray((-loss(module(x), y)).exp())


def _random(bench: Bench) -> np.ndarray:
    return np.random.default_rng(0).random((len(bench.facts), len(bench.x)))


def _bm25(bench: Bench) -> np.ndarray:
    import bm25s

    queries, rows = bench.texts
    index = bm25s.BM25()
    index.index([row.split() for row in rows], show_progress=False)
    return np.stack([index.get_scores(query.split()) for query in queries])


def _tfidf(bench: Bench) -> np.ndarray:
    queries, rows = bench.texts
    vectorizer = TfidfVectorizer(token_pattern=r"\S+")
    known = vectorizer.fit_transform(rows)
    return np.asarray((vectorizer.transform(queries) @ known.T).todense())


def _hidden(bench: Bench, *, everywhere: bool) -> np.ndarray:
    """Cosines of hidden states: of the last tokens, or of the answer's with any of the row's."""
    task = CausalLM()
    asked, _ = last_layer(bench.module, task, bench.queries, queries=True)
    rows, _ = last_layer(bench.module, task, bench.train)
    asked, rows = (nn.functional.normalize(h, dim=-1) for h in (asked, rows))
    counted, inside = bench.query_y >= 0, bench.y >= 0
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
    ids = np.arange(len(bench.x)).astype(str)
    return engine.influence(module, groups, bench.train, ids).scores.values


def _tracin(bench: Bench) -> np.ndarray:
    engine = ForwardInfluence(task=CausalLM(), direction=GradientStep(), method="derivative")
    return np.sum([_influence(engine, m, bench) for m in bench.checkpoints], axis=0)


@cache
def _candidates(bench: Bench, direction: Direction) -> list[Traced]:
    """Return the candidates behind each query, by screen and influence."""
    direction = held(direction)
    engine = ForwardInfluence(task=CausalLM(), direction=direction, readout="margin")
    return [
        trace_one(engine, bench.module, bench.queries.part(i, i + 1), bench.train, count=CANDIDATES)
        for i in range(len(bench.facts))
    ]


def _traced(bench: Bench, direction: Direction, *, alone: bool = False) -> np.ndarray:
    """Return candidates by both ranks, or by influence alone, and after them all other rows."""
    found = _last_layer(bench) - 1e6
    for row, traced in zip(found, _candidates(bench, direction), strict=True):
        row[traced.rows] = rankdata(traced.influence) if alone else -traced.score
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
    found = np.random.default_rng(1).random((len(bench.facts), len(bench.x)))
    for i, fact in enumerate(bench.facts):
        found[i][list(fact.rows)] += 1
    return found


CURVATURE, REPLAY = Curvature(), Replay(most_steps=100, most_seeds=1)
METHODS: dict[str, Callable[[Bench], np.ndarray]] = {
    "random": _random,
    "rows that state the fact": _stated,
    "bm25": _bm25,
    "tfidf": _tfidf,
    "hidden, last token": lambda b: _hidden(b, everywhere=False),
    "hidden, answer": lambda b: _hidden(b, everywhere=True),
    "last layer": _last_layer,
    "curvature, margin": lambda b: _traced(b, CURVATURE, alone=True),
    "curvature and last layer": lambda b: _traced(b, CURVATURE),
    "replay, margin": _replayed,
    "replay and last layer": lambda b: _with_last_layer(b, _replayed(b)),
    "plain step, loss": lambda b: _swept(b, GradientStep(), "loss"),
    "plain step, margin": lambda b: _swept(b, GradientStep(), "margin"),
    "both signs, margin": lambda b: _swept(
        b, GradientStep(relative_size=0.01, sign="both"), "margin", "difference"
    ),
    "tracin": _tracin,
}
#: Which of these the command takes by default.
OURS = "curvature and last layer"
#: Retrained without, in this order; the others are of the kind of one of these.
TESTED = (
    *("random", "rows that state the fact", OURS, "last layer", "replay and last layer"),
    *("hidden, answer", "bm25", "curvature, margin", "replay, margin", "plain step, margin"),
    *("both signs, margin", "tracin"),
)


def _retrieval(found: np.ndarray, facts: list[Fact]) -> dict[str, float]:
    reciprocal, recall = [], []
    for row, fact in zip(found, facts, strict=True):
        order = np.argsort(-row, kind="stable")
        places = np.flatnonzero(np.isin(order, fact.rows))
        reciprocal.append(1 / (1 + places[0]))
        recall.append((places < TOP).sum() / min(TOP, len(fact.rows)))
    return {"mrr": float(np.mean(reciprocal)), "recall_at_10": float(np.mean(recall))}


def _leave_out(
    found: np.ndarray, bench: Bench, whole: Mapping[int, np.ndarray]
) -> dict[int, float]:
    """Return by k the mean fall of the facts' probabilities."""
    order = np.argsort(-found[: bench.left_out], axis=1, kind="stable")
    jobs = [(np.unique(order[:, :k]), seed) for k in KS for seed in SEEDS]
    falls: dict[int, list[float]] = {k: [] for k in KS}
    for (k, seed), rest in zip(product(KS, SEEDS), _retrained(bench, jobs), strict=True):
        falls[k].append(float((whole[seed] - rest).mean()))
    return {k: float(np.mean(some)) for k, some in falls.items()}


def _retrained(bench: Bench, jobs: list[tuple[np.ndarray | None, int]]) -> list[np.ndarray]:
    """Return the facts' probabilities after training without some rows, on two cores."""
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        return list(pool.map(partial(_after, bench), jobs))


def _after(bench: Bench, job: tuple[np.ndarray | None, int]) -> np.ndarray:
    torch.set_num_threads(1)
    asked = bench.query_x[: bench.left_out], bench.query_y[: bench.left_out]
    return _probability(bench.taught(*job), *asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sentences and queries")
    parser.add_argument("--fine-tuned", action="store_true", help="start from tinyshakespeare")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine("numpy", "bm25s")
    print(line(facts), end="\n\n", flush=True)
    size = "quick" if arguments.quick else "full"
    try:
        bench = Bench(size, fine_tuned=arguments.fine_tuned)
    except SettingError as error:
        parser.exit(2, f"{error}\n")
    print(
        f"{len(bench.x):,} sentences, {sum(p.numel() for p in bench.module.parameters()):,} "
        f"parameters; {bench.share:.0%} of the facts are learned, {len(bench.facts)} asked, "
        f"{bench.left_out} left out",
        flush=True,
    )
    results: dict[str, object] = {"machine": facts}
    rows: dict[str, dict[str, object]] = {}
    scored: dict[str, np.ndarray] = {}
    for name, method in METHODS.items():
        began = time.monotonic()
        try:
            scored[name] = method(bench)
        except ImportError as error:
            print(f"{name}: not measured, {error.name} is not installed", flush=True)
            continue
        figures = _retrieval(scored[name], bench.facts)
        rows[name] = {**figures, "seconds": time.monotonic() - began}
        results["forward_inf" if name == OURS else name] = rows[name]
        print(name, *(f"{key} {value:.3f}" for key, value in rows[name].items()), flush=True)
        write(arguments.json, results)
    anew = _retrained(bench, [(None, seed) for seed in SEEDS])
    whole = dict(zip(SEEDS, anew, strict=True))
    results["probability"] = float(np.mean(list(whole.values())))
    print(f"probability after training anew on all rows: {results['probability']:.3f}", flush=True)
    for name in (name for name in TESTED if name in scored):
        falls = _leave_out(scored[name], bench, whole)
        rows[name] |= {"leave_k_out": float(np.mean(list(falls.values()))), "by_k": falls}
        print(name, *(f"without {k} {fall:+.3f}" for k, fall in falls.items()), flush=True)
        write(arguments.json, results)


if __name__ == "__main__":
    main()
