"""Texts of two topics with wrong labels and leaks, and a small BERT that classifies them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from texts import LIMIT, SPECIAL, tokenizer, transformers

ROWS, QUERIES, LEAKS = 240, 80, 6
WRONG = np.arange(20, ROWS, 20)
TOPICS = [[f"{kind}{i}" for i in range(20)] for kind in ("goal", "bond")]
REST = [f"word{i}" for i in range(100)]
NAMES = np.array(["sport", "money"])
WORDS = (*SPECIAL, *TOPICS[0], *TOPICS[1], *REST)


def news() -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Return rows and queries of two topics; some labels are wrong, some queries changed rows."""
    rng = np.random.default_rng(0)
    y = np.arange(ROWS + QUERIES) % 2
    written = [
        " ".join(rng.permutation([*rng.choice(TOPICS[k], 4), *rng.choice(REST, 8)])) for k in y
    ]
    rows, queries, labels, truth = written[:ROWS], written[ROWS:], y[:ROWS].copy(), y[ROWS:]
    labels[WRONG] = 1 - labels[WRONG]
    for i in range(LEAKS):  # re-cased, or cut
        rows[i], labels[i] = queries[i], truth[i]
        queries[i] = queries[i].upper() if i % 2 else " ".join(queries[i].split()[3:])
    rows[7] += " goal1" * LIMIT
    return rows, labels, queries, truth


def bert(**changes: Any) -> Any:
    """Return a BERT of one layer, 16 wide, with names for its two outputs."""
    torch.manual_seed(0)
    config = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LIMIT,
        "pad_token_id": 1,
        "id2label": dict(enumerate(NAMES.tolist())),
        "label2id": {name: i for i, name in enumerate(NAMES.tolist())},
    }
    return transformers.BertForSequenceClassification(transformers.BertConfig(**config | changes))


def fitted(model: Any, texts: list[str], labels: np.ndarray, *, epochs: int = 15) -> Any:
    asked = tokenizer(WORDS)(
        texts, padding=True, truncation=True, max_length=LIMIT, return_tensors="pt"
    )
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    torch.manual_seed(0)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(texts)).split(64):
            optimizer.zero_grad()
            some = {name: asked[name][batch] for name in ("input_ids", "attention_mask")}
            model(**some, labels=torch.as_tensor(labels)[batch]).loss.backward()
            optimizer.step()
    return model.eval()
