"""Extraction: which training texts a language model goes on with word for word.

Given a text's first tokens, a model that writes greedily repeats the rest exactly where each of its
tokens is the model's first choice given the true ones before it. So one forward pass of the text
says it, without writing anything, and says too how few tokens would have been enough.

Source: extractable memorization, Carlini et al., "Quantifying Memorization Across Neural Language
Models" (ICLR 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.texts import PROMPT, TEXT
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.language.wording import joined, word_training
from forward_inf_mlflow.memory import batches_that_fit
from forward_inf_mlflow.models.transformer import Transformer
from forward_inf_mlflow.task import Batch
from forward_inf_mlflow.tasks import CausalLM
from forward_inf_mlflow.tasks.causal_lm import IGNORED

#: Of a text, in a record and in a table.
_MOST_TEXT = 1000


@dataclass(frozen=True)
class Share:
    """A share of some things that were counted, with its exact 95 % interval."""

    count: int
    total: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> Share:
        """Return the share of a count; of nothing it can be anything."""
        if not total:
            return cls(0, 0, float("nan"), 0.0, 1.0)
        between = binomtest(count, total).proportion_ci(0.95, method="exact")
        return cls(count, total, count / total, float(between.low), float(between.high))


@dataclass(frozen=True)
class Extraction:
    """What a model writes of some texts from their first tokens.

    Attributes:
        share: The texts whose next tokens it writes word for word, of those that are long enough.
        short: How many are not.
        rows: One line per text that is: id, written (whether), needed (the fewest of its first
            tokens from which the model writes on to the end of the piece), probability (of
            the continuation), copies (equal texts among those that were given), given and
            continuation (texts).
    """

    share: Share
    short: int
    rows: pd.DataFrame


@torch.no_grad()
def extract(
    model: Transformer,
    rows: Rows,
    chosen: np.ndarray,
    *,
    given: int,
    written: int,
    device: torch.device,
    batch_size: int | None,
) -> Extraction:
    """Ask a model to go on with some texts.

    Cost: a forward pass of each.

    Args:
        model: In evaluation mode, on its device.
        rows: All texts; a prompt is given whole, and before what is counted.
        chosen: Positions of those that are asked.
        given: Tokens of a text that the model is given.
        written: Tokens that it must write.
        device: Where the model is.
        batch_size: Texts read at once; None for as many as fit.

    Raises:
        DataError: No text is long enough.
    """
    assert isinstance(rows.features, pd.DataFrame)  # texts are read into a frame
    some = rows.take(chosen)
    assert isinstance(some.features, pd.DataFrame)
    worded = word_training(model, some, device=device, batch_size=batch_size)
    prompts = PROMPT in some.features
    targets = worded.rows.targets
    counted = targets != IGNORED
    # The first token of a text without a prompt is given and never a target.
    begins = counted.int().argmax(1) + given - (0 if prompts else 1)
    place = torch.arange(targets.shape[1])[None]
    piece = (place >= begins[:, None]) & (place < begins[:, None] + written)
    long = (piece & counted).sum(1) == written

    def read(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = CausalLM().outputs(model.module, batch)
        first = logits.argmax(-1) == batch.targets
        return first.cpu(), CausalLM().token_losses(logits, batch.targets).cpu()

    found = list(batches_that_fit(worded.rows, read))
    first, losses = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not bool(long.any()):
        longest = int(counted.sum(1).max()) + (0 if prompts else 1)
        raise DataError(
            f"no text has the {given:,} tokens that are given and {written:,} to be written; the "
            f"longest has {longest:,}: take fewer (--given, --written), or ask none (--sample 0)"
        )
    whole = [
        joined(p, t) if p else t
        for p, t in zip(
            some.features[PROMPT] if prompts else [""] * len(some), some.features[TEXT], strict=True
        )
    ]
    copies = pd.Series(rows.features.agg("\0".join, axis=1)).value_counts()
    mine = some.features.agg("\0".join, axis=1)
    lines = []
    for i in torch.nonzero(long)[:, 0].tolist():
        row, at = int(worded.kept[i]), int(begins[i])
        missed = torch.nonzero(~first[i, : at + written] & counted[i, : at + written])[:, 0]
        needed = int(missed[-1]) + 1 - (at - given) if len(missed) else 0
        needed = max(0 if prompts else 1, needed)
        # Tokens that a tokenizer adds of its own have no characters.
        seen = [(a, b) for a, b in worded.spans[i][at : at + written] if b > a] or [(0, 0)]
        cut, end = seen[0][0], seen[-1][1]
        lines.append(
            {
                "id": str(some.ids[row]),
                "written": needed <= given,
                "needed": needed,
                "probability": float((-losses[i, at : at + written].sum()).exp()),
                "copies": int(copies[mine.iloc[row]]),
                "given": whole[row][:cut][-_MOST_TEXT:],
                "continuation": whole[row][cut:end][:_MOST_TEXT],
            }
        )
    table = pd.DataFrame(lines)
    table = table.sort_values(["written", "probability"], ascending=False, kind="stable")
    share = Share.of(int(table["written"].sum()), len(table))
    return Extraction(share, len(some) - len(table), table.reset_index(drop=True))
