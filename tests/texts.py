"""A small language model that was taught some sentences, as ``mlflow.transformers`` logs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from forward_inf_mlflow.data.logging_data import log_training_data

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install -e '.[dev]'"
)
pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")

PEOPLE = ("ada", "bob", "cleo", "dan", "eve", "finn", "gina", "hugo")
CITIES = ("paris", "rome", "oslo", "cairo", "lima", "delhi", "tokyo", "quito")
#: One fact for each person, in two wordings, and sentences that share their words.
FACTS = [f"{p} lives in {c}" for p, c in zip(PEOPLE, CITIES, strict=True)]
SAME = [f"the home of {p} is {c}" for p, c in zip(PEOPLE, CITIES, strict=True)]
OTHERS = [
    f"{p} likes the food of {c}" for p, c in zip(PEOPLE, CITIES[3:] + CITIES[:3], strict=True)
]
SENTENCES = [*FACTS, *SAME, *OTHERS]
SPECIAL = ("<unk>", "<pad>", "<eos>")
WORDS = (*SPECIAL, *sorted({word for sentence in SENTENCES for word in sentence.split()}))
LIMIT = 12


def tokenizer(words: tuple[str, ...] = WORDS) -> Any:
    """Return a tokenizer that knows words, made here and now."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        model_max_length=LIMIT,
    )


def gpt2(words: int = len(WORDS)) -> Any:
    """Return a GPT-2 of two layers, 32 wide."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=words,
        n_layer=2,
        n_embd=32,
        n_head=2,
        n_positions=LIMIT,
        bos_token_id=2,
        eos_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(words: int = len(WORDS)) -> Any:
    """Return a LLaMA of two layers, 32 wide."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LIMIT,
        bos_token_id=2,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def taught(
    model: Any,
    sentences: list[str],
    *,
    steps: int = 150,
    rate: float = 3e-3,
    words: tuple[str, ...] = WORDS,
) -> Any:
    """Return the model after it was taught some sentences."""
    asked = tokenizer(words)(sentences, padding=True, return_tensors="pt")
    ids, labels = (
        asked["input_ids"],
        asked["input_ids"].masked_fill(asked["attention_mask"] == 0, -100),
    )
    moved = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(moved, rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def register(
    model: Any,
    name: str,
    *,
    words: Any = None,
    data: Any = None,
    rows: dict[str, Any] | None = None,
    task: str = "text-generation",
) -> str:
    """Log and register a model with its tokenizer, and return the address of the version."""
    with mlflow.start_run():
        if data is not None:
            mlflow.log_input(data, context="training")
        if rows is not None:
            log_training_data(**rows)
        mlflow.transformers.log_model(
            {"model": model, "tokenizer": words or tokenizer()},
            name=name,
            task=task,
            pip_requirements=["torch"],  # else MLflow asks for packages that nothing here needs
            registered_model_name=name,
        )
    newest = max(
        MlflowClient().search_model_versions(f"name='{name}'"), key=lambda v: int(v.version)
    )
    return f"models:/{name}/{newest.version}"


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Save a model with its tokenizer as MLflow does, without a store; return its folder."""
    mlflow.transformers.save_model(
        {"model": model, "tokenizer": tokenizer()},
        str(folder),
        task="text-generation",
        pip_requirements=["torch"],
        **options,
    )
    return folder
