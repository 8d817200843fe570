"""AuditedModel: a registered model as the audit sees it, whatever library wrote it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forward_inf_mlflow.data.pictures import Ranges
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.models.inputs import InputSpec
from forward_inf_mlflow.task import Task

#: Turns stored features into the array that the module takes as its input, ``(n, ...)``.
Prepare = Callable[[pd.DataFrame | np.ndarray], np.ndarray]


@dataclass(frozen=True)
class AuditedModel:
    """A model that can be moved and read.

    Attributes:
        module: In evaluation mode, without randomness; a row's output does not depend on its
            batch. Logits ``(B, K)`` for classification, ``(B,)`` or ``(B, 1)`` for regression.
        prepare: From stored features to the module's input.
        kind: Where it came from: ``pt2``, ``pickle``, ``sklearn``, ``pyfunc`` or ``transformers``.
        task: ``classification`` or ``regression``, or that of ``loss``; None where the model does
            not say.
        classes: ``(K,)`` the label that each output stands for; None if labels are 0 .. K-1.
        features: Inputs ``(B, ...)`` to the penultimate features ``(B, h)``, what the model's last
            linear layer sees; None where no such layer was found.
        encoded: The same, to what its first linear layer sees.
        original: From stored features to what the loaded model itself answers, to compare with;
            nothing that was done to the module was done to it, except that a model logged in train
            mode, which is random, was switched to evaluation.
        probabilities: Whether ``original`` answers probabilities ``(n, K)``, of which the module
            gives logits; else both answer alike.
        half: The half precision that ``original`` computes in, None for anything finer.
        sha256: Digest of the files that it was loaded from; None if it was not loaded.
        estimator: The fitted scikit-learn estimator (or pipeline), if it came from one.
        max_batch: The largest batch the module takes; None if any.
        notes: What to tell the reader of the model, such as "was logged in train mode".
        fixed: Whether no query can move it, so that only a training function fits it anew.
        texts: From stored features to the texts that it reads ``(n,)``; None if it reads none.
        readable: From stored features to which rows it can read, ``(n,)`` bool; None for all that
            have no gap.
        cut: From stored features to how many texts are longer than it reads.
        limit: Tokens of a text that it reads; None for all.
        batch_numbers: Numbers of the inputs in a batch that is chosen automatically.
        loss: The task of a model whose rows have no labels; None if they have.
        targets: From stored rows to such a task's targets, ``(n, ...)``.
        told: Whether such a model is told the rows' labels all the same, as a condition.
        takes: What it takes of a row; None where that is not known.
        example: The smallest and the largest number of the input example that was logged with it.
        scale: What the pixels 0 and 255 become where its kind says so; None else.
    """

    module: nn.Module
    prepare: Prepare
    kind: str
    original: Prepare
    task: str | None = None
    classes: np.ndarray | None = None
    features: Callable[[Tensor], Tensor] | None = None
    encoded: Callable[[Tensor], Tensor] | None = None
    estimator: Any = None
    max_batch: int | None = None
    notes: tuple[str, ...] = field(default=())
    probabilities: bool = False
    half: torch.dtype | None = None
    sha256: str | None = None
    fixed: bool = False
    texts: Callable[[pd.DataFrame | np.ndarray], np.ndarray] | None = None
    readable: Callable[[pd.DataFrame | np.ndarray], np.ndarray] | None = None
    cut: Callable[[pd.DataFrame | np.ndarray], int] | None = None
    limit: int | None = None
    batch_numbers: int = 2**22
    loss: Task | None = None
    targets: Callable[[Rows], np.ndarray] | None = None
    told: bool = False
    takes: InputSpec | None = None
    example: tuple[float, float] | None = None
    scale: Ranges | None = None
