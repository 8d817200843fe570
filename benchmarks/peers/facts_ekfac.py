"""Peer: kronfluence's influence functions with EK-FAC, on a small GPT that was taught facts.

    .venv-peers/bin/python benchmarks/peers/facts_ekfac.py TAUGHT.pt OUT.npz

``TAUGHT.pt`` holds the weights, the rows ``x, y`` and the queries ``query_x, query_y``. ``OUT.npz``
holds scores ``(q, n)``, positive for a proponent: ``loss`` by the rows' losses, as the library is
meant to be used, and ``margin`` with each token's gradient divided by ``max(1 - p, .01)``, which
reads its log-odds. Linear layers take part; embeddings and norms do not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

# A script finds its own folder; the corpus lies one above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from facts import IGNORED, decoder, loss

Batch = tuple[Tensor, Tensor]


class Tokens(Task):  # type: ignore[misc]  # kronfluence ships no types.
    """The loss of rows, summed, or their margins, as kronfluence asks for it."""

    def __init__(self, *, margin: bool) -> None:
        self.margin = margin

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
        inputs, targets = batch
        outputs = model(inputs)
        if sample:
            with torch.no_grad():
                drawn = torch.multinomial(outputs.softmax(-1).flatten(0, -2), 1)
                targets = drawn.view(targets.shape).masked_fill(targets == IGNORED, IGNORED)
        if sample or not self.margin:
            return loss(outputs, targets).sum()
        losses = functional.cross_entropy(
            outputs.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED
        )
        return (losses / (1 - (-losses.detach()).exp()).clamp(min=0.01)).sum()

    def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
        inputs, targets = batch
        return loss(model(inputs), targets).sum()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    held = torch.load(sys.argv[1], weights_only=True)
    train = TensorDataset(held["x"], held["y"])
    query = TensorDataset(held["query_x"], held["query_y"])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("loss", "margin"):
            module = decoder(len(held["weights"]["token.weight"]), held["x"].shape[1], 0)
            module.load_state_dict(held["weights"])
            task = Tokens(margin=name == "margin")
            analyzer = Analyzer(
                "peer",
                prepare_model(module.eval(), task),
                task,
                cpu=True,
                disable_tqdm=True,
                output_dir=folder,
                log_level=40,
            )
            if not found:  # both divide by the same factors, which are kept in the folder
                analyzer.fit_all_factors(
                    "ekfac",
                    train,
                    per_device_batch_size=256,
                    factor_args=FactorArguments(strategy="ekfac"),
                )
            analyzer.compute_pairwise_scores(
                scores_name=name,
                factors_name="ekfac",
                query_dataset=query,
                train_dataset=train,
                per_device_query_batch_size=len(query),
                per_device_train_batch_size=256,
                score_args=ScoreArguments(damping_factor=None),  # .1 x the mean eigenvalue
            )
            scores = analyzer.load_pairwise_scores(name)["all_modules"]
            found[name] = scores.to(torch.float32).numpy()
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
