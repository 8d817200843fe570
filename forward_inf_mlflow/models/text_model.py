"""Classifiers of texts as an audit moves and reads them: a transformer with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from forward_inf_mlflow.data.texts import find_texts
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.tokens import bag_of_words, last_layer
from forward_inf_mlflow.models.transformer import Transformer, check_ids

#: Characters of a text that a tokenizer is given, for each token that the model reads at most.
_CHARACTERS = 64
#: Tokens that are read where nobody says how many the model takes.
_MOST = 2**15
#: Tokens in a batch that is chosen automatically.
_BATCH_TOKENS = 2**14


def as_texts(column: pd.Series) -> np.ndarray:
    """Return a column as texts ``(n,)``, "" where there is none."""
    return np.asarray(column.where(column.notna(), "").astype(str), dtype=object)


class Reader:
    """What a transformer's tokenizer makes of stored rows."""

    def __init__(self, model: Transformer) -> None:
        self._model, self._limit = model, model.limit or _MOST

    def texts(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return the texts ``(n,)``, "" where there is none.

        Raises:
            DataError: There is no column of texts, or several could be it.
        """
        if isinstance(features, np.ndarray):
            if features.dtype.kind not in "OU":
                raise DataError("The model reads texts and these rows are numbers: give it texts.")
            return features.reshape(-1)
        try:
            prompt, name = find_texts(features)
        except DataError as error:
            raise DataError(str(error).format(option="--features")) from None
        if prompt is not None:
            raise DataError(
                f"the data has prompts ({prompt!r}) and the model takes one text a row: name its "
                "column with --features"
            )
        return as_texts(features[name])

    def readable(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return which rows have a text that is not empty, ``(n,)`` bool."""
        return np.array([bool(text.strip()) for text in self.texts(features)], dtype=bool)

    def prepare(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return token ids ``(n, L)``, padded on the right; what is too long loses its end.

        Raises:
            DataError: There are no texts, or a token is none of the model's.
        """
        rows = self._ids(self.texts(features))[0]
        ids = np.full((len(rows), max(1, *map(len, rows))), self._model.module.padding)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        check_ids(torch.from_numpy(ids), self._model.vocabulary)
        return ids

    def cut(self, features: pd.DataFrame | np.ndarray) -> int:
        """Return how many texts are longer than what the model reads."""
        return self._ids(self.texts(features))[1]

    def alone(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return what the model answers for each text by itself, without padding, ``(n, K)``."""
        answers = []
        with torch.no_grad():
            for row in self._ids(self.texts(features))[0]:
                ids = torch.tensor([row], device=next(self._model.module.parameters()).device)
                answers.append(self._model.module.inner(input_ids=ids).logits[0].cpu().numpy())
        return np.stack(answers)

    def _ids(self, texts: Sequence[str] | np.ndarray) -> tuple[list[list[int]], int]:
        """Return each text's tokens, and how many texts were cut."""
        shown = [text[: _CHARACTERS * self._limit] for text in texts]
        rows: list[list[int]] = self._model.tokenizer(shown, truncation=False)["input_ids"]
        long = [
            i
            for i, (row, text) in enumerate(zip(rows, texts, strict=True))
            if len(row) > self._limit or len(text) > len(shown[i])
        ]
        if long:  # by the tokenizer, which ends a text with a token of its own
            some = [shown[i] for i in long]
            ended = self._model.tokenizer(some, truncation=True, max_length=self._limit)
            for i, row in zip(long, ended["input_ids"], strict=True):
                rows[i] = row
        return rows, len(long)


def audited_classifier(model: Transformer) -> AuditedModel:
    """Return a classifier of texts, or one that gives each a number, as an audit takes it."""
    reader = Reader(model)
    labels = model.labels

    def probabilities(features: pd.DataFrame | np.ndarray) -> np.ndarray:
        logits = torch.from_numpy(reader.alone(features)).double()
        return np.asarray(logits if labels is None else logits.softmax(1))

    return AuditedModel(
        module=model.module,
        prepare=reader.prepare,
        kind="transformers",
        original=probabilities,
        task=model.task,
        classes=None if labels is None else np.array(labels),
        features=last_layer(model.module),
        encoded=bag_of_words(model.module),
        notes=model.notes,
        probabilities=labels is not None,
        texts=reader.texts,
        readable=reader.readable,
        cut=reader.cut,
        limit=model.limit,
        batch_numbers=_BATCH_TOKENS,
    )
