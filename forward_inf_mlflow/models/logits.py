"""Logits from models that answer with something else, and what those models say themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn


class Wrapped(nn.Module, ABC):
    """A model whose answers are turned into logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @abstractmethod
    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """Return the probabilities ``(n, K)`` that the model's own ``(n, ...)`` answers mean."""


class OneOutput(Wrapped):
    """Two logits ``(B, 2)`` from a binary model that answers one number ``(B,)`` or ``(B, 1)``."""

    def __init__(self, inner: nn.Module, probability: bool) -> None:
        super().__init__(inner)
        self.probability = probability

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of class 0 and class 1."""
        one = self.inner(inputs).reshape(-1)
        if self.probability:
            tiny = torch.finfo(one.dtype).tiny
            return torch.stack([(1 - one).clamp_min(tiny), one.clamp_min(tiny)], 1).log()
        return torch.stack([torch.zeros_like(one), one], 1)

    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """Return the probabilities of class 0 and class 1."""
        one = answers.reshape(-1) if self.probability else expit(answers.reshape(-1))
        return np.stack([1 - one, one], 1)


class Probabilities(Wrapped):
    """Logits ``(B, K)`` of a model that answers probabilities."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logarithms of the probabilities."""
        answer: Tensor = self.inner(inputs)
        return answer.clamp_min(torch.finfo(answer.dtype).tiny).log()

    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """Return the answers."""
        return answers


class Odds(Wrapped):
    """Logits ``(B, k)`` of a model that answers the probability of each of several labels."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the log-odds of the probabilities."""
        answer: Tensor = self.inner(inputs)
        least = torch.finfo(answer.dtype).eps
        return torch.logit(answer, eps=least)

    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """Return the answers."""
        return answers
