"""CausalLM: the loss of a sequence, token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.task import Batch, Forward, Readout, Task
from forward_inf_mlflow.tasks.classification import drawn_classes

#: The target of a token that does not count: padding, or a prompt that is only read.
IGNORED = -100
#: A token's margin is its log-odds up to this probability and linear in log p beyond.
_SURE = 0.99
_LOG_ODDS_OF_SURE = math.log(_SURE / (1 - _SURE))


@final  # loss and margin are read together: another loss is another task
@dataclass(frozen=True, kw_only=True)
class CausalLM(Task):
    """One sequence of tokens per row. Inputs: token ids ``(B, L)``. Outputs: logits ``(B, L, V)``.

    Targets: the next tokens ``(B, L)`` int64, -100 where a token does not count (padding, prompt).
    Pad on the right, where causal attention never looks.

    Loss: the negative log-likelihood of a row's tokens in nats, summed, so that it is additive over
    tokens. Margin: the sum of the tokens' log-odds ``log p / (1 - p)`` in nats, continued linearly
    in ``log p`` beyond p = .99, so that its slope there is ``1 / max(1 - p, .01)``: known tokens
    still move, and none of them alone decides. A row where nothing counts has loss and margin 0.

    Attributes:
        mean: Take the mean over a row's counted tokens instead: nats per token.
    """

    mean: bool = False

    name = "causal_lm"
    saturates = True
    labelled = False

    def outputs(self, forward: Forward, batch: Batch) -> Tensor:
        """Return the logits ``(B, L, V)``, at least float32.

        Not float64: with a large vocabulary they would not fit, and losses are read from them
        without cancellation. The model may return logits, a tuple that starts with them, or an
        object that holds them as ``logits``.

        Raises:
            ModelError: The model does not return one row of logits per token.
            DataError: The targets are no tokens of this model.
        """
        logits = _logits(forward(batch.inputs))
        _check(batch.targets, logits.shape)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``-log p`` of each row's counted tokens together, ``(B,)`` float64."""
        return self._of_row(self.token_losses(outputs, targets), targets)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the log-odds of each row's counted tokens together, ``(B,)`` float64."""
        return self._margin(_log_odds(outputs, targets), targets)

    def readout_of(self, outputs: Tensor, batch: Batch) -> Readout:
        """Read loss and margin from one pass over the vocabulary."""
        odds = _log_odds(outputs, batch.targets)
        losses = -nn.functional.logsigmoid(odds)
        return Readout(self._of_row(losses, batch.targets), self._margin(odds, batch.targets))

    def _margin(self, odds: Tensor, targets: Tensor) -> Tensor:
        return self._of_row(_margins(odds), targets)

    def token_margins(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the log-odds of every next token, ``(B, L)`` float64, 0 where uncounted."""
        margins = _margins(_log_odds(outputs, targets))
        return torch.where(targets == IGNORED, 0.0, margins)

    def token_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``-log p`` of every next token, ``(B, L)`` float64, 0 where uncounted."""
        losses = -nn.functional.logsigmoid(_log_odds(outputs, targets))
        return torch.where(targets == IGNORED, 0.0, losses)

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the residuals of tokens drawn from the model, 0 where a token does not count."""
        counted = (targets != IGNORED)[..., None]
        residuals = drawn_classes(outputs, generator) * counted
        return residuals / counted.sum(1, keepdim=True).clamp(min=1) if self.mean else residuals

    def skill(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the share of the best constant guess's loss that the model saves.

        That guess, 0, gives every token its frequency among these targets; 1 is certainty.
        """
        counted = targets[targets != IGNORED]
        guess = float(torch.special.entr(counted.bincount() / max(1, len(counted))).sum())
        loss = float(self.token_losses(outputs, targets).sum()) / max(1, len(counted))
        return 1 - loss / guess if guess > 0 else 0.0

    def _of_row(self, values: Tensor, targets: Tensor) -> Tensor:
        """Put the counted tokens' values ``(B, L)`` together, ``(B,)``."""
        counted = targets != IGNORED
        total = torch.where(counted, values, 0.0).sum(1)
        return total / counted.sum(1).clamp(min=1) if self.mean else total


def _margins(odds: Tensor) -> Tensor:
    """Return log-odds that go on linearly in log p for tokens that are known."""
    log_p = nn.functional.logsigmoid(odds)
    beyond = _LOG_ODDS_OF_SURE + (log_p - math.log(_SURE)) / (1 - _SURE)
    return torch.where(odds < _LOG_ODDS_OF_SURE, odds, beyond)


def _log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``log p / (1 - p)`` of every next token, ``(B, L)`` float64.

    The token's logit less the log-sum-exp of the others: unlike ``log_softmax`` in float32, which
    rounds a known token's loss to 0, it keeps all digits of p near 1.
    """
    _check_tokens(targets, logits.shape[-1])
    given = targets.clamp(min=0)[..., None]
    others = logits.scatter(-1, given, -torch.inf).logsumexp(-1)
    return (logits.gather(-1, given)[..., 0] - others).to(torch.float64)


def _logits(answer: object) -> Tensor:
    """Return the logits that a model's answer is, holds or starts with."""
    found = getattr(answer, "logits", answer)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, Tensor) and found.ndim == 3:
        return found
    given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise ModelError(
        f"a causal language model must return logits (rows, tokens, vocabulary), not {given}: "
        "choose another task, or wrap the model"
    )


def _check(targets: Tensor, shape: torch.Size) -> None:
    """Raise if targets are no tokens of a model with logits of this shape."""
    if targets.dtype != torch.int64 or targets.shape != shape[:2]:
        raise DataError(
            f"targets are {tuple(targets.shape)} {targets.dtype}, logits {tuple(shape)}: "
            "give the next token's id as int64 for every input token"
        )


def _check_tokens(targets: Tensor, vocabulary: int) -> None:
    """Raise if a target is no token of the model."""
    outside = (targets != IGNORED) & ((targets < 0) | (targets >= vocabulary))
    if bool(outside.any()):
        raise DataError(
            f"target token {int(targets[outside][0])} is none of the model's {vocabulary}: "
            f"use the model's own tokenizer, and {IGNORED} for tokens that do not count"
        )
