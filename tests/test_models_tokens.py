"""Transformers as modules of token ids: padding, features, fresh weights, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from news import NAMES, WORDS, bert
from texts import LIMIT, gpt2, save, tokenizer, transformers
from torch.func import functional_call, grad, vmap

from forward_inf_mlflow.data.acceptance import accept
from forward_inf_mlflow.errors import DataError, ModelError
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.models.parity import check_parity
from forward_inf_mlflow.models.tokens import Tokens, bag_of_words, last_layer, told
from forward_inf_mlflow.preparation import prepare
from forward_inf_mlflow.registry import load_folder

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([[5, 6, 7, 8], [9, 5, 1, 1]])
TEXTS = pd.DataFrame({"text": ["goal1 word2 word3", "bond4", "goal2 " * 20, "word9 bond1"]})
HOST = torch.device("cpu")


def causal() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_layer=2, n_embd=16, n_head=2, n_positions=LIMIT, num_labels=3,
        pad_token_id=1, bos_token_id=2, eos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    return transformers.GPT2ForSequenceClassification(config).eval()


def bidirectional() -> Any:
    return bert(attn_implementation="eager").eval()


@pytest.mark.parametrize(("make", "mask"), [(causal, "tokens"), (bidirectional, "pairs")])
def test_padding_changes_no_row_and_rows_are_differentiated_alone(make: Any, mask: str) -> None:
    inner = make()
    found = told(inner, 1, LIMIT, 40)
    assert found == mask
    module = Tokens(inner, 1, found)
    alone = inner(input_ids=IDS[1:, :2]).logits
    torch.testing.assert_close(module(IDS)[1:], alone)
    theta = {name: p.detach() for name, p in module.named_parameters()}
    rows = vmap(
        grad(lambda p, row: functional_call(module, p, (row[None],)).logsumexp(-1).sum()),
        in_dims=(None, 0),
    )(theta, IDS)
    assert all(len(g) == 2 for g in rows.values())
    read = last_layer(module)
    assert read is not None
    assert read(IDS).shape == (2, 16)
    torch.testing.assert_close(read(IDS)[1:], read(IDS[1:, :2]))
    torch.testing.assert_close(bag_of_words(module)(IDS)[1:], bag_of_words(module)(IDS[1:, :2]))


def test_fresh_weights_are_those_of_the_library_and_follow_a_seed() -> None:
    module = Tokens(bidirectional(), 1, "pairs")
    before, state = module(IDS), torch.random.get_rng_state()
    module.renew(3)
    once = module(IDS)
    module.renew(3)
    torch.testing.assert_close(module(IDS), once)
    assert not torch.allclose(once, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    norm = module.inner.bert.encoder.layer[0].output.LayerNorm
    assert bool((norm.weight == 1).all() and (norm.bias == 0).all())


def saved(model: Any, folder: Path, words: Any = None) -> AuditedModel:
    mlflow.transformers.save_model(
        {"model": model, "tokenizer": words or tokenizer(WORDS)}, str(folder),
        task="text-classification", pip_requirements=["torch"],
    )  # fmt: skip
    return load_folder(folder)


def test_of_a_classifier_with_an_adapter_only_the_adapter_and_head_are_new(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = bert()
    adapted = get_peft_model(
        base, LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    expected = adapted.eval()(input_ids=IDS[:1]).logits
    model = saved(adapted, tmp_path / "model")
    torch.testing.assert_close(model.module(IDS[:1]), expected)
    assert check_parity(model, TEXTS) < 1e-5
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    moved = {name for name, p in model.module.named_parameters() if p.requires_grad}
    assert moved
    assert all("lora_" in name or "classifier" in name for name in moved)
    model.module.renew(0)
    for name, p in model.module.named_parameters():
        assert torch.equal(p, before[name]) == (name not in moved), name
        assert "lora_B" not in name or bool((p == 0).all())  # it changes nothing yet


def test_texts_are_cut_counted_and_end_as_the_tokenizer_ends_them(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    words = tokenizer(WORDS)
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", 2)]
    )
    model = saved(bert(), tmp_path / "model", words)
    ids = model.prepare(TEXTS)
    assert ids.shape == (4, LIMIT)
    assert ids[2].tolist() == [2, *[WORDS.index("goal2")] * (LIMIT - 2), 2]
    assert ids[1, :4].tolist() == [2, WORDS.index("bond4"), 2, 1]
    assert model.cut is not None
    assert model.cut(TEXTS) == 1
    assert check_parity(model, TEXTS) < 1e-5


def test_numbers_of_a_text_are_a_regression(tmp_path: Path) -> None:
    config = {"num_labels": 1, "id2label": {0: "price"}, "label2id": {"price": 0}}
    model = saved(bert(**config), tmp_path / "model")
    rows = accept(TEXTS, np.arange(4) / 2, uri="x")
    problem = prepare(model, rows, rows, task="auto", device=HOST, batch_size=None)
    assert problem.task.name == "regression"
    assert problem.train.inputs.shape == (4, LIMIT)


def test_labels_are_names_or_positions(tmp_path: Path) -> None:
    model = saved(bert(), tmp_path / "model")
    for labels, classes in (
        (NAMES[[1, 0, 1, 0]], NAMES.tolist()),
        (np.array([1, 0, 1, 0]), [0, 1]),
        (np.array(["1", "0", "1", "0"]), [0, 1]),
    ):
        rows = accept(TEXTS, labels, uri="x")
        problem = prepare(model, rows, rows, task="auto", device=HOST, batch_size=None)
        assert problem.train.targets.tolist() == [1, 0, 1, 0]
        assert problem.classes is not None
        assert problem.classes.tolist() == classes
        assert problem.texts is not None
        assert problem.compared[0].tolist() == TEXTS["text"].tolist()
        assert "1 training texts and 1 query texts were cut" in problem.notes[-1]


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"knows 143 words and .* embedding has 50: .*own"):
        saved(bert(vocab_size=50), tmp_path / "model")


def test_several_labels_a_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="multi_label_classification"):
        saved(bert(problem_type="multi_label_classification"), tmp_path / "model")


def test_a_classifier_takes_no_pairs_of_texts(tmp_path: Path) -> None:
    model = saved(bert(), tmp_path / "model")
    pairs = pd.DataFrame({"prompt": ["a", "b"], "completion": ["c", "d"]})
    with pytest.raises(DataError, match="takes one text a row"):
        model.prepare(pairs)
    with pytest.raises(DataError, match="these rows are numbers"):
        model.prepare(np.zeros((2, 3)))


def test_padding_of_a_language_model_may_be_a_word_that_it_does_not_have(tmp_path: Path) -> None:
    model = gpt2(3)  # knows the special tokens alone: the padding's id is fine, words' are not
    found = load_folder(save(model, tmp_path / "model"))
    assert found.module.padding == 1
    with pytest.raises(DataError, match="the model's vocabulary has 3"):
        found.prepare(pd.DataFrame({"text": ["ada lives in paris"]}))
