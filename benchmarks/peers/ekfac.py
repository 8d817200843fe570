"""Peer: kronfluence's influence functions with EK-FAC.

Linear and convolutional layers take part; norms and embeddings do not, for kronfluence has no
factors for them.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from bundle import Attribution, run_peer
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from settings import Setting
from torch import Tensor, nn
from torch.utils.data import TensorDataset

Batch = tuple[Tensor, Tensor]


class RowLoss(Task):  # type: ignore[misc]  # kronfluence ships no types.
    """The setting's loss, summed over a batch's rows, as kronfluence asks for it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
        inputs, targets = batch
        outputs = model(inputs)
        if sample:
            with torch.no_grad():
                shares = outputs.softmax(-1).flatten(0, -2)
                targets = torch.multinomial(shares, 1).view(targets.shape)
        return self._setting.loss(outputs, targets).sum()

    def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def attribute(setting: Setting, module: nn.Module, arguments: argparse.Namespace) -> Attribution:
    task = RowLoss(setting)
    module = prepare_model(module, task)
    train = TensorDataset(setting.train_x, setting.train_y)
    query = TensorDataset(setting.query_x, setting.query_y)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "peer", module, task, cpu=True, disable_tqdm=True, output_dir=folder, log_level=40
        )
        analyzer.fit_all_factors(
            "ekfac",
            train,
            per_device_batch_size=256,
            factor_args=FactorArguments(strategy="ekfac"),
        )
        analyzer.compute_pairwise_scores(
            scores_name="scores",
            factors_name="ekfac",
            query_dataset=query,
            train_dataset=train,
            per_device_query_batch_size=len(query),
            per_device_train_batch_size=256,
            score_args=ScoreArguments(damping_factor=arguments.damping),
        )
        scores = analyzer.load_pairwise_scores("scores")["all_modules"]
    damping = "0.1 x mean eigenvalue" if arguments.damping is None else f"{arguments.damping:g}"
    return scores, f"EK-FAC, linear and convolutional layers, damping {damping}"


def damping(text: str) -> float | None:
    """Return a number, or None for kronfluence's heuristic."""
    return None if text == "heuristic" else float(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--damping",
        type=damping,
        default="heuristic",
        help="a number (the library's default is 1e-8), or 'heuristic' for .1 x mean eigenvalue",
    )
    run_peer(attribute, packages=("kronfluence",), parser=parser)
