"""MLflow's SQL registry store with a gate before every write that could lead to an alias.

What it refuses, and why each of these is a way around otherwise, is in docs/security.md. Nothing
here may take the server down: whatever goes wrong is a refusal with a sentence, and is logged.
"""

from __future__ import annotations

from typing import Any

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel
from mlflow.entities.model_registry.model_version_stages import (
    STAGE_ARCHIVED,
    get_canonical_stage,
)
from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore
from mlflow.utils.validation import _validate_model_alias_name

from forward_inf_mlflow.plugins.judging_store import JudgingStore, is_ours
from forward_inf_mlflow.plugins.refusals import refusal, refusing, settled, uri_of
from forward_inf_mlflow.verdicts.blocks import without_blocks
from forward_inf_mlflow.verdicts.claims import AUDIT_TAG, GATE_TAG, RUN_TAG
from forward_inf_mlflow.verdicts.gate_file import STAGES
from forward_inf_mlflow.verdicts.names import fold, shown

#: Tags of an audit, which say nothing of a copy.
_OF_AUDITS = (GATE_TAG, RUN_TAG, AUDIT_TAG)


class _Gated(JudgingStore):  # type: ignore[misc]  # MLflow has no types
    """The gate, before whichever SQL store comes next."""

    # Aliases, stages and names

    def set_registered_model_alias(self, name: str, alias: str, version: Any) -> None:
        """Move an alias if it is free or the gate admits the version."""
        with refusing():
            _validate_model_alias_name(alias)  # what MLflow refuses is not remembered
            found = self.get_model_version(name, version)
            answer = self._admit(found, alias)
        move = super().set_registered_model_alias
        settled(lambda: move(found.name, alias, int(found.version)))
        if answer is None:
            return
        with refusing():
            after = self._still(found)
            if after is None:
                self.delete_registered_model_alias(found.name, alias)
                raise refusal(f"{uri_of(found)} was replaced meanwhile: look at it, then try again")
        if answer.before != str(after.version):
            self._remember(after, answer)

    def transition_model_version_stage(
        self, name: str, version: Any, stage: str, archive_existing_versions: bool
    ) -> ModelVersion:
        """Move a version to a stage if the stage is free or the gate admits the version."""
        with refusing():
            stage = get_canonical_stage(stage)
            found = self.get_model_version(name, version)
            # Out of service is always allowed.
            answer = self._admit(found, stage, stage=True) if stage in STAGES else None
        move = super().transition_model_version_stage
        moved = move(found.name, int(found.version), stage, archive_existing_versions)
        if answer is not None:
            with refusing():
                after = self._still(found)
                if after is None:
                    move(found.name, int(found.version), STAGE_ARCHIVED, False)
                    raise refusal(f"{uri_of(found)} was replaced meanwhile: look at it again")
            self._remember(after, answer)
        return moved

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        """Rename a model, unless that would carry an alias or a stage into protection."""
        with refusing():
            model = self.get_registered_model(name)
            if model.name == new_name:
                return model
            aliases, staged = self._carried(model, new_name)
            if aliases or staged:
                what = [f"the alias '{shown(alias)}'" for alias in aliases]
                what += [f"version {found.version} in {found.current_stage}" for found in staged]
                raise refusal(
                    f"'{shown(name)}' may not be renamed to '{shown(new_name)}' with "
                    f"{' and '.join(what)}, which needs a verdict under that name: take it away, "
                    "rename, then audit and sign the version"
                )
        renamed = super().rename_registered_model(name, new_name)
        with refusing():  # what was set in between, while the old name was free
            aliases, staged = self._carried(renamed, new_name)
            for alias in aliases:
                self.delete_registered_model_alias(new_name, alias)
            archive = super().transition_model_version_stage
            for found in staged:
                archive(new_name, int(found.version), STAGE_ARCHIVED, False)
            if aliases or staged:
                raise refusal(
                    f"'{shown(new_name)}' is renamed, but what was set meanwhile was taken away"
                )
        return renamed

    # Tags

    def set_model_version_tag(self, name: str, version: Any, tag: ModelVersionTag) -> None:
        """Set a tag; ours only where a known key signed it for exactly this version."""
        with refusing():
            if self._is_kept(tag.key, name, version):
                self._check_signed(self.get_model_version(name, version), tag)
        super().set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: Any, key: str) -> None:
        """Delete a tag that is not kept for good."""
        with refusing():
            if self._is_kept(key, name, version):
                raise refusal(f"the tag '{shown(key)}' is kept for good")
        super().delete_model_version_tag(name, version, key)

    def set_registered_model_tag(self, name: str, tag: Any) -> None:
        """Set a tag of a model that could not make it a prompt."""
        with refusing():
            if self._is_kept(tag.key, name):
                raise refusal(f"the tag '{shown(tag.key)}' cannot be given to a model")
        super().set_registered_model_tag(name, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Delete a tag of a model that does not make it a prompt."""
        with refusing():
            if self._is_kept(key, name):
                raise refusal(f"the tag '{shown(key)}' is kept for good")
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


class GatedStore(_Gated):
    """The gate before MLflow's SQL store."""


class GatedWorkspaceStore(_Gated, WorkspaceAwareSqlAlchemyStore):  # type: ignore[misc]
    """The gate before MLflow's SQL store with workspaces."""


def _without_ours(tags: Any) -> list[Any]:
    return [tag for tag in tags or [] if not is_ours(tag.key)]
