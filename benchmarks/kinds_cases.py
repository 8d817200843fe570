"""Rows and models of the kinds that kinds.py measures: labels that may be wrong.

Every case is a registered version with its logged rows, the truth about them, and what others say
of each row, the more suspicious the larger. Rows are arrays all through: texts are token ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
import transformers
from kinds_rivals import (
    Answers,
    Case,
    Rows,
    Said,
    label_quality,
    others,
    out_of_sample,
    registered,
    timed,
    train,
)
from PIL import Image
from rivals import HERE
from scipy import special
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer
from torch import nn
from torch.nn import functional

from forward_inf_mlflow import log_training_data
from forward_inf_mlflow.models.estimator import TRUSTED

DATA = Path(os.environ.get("BENCH_DATA", HERE.parents[1] / "shared" / "data"))
TEXTS = DATA / "noisy_agnews_5k.npz"
TOPICS = np.array(["World", "Sports", "Business", "Sci/Tech"])
#: Tokens that the classifier and its tokenizer know, and that it reads of a text.
VOCABULARY, LENGTH = 4000, 48
#: What a digit may be called, and the digits that are called so.
CALLED = {"even": (0, 2, 4, 6, 8), "above four": (5, 6, 7, 8, 9), "has a loop": (0, 6, 8, 9)}
#: Share of labels that are wrong: of each of several labels, and of classes.
FLIPPED, WRONG = 0.05, 0.1


# Transformers that classify texts.


def word_pieces(texts: list[str], vocabulary: int = VOCABULARY, length: int = LENGTH) -> Any:
    """Return a tokenizer of word pieces, trained on texts."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        texts, WordPieceTrainer(vocab_size=vocabulary, special_tokens=special_tokens)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=length,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip


def ids_of(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Return tokens ``(n, length)``, padded with zeros."""
    asked = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")
    return np.asarray(asked["input_ids"])


def bert(vocabulary: int, dropout: float) -> Any:
    """Return a BERT of one layer, 64 wide, with fresh weights."""
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=vocabulary, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=LENGTH, pad_token_id=0,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
            id2label=dict(enumerate(TOPICS.tolist())),
            label2id={name: i for i, name in enumerate(TOPICS.tolist())},
        )
    )  # fmt: skip


def inputs(ids: np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a transformer takes, cut to the longest of these texts."""
    rows = torch.as_tensor(ids)
    rows = rows[:, : max(1, int((rows != 0).sum(1).max()))]
    return {"input_ids": rows, "attention_mask": (rows != 0).long()}


def transformer(seed: int, *, memorised: bool, quick: bool) -> Case:
    """Return a BERT that was trained on news with people's labels."""
    count, asked = (200, 100) if quick else (1500, 600)
    with np.load(TEXTS, allow_pickle=False) as held:
        rng = np.random.default_rng([seed, 41])
        some = rng.choice(len(held["train_text"]), count, replace=False)
        queries = rng.choice(len(held["test_text"]), asked, replace=False)
        texts, test = held["train_text"][some].tolist(), held["test_text"][queries].tolist()
        labels = held["train_y_human"][some], held["train_y_clean"][some], held["test_y"][queries]
    tokenizer = word_pieces(texts)
    rows = Rows(ids_of(tokenizer, texts), *labels[:2], ids_of(tokenizer, test), labels[2])
    epochs, dropout = (10, 0.0) if memorised else (4, 0.1)

    def fitted(x: np.ndarray, y: np.ndarray, seed: int) -> Any:
        torch.manual_seed(seed)
        model, ids, given = bert(len(tokenizer), dropout), torch.as_tensor(x), torch.as_tensor(y)
        return train(
            model, lambda part: model(**inputs(ids[part]), labels=given[part]).loss, len(x),
            seed=seed, epochs=epochs, rate=3e-3, batch=32,
        )  # fmt: skip

    def read(model: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            parts = [inputs(part) for part in torch.as_tensor(x).split(250)]
            seen = torch.cat([model.bert(**part).pooler_output for part in parts])
            return special.softmax(model.classifier(seen).double().numpy(), axis=1), seen.numpy()

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Answers:
        model = fitted(x, y, seed)
        return lambda asked: read(model, asked)[0]

    model, seconds = timed(lambda: fitted(rows.x, rows.given, seed))
    own, features = read(model, rows.x)
    right = read(model, rows.query_x)[0].argmax(1) == rows.query_y
    with mlflow.start_run():
        log_training_data(
            (pd.DataFrame({"text": texts}), TOPICS[rows.given]),
            (pd.DataFrame({"text": test}), TOPICS[rows.query_y]),
        )
        info = mlflow.transformers.log_model(
            {"model": model, "tokenizer": tokenizer}, name="transformer",
            task="text-classification", pip_requirements=["torch"],
            registered_model_name="transformer",
        )  # fmt: skip
    facts = {"accuracy": float(right.mean()), "own": float((own.argmax(1) == rows.given).mean())}
    said = others(rows, own, features, fit, seed) | by_words(texts, test, rows, seed)
    return Case(registered(info), rows.wrong, said, seconds, facts=facts)


def by_words(texts: list[str], test: list[str], rows: Rows, seed: int) -> Said:
    """Return what cleanlab says by a linear model of the texts' words, without any transformer."""
    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, min_df=2), LogisticRegression(max_iter=1000)
    )

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Answers:
        return clone(model).fit(x, y).predict_proba  # type: ignore[no-any-return]

    words = replace(rows, x=np.array(texts), query_x=np.array(test))
    found = {}
    for more, where in ((False, ""), (True, ", queries in every fold")):
        p, seconds = timed(partial(out_of_sample, words, fit, seed, queries=more))
        scores = label_quality(p, rows.given)["self_confidence"]
        found[f"cleanlab by words{where}"] = -scores, seconds
    return found


# Several labels a row.


def digits(seed: int, *, quick: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return scikit-learn's digits: rows, queries, and the digits of both."""
    x, y = load_digits(return_X_y=True)
    if quick:
        x, y = x[:500], y[:500]
    return tuple(train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y))  # type: ignore[return-value]


def several_labels(seed: int, *, memorised: bool, quick: bool) -> Case:
    """Return a network that calls digits even, above four, and looped."""
    x, query_x, y, query_y = digits(seed, quick=quick)
    x, query_x = (some.astype(np.float32) / 16 for some in (x, query_x))
    clean, asked = (
        np.stack([np.isin(some, which) for which in CALLED.values()], 1).astype(np.float32)
        for some in (y, query_y)
    )
    rng, given = np.random.default_rng([seed, 43]), clean.copy()
    for label in range(given.shape[1]):
        flipped = rng.choice(len(given), round(FLIPPED * len(given)), replace=False)
        given[flipped, label] = 1 - given[flipped, label]
    rows = Rows(x, given, clean, query_x, asked)

    def fitted(x: np.ndarray, y: np.ndarray, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(CALLED)))
        rows, given = torch.as_tensor(x), torch.as_tensor(y)
        loss = functional.binary_cross_entropy_with_logits
        train(
            module,
            lambda part: loss(module(rows[part]), given[part]),
            len(x), seed=seed, epochs=150 if memorised else 20, rate=1e-2,
        )  # fmt: skip
        return module

    def say(module: nn.Module, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return special.expit(module(torch.as_tensor(x)).double().numpy())

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Answers:
        module = fitted(x, y, seed)
        return lambda asked: say(module, asked)

    module, seconds = timed(lambda: fitted(x, given, seed))
    own = say(module, x)
    with torch.no_grad():
        features = module[:-1](torch.as_tensor(x)).numpy()
    with mlflow.start_run():
        log_training_data(
            (x, pd.DataFrame(given.astype(int), columns=list(CALLED))),
            (query_x, pd.DataFrame(asked.astype(int), columns=list(CALLED))),
        )
        info = mlflow.pytorch.log_model(
            module, name="several", serialization_format="pt2", input_example=x[:2],
            pip_requirements=["torch"], registered_model_name="several",
        )  # fmt: skip
    right = (say(module, query_x) > 0.5) == asked
    facts = {
        "accuracy": float(right.mean()), "own": float(((own > 0.5) == given).mean())
    }  # fmt: skip
    return Case(
        registered(info), rows.wrong, others(rows, own, features, fit, seed), seconds, facts=facts
    )


# Models that no query can move: they are fitted anew.


def neighbours(x: np.ndarray, y: np.ndarray, seed: int) -> KNeighborsClassifier:
    """Train one; as an audit's trainer."""
    return KNeighborsClassifier().fit(x, y)


def kernel_machine(x: np.ndarray, y: np.ndarray, seed: int) -> SVC:
    """Train one; as an audit's trainer."""
    return SVC().fit(x, y)


def fitted_anew(seed: int, *, trainer: Callable[..., Any], quick: bool) -> Case:
    """Return an estimator on the digits as a table, a tenth of whose labels are wrong."""
    x, query_x, y, query_y = digits(seed, quick=quick)
    rng, given = np.random.default_rng([seed, 47]), y.copy()
    flipped = rng.choice(len(y), round(WRONG * len(y)), replace=False)
    given[flipped] = (y[flipped] + rng.integers(1, 10, len(flipped))) % 10
    rows = Rows(x, given, y, query_x, query_y)

    def say(model: Any, x: np.ndarray) -> np.ndarray:
        if hasattr(model, "predict_proba"):
            return np.asarray(model.predict_proba(x))
        return np.asarray(special.softmax(model.decision_function(x), axis=1))

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Answers:
        model = trainer(x, y, seed)
        return lambda asked: say(model, asked)

    model, seconds = timed(lambda: trainer(x, given, seed))
    with mlflow.start_run():
        log_training_data((x, given), (query_x, query_y))
        info = mlflow.sklearn.log_model(
            model, name="anew", pip_requirements=["scikit-learn"],
            registered_model_name="anew", skops_trusted_types=list(TRUSTED),
        )  # fmt: skip
    own = say(model, x)
    facts = {
        "accuracy": float((model.predict(query_x) == query_y).mean()),
        "own": float((own.argmax(1) == given).mean()),
    }
    return Case(
        registered(info), rows.wrong, others(rows, own, x, fit, seed), seconds,
        {"trainer": f"{__name__}:{trainer.__name__}"}, facts,
    )  # fmt: skip


# Pictures in folders.


def pictures(seed: int, folder: Path, *, quick: bool) -> tuple[str, dict[str, Path], np.ndarray]:
    """Return a network on pictures of digits, where its rows lie, and which are wrong.

    Returns:
        Of the version; "train" and "test", the folders, each with a file ``.npz`` beside it that
        holds the same rows in the folders' order; and by id which labels are wrong.
    """
    x, query_x, y, query_y = digits(seed, quick=quick)
    rng, given = np.random.default_rng([seed, 53]), y.copy()
    flipped = rng.choice(len(y), round(WRONG * len(y)), replace=False)
    given[flipped] = (y[flipped] + rng.integers(1, 10, len(flipped))) % 10
    where, wrong = {}, pd.Series(dtype=bool)
    for part, values, labels, truth in (
        ("train", x, given, y),
        ("test", query_x, query_y, query_y),
    ):
        pixels = (values.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
        ids = [f"{label}/{i:04}.png" for i, label in enumerate(labels)]
        where[part] = folder / part
        for name, picture in zip(ids, pixels, strict=True):
            (where[part] / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(where[part] / name)
        order = np.argsort(ids)
        rows = pixels[order, None].astype(np.float32) / 255
        np.savez(where[part].with_suffix(".npz"), x=rows, y=labels[order], ids=np.array(ids)[order])
        if part == "train":
            wrong = pd.Series((labels != truth)[order], np.array(ids)[order])
            inputs_, targets = torch.as_tensor(rows), torch.as_tensor(labels[order])
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    train(
        module, lambda part: functional.cross_entropy(module(inputs_[part]), targets[part]),
        len(inputs_), seed=seed, epochs=20, rate=1e-2,
    )  # fmt: skip
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(
            module, name="pictures", serialization_format="pt2",
            input_example=inputs_[:2].numpy(), pip_requirements=["torch"],
            registered_model_name="pictures",
        )  # fmt: skip
    return registered(info), where, wrong
