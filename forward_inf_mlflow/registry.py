"""The model registry: from ``models:/name/3`` to one version, and from a version to its model."""

from __future__ import annotations

import atexit
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.errors import ForwardInfError, ModelError, UnsafeModelError
from forward_inf_mlflow.mlflow_errors import (
    environment,
    impatient,
    is_missing,
    redact,
    translate_errors,
)
from forward_inf_mlflow.models.content import content_sha256
from forward_inf_mlflow.models.example import example_range
from forward_inf_mlflow.models.mlmodel import Flavor, read_flavor
from forward_inf_mlflow.verdicts.names import is_text

if TYPE_CHECKING:
    from forward_inf_mlflow.models.audited import AuditedModel
    from forward_inf_mlflow.models.denoiser import Denoiser
    from forward_inf_mlflow.models.transformer import Transformer

_NUMBERED = re.compile(r"models:/([^/]+)/0*([1-9][0-9]{0,17})")
_ALIASED = re.compile(r"models:/([^/@]+)@([^/@]+)")
_LOGGED = re.compile(r"models:/(m-[^/]+)")
_COPIES = 32  # a longer chain of copies is a loop or a joke


@dataclass(frozen=True)
class Version:
    """One registered model version, as the registry knew it when it was asked.

    Attributes:
        name: The registered model's name.
        version: The version's number, without leading zeros.
        creation_timestamp: Milliseconds since 1970; tells apart numbers that were used twice.
        source: Where it was registered from.
        run_id: The run that logged it, if it was logged in one.
        model_id: The logged model behind it (``m-...``), found through copies too; None for a
            version registered from plain files.
    """

    name: str
    version: str
    creation_timestamp: int
    source: str
    run_id: str | None
    model_id: str | None

    @property
    def uri(self) -> str:
        """The version's own address; unlike an alias it never points elsewhere."""
        return f"models:/{self.name}/{self.version}"


def resolve(model_uri: str) -> Version:
    """Find the version that ``models:/name/3`` or ``models:/name@alias`` stands for.

    Raises:
        ModelError: The address has another form, or there is no such model, version or alias.
        TrackingError: The server cannot be reached or refuses.
    """
    numbered = _NUMBERED.fullmatch(model_uri)
    aliased = _ALIASED.fullmatch(model_uri)
    if (numbered is None and aliased is None) or not is_text(model_uri):
        raise ModelError(
            f"{model_uri!r} is not a registered model version: write models:/NAME/3 or "
            "models:/NAME@ALIAS."
        )
    with translate_errors(), impatient():
        client = MlflowClient()
        try:
            if numbered is not None:
                found = client.get_model_version(*numbered.groups())
            else:
                assert aliased is not None  # one of the two matched
                found = client.get_model_version_by_alias(*aliased.groups())
        except MlflowException as error:
            # A store says "does not exist" for a model, "invalid parameter" for an alias.
            if not is_missing(error) and "alias" not in str(error.message).lower():
                raise
            raise _missing(client, model_uri, (numbered or aliased).group(1)) from None  # type: ignore[union-attr]
        if found.tags.get("mlflow.prompt.is_prompt", "").lower() == "true":
            raise ModelError(f"{model_uri!r} is a prompt, not a model: name a model version.")
        return Version(
            name=found.name,
            version=str(int(found.version)),
            creation_timestamp=int(found.creation_timestamp),
            source=found.source or "",
            run_id=found.run_id or None,
            model_id=model_id_of(client, found),
        )


def load(
    version: Version,
    *,
    allow_pickle: bool = False,
    fixed: bool = False,
    chosen_output: str | None = None,
    schedule: str | None = None,
    steps: int | None = None,
    pixels: str | None = None,
) -> AuditedModel:
    """Load a version as a module that can be moved, running none of its own code.

    Args:
        version: From `resolve`.
        allow_pickle: Permit pickled models and models that bring code: both run code on this
            machine with your rights.
        fixed: Whether one that cannot be moved will do, because somebody can train it anew.
        chosen_output: Which output of a module is meant that returns several: its key or position.
        schedule, steps: Of a diffusion model: its noise schedule, where the version does not say
            it; see `models.noise_schedule.chosen_schedule`.
        pixels: What the pixels 0 and 255 become for such a model.

    Raises:
        UnsafeModelError: Loading would run code of the model's own and nobody permitted it.
        ModelError: The files are missing, damaged, or of a kind that is not supported.
        TrackingError: The server cannot be reached or refuses.
    """
    with ExitStack() as stack:
        files = stack.enter_context(_downloaded(version))
        digest = content_sha256(files)  # before any code of the model's could change them
        loaded = load_folder(
            files,
            allow_pickle=allow_pickle,
            fixed=fixed,
            chosen_output=chosen_output,
            schedule=schedule,
            steps=steps,
            pixels=pixels,
        )
        model = replace(loaded, sha256=digest, example=example_range(files))
        if allow_pickle:  # code that came with the model may import more of itself later
            atexit.register(stack.pop_all().close)
        return model


def load_language_model(version: Version, *, allow_pickle: bool = False) -> Transformer:
    """Load a version as a causal language model with its tokenizer, running none of its own code.

    Args:
        version: From `resolve`.
        allow_pickle: Permit pickled weights.

    Raises:
        UnsafeModelError: Loading would run code of the model's own.
        ModelError: It is no language model that ``mlflow.transformers`` logged, or its files are
            missing or damaged.
        TrackingError: The server cannot be reached or refuses.
    """
    with _downloaded(version) as files:
        flavor = read_flavor(files, allow_pickle=allow_pickle)
        from forward_inf_mlflow.models.transformer import read_transformer

        if flavor.kind != "transformers":
            raise ModelError(
                "This is no language model: log it with mlflow.transformers and its tokenizer, or "
                "ask this one with forward-inf influence."
            )
        model = read_transformer(flavor, allow_pickle=allow_pickle)
    if model.task != "causal_lm":
        raise ModelError("This model classifies texts and writes none: ask forward-inf influence.")
    return model


def load_denoiser(version: Version, *, allow_pickle: bool = False) -> Denoiser:
    """Load a version as a diffusion model, running none of its own code.

    Args:
        version: From `resolve`.
        allow_pickle: Permit pickled models and models that bring code.

    Raises:
        UnsafeModelError: Loading would run code of the model's own and nobody permitted it.
        ModelError: It is no diffusion model of a kind that can be asked, or its files are missing
            or damaged.
        TrackingError: The server cannot be reached or refuses.
    """
    with ExitStack() as stack:
        files = stack.enter_context(_downloaded(version))
        found = _denoiser(files, allow_pickle=allow_pickle)
        if allow_pickle:  # code that came with the model may import more of itself later
            atexit.register(stack.pop_all().close)
        return found


def _denoiser(files: Path, *, allow_pickle: bool) -> Denoiser:
    """Return what a downloaded folder holds as a diffusion model; see `load_denoiser`."""
    from forward_inf_mlflow.models import denoiser

    if denoiser.is_diffusers(files):
        return denoiser.read_diffusers(files)
    flavor = read_flavor(files, allow_pickle=allow_pickle)
    if flavor.kind not in ("pt2", "pickle"):
        raise ModelError(
            "This is no diffusion model: log it with mlflow.pytorch, or register the folder "
            "that save_pretrained of diffusers writes; ask this one with forward-inf influence."
        )
    return denoiser.audited_denoiser(
        _loaded(flavor, allow_pickle=allow_pickle),
        kind=flavor.kind,
        schedule=denoiser.said_schedule(flavor.metadata),
    )


def content_of(version: Version) -> str:
    """Download a version's files and return their digest, `models.content.content_sha256`.

    Raises:
        ModelError: The files are missing, or are not ones that a model has.
        TrackingError: The server cannot be reached or refuses.
    """
    with _downloaded(version) as files:
        return content_sha256(files)


@contextmanager
def _downloaded(version: Version) -> Iterator[Path]:
    """Yield a folder with the version's files, which is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
        with translate_errors():
            files = mlflow.artifacts.download_artifacts(artifact_uri=version.uri, dst_path=folder)
        yield Path(files)


def load_folder(
    folder: Path,
    *,
    allow_pickle: bool = False,
    fixed: bool = False,
    chosen_output: str | None = None,
    schedule: str | None = None,
    steps: int | None = None,
    pixels: str | None = None,
) -> AuditedModel:
    """Load a downloaded model folder; see `load`.

    Raises:
        UnsafeModelError: Loading would run code of the model's own and nobody permitted it.
        ModelError: The files are missing, damaged, or of a kind that is not supported.
    """
    # Imported here: asking the registry about a version should not cost an import of torch.
    from forward_inf_mlflow.models import denoiser
    from forward_inf_mlflow.models.noise_schedule import KEY

    asked = schedule is not None or steps is not None
    flavor = None
    if not denoiser.is_diffusers(folder):
        flavor = read_flavor(folder, allow_pickle=allow_pickle, fixed=fixed)
    if flavor is None or asked or KEY in flavor.metadata:
        if chosen_output is not None:
            raise ModelError("A diffusion model has one output: leave --output out.")
        if fixed:
            raise ModelError(
                "A trainer trains on rows and labels, and a diffusion model's have none that it is "
                "to answer: leave --trainer out."
            )
        diffusion = _denoiser(folder, allow_pickle=allow_pickle)
        return _diffusion_model(diffusion, schedule, steps, pixels)
    from forward_inf_mlflow.models.chosen import one_of
    from forward_inf_mlflow.models.estimator import audited_estimator
    from forward_inf_mlflow.models.fixed import fixed_pyfunc
    from forward_inf_mlflow.models.torch_module import audited_module

    if chosen_output is not None and flavor.kind not in ("pt2", "pickle"):
        raise ModelError("This model has one output: leave --output out.")
    if flavor.kind == "transformers":
        from forward_inf_mlflow.models.text_model import audited_classifier
        from forward_inf_mlflow.models.transformer import read_transformer

        found = read_transformer(flavor, allow_pickle=allow_pickle)
        if found.task == "causal_lm":
            from forward_inf_mlflow.language.audited import audited_language_model

            return audited_language_model(found)
        return audited_classifier(found)
    loaded = _loaded(flavor, allow_pickle=allow_pickle)
    if flavor.kind == "sklearn":
        return audited_estimator(loaded, fixed=fixed)
    if flavor.kind == "pyfunc":
        return fixed_pyfunc(loaded)
    if chosen_output is not None:
        loaded = one_of(loaded, chosen_output)
    return audited_module(loaded, kind=flavor.kind, shape=flavor.shape)


def _diffusion_model(
    found: Denoiser, schedule: str | None, steps: int | None, pixels: str | None
) -> AuditedModel:
    from forward_inf_mlflow.data.pictures import parsed
    from forward_inf_mlflow.diffusion.audited import audited_diffusion_model
    from forward_inf_mlflow.models.noise_schedule import chosen_schedule

    ranges = None if pixels is None else parsed(pixels)
    return audited_diffusion_model(found, chosen_schedule(found.schedule, schedule, steps), ranges)


def _loaded(flavor: Flavor, *, allow_pickle: bool) -> Any:
    """Return what the library that wrote a model's files makes of them."""
    from forward_inf_mlflow.models.archive import check_archive

    if flavor.kind == "pt2" and not allow_pickle:
        check_archive(flavor.data / "model.pt2")
    permission = environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION=str(allow_pickle).lower())
    try:
        with permission:
            return _read(flavor, trust_all=allow_pickle)
    except ForwardInfError:
        raise
    except Exception as error:  # other people's files fail in any way they like
        reason = redact(f"{type(error).__name__}: {error}")
        if "pickle is disallowed" in reason:
            raise UnsafeModelError(
                "The model's files hold a pickle, and loading it runs code: log the model again, "
                "or permit it with --allow-pickle if you trust who made it."
            ) from error
        raise ModelError(f"The model's files cannot be loaded here: {reason}") from error


def _read(flavor: Flavor, *, trust_all: bool) -> Any:
    from forward_inf_mlflow.models.estimator import read_skops

    if flavor.kind == "pyfunc":  # permitted, or `read_flavor` would have refused
        return mlflow.pyfunc.load_model(str(flavor.folder))
    if flavor.kind == "pt2":
        return mlflow.pytorch.load_model(str(flavor.folder))
    if flavor.kind == "pickle":
        return mlflow.pytorch.load_model(str(flavor.folder), map_location="cpu", weights_only=False)
    if flavor.serialization == "skops" and not flavor.code:
        # Not by MLflow: it would trust the types that the model's own file lists.
        return read_skops(flavor.data, trust_all=trust_all)
    return mlflow.sklearn.load_model(str(flavor.folder))


def model_id_of(client: Any, version: Any) -> str | None:
    """Follow ``models:/other/1`` sources of copies to the logged model they came from.

    Args:
        client: Whatever has MLflow's ``get_model_version``: a client, or a store on the server.
        version: A version as MLflow describes it.
    """
    for _ in range(_COPIES):
        source = version.source or ""
        if logged := _LOGGED.fullmatch(source):
            return logged.group(1)
        copied = _NUMBERED.fullmatch(source)
        if copied is None:
            return None
        try:
            version = client.get_model_version(*copied.groups())
        except MlflowException as error:
            if is_missing(error):  # the original was deleted; the copy has its own files
                return None
            raise
    return None


def copied_from(version: Version) -> str | None:
    """Return the address of the version that this one was copied from, None if it is no copy."""
    return version.source if _NUMBERED.fullmatch(version.source) else None


def _missing(client: MlflowClient, model_uri: str, name: str) -> ModelError:
    """Say what does exist instead, at most five of them."""
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if not is_missing(error):
            raise
        names = [f"{model.name!r}" for model in client.search_registered_models(max_results=5)]
        return ModelError(f"There is no registered model {name!r}. {_known('models', names)}")
    aliases = [f"{name}@{alias}" for alias in sorted(model.aliases)[:5]]
    quote = '"' if "'" in name else "'"
    versions = client.search_model_versions(
        f"name={quote}{name}{quote}", max_results=5, order_by=["version_number DESC"]
    )
    numbers = [str(version.version) for version in versions]
    return ModelError(
        f"There is no {model_uri!r}. {_known('versions', numbers)} {_known('aliases', aliases)}"
    )


def _known(what: str, names: list[str]) -> str:
    return f"Known {what}: {', '.join(names)}." if names else f"It knows no {what}."
