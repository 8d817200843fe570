"""Texts as tokens: what is learned, what is asked, what is cut, and where it stood."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from texts import LIMIT, WORDS, tokenizer
from torch import nn

from forward_inf_mlflow.data.acceptance import accept
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.language.completion import words_that_matter
from forward_inf_mlflow.language.wording import Worded, joined, word_query, word_training
from forward_inf_mlflow.models.tokens import Tokens
from forward_inf_mlflow.models.transformer import Transformer
from forward_inf_mlflow.tasks.causal_lm import IGNORED

HOST = torch.device("cpu")


def model(*, ends: bool = False) -> Transformer:
    words = tokenizer()
    if ends:  # as many tokenizers do of their own
        from tokenizers.processors import TemplateProcessing

        words.backend_tokenizer.post_processor = TemplateProcessing(
            single="<eos> $A <eos>", special_tokens=[("<eos>", 2)]
        )
    return Transformer(Tokens(nn.Identity(), 1), words, "causal_lm", None, LIMIT, len(WORDS), ())


def words(ids: torch.Tensor) -> list[str]:
    return [WORDS[i] for i in ids.tolist() if i != IGNORED]


def training(texts: dict[str, list[str]], *, ends: bool = False) -> Worded:
    n = len(texts["text"])
    rows = accept(pd.DataFrame(texts), np.zeros(n, int), uri="x")
    return word_training(model(ends=ends), rows, device=HOST, batch_size=None)


def test_of_a_text_every_token_but_the_first_is_learned() -> None:
    found = training({"text": ["ada lives in paris", "bob likes food"]})
    assert [words(row) for row in found.rows.targets] == [
        ["lives", "in", "paris"],
        ["likes", "food"],
    ]
    assert words(found.rows.inputs[0]) == ["ada", "lives", "in"]
    assert found.spans[0] == [(4, 9), (10, 12), (13, 18)]
    assert found.rows.batch_size == 256


def test_what_a_tokenizer_adds_is_learned_with_a_text() -> None:
    found = training({"text": ["ada lives", "bob likes food"]}, ends=True)
    assert words(found.rows.targets[0]) == ["ada", "lives", "<eos>"]
    assert words(found.rows.inputs[0])[:3] == ["<eos>", "ada", "lives"]


def test_behind_a_prompt_only_the_rest_is_learned() -> None:
    pairs = {"prompt": ["ada lives in", ""], "text": ["paris", "bob likes food"]}
    found = training(pairs, ends=True)
    assert [words(row) for row in found.rows.targets] == [
        ["paris", "<eos>"],
        ["bob", "likes", "food", "<eos>"],
    ]


def test_long_texts_lose_their_end_and_are_counted() -> None:
    found = training({"text": [" ".join(["ada"] * LIMIT), " ".join(["bob"] * (LIMIT + 1)), "ada"]})
    assert (found.cut, found.short, found.kept.tolist()) == (1, 1, [0, 1])
    assert found.rows.inputs.shape == (2, LIMIT - 1)


def test_the_share_of_unknown_words_is_known() -> None:
    assert training({"text": ["ada xyz paris", "ada xyz xyz"]}).unknown == 0.75


def test_only_the_completion_is_asked() -> None:
    found = word_query(model(ends=True), "ada lives in", "paris", HOST)
    assert words(found.rows.targets[0]) == ["paris"]
    assert found.spans[0][3] == (13, 18)


def test_a_long_prompt_loses_its_beginning() -> None:
    found = word_query(model(), "bob " * 20 + "ada lives in", "paris", HOST)
    assert found.cut == 1
    assert words(found.rows.inputs[0])[-3:] == ["ada", "lives", "in"]
    assert found.rows.inputs.shape == (1, LIMIT - 1)
    assert words(found.rows.targets[0]) == ["paris"]


def test_texts_far_beyond_the_limit_are_cut_before_they_are_read() -> None:
    found = training({"text": ["ada " * 10_000, "bob likes"]})
    assert found.cut == 1
    asked = word_query(model(), "bob " * 10_000 + "ada lives in", "paris", HOST)
    assert words(asked.rows.targets[0]) == ["paris"]


@pytest.mark.parametrize(
    ("prompt", "completion", "whole"),
    [
        ("ada lives in", "paris", "ada lives in paris"),
        ("ada lives in ", "paris", "ada lives in paris"),
        ("ada lives in", " paris", "ada lives in paris"),
        ("ada", ", bob", "ada, bob"),
        ("", "paris", "paris"),
    ],
)
def test_a_blank_is_put_between_two_words(prompt: str, completion: str, whole: str) -> None:
    assert joined(prompt, completion) == whole


def test_tokens_of_another_vocabulary_are_refused() -> None:
    small = Transformer(Tokens(nn.Identity(), 1), tokenizer(), "causal_lm", None, LIMIT, 5, ())
    with pytest.raises(DataError, match="the model's vocabulary has 5"):
        word_query(small, "ada lives in", "paris", HOST)


def test_words_matter_by_their_share_of_the_most_important_one() -> None:
    text = "ada lives in paris"
    spans = [
        (3, 9),
        (9, 12),
        (12, 15),
        (15, 18),
    ]  # tokens that begin with their blank, a split word
    found = words_that_matter(text, spans, np.array([0.4, -1.0, 1.0, 0.5]))
    assert [text[a:b] for a, b in found] == ["lives", "paris"]
    assert words_that_matter(text, spans, np.zeros(4)) == []
