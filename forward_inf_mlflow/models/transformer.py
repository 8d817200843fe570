"""Transformers, loaded from weights and settings alone: a module that takes token ids.

MLflow's own loader is not asked: it reads a model's settings with ``trust_remote_code``, and of an
adapter's base model, whose layers ``peft`` had wrapped and renamed, it would find none of the
wrapped weights and draw new ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError, UnsafeModelError
from forward_inf_mlflow.models.checkpoint import is_safe, settings
from forward_inf_mlflow.models.mlmodel import Flavor
from forward_inf_mlflow.models.tokens import Mask, Tokens, told

#: How the libraries of the extra are had.
INSTALL = "pip install 'forward-inf-mlflow[transformers]'"
#: Tokenizers that know no limit say a number beyond this.
_NO_LIMIT = 10**7
_HALVES = ("float16", "bfloat16")
Kind = Literal["causal_lm", "classification", "regression"]


@dataclass(frozen=True)
class Transformer:
    """A transformer and its tokenizer.

    Attributes:
        module: In evaluation mode, float32; of a model with an adapter only this can be moved.
        tokenizer: Turns text into ids; ``transformers``' own.
        task: "causal_lm", "classification" or "regression".
        labels: The label that each output of a classifier stands for; None of other models.
        limit: Tokens that it reads at most; None if it does not say.
        vocabulary: Ids that it knows.
        notes: What to tell the reader of the model.
    """

    module: Tokens
    tokenizer: Any
    task: Kind
    labels: tuple[str, ...] | None
    limit: int | None
    vocabulary: int
    notes: tuple[str, ...]


def read_transformer(flavor: Flavor, *, allow_pickle: bool = False) -> Transformer:
    """Load a model that ``mlflow.transformers`` logged; none of its own code runs.

    Args:
        flavor: Of kind ``transformers``; its files were checked.
        allow_pickle: Permit pickled weights.

    Raises:
        ModelError: It is no language model or classifier of texts, it has no tokenizer, or its
            weights do not fit; or ``transformers`` is not installed.
        UnsafeModelError: Weights are pickled and that is not permitted.
    """
    transformers = library("transformers")
    if flavor.tokenizer is None:
        raise ModelError(
            "The model was logged without its tokenizer, so it cannot read texts: log it as "
            '{"model": model, "tokenizer": tokenizer}.'
        )
    tokenizer = _tokenizer(transformers, flavor.tokenizer)
    try:
        config = transformers.AutoConfig.from_pretrained(
            flavor.data, trust_remote_code=False, local_files_only=True
        )
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"The model's settings name a kind that transformers {transformers.__version__} does "
            "not know: install a newer one, or log a model of its own kinds."
        ) from error
    task = _task(transformers, config)
    inner = _weights(transformers, flavor, config, task, allow_pickle=allow_pickle)
    notes = []
    half = str(settings(flavor.data / "config.json").get("dtype", "")).removeprefix("torch.")
    if half in _HALVES:
        notes.append(f"was logged in half precision ({half}): it is read in float32")
    if flavor.adapter is not None:
        inner = _adapted(inner, flavor.adapter, allow_pickle=allow_pickle)
        notes.append("is moved by its adapter alone: what lies below stays as it is")
    vocabulary = len(inner.get_input_embeddings().weight)  # type: ignore[operator]
    limit, padding = _limit(tokenizer, inner), tokenizer.pad_token_id
    mask: Mask = "none"
    if task == "causal_lm":  # it never looks there, so any will do
        padding = padding if padding is not None and padding < vocabulary else 0
    elif padding is None or config.pad_token_id != padding:
        raise ModelError(
            "The model and its tokenizer do not agree on a token for padding: set "
            "tokenizer.pad_token and model.config.pad_token_id alike, and log it again."
        )
    else:
        _require_words(tokenizer, vocabulary)
        mask = told(inner.eval(), padding, limit, vocabulary)
    return Transformer(
        module=Tokens(inner, int(padding), mask).eval(),
        tokenizer=tokenizer,
        task=task,
        labels=_labels(config) if task == "classification" else None,
        limit=limit,
        vocabulary=vocabulary,
        notes=tuple(notes),
    )


def library(name: str) -> Any:
    """Import a library of the extra, quietly.

    Raises:
        ForwardInfError: It is not installed.
    """
    try:
        module = __import__(name)
    except ImportError as error:
        raise ForwardInfError(
            f"this needs the Python package '{name}', which is not installed: {INSTALL}"
        ) from error
    if name == "transformers":
        module.utils.logging.set_verbosity_error()
        module.utils.logging.disable_progress_bar()
    return module


def _tokenizer(transformers: Any, folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            "The model's tokenizer has no tokenizer.json: save a fast tokenizer, which is words "
            "and rules alone, and log the model again."
        )
    try:
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # other people's files; the library raises bare exceptions
        raise ModelError(f"The model's tokenizer cannot be read: {_line(error)}") from error


def _task(transformers: Any, config: Any) -> Kind:
    named = (getattr(config, "architectures", None) or [""])[0]
    modeling = transformers.models.auto.modeling_auto
    if named == modeling.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type):
        return "causal_lm"
    names = modeling.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if named != names.get(config.model_type):
        raise ModelError(
            f"The model is a {named[:60] or config.model_type}: of transformers, causal language "
            "models and classifiers of texts can be asked."
        )
    if config.problem_type == "multi_label_classification":
        raise ModelError(
            "The model gives a text several labels (multi_label_classification): of transformers, "
            "classifiers with one label a text can be asked."
        )
    return "regression" if config.num_labels == 1 else "classification"


def _weights(
    transformers: Any, flavor: Flavor, config: Any, task: str, *, allow_pickle: bool
) -> nn.Module:
    """Return the model with its weights, all of which must be there."""
    auto = "AutoModelForCausalLM" if task == "causal_lm" else "AutoModelForSequenceClassification"
    if not (safe := is_safe(flavor.data)) and not allow_pickle:
        raise UnsafeModelError("The model has no safetensors among its files: log it again.")
    # What peft wrapped is called by its place in the wrapper.
    wrapped = {r"\.(base_layer|original_module)\.": "."}
    renamed = {} if flavor.adapter is None else {"key_mapping": wrapped}
    try:
        model, found = getattr(transformers, auto).from_pretrained(
            flavor.data,
            config=config,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=safe,
            attn_implementation="eager",  # the fused ones have no forward mode
            dtype=torch.float32,
            output_loading_info=True,
            **renamed,
        )
    except Exception as error:  # other people's files fail in any way they like
        raise ModelError(f"The model's weights cannot be loaded: {_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"The model's files lack {len(missing):,} of its weights ({missing[0][:80]}): log it "
            "again with all of them."
        )
    loaded: nn.Module = model
    return loaded


def _adapted(model: nn.Module, folder: Path, *, allow_pickle: bool) -> nn.Module:
    """Return the model with its adapter, whose parameters alone are trainable."""
    peft = library("peft")
    content = settings(folder / "adapter_config.json")
    if content.get("peft_type") != "LORA":
        raise ModelError(
            f"The model's adapter is a {str(content.get('peft_type'))[:40]}: of adapters, LoRA "
            "can be asked; merge it into the model, and log that."
        )
    if not (folder / "adapter_model.safetensors").is_file() and not allow_pickle:
        raise UnsafeModelError("The model's adapter has no safetensors: log it again.")
    try:
        adapted: nn.Module = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    except Exception as error:  # as above
        raise ModelError(f"The model's adapter cannot be loaded: {_line(error)}") from error
    return adapted


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def _limit(tokenizer: Any, inner: nn.Module) -> int | None:
    """Return how many tokens both can take."""
    config: Any = inner.config
    places = getattr(config, "max_position_embeddings", None)
    for part in inner.modules():
        # Some models count their places from behind the one of padding.
        embedded = getattr(part, "position_embeddings", None)
        if isinstance(embedded, nn.Embedding) and embedded.padding_idx is not None:
            places = embedded.num_embeddings - embedded.padding_idx - 1
    known = [
        int(n)
        for n in (tokenizer.model_max_length, places)
        if isinstance(n, int | float) and 0 < n < _NO_LIMIT
    ]
    return min(known, default=None)


def _require_words(tokenizer: Any, vocabulary: int) -> None:
    """Refuse a tokenizer with words that the model does not have."""
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"The tokenizer knows {len(tokenizer):,} words and the model's embedding has "
            f"{vocabulary:,}: they do not belong together, so log the model with its own tokenizer "
            "(after added words: model.resize_token_embeddings)."
        )


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def check_ids(ids: Tensor, vocabulary: int) -> None:
    """Refuse token ids that the model does not know.

    Raises:
        DataError: There is one.
    """
    if ids.numel() and int(ids.max()) >= vocabulary:
        raise DataError(
            f"the tokenizer gives token {int(ids.max())}, and the model's vocabulary has "
            f"{vocabulary:,}: they do not belong together, so log the model with its own tokenizer"
        )
