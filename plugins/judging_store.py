"""MLflow's SQL registry store, which knows whether the gate admits a version, and remembers."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS, IS_PROMPT_TAG_KEY
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from forward_inf_mlflow.errors import ForwardInfError, SignerError, VerdictError
from forward_inf_mlflow.plugins.refusals import refusal, settled, uri_of
from forward_inf_mlflow.plugins.stored_files import stored_sha256
from forward_inf_mlflow.registry import model_id_of
from forward_inf_mlflow.verdicts.admission import Admission, admit
from forward_inf_mlflow.verdicts.claims import check
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
#: The largest number that the databases' column of versions holds.
_LARGEST = 2**31 - 1


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What was decided, when, about which alias or stage, and where that pointed."""

    at: int
    target: str
    before: str | None
    admission: Admission


class JudgingStore(SqlAlchemyStore):  # type: ignore[misc]  # MLflow has no types
    """What the gate needs to know of its file, a version and its tags."""

    def __init__(self, db_uri: str) -> None:
        super().__init__(db_uri)
        self._file = Path(os.environ.get(VARIABLE) or "gate.yaml").absolute()
        self._loose = self.db_type in _LOOSE
        self._say_what_is_closed()

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

    def _admit(self, found: ModelVersion, target: str, *, stage: bool = False) -> Answer | None:
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
                why = f"{uri_of(found)} may not become '{target}': {error}"
                admission = Admission(allowed=False, why=why)
        answer = Answer(now, target, None if stage else self._target_of(found, target), admission)
        if not admission.allowed:
            self._remember(found, answer)
            raise refusal(admission.why)
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
        if is_ours(key) or fold(key) == fold(IS_PROMPT_TAG_KEY):
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
            raise refusal(f"the tag '{shown(tag.key)}' is not set by clients")
        if found.tags.get(tag.key, tag.value) != tag.value:
            raise refusal(f"the tag '{shown(tag.key)}' is kept for good")
        ring = self._gate().ring
        try:
            check(read_sealed(tag.value), tag.key, self._subject(found), ring)
        except SignerError as error:
            kind = next(kind for kind, prefix in PREFIXES.items() if tag.key.startswith(prefix))
            raise refusal(
                f"this {kind} does not count for {uri_of(found)}: {error}; {error.remedy}"
            ) from error
        except VerdictError as error:
            raise refusal(f"{uri_of(found)} does not keep '{shown(tag.key)}': {error}") from error

    def _remember(self, found: ModelVersion, answer: Answer) -> None:
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
            settled(lambda: self._append(found, event))
        except Exception:
            _logger.exception("the history of %s could not be written", uri_of(found))

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


def is_ours(key: str) -> bool:
    """Return whether a tag is one that only the gate writes or a known key signs."""
    return fold(key).startswith(tuple(PREFIXES.values())) or fold(key) == HISTORY
