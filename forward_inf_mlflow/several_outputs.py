"""Several labels a row: which task they are, and their rows as numbers that can be compared."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.data.several import are_flags
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.logits import Odds


def several_task(
    model: AuditedModel, outputs: Tensor, train: Rows, queries: Rows, wanted: str
) -> tuple[str, nn.Module, list[str]]:
    """Return the task of rows with several labels, the module that gives its outputs, and notes.

    Labels that are all 0 or 1 are set or not, and others are targets; ``regression`` as the wanted
    task says that these are numbers too.

    Args:
        model: What answers.
        outputs: Its answers to some rows, ``(b, ...)``.
        train, queries: The rows.
        wanted: The task that the user named, or "auto".

    Raises:
        DataError: The labels are not as many as the model answers, or not all of one kind.
    """
    width = outputs.shape[1] if outputs.ndim == 2 else 1
    for rows, what in ((train, "training"), (queries, "query")):
        count = 1 if rows.targets is None else rows.targets.shape[1]
        if count != width:
            raise DataError(
                f"the {what} rows have {count} label{'s' if count > 1 else ''} each and the model "
                f"answers {width} numbers a row: name as many columns, in its order (--label A,B)"
            )
    assert train.targets is not None, "several are answered"
    assert queries.targets is not None, "as many"
    flags = [are_flags(targets) for targets in (train.targets, queries.targets)]
    kind = model.task
    if kind is None:
        kind = "multilabel" if flags[0] and wanted != "regression" else "regression"
    elif wanted not in ("auto", kind) and (kind, wanted) != ("multilabel", "classification"):
        raise DataError(f"the model is made for {kind}: leave --task out")
    if kind == "regression":
        return kind, model.module, []
    if kind == "classification":
        raise DataError(
            "the model gives each row one of its classes, and the data have several labels a row: "
            "name the one column with --label"
        )
    if not all(flags):
        raise DataError(
            "the labels of a row are set or not, and some are neither 0 nor 1: encode them, or say "
            "--task regression if numbers are meant"
        )
    if model.task is None and bool(((outputs >= 0) & (outputs <= 1)).all()):
        note = "the model answers the probability of each label; their log-odds were used"
        return kind, Odds(model.module), [note]
    return kind, model.module, []


def coded(train: Tensor, queries: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers ``(n,)`` and ``(m,)`` that are equal where all labels of two rows are.

    Args:
        train, queries: Targets ``(n,)`` and ``(m,)``, which stay as they are, or ``(n, k)``.
    """
    if train.ndim == 1:
        return train.numpy(), queries.numpy()
    both = torch.cat([train, queries]).numpy()
    _, codes = np.unique(both, axis=0, return_inverse=True)
    codes = codes.reshape(-1)
    return codes[: len(train)], codes[len(train) :]
