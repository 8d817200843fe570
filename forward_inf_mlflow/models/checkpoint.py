"""Checkpoints of transformers: what their files are, read before any library opens them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forward_inf_mlflow.errors import ModelError, UnsafeModelError

#: Weights that are pickles.
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: Files of weights that libraries choose by name before any other, and the index of several.
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "diffusion_pytorch_model.safetensors")
_INDEX = ".safetensors.index.json"
#: Settings that make a library import what a model's author wrote or named, and what they do.
_IMPORTS = {
    "auto_map": "names Python code of its own, which is never run here",
    "custom_pipelines": "names Python code of its own, which is never run here",
    "quantization_config": "is quantized, and no influence can be measured through that",
    "megatron_config": "names a module to import (megatron), which is never done here",
}
#: The largest number of anything in a model: positions, words, a rank.
_MOST = 2**24
#: The largest file of settings that is read; those of real models take some kilobytes.
_LARGEST = 16 * 2**20


def check_checkpoint(folder: Path, *, allow_pickle: bool = False) -> None:
    """Refuse a folder of weights, a tokenizer's or an adapter's, whose loading would run code.

    Args:
        folder: What ``save_pretrained`` wrote.
        allow_pickle: Permit weights that are pickled.

    Raises:
        UnsafeModelError: Weights are pickled, or settings name code.
        ModelError: A file of settings cannot be read, or the model is quantized.
    """
    if not folder.is_dir():
        raise ModelError("The model's files are not a folder that transformers wrote: log it again")
    for file in sorted(folder.glob("*config.json")):
        content = settings(file)
        _require_sizes(file.name, content)
        for name, what in _IMPORTS.items():
            if content.get(name):
                kind = ModelError if name == "quantization_config" else UnsafeModelError
                raise kind(
                    f"The model's {file.name} {what} ({name}): log a model that transformers "
                    "knows, in full precision."
                )
    _require_inside(folder)
    files = [file.name for file in folder.iterdir()]
    pickled = sorted(name for name in files if name.lower().endswith(_PICKLED))
    if pickled and not is_safe(folder) and not allow_pickle:
        raise UnsafeModelError(
            f"The model's weights are pickled ({pickled[0][:60]}), and loading a pickle runs code: "
            "save them as safetensors (the default of transformers), or, if you trust who made "
            "it, permit that with --allow-pickle."
        )


def _require_sizes(name: str, content: dict[str, Any]) -> None:
    """Refuse sizes that no model has, before a library makes room for them."""
    if name not in ("config.json", "adapter_config.json"):
        return  # a tokenizer's may say that nothing limits it
    for key, value in content.items():
        if isinstance(value, int) and value > _MOST and "theta" not in key:
            raise ModelError(
                f"The model's {name} says that {key[:60]} is {value:.3g}, which no model has: log "
                "it again."
            )


def _require_inside(folder: Path) -> None:
    """Refuse an index of weights that leads out of the folder, or to a pickle.

    What lies elsewhere is no part of the version: its digest would stay when these are replaced.
    """
    for file in sorted(folder.glob("*.index.json")):
        named = settings(file).get("weight_map")
        parts = named.values() if isinstance(named, dict) else [None]
        for part in parts:
            if (
                not isinstance(part, str)
                or Path(part).name != part
                or "\\" in part
                or not part.endswith(".safetensors")
                or not (folder / part).is_file()
            ):
                raise UnsafeModelError(
                    f"The model's {file.name[:60]} names weights ({str(part)[:60]!r}) that are no "
                    "safetensors file beside it: save the model again."
                )


def settings(file: Path) -> dict[str, Any]:
    """Return what a JSON file of settings says.

    Raises:
        ModelError: It cannot be read, or holds something else.
    """
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError("too large")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"The model's {file.name} cannot be read ({type(error).__name__}): log it again."
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"The model's {file.name} holds no settings: log the model again.")
    return content


def is_safe(folder: Path) -> bool:
    """Say whether a checkpoint's weights are safetensors, by the names that libraries look for."""
    return any((folder / name).is_file() for name in _WEIGHTS) or any(folder.glob(f"*{_INDEX}"))
