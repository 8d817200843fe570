"""The MLmodel file: what it says of a model, read as text and believed in nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from forward_inf_mlflow.errors import ModelError, UnsafeModelError
from forward_inf_mlflow.models.checkpoint import check_checkpoint

SUPPORTED = (
    "mlflow.pytorch and mlflow.transformers models and scikit-learn's LogisticRegression, "
    "SGDClassifier(loss='log_loss'), MLPClassifier, LinearRegression, Ridge, MLPRegressor, "
    "DecisionTree, RandomForest, ExtraTrees, GradientBoosting and HistGradientBoosting, alone or "
    "last in a Pipeline"
)
#: How any other model is audited.
FIXED_BY = "with training code of yours (forward-inf audit --trainer module:function)"
_PERMIT = "if you trust who made it, permit that with --allow-pickle"


@dataclass(frozen=True)
class Flavor:
    """How a model was saved.

    Attributes:
        kind: ``pt2``, ``pickle`` (torch), ``sklearn``, ``transformers`` or ``pyfunc``.
        folder: The model's own folder, the one with MLmodel in it.
        data: The file or folder inside it that holds the weights.
        serialization: For scikit-learn: ``skops``, ``pickle`` or ``cloudpickle``.
        code: Whether it brings Python files of its own.
        shape: The shape of its input ``(-1, ...)`` as its signature says; None if it does not.
        tokenizer: For transformers: the folder of its tokenizer; None if it was logged without.
        adapter: For transformers: the folder of its adapter (``peft``); None if it has none.
        metadata: What whoever logged the model wrote into it.
    """

    kind: str
    folder: Path
    data: Path
    serialization: str | None
    code: bool
    shape: tuple[int, ...] | None
    tokenizer: Path | None = None
    adapter: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


_FORMATS = ("skops", "pickle", "cloudpickle")


def read_flavor(folder: Path, *, allow_pickle: bool = False, fixed: bool = False) -> Flavor:
    """Read a model folder without loading anything from it.

    Args:
        folder: A downloaded model.
        allow_pickle: Permit formats that run code when they are loaded.
        fixed: Whether a model that cannot be moved will do: any ``pyfunc``.

    Raises:
        UnsafeModelError: Loading would run the model's own code, and that is not permitted.
        ModelError: MLmodel is missing, damaged, or speaks of a kind that is not supported.
    """
    content = _read(folder / "MLmodel")
    flavors = _mapping(content.get("flavors"), "flavors")
    settings = {name: _mapping(flavors[name], f"flavors.{name}") for name in flavors}
    script = any(conf.get("model_code_path") for conf in settings.values())
    if script and not (fixed and allow_pickle and "python_function" in settings):
        raise UnsafeModelError(
            "The model is a script that runs when it is loaded (models from code), which is not "
            "supported: log the trained model with the flavor of its library, such as "
            "mlflow.pytorch, or permit it with --allow-pickle and name a --trainer."
        )
    code = any(conf.get("code") for conf in settings.values())
    if code and not allow_pickle:
        raise UnsafeModelError(f"The model brings code of its own (code_paths): {_PERMIT}.")
    if "pytorch" in settings:
        data = _inside(folder, settings["pytorch"].get("model_data"), "model_data")
        kind, serialization = _torch_kind(data), None
        pickled = kind == "pickle"
    elif "sklearn" in settings:
        data = _inside(folder, settings["sklearn"].get("pickled_model"), "pickled_model")
        # MLflow itself reads a missing format as pickle.
        serialization = settings["sklearn"].get("serialization_format", "pickle")
        if not isinstance(serialization, str) or serialization not in _FORMATS:
            raise ModelError(
                f"MLmodel names an unknown serialization format: it must be one of {_FORMATS}."
            )
        kind, pickled = "sklearn", serialization != "skops"
    elif "transformers" in settings:
        return _transformers(folder, settings["transformers"], code=code, pickle=allow_pickle)
    elif "diffusers" in settings:
        raise ModelError(
            "This is an adapter of mlflow.diffusers, whose base model is not among its files, so "
            "that it cannot be asked: register the whole model, as save_pretrained of diffusers "
            "writes it."
        )
    elif fixed and "python_function" in settings:
        if not allow_pickle:
            raise UnsafeModelError(f"Loading a pyfunc model runs code of its own: {_PERMIT}.")
        return Flavor("pyfunc", folder, folder, None, code, None)
    else:
        found = ", ".join(sorted(map(str, settings))) or "nothing"
        raise ModelError(
            f"This model's flavors ({found[:100]}) are not supported, but {SUPPORTED}, and "
            f"any other {FIXED_BY}."
        )
    if pickled and not allow_pickle:
        raise UnsafeModelError(
            f"The model is pickled, and loading a pickle runs code: save it as pt2 or skops (the "
            f"defaults of MLflow 3), or {_PERMIT}."
        )
    said = content.get("metadata")
    metadata: dict[str, Any] = said if isinstance(said, dict) else {}
    shape = _shape(content.get("signature"))
    return Flavor(kind, folder, data, serialization, code, shape, metadata=metadata)


def _transformers(folder: Path, settings: dict[str, Any], *, code: bool, pickle: bool) -> Flavor:
    """Return a transformers model's flavor once its files hold weights and words alone."""
    if settings.get("model_binary") is None:
        raise ModelError(
            "The model's weights are not among its files (save_pretrained=False or "
            "base_model_path): log it with its weights."
        )
    parts = [_inside(folder, settings["model_binary"], "model_binary"), None, None]
    components = settings.get("components")
    if isinstance(components, list) and "tokenizer" in components:
        parts[1] = _inside(folder, "components/tokenizer", "tokenizer")
    if settings.get("peft_adaptor") is not None:
        parts[2] = _inside(folder, settings["peft_adaptor"], "peft_adaptor")
    for part in parts:
        if part is not None:
            check_checkpoint(part, allow_pickle=pickle)
    return Flavor("transformers", folder, parts[0], None, code, None, parts[1], parts[2])  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, Any]:
    try:
        return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), "the file")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise ModelError(
            f"The version's MLmodel file cannot be read ({type(error).__name__}): log it again."
        ) from error


def _mapping(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelError(f"MLmodel is damaged: {name} is not a mapping; log the model again.")
    return value


def _inside(folder: Path, name: object, key: str) -> Path:
    """Return the path ``name`` below ``folder``; links and ``..`` may not lead out of it."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ModelError(f"MLmodel is damaged: {key} is not a path; log the model again.")
    try:
        path = (folder / name).resolve()
        path.exists()
    except (OSError, ValueError) as error:  # too long, or no text that a file system takes
        raise ModelError(f"MLmodel is damaged: {key} is not a path; log it again.") from error
    if not path.is_relative_to(folder.resolve()):
        raise ModelError(f"MLmodel's {key} leads out of the model's folder: do not use this model.")
    if not path.exists():
        raise ModelError(f"The model's {key} is not among its files: log the model again.")
    return path


def _torch_kind(data: Path) -> str:
    # In the order in which mlflow.pytorch looks: with both files there, it unpickles.
    if data.is_dir() and (data / "model.pth").exists():
        return "pickle"
    if (data / "model.pt2").is_file():
        _inside(data, "model.pt2", "model_data")
        return "pt2"
    if data.is_file():
        return "pickle"
    raise ModelError("The model has neither model.pt2 nor model.pth: log it again.")


def _shape(signature: object) -> tuple[int, ...] | None:
    """Return the shape of a signature's only input if it is a tensor; a hint, so never an error."""
    try:
        (entry,) = json.loads(signature["inputs"])  # type: ignore[index]
        shape = entry["tensor-spec"]["shape"]
    except (TypeError, KeyError, ValueError, RecursionError):
        return None
    whole = isinstance(shape, list) and len(shape) > 1 and all(type(d) is int for d in shape)
    return tuple(shape) if whole else None
