"""Wording: texts as a language model's tokens, cut at its limit, and tokens as words again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.texts import PROMPT, TEXT
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.transformer import Transformer, check_ids
from forward_inf_mlflow.tasks.causal_lm import IGNORED
from forward_inf_mlflow.tensors import Tensors

#: Logits in a batch that is chosen automatically: 64 MiB in float32, held a few times.
_BATCH_LOGITS = 2**24
#: Characters of a text that is handed to a tokenizer, for each token that the model reads at most.
_CHARACTERS = 64


@dataclass(frozen=True)
class Worded:
    """Texts as tokens.

    Attributes:
        rows: Inputs ``(n, L)`` and next tokens ``(n, L)``, those of prompts and padding uncounted.
        kept: ``(n,)`` positions of these rows among all that were given.
        spans: For every row the characters ``(start, end)`` of its text that each next token
            stands for, L of them or fewer.
        cut: How many texts were longer than the model reads.
        short: How many have no token that could be learned, and were left out.
        unknown: The share of counted tokens that the tokenizer has no word for.
    """

    rows: Tensors
    kept: np.ndarray
    spans: list[list[tuple[int, int]]]
    cut: int
    short: int
    unknown: float


def joined(prompt: str, completion: str) -> str:
    """Return a prompt and what comes after it, with a blank between two words."""
    apart = not prompt or prompt[-1].isspace() or completion[:1].isspace()
    return prompt + ("" if apart or not completion[:1].isalnum() else " ") + completion


def word_training(
    model: Transformer, rows: Rows, *, device: torch.device, batch_size: int | None
) -> Worded:
    """Return training texts as tokens; what is too long loses its end.

    Raises:
        DataError: No text has a token that could be learned, or a token is none of the model's.
    """
    assert not isinstance(rows.features, np.ndarray)  # texts are read into a frame
    texts = rows.features[TEXT].tolist()
    prompts = rows.features[PROMPT].tolist() if PROMPT in rows.features else [""] * len(texts)
    return word_texts(model, prompts, texts, device=device, batch_size=batch_size)


def word_texts(
    model: Transformer,
    prompts: Sequence[str] | np.ndarray,
    texts: Sequence[str] | np.ndarray,
    *,
    device: torch.device,
    batch_size: int | None,
) -> Worded:
    """Return texts ``(n,)`` behind their prompts as tokens; what is too long loses its end.

    Raises:
        DataError: No text has a token that could be learned, or a token is none of the model's.
    """
    return _worded(model, list(prompts), list(texts), device=device, batch_size=batch_size)


def word_query(model: Transformer, prompt: str, completion: str, device: torch.device) -> Worded:
    """Return a prompt and its completion as one row; what is too long loses its beginning.

    Raises:
        DataError: The completion is empty, unknown to the tokenizer, or longer than what the model
            reads, or there is nothing before it.
    """
    if not completion.strip():
        raise DataError("the completion is empty: say what the model said (--completion)")
    found = _worded(model, [prompt], [completion], device=device, batch_size=1, keep_end=True)
    counted = int((found.rows.targets != IGNORED).sum())
    if found.unknown == 1:
        raise DataError(
            f"the tokenizer has no word for anything in the completion {completion[:40]!r}: name "
            "words that the model knows"
        )
    if model.limit is not None and counted >= model.limit - 1 and found.cut:
        raise DataError(
            f"the completion fills all {model.limit:,} tokens that the model reads: name a shorter "
            "piece of it"
        )
    return found


def _worded(
    model: Transformer,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    device: torch.device,
    batch_size: int | None,
    keep_end: bool = False,
) -> Worded:
    limit = model.limit or 2**15
    most = _CHARACTERS * limit
    whole = [joined(p, t) for p, t in zip(prompts, texts, strict=True)]
    shown = [text[-most:] if keep_end else text[:most] for text in whole]
    found = model.tokenizer(list(shown), return_offsets_mapping=True, truncation=False)
    inputs, targets, spans, kept = [], [], [], []
    cut = unknown = counted = 0
    for i, (ids, offsets) in enumerate(
        zip(found["input_ids"], found["offset_mapping"], strict=True)
    ):
        if len(ids) > limit or len(shown[i]) < len(whole[i]):
            cut += 1
            some = slice(-limit, None) if keep_end else slice(0, limit)
            ids, offsets = ids[some], offsets[some]
        lost = len(whole[i]) - len(shown[i]) if keep_end else 0
        begins = len(whole[i]) - len(texts[i]) - lost if prompts[i] else 0
        wanted, begun = [], not prompts[i]
        for token, (start, end) in zip(ids[1:], offsets[1:], strict=True):
            begun = begun or end > max(start, begins)
            # What a tokenizer adds of its own has no characters: it is learned, and never asked.
            counts = end > max(start, begins) or (start == end and begun and not keep_end)
            wanted.append(token if counts else IGNORED)
        mine = [token for token in wanted if token != IGNORED]
        if not mine:
            continue
        counted += len(mine)
        unknown += sum(token == model.tokenizer.unk_token_id for token in mine)
        kept.append(i)
        inputs.append(ids[:-1])
        targets.append(wanted)
        spans.append([(start + lost, end + lost) for start, end in offsets[1:]])
    if not kept:
        raise DataError(
            "the completion has no token of its own behind the prompt: name a prompt, or more of "
            "what the model said"
            if keep_end
            else "no training text has a token that could be learned: give longer texts"
        )
    length = max(map(len, inputs))
    x = torch.full((len(kept), length), model.module.padding)
    y = torch.full((len(kept), length), IGNORED)
    for row, (ids, wanted) in enumerate(zip(inputs, targets, strict=True)):
        x[row, : len(ids)] = torch.tensor(ids)
        y[row, : len(ids)] = torch.tensor(wanted)
    check_ids(x, model.vocabulary)
    check_ids(y, model.vocabulary)
    if batch_size is None:
        batch_size = min(256, max(1, _BATCH_LOGITS // (length * model.vocabulary)))
    return Worded(
        rows=Tensors(x, y, device, batch_size),
        kept=np.array(kept),
        spans=spans,
        cut=cut,
        short=len(texts) - len(kept),
        unknown=unknown / counted,
    )
