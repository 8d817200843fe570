"""Denoisers: diffusion models as modules that take noisy images, times and perhaps labels.

Two kinds are read: a torch module that ``mlflow.pytorch`` logged, whose ``MLmodel`` may say its
noise schedule, and the folder that ``save_pretrained`` of ``diffusers`` writes, registered as it
is. The latter's weights are read from safetensors and its settings from JSON; no pipeline runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.models.checkpoint import check_checkpoint, settings
from forward_inf_mlflow.models.features import before_last
from forward_inf_mlflow.models.modes import (
    in_training,
    is_exported,
    require_deterministic,
    set_training,
    widen,
)
from forward_inf_mlflow.models.noise_schedule import KEY, Schedule, read_schedule

#: How the libraries of the extra are had.
INSTALL = "pip install 'forward-inf-mlflow[diffusion]'"
#: What ``save_pretrained`` of a pipeline, and of a model, writes.
PIPELINE, CONFIG = "model_index.json", "config.json"
_UNET, _SCHEDULER, _WEIGHTS = "unet", "scheduler", "diffusion_pytorch_model.safetensors"
_KIND = "UNet2DModel"
_HALVES = (torch.float16, torch.bfloat16)
_TRAINED = "was logged in train mode, where it is random: it was switched to evaluation"


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model that can be moved and read.

    Attributes:
        module: In evaluation mode, float32; ``(x (B, ...), t (B,))`` and, if it is conditional,
            ``y (B,)``, to an answer like x.
        kind: "pt2", "pickle" or "diffusers".
        shape: Of one image as it takes it, None for a size that varies; None if nobody knows.
        conditional: Whether it takes y.
        classes: How many labels it knows; None if it does not say.
        schedule: Under which it was trained; None if the version does not say, an error if what it
            says cannot be read.
        max_batch: Rows that it takes at once; None for any number.
        features: From its inputs to what its last layer sees, ``(B, h)``; None without one.
        notes: What to tell the reader of the model.
    """

    module: nn.Module
    kind: str
    shape: tuple[int | None, ...] | None
    conditional: bool
    classes: int | None
    schedule: Schedule | ModelError | None
    max_batch: int | None
    features: Callable[..., Tensor] | None
    notes: tuple[str, ...]


class _Typed(nn.Module):
    """A loaded model that is given times, and labels, of the types that it was exported with."""

    def __init__(self, inner: nn.Module, types: tuple[torch.dtype, ...]) -> None:
        super().__init__()
        self.inner, self.types = inner, types

    def forward(self, *inputs: Tensor) -> object:
        """Return what the model answers."""
        return self.inner(*_typed(inputs, self.types))


def _typed(inputs: tuple[Tensor, ...], types: tuple[torch.dtype, ...]) -> list[Tensor]:
    return [one.to(kind) for one, kind in zip(inputs, types, strict=True)]


class _Labelled(nn.Module):
    """A UNet of ``diffusers``, given its labels by place."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> object:
        """Return the noise ``(B, C, H, W)``."""
        return self.unet(x, t, class_labels=y).sample


def audited_denoiser(loaded: Any, *, kind: str, schedule: Schedule | ModelError | None) -> Denoiser:
    """Make a loaded torch model fit to be moved and read as a denoiser.

    Args:
        loaded: What ``mlflow.pytorch.load_model`` returned; it is changed.
        kind: "pt2" or "pickle".
        schedule: What the version says of it.

    Raises:
        ModelError: It does not take images, times and perhaps labels, or cannot be differentiated.
    """
    if not isinstance(loaded, nn.Module) or isinstance(loaded, torch.jit.ScriptModule):
        raise ModelError(
            f"The model is a {type(loaded).__name__}, not a torch.nn.Module: log it as pt2."
        )
    notes = [_TRAINED] if in_training(loaded) else []
    set_training(loaded, False)
    if (half := widen(loaded)) is not None:
        notes.append(f"was logged in half precision ({half}): it is read in float32")
    require_deterministic(loaded)
    parameters = [p for p in loaded.parameters() if p.is_floating_point()]
    if not parameters:
        raise ModelError("The model has no floating-point parameters, so nothing can be moved.")
    for parameter in parameters:
        parameter.requires_grad_(True)
    shape: tuple[int | None, ...] | None = None
    max_batch = None
    if is_exported(loaded):
        values = _placeholders(loaded)
        types = tuple(torch.float32 if v.dtype in _HALVES else v.dtype for v in values)
        shape = tuple(size if isinstance(size, int) else None for size in values[0].shape[1:])
        max_batch = _batch(values)
        if max_batch == 1:
            notes.append("was logged with a batch of 1 (static): images are read one at a time")
    else:
        types = (parameters[0].dtype, torch.int64, torch.int64)[: _positional(loaded)]
    seen = before_last(loaded)

    def features(*inputs: Tensor) -> Tensor:
        assert seen is not None  # else nobody is given this function
        return seen(*_typed(inputs, types))

    return Denoiser(
        module=_Typed(loaded, types),
        kind=kind,
        shape=shape,
        conditional=len(types) == 3,
        classes=None,
        schedule=schedule,
        max_batch=max_batch,
        features=None if seen is None else features,
        notes=tuple(notes),
    )


def _positional(module: nn.Module) -> int:
    """Return how many inputs a plain module needs."""
    wanted = [
        p
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    _require_inputs(len(wanted))
    return len(wanted)


def _require_inputs(count: int) -> None:
    if count not in (2, 3):
        raise ModelError(
            f"The model takes {count} input{'s' if count != 1 else ''}, and a diffusion model "
            "takes noisy images, times and perhaps labels: log one whose forward is (images, "
            "times) or (images, times, labels), or ask this one with forward-inf influence."
        )


def _placeholders(module: nn.Module) -> list[Tensor]:
    """Return the (fake) tensors that an exported graph was traced with."""
    assert isinstance(module, fx.GraphModule)
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    _require_inputs(len(values))
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) < len(values) or tensors[0].ndim < 2 or any(v.ndim != 1 for v in tensors[1:]):
        shapes = ", ".join(
            str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values
        )
        raise ModelError(
            f"The model's inputs are {shapes}: a diffusion model takes images (B, ...), times "
            "(B,) and perhaps labels (B,)."
        )
    return tensors


def _batch(values: list[Tensor]) -> int | None:
    sizes = {size for value in values if isinstance(size := value.shape[0], int)}
    if not sizes:
        return None
    if sizes != {1}:
        raise ModelError(
            f"The model was exported for batches of exactly {max(sizes)} rows: log it with an "
            "input example of two rows or more, and do not write the batch size into view or "
            "reshape."
        )
    return 1


def said_schedule(metadata: Mapping[str, Any]) -> Schedule | ModelError | None:
    """Return the schedule that a version's MLmodel file speaks of, or why it cannot be read.

    An error is raised only where nobody names another.
    """
    found = metadata.get(KEY)
    if found is None:
        return None
    if not isinstance(found, dict):
        return ModelError(
            f"the version's metadata {KEY!r} is no mapping: name a schedule with --schedule, or "
            "log the model again"
        )
    return _read(found, "the version's metadata")


def _read(content: Mapping[str, Any], said: str) -> Schedule | ModelError:
    try:
        return read_schedule(content, said)
    except ModelError as error:
        return error


def is_diffusers(folder: Path) -> bool:
    """Say whether a version's files are what ``save_pretrained`` of ``diffusers`` writes."""
    return not (folder / "MLmodel").exists() and (
        (folder / PIPELINE).is_file() or (folder / CONFIG).is_file()
    )


def read_diffusers(folder: Path) -> Denoiser:
    """Load the UNet of a folder that ``diffusers`` wrote, with its scheduler's schedule.

    Args:
        folder: A pipeline's (``unet/`` and ``scheduler/`` below it), or a UNet's own, beside which
            there may be a ``scheduler_config.json``.

    Raises:
        ModelError: It is no UNet2DModel, its files are damaged or missing, or ``diffusers`` is not
            installed.
        UnsafeModelError: Its weights are pickled only.
    """
    place = folder / _UNET if (folder / PIPELINE).is_file() else folder
    check_checkpoint(place)
    config = settings(place / CONFIG)
    if config.get("_class_name") != _KIND:
        raise ModelError(
            f"The model is a {str(config.get('_class_name'))[:60]!r}: of diffusers' models a "
            f"{_KIND}, which denoises images without a text, can be asked."
        )
    if not (place / _WEIGHTS).is_file():
        raise ModelError(
            f"The model's weights are not among its files ({_WEIGHTS}): save it with "
            "save_pretrained, in one file of safetensors."
        )
    unet = _unet(config, place / _WEIGHTS)
    half = widen(unet)
    notes = () if half is None else (f"was saved in half precision ({half}): read in float32",)
    classes = config.get("num_class_embeds")
    conditional = classes is not None or config.get("class_embed_type") is not None
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    module = _Labelled(unet).eval()
    return Denoiser(
        module=module,
        kind="diffusers",
        shape=(channels, *(s if isinstance(s, int) else None for s in sides)),
        conditional=conditional,
        classes=classes if isinstance(classes, int) else None,
        schedule=_scheduler(folder),
        max_batch=None,
        features=before_last(module),
        notes=notes,
    )


def _unet(config: Mapping[str, Any], weights: Path) -> nn.Module:
    try:
        diffusers: Any = import_module("diffusers")
        load_file = import_module("safetensors.torch").load_file
    except ImportError as error:
        raise ModelError(
            f"a model of diffusers needs the Python package '{error.name}': {INSTALL}"
        ) from error
    known = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    try:
        with torch.device("meta"):  # settings that lie about sizes take no memory
            unet: nn.Module = diffusers.UNet2DModel(
                **{name: value for name, value in config.items() if name in known}
            )
        unet.load_state_dict(load_file(weights), assign=True)
    except ForwardInfError:
        raise
    except Exception as error:  # other people's files fail in any way they like
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"The model's files do not make a {_KIND}: {reason}") from error
    return unet


def _scheduler(folder: Path) -> Schedule | ModelError | None:
    """Return the schedule of the scheduler that was saved with a model, if there is one."""
    for place in (folder / _SCHEDULER, folder, folder.parent / _SCHEDULER):
        file = place / "scheduler_config.json"
        if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
            return _read(settings(file), "the version's scheduler")
    return None
