"""A small GPT that is fine-tuned through LoRA, and how much it memorized of each text.

A GPT of two layers is trained on 1,000 news, and its adapter on 300 others: one in ten stands there
eight times, one in ten is three times the same disorder of words, the others stand there once. The
audit is given each text once. Of its 200 queries 20 are training texts that lost every fifth word.

**Truth** is the counterfactual memorization of Zhang, Ippolito, Lee, Jagielski, Tramer and Carlini
(NeurIPS 2023): the share of a text's tokens that six adapters say right which saw it, less that of
six which did not, each trained as the audited one on a random half.

Others: the text's own loss; the loss that the adapter saves beside the base model (the reference of
membership attacks), in nats and as a share; the mean logarithm of the least likely fifth of its
tokens (min-20 %, Shi and others, ICLR 2024); and the share of the loss that is saved beside
adapters of five folds, trained as the audited one, which is what only the trainer can measure.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
import transformers
from kinds_cases import TEXTS, ids_of, inputs, word_pieces
from kinds_rivals import Case, Said, registered, timed, train
from peft import LoraConfig, get_peft_model
from rivals import FOLDS
from torch.nn import functional

from forward_inf_mlflow import log_training_data

VOCABULARY, LENGTH = 1500, 32
#: How often a text is seen that is repeated, and one without order; pairs of halves.
REPEATED, DISORDERED, PAIRS = 8, 3, 6
#: Queries that lost every fifth word of a training text; they come first.
LEAKED = 20
#: Share of a text's tokens that are the least likely; what counts as memorized.
LEAST, MEMORIZED = 0.2, 0.25


def language(seed: int, *, quick: bool) -> Case:
    """Return an adapted language model whose texts it knows unequally well."""
    known, count, asked = (150, 60, 60) if quick else (1000, 300, 200)
    rng = np.random.default_rng([seed, 59])
    with np.load(TEXTS, allow_pickle=False) as held:
        some = rng.permutation(len(held["train_text"]))[: known + count]
        general, texts = np.split(held["train_text"][some], [known])
        test = held["test_text"][rng.permutation(len(held["test_text"]))[:asked]]
    general, texts, test = general.tolist(), texts.tolist(), test.tolist()
    words = " ".join(general).split()
    times = np.ones(count, dtype=int)
    times[: count // 10] = REPEATED
    times[count // 10 : count // 5] = DISORDERED
    for i in range(count // 10, count // 5):
        texts[i] = " ".join(rng.choice(words, 30))
    for query, row in enumerate(rng.choice(count, LEAKED, replace=False)):
        test[query] = " ".join(w for i, w in enumerate(texts[row].split()) if i % 5)
    tokenizer = word_pieces(general + texts, VOCABULARY, LENGTH)
    base_ids, ids = ids_of(tokenizer, general), ids_of(tokenizer, texts)
    base = fresh(len(tokenizer), seed)
    fit(base, base_ids, np.ones(known, dtype=int), seed, epochs=10, rate=3e-3)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    before = read(base, ids)

    def adapted(rows: np.ndarray, seed: int) -> Any:
        model = fresh(len(tokenizer), 0)
        model.load_state_dict(state)
        torch.manual_seed(seed)
        config = LoraConfig(
            r=16, lora_alpha=32, target_modules=["c_attn", "c_fc", "c_proj"],
            task_type="CAUSAL_LM", fan_in_fan_out=True,
        )  # fmt: skip
        return fit(
            get_peft_model(model, config), ids[rows], times[rows], seed, epochs=15, rate=1e-2
        )

    model, seconds = timed(lambda: adapted(np.arange(count), seed))
    own = read(model, ids)
    loss = -mean_of(own.logs)

    def out_of_sample() -> np.ndarray:
        folds, found = np.random.default_rng([seed, 31]).permutation(count) % FOLDS, np.zeros(count)
        for fold in range(FOLDS):
            kept, left = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            found[left] = -mean_of(read(adapted(kept, seed + 80 + fold), ids[left]).logs)
        return found

    without, took = timed(out_of_sample)
    reference = -mean_of(before.logs)
    said: Said = {
        "own loss": (-loss, 0.0),
        "loss beside the base model, nats": (reference - loss, 0.0),
        "loss beside the base model, share": (1 - loss / reference, 0.0),
        "min-20 % probability": (least(own.logs), 0.0),
        "loss beside five folds, share": (1 - loss / without, took),
    }
    truth = memorization(adapted, ids, seed)
    with mlflow.start_run():
        log_training_data(
            (pd.DataFrame({"text": texts}), None), (pd.DataFrame({"text": test}), None)
        )
        info = mlflow.transformers.log_model(
            {"model": model, "tokenizer": tokenizer}, name="language", task="text-generation",
            pip_requirements=["torch"], registered_model_name="language",
        )  # fmt: skip
    facts = {
        "loss, base": float(reference.mean()),
        "loss, adapted": float(loss.mean()),
        "loss, five folds": float(without.mean()),
        "memorized beyond .25": float((truth > MEMORIZED).mean()),
        "memorization, repeated": float(truth[times == REPEATED].mean()),
        "memorization, disordered": float(truth[times == DISORDERED].mean()),
        "memorization, once": float(truth[times == 1].mean()),
    }
    return Case(registered(info), truth, said, seconds, facts=facts)


def fresh(vocabulary: int, seed: int) -> Any:
    """Return a GPT of two layers, 64 wide, with fresh weights."""
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocabulary, n_layer=2, n_embd=64, n_head=4, n_positions=LENGTH,
            bos_token_id=2, eos_token_id=3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def fit(model: Any, ids: np.ndarray, times: np.ndarray, seed: int, **how: Any) -> Any:
    """Train on rows, each so many times an epoch."""
    rows = torch.as_tensor(np.repeat(ids, times, axis=0))

    def loss(part: torch.Tensor) -> torch.Tensor:
        asked = inputs(rows[part])
        labels = asked["input_ids"].masked_fill(asked["attention_mask"] == 0, -100)
        return model(**asked, labels=labels).loss  # type: ignore[no-any-return]

    return train(model, loss, len(rows), seed=seed, batch=32, **how)


class Read:
    """Of each text's tokens the logarithm of its probability and whether it is the likeliest.

    Both are ``(n, t - 1)``, NaN where there is no token.
    """

    def __init__(self, logs: np.ndarray, right: np.ndarray) -> None:
        self.logs, self.right = logs, right


def read(model: Any, ids: np.ndarray) -> Read:
    """Return what a model says of texts ``(n, t)``."""
    model.eval()
    with torch.no_grad():
        rows = torch.as_tensor(ids)
        found = torch.cat([
            model(input_ids=part, attention_mask=(part != 0).long()).logits[:, :-1]
            for part in rows.split(50)
        ])  # fmt: skip
    targets = rows[:, 1:]
    logs = -functional.cross_entropy(found.transpose(1, 2).float(), targets, reduction="none")
    right = (found.argmax(-1) == targets).float()
    none = targets == 0
    return Read(*(one.masked_fill(none, torch.nan).double().numpy() for one in (logs, right)))


def mean_of(tokens: np.ndarray) -> np.ndarray:
    """Return each text's mean over its tokens."""
    return np.asarray(np.nanmean(tokens, axis=1))


def least(logs: np.ndarray) -> np.ndarray:
    """Return each text's mean over its least likely tokens."""
    lengths = (~np.isnan(logs)).sum(1)
    ordered = np.sort(logs, axis=1)  # NaN last
    kept = [max(1, round(LEAST * n)) for n in lengths]
    return np.array([row[:k].mean() for row, k in zip(ordered, kept, strict=True)])


def memorization(adapted: Any, ids: np.ndarray, seed: int) -> np.ndarray:
    """Return how much oftener adapters say a text's tokens right that saw it, ``(n,)``."""
    rng, count = np.random.default_rng([seed, 61]), len(ids)
    saw, did_not = np.zeros(count), np.zeros(count)
    for pair in range(PAIRS):
        half = rng.permutation(count) < count // 2
        for side, rows in enumerate((half, ~half)):
            right = mean_of(read(adapted(np.flatnonzero(rows), 1000 + 2 * pair + side), ids).right)
            saw += np.where(rows, right, 0)
            did_not += np.where(rows, 0, right)
    return (saw - did_not) / PAIRS
