"""MLflow's SQL registry store with a gate before every write that could lead to an alias.

What it refuses, and why each of these is a way around otherwise, is in docs/security.md. Nothing
here may take the server down: whatever goes wrong is a refusal with a sentence, and is logged.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel
from mlflow.entities.model_registry.model_version_stages import (
    STAGE_ARCHIVED,
    get_canonical_stage,
)
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS, IS_PROMPT_TAG_KEY
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri
from mlflow.utils.validation import _validate_model_alias_name
from sqlalchemy.exc import IntegrityError

from forward_inf_mlflow.errors import ForwardInfError, SignerError, VerdictError
from forward_inf_mlflow.plugins.stored_files import stored_sha256
from forward_inf_mlflow.registry import model_id_of
from forward_inf_mlflow.verdicts.admission import Admission, admit
from forward_inf_mlflow.verdicts.blocks import without_blocks
from forward_inf_mlflow.verdicts.claims import AUDIT_TAG, GATE_TAG, RUN_TAG, check
from forward_inf_mlflow.verdicts.events import HISTORY, Event, with_event
from forward_inf_mlflow.verdicts.gate_file import STAGES, Gate, load_gate
from forward_inf_mlflow.verdicts.names import fold, shown
from forward_inf_mlflow.verdicts.seal import PREFIXES, read_sealed
from forward_inf_mlflow.verdicts.statement import Subject

#: Names the gate's file; without it, ``gate.yaml`` where the server was started.
VARIABLE = "FORWARD_INF_GATE"
#: Where MLflow tells its workers in which folder they keep artifacts.
_ARTIFACTS = "_MLFLOW_SERVER_ARTIFACT_DESTINATION"
#: Databases that compare text in ways of their own.
_LOOSE = ("mysql", "mssql")
#: Tags of an audit, which say nothing of a copy.
_OF_AUDITS = (GATE_TAG, RUN_TAG, AUDIT_TAG)
#: The largest number that the databases' column of versions holds.
_LARGEST = 2**31 - 1

_logger = logging.getLogger(__name__)


class _Gated(SqlAlchemyStore):  # type: ignore[misc]  # MLflow has no types
    """The gate, before whichever SQL store comes next."""

    def __init__(self, db_uri: str) -> None:
        super().__init__(db_uri)
        self._file = Path(os.environ.get(VARIABLE) or "gate.yaml").absolute()
        self._loose = self.db_type in _LOOSE
        self._say_what_is_closed()

    # Aliases, stages and names

    def set_registered_model_alias(self, name: str, alias: str, version: Any) -> None:
        """Move an alias if it is free or the gate admits the version."""
        with _refusing():
            _validate_model_alias_name(alias)  # what MLflow refuses is not remembered
            found = self.get_model_version(name, version)
            answer = self._admit(found, alias)
        move = super().set_registered_model_alias
        _settled(lambda: move(found.name, alias, int(found.version)))
        if answer is None:
            return
        with _refusing():
            after = self._still(found)
            if after is None:
                self.delete_registered_model_alias(found.name, alias)
                raise _refusal(f"{_uri(found)} was replaced meanwhile: look at it, then try again")
        if answer.before != str(after.version):
            self._remember(after, answer)

    def transition_model_version_stage(
        self, name: str, version: Any, stage: str, archive_existing_versions: bool
    ) -> ModelVersion:
        """Move a version to a stage if the stage is free or the gate admits the version."""
        with _refusing():
            stage = get_canonical_stage(stage)
            found = self.get_model_version(name, version)
            # Out of service is always allowed.
            answer = self._admit(found, stage, stage=True) if stage in STAGES else None
        move = super().transition_model_version_stage
        moved = move(found.name, int(found.version), stage, archive_existing_versions)
        if answer is not None:
            with _refusing():
                after = self._still(found)
                if after is None:
                    move(found.name, int(found.version), STAGE_ARCHIVED, False)
                    raise _refusal(f"{_uri(found)} was replaced meanwhile: look at it again")
            self._remember(after, answer)
        return moved

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        """Rename a model, unless that would carry an alias or a stage into protection."""
        with _refusing():
            model = self.get_registered_model(name)
            if model.name == new_name:
                return model
            aliases, staged = self._carried(model, new_name)
            if aliases or staged:
                what = [f"the alias '{shown(alias)}'" for alias in aliases]
                what += [f"version {found.version} in {found.current_stage}" for found in staged]
                raise _refusal(
                    f"'{shown(name)}' may not be renamed to '{shown(new_name)}' with "
                    f"{' and '.join(what)}, which needs a verdict under that name: take it away, "
                    "rename, then audit and sign the version"
                )
        renamed = super().rename_registered_model(name, new_name)
        with _refusing():  # what was set in between, while the old name was free
            aliases, staged = self._carried(renamed, new_name)
            for alias in aliases:
                self.delete_registered_model_alias(new_name, alias)
            archive = super().transition_model_version_stage
            for found in staged:
                archive(new_name, int(found.version), STAGE_ARCHIVED, False)
            if aliases or staged:
                raise _refusal(
                    f"'{shown(new_name)}' is renamed, but what was set meanwhile was taken away"
                )
        return renamed

    # Tags

    def set_model_version_tag(self, name: str, version: Any, tag: ModelVersionTag) -> None:
        """Set a tag; ours only where a known key signed it for exactly this version."""
        with _refusing():
            if self._is_kept(tag.key, name, version):
                self._check_signed(self.get_model_version(name, version), tag)
        super().set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: Any, key: str) -> None:
        """Delete a tag that is not kept for good."""
        with _refusing():
            if self._is_kept(key, name, version):
                raise _refusal(f"the tag '{shown(key)}' is kept for good")
        super().delete_model_version_tag(name, version, key)

    def set_registered_model_tag(self, name: str, tag: Any) -> None:
        """Set a tag of a model that could not make it a prompt."""
        with _refusing():
            if self._is_kept(tag.key, name):
                raise _refusal(f"the tag '{shown(tag.key)}' cannot be given to a model")
        super().set_registered_model_tag(name, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Delete a tag of a model that does not make it a prompt."""
        with _refusing():
            if self._is_kept(key, name):
                raise _refusal(f"the tag '{shown(key)}' is kept for good")
        super().delete_registered_model_tag(name, key)

    # What is new

    def create_registered_model(
        self, name: str, tags: Any = None, *rest: Any, **more: Any
    ) -> RegisteredModel:
        """Create a model, without tags of ours."""
        return super().create_registered_model(name, _without_ours(tags), *rest, **more)

    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: Any = None,
        tags: Any = None,
        run_link: Any = None,
        description: str | None = None,
        *rest: Any,
        **more: Any,
    ) -> ModelVersion:
        """Create a version without what a copy brings of its original's: our tags and our words."""
        own = [tag for tag in _without_ours(tags) if fold(tag.key) not in _OF_AUDITS]
        said = description and without_blocks(description)
        return super().create_model_version(
            name, source, run_id, own, run_link, said, *rest, **more
        )

    # The gate

    def _say_what_is_closed(self) -> None:
        """Log one line about the gate; as a warning, since servers show nothing less of ours."""
        try:
            _logger.warning("the gate %s: %s", self._file, self._gate().summary())
        except Exception as error:  # noqa: BLE001  the server starts whatever the file says
            reason = error if isinstance(error, ForwardInfError) else type(error).__name__
            _logger.warning("the gate %s is closed, no alias moves: %s", self._file, reason)

    def _get_sql_model_version(
        self, session: Any, name: str, version: Any, *rest: Any, **more: Any
    ) -> Any:
        """Find a version; a number that no column holds is none, not an error of the database."""
        try:
            fits = int(version) <= _LARGEST
        except (TypeError, ValueError, OverflowError):
            fits = True  # MLflow says what is wrong
        if not fits:
            raise MlflowException(
                f"Model Version (name={name}, version={shown(str(version))}) not found",
                RESOURCE_DOES_NOT_EXIST,
            )
        return super()._get_sql_model_version(session, name, version, *rest, **more)

    def _gate(self) -> Gate:
        """Return the gate as its file says now.

        Raises:
            VerdictError: It is not valid, or a part of it lies where the server lets clients write.
        """
        gate = load_gate(self._file)
        artifacts = os.environ.get(_ARTIFACTS)
        if artifacts and is_local_uri(artifacts, is_tracking_or_registry_uri=False):
            root = Path(local_file_uri_to_path(artifacts)).resolve()
            for file in gate.files:
                if file.resolve().is_relative_to(root):
                    raise VerdictError(
                        f"{file.name} lies among the artifacts, where anybody writes: move it "
                        f"({VARIABLE} names the gate's file)"
                    )
        return gate

    def _admit(self, found: ModelVersion, target: str, *, stage: bool = False) -> _Answer | None:
        """Return what opened a protected alias or stage; None for a free one.

        Raises:
            MlflowException: It stays closed.
        """
        if self._is_only_prompt(found):
            return None
        gate = self._gate()
        rule = gate.rule(found.name, target, stage=stage, loose=self._loose)
        if rule is None:
            return None
        subject, now = self._subject(found), int(time.time() * 1000)

        def ask(model_sha256: str | None) -> Admission:
            return admit(
                subject, target, found.tags, rule, gate.ring,
                now=now, stage=stage, model_sha256=model_sha256,
            )  # fmt: skip

        admission = ask(None)
        if admission.model_sha256 is not None and gate.hash_up_to is not None:
            place = self.get_model_version_download_uri(found.name, found.version)
            try:
                admission = ask(stored_sha256(place, gate.hash_up_to))
            except VerdictError as error:
                why = f"{_uri(found)} may not become '{target}': {error}"
                admission = Admission(allowed=False, why=why)
        answer = _Answer(now, target, None if stage else self._target_of(found, target), admission)
        if not admission.allowed:
            self._remember(found, answer)
            raise _refusal(admission.why)
        return answer

    def _is_only_prompt(self, found: ModelVersion) -> bool:
        """Return whether a version is a prompt, and nothing that could be loaded as a model.

        The tag alone says nothing, since whoever registers a model may give it that; a source
        that is a prompt's names no files.
        """
        return (
            found.source in _PROMPT_SOURCE_PLACEHOLDERS
            and found._is_prompt()
            and self.get_registered_model(found.name)._is_prompt()
        )

    def _subject(self, found: ModelVersion) -> Subject:
        return Subject(
            name=found.name,
            version=str(int(found.version)),
            creation_timestamp=int(found.creation_timestamp),
            source=found.source or "",
            model_id=model_id_of(self, found),
        )

    def _still(self, found: ModelVersion) -> ModelVersion | None:
        """Return the version as it is now; None if it was deleted, or also made again."""
        try:
            now = self.get_model_version(found.name, found.version)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return now if self._subject(now) == self._subject(found) else None

    def _target_of(self, found: ModelVersion, alias: str) -> str | None:
        """Return the version that a model's alias points to."""
        if alias in found.aliases:
            return str(found.version)
        with self.ManagedSessionMaker() as session:
            row = self._get_registered_model_alias(session, found.name, alias)
            return None if row is None else str(row.version)

    def _carried(
        self, model: RegisteredModel, new_name: str
    ) -> tuple[list[str], list[ModelVersion]]:
        """Return the aliases and the versions in stages that are protected under a new name."""
        aliases = {
            alias: version
            for alias, version in model.aliases.items()
            if not self._is_only_prompt(self.get_model_version(model.name, version))
        }
        staged = [found for found in model.latest_versions if found.current_stage in STAGES]
        if not aliases and not staged:
            return [], []
        gate = self._gate()
        return (
            [alias for alias in aliases if gate.rule(new_name, alias, loose=self._loose)],
            [
                found
                for found in staged
                if gate.rule(new_name, found.current_stage, stage=True, loose=self._loose)
            ],
        )

    def _is_kept(self, key: str, name: str, version: Any = None) -> bool:
        """Return whether a tag is ours, or makes a prompt, in whatever spelling."""
        if _is_ours(key) or fold(key) == fold(IS_PROMPT_TAG_KEY):
            return True
        if not self._loose or key.isascii():
            return False
        number = None if version is None else int(self.get_model_version(name, version).version)
        with self.ManagedSessionMaker() as session:  # which tag would the database take it for?
            if number is None:
                same = self._get_registered_model_tag(session, name, key)
            else:
                same = self._get_model_version_tag(session, name, number, key)
            return same is not None and same.key != key and self._is_kept(same.key, name, version)

    def _check_signed(self, found: ModelVersion, tag: ModelVersionTag) -> None:
        """Refuse a tag of ours that no known key signed for exactly this version.

        Raises:
            MlflowException: No known key did, or only the gate writes it.
        """
        if not tag.key.startswith(tuple(PREFIXES.values())):
            raise _refusal(f"the tag '{shown(tag.key)}' is not set by clients")
        if found.tags.get(tag.key, tag.value) != tag.value:
            raise _refusal(f"the tag '{shown(tag.key)}' is kept for good")
        ring = self._gate().ring
        try:
            check(read_sealed(tag.value), tag.key, self._subject(found), ring)
        except SignerError as error:
            kind = next(kind for kind, prefix in PREFIXES.items() if tag.key.startswith(prefix))
            raise _refusal(
                f"this {kind} does not count for {_uri(found)}: {error}; {error.remedy}"
            ) from error
        except VerdictError as error:
            raise _refusal(f"{_uri(found)} does not keep '{shown(tag.key)}': {error}") from error

    def _remember(self, found: ModelVersion, answer: _Answer) -> None:
        """Write down what was decided; the decision stands even where that fails."""
        admission = answer.admission
        event = Event(
            at=answer.at,
            event="moved" if admission.allowed else "refused",
            alias=answer.target,
            before=answer.before,
            why=admission.why,
            by=admission.by,
        )
        _logger.info("%s: %s", event.event, admission.why)
        try:
            _settled(lambda: self._append(found, event))
        except Exception:
            _logger.exception("the history of %s could not be written", _uri(found))

    def _append(self, found: ModelVersion, event: Event) -> None:
        """Add an event to the history as it is now, losing none that is added at the same time."""
        of = {"workspace": found.workspace, "name": found.name, "version": int(found.version)}
        with self.ManagedSessionMaker(read_only=False) as session:
            # A write, of nothing, comes first: it locks the version in every kind of database.
            same = {SqlModelVersion.current_stage: SqlModelVersion.current_stage}
            session.query(SqlModelVersion).filter_by(**of).update(same, synchronize_session=False)
            tag = session.get(SqlModelVersionTag, {**of, "key": HISTORY})
            text = with_event(None if tag is None else tag.value, event)
            session.merge(SqlModelVersionTag(**of, key=HISTORY, value=text))


class GatedStore(_Gated):
    """The gate before MLflow's SQL store."""


class GatedWorkspaceStore(_Gated, WorkspaceAwareSqlAlchemyStore):  # type: ignore[misc]
    """The gate before MLflow's SQL store with workspaces."""


@dataclass(frozen=True)
class _Answer:
    """What was decided, when, about which alias or stage, and where that pointed."""

    at: int
    target: str
    before: str | None
    admission: Admission


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn whatever goes wrong in the gate into a refusal."""
    try:
        yield
    except MlflowException:
        raise
    except ForwardInfError as error:
        _logger.error("the gate is closed: %s", error)
        raise _refusal(f"the gate is closed, {error}: ask whoever runs this server") from error
    except Exception as error:
        _logger.exception("the gate failed")
        raise _refusal("the gate failed, so it is closed: the server's log says why") from error


def _settled(write: Callable[[], None]) -> None:
    """Write, and once more where somebody else made the same row at the same moment."""
    try:
        write()
    except MlflowException as error:
        if not isinstance(error.__cause__, IntegrityError):
            raise
        write()


def _refusal(sentence: str) -> MlflowException:
    return MlflowException(sentence, error_code=PERMISSION_DENIED)


def _is_ours(key: str) -> bool:
    return fold(key).startswith(tuple(PREFIXES.values())) or fold(key) == HISTORY


def _without_ours(tags: Any) -> list[Any]:
    return [tag for tag in tags or [] if not _is_ours(tag.key)]


def _uri(found: ModelVersion) -> str:
    return shown(f"models:/{found.name}/{found.version}", 300)
