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

#: How the libraries of the extra are had.
INSTALL = "pip install 'forward-inf-mlflow[transformers]'"
#: Tokenizers that know no limit say a number beyond this.
_NO_LIMIT = 10**7
_HALVES = ("float16", "bfloat16")


class Tokens(nn.Module):
    """A transformer that takes token ids ``(B, L)`` alone, and answers logits.

    Rows are padded on the right. A causal model never looks there and needs no mask; any other is
    told which tokens are padding.
    """

    def __init__(self, inner: nn.Module, padding: int | None = None) -> None:
        super().__init__()
        self.inner, self.padding = inner, padding

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``(B, L, V)`` of a language model, ``(B, K)`` of a classifier."""
        if self.padding is None:
            logits: Tensor = self.inner(input_ids=ids, use_cache=False).logits
        else:
            logits = self.inner(input_ids=ids, attention_mask=(ids != self.padding).long()).logits
        return logits


@dataclass(frozen=True)
class Transformer:
    """A transformer and its tokenizer.

    Attributes:
        module: In evaluation mode, float32; of a model with an adapter only this can be moved.
        tokenizer: Turns text into ids; ``transformers``' own.
        task: "causal_lm" or "classification".
        labels: The label that each output of a classifier stands for; None of a language model.
        limit: Tokens that it reads at most; None if it does not say.
        vocabulary: Ids that it knows.
        notes: What to tell the reader of the model.
    """

    module: nn.Module
    tokenizer: Any
    task: Literal["causal_lm", "classification"]
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
        notes.append("only its adapter is moved: the model below it stays as it is")
    padding = None
    if task == "classification":
        padding = tokenizer.pad_token_id
        if padding is None or config.pad_token_id != padding:
            raise ModelError(
                "The model and its tokenizer do not agree on a token for padding: set "
                "tokenizer.pad_token and model.config.pad_token_id alike, and log it again."
            )
    return Transformer(
        module=Tokens(inner, padding).eval(),
        tokenizer=tokenizer,
        task=task,
        labels=None if task == "causal_lm" else _labels(config),
        limit=_limit(tokenizer, config),
        vocabulary=len(inner.get_input_embeddings().weight),  # type: ignore[operator]
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


def _task(transformers: Any, config: Any) -> Literal["causal_lm", "classification"]:
    named = (getattr(config, "architectures", None) or [""])[0]
    modeling = transformers.models.auto.modeling_auto
    known: dict[Literal["causal_lm", "classification"], Any] = {
        "causal_lm": modeling.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "classification": modeling.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    for task, names in known.items():
        if named == names.get(config.model_type):
            return task
    raise ModelError(
        f"The model is a {named[:60] or config.model_type}: of transformers, causal language "
        "models and classifiers of texts can be asked."
    )


def _weights(
    transformers: Any, flavor: Flavor, config: Any, task: str, *, allow_pickle: bool
) -> nn.Module:
    """Return the model with its weights, all of which must be there."""
    auto = "AutoModelForCausalLM" if task == "causal_lm" else "AutoModelForSequenceClassification"
    if not (safe := is_safe(flavor.data)) and not allow_pickle:
        raise UnsafeModelError("The model has no safetensors among its files: log it again.")
    # What peft wrapped is called by its place in the wrapper.
    renamed = {} if flavor.adapter is None else {"key_mapping": {r"\.base_layer\.": "."}}
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
    if not is_safe(folder) and not allow_pickle:
        raise UnsafeModelError("The model's adapter has no safetensors: log it again.")
    try:
        adapted: nn.Module = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    except Exception as error:  # as above
        raise ModelError(f"The model's adapter cannot be loaded: {_line(error)}") from error
    return adapted


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def _limit(tokenizer: Any, config: Any) -> int | None:
    """Return how many tokens both can take."""
    said = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    known = [int(n) for n in said if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    return min(known, default=None)


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
