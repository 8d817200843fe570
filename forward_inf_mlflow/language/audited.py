"""Language models as an audit moves and reads them: rows are texts, or prompts and completions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from forward_inf_mlflow.data.texts import find_texts
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.language.wording import Worded, joined, word_texts
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.text_model import as_texts
from forward_inf_mlflow.models.tokens import last_layer
from forward_inf_mlflow.models.transformer import Transformer
from forward_inf_mlflow.tasks import CausalLM

_HOST = torch.device("cpu")
#: Tokens, and logits, in a batch that is chosen automatically.
_BATCH_TOKENS, _BATCH_LOGITS = 2**14, 2**24


class Sentences:
    """What a language model's tokenizer makes of stored rows."""

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._last: list[tuple[pd.DataFrame | np.ndarray, Worded]] = []

    def texts(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return whole texts, prompts before completions, ``(n,)``."""
        prompts, texts = self._parts(features)
        whole = [joined(p, t) for p, t in zip(prompts, texts, strict=True)]
        return np.array(whole, dtype=object)

    def readable(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return which rows have a text with a token that could be learned, ``(n,)`` bool."""
        texts = self._parts(features)[1]
        full = np.array([bool(text.strip()) for text in texts], dtype=bool)
        known = np.zeros(len(texts), dtype=bool)
        known[self._worded(features).kept] = True
        return full & known

    def prepare(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return token ids ``(n, L)`` of readable rows; what is too long loses its end."""
        return np.asarray(self._worded(features).rows.inputs.numpy())

    def targets(self, features: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Return the next tokens ``(n, L)``, those of prompts and padding uncounted."""
        return np.asarray(self._worded(features).rows.targets.numpy())

    def cut(self, features: pd.DataFrame | np.ndarray) -> int:
        """Return how many texts are longer than what the model reads."""
        return self._worded(features).cut

    def _parts(self, features: pd.DataFrame | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(features, np.ndarray):
            raise DataError("The model reads texts and these rows are numbers: give it texts.")
        try:
            prompt, text = find_texts(features)
        except DataError as error:
            raise DataError(str(error).format(option="--features")) from None
        texts = as_texts(features[text])
        return np.full(len(texts), "") if prompt is None else as_texts(features[prompt]), texts

    def _worded(self, features: pd.DataFrame | np.ndarray) -> Worded:
        for known, worded in self._last:
            if known is features:
                return worded
        prompts, texts = self._parts(features)
        worded = word_texts(self._model, prompts, texts, device=_HOST, batch_size=1)
        self._last = [*self._last[-1:], (features, worded)]  # those of training rows and queries
        return worded


def audited_language_model(model: Transformer) -> AuditedModel:
    """Return a causal language model as an audit takes it: its rows have no labels."""
    sentences = Sentences(model)
    tokens = min(_BATCH_TOKENS, max(1, _BATCH_LOGITS // model.vocabulary))

    return AuditedModel(
        module=model.module,
        prepare=sentences.prepare,
        kind="transformers",
        original=sentences.prepare,
        task=CausalLM.name,
        features=last_layer(model.module),
        notes=model.notes,
        texts=sentences.texts,
        readable=sentences.readable,
        cut=sentences.cut,
        limit=model.limit,
        batch_numbers=tokens,
        loss=CausalLM(),
        targets=lambda rows: sentences.targets(rows.features),
    )
