"""The gated store, on sqlite, PostgreSQL and MySQL: every write that could lead to an alias."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import empty_database, free_port
from databases import mysql, postgres, why_no_mysql, why_no_postgres
from gate_cases import CI, RING, STRANGER, override_for, subject_of, verdict_on, write_gate
from mlflow.entities.model_registry import ModelVersionTag, Prompt, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY, PROMPT_TEXT_TAG_KEY
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.workspace_context import WorkspaceContext

from forward_inf_mlflow.errors import VerdictError
from forward_inf_mlflow.models.content import content_sha256
from forward_inf_mlflow.plugins import gated_registry, judging_store, refusals
from forward_inf_mlflow.plugins.registry_store import build
from forward_inf_mlflow.plugins.stored_files import stored_sha256
from forward_inf_mlflow.policy import default_text
from forward_inf_mlflow.verdicts.keys import Ring
from forward_inf_mlflow.verdicts.seal import Sealed

PROMPT = [ModelVersionTag(IS_PROMPT_TAG_KEY, "true"), ModelVersionTag(PROMPT_TEXT_TAG_KEY, "hi")]


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mysql"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "sqlite":
        file = tmp_path_factory.mktemp("registry") / "mlflow.db"
        file.write_bytes(empty_database())
        yield f"sqlite:///{file}"
        return
    if reason := why_no_postgres() if request.param == "postgresql" else why_no_mysql():
        pytest.skip(reason)
    with postgres(free_port()) if request.param == "postgresql" else mysql() as uri:
        yield uri


@pytest.fixture(scope="module")
def built(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    folder = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(judging_store.VARIABLE, str(folder / "gate.yaml"))
        store = build(f"forward-inf-gate:{database}")
    yield store, folder
    store._dispose_engine()


@pytest.fixture
def folder(built: tuple[Any, Path]) -> Path:
    """Return the folder of the gate's file, which is the default again."""
    write_gate(built[1])
    return built[1]


@pytest.fixture
def store(built: tuple[Any, Path], folder: Path) -> Any:
    return built[0]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of a model that no other test has."""
    return f"model {abs(hash(request.node.name))}"


def register(store: Any, name: str, source: str = "s3://nowhere/model", **more: Any) -> str:
    """Register a version, and its model where there is none; return the version's number."""
    try:
        store.get_registered_model(name)
    except MlflowException:
        store.create_registered_model(name)
    return str(store.create_model_version(name, source, **more).version)


def put(store: Any, name: str, version: str, sealed: Sealed) -> None:
    store.set_model_version_tag(name, version, ModelVersionTag(sealed.tag, sealed.text))


def passed(store: Any, name: str, **changes: Any) -> str:
    """Register a version that may become champion."""
    version = register(store, name)
    put(store, name, version, verdict_on(subject_of(store, name, version), **changes))
    return version


def refusal(act: Any, *arguments: Any, **more: Any) -> str:
    """Return the one line with which something is refused."""
    with pytest.raises(MlflowException) as caught:
        act(*arguments, **more)
    assert caught.value.error_code == "PERMISSION_DENIED"
    said = str(caught.value.message)
    assert "\n" not in said
    return said


def aliases(store: Any, name: str) -> dict[str, str]:
    found = store.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def tags(store: Any, name: str, version: str) -> dict[str, str]:
    return dict(store.get_model_version(name, version).tags)


def test_free_aliases_stay_free_and_protected_ones_need_a_pass(store: Any, name: str) -> None:
    version = register(store, name)
    store.set_registered_model_alias(name, "challenger", version)
    assert "has no signed verdict" in refusal(
        store.set_registered_model_alias, name, "champion", version
    )
    put(store, name, version, verdict_on(subject_of(store, name, version)))
    store.set_registered_model_alias(name, "champion", version)
    assert aliases(store, name) == {"challenger": version, "champion": version}
    store.delete_registered_model_alias(name, "champion")
    assert aliases(store, name) == {"challenger": version}


@pytest.mark.parametrize(
    "alias", ["Champion", "CHAMPION", "ｃｈａｍｐｉｏｎ", "production", "champion\n"]
)
def test_no_spelling_of_a_protected_alias_is_free(store: Any, name: str, alias: str) -> None:
    version = register(store, name)
    assert "no signed verdict" in refusal(store.set_registered_model_alias, name, alias, version)


@pytest.mark.parametrize("spelling", ["01", " 1", "1 ", "+1", "0_1", 1])
def test_a_version_in_another_spelling_is_the_same_version(
    store: Any, name: str, spelling: Any
) -> None:
    register(store, name)
    assert "/1 may not become" in refusal(
        store.set_registered_model_alias, name, "champion", spelling
    )
    put(store, name, spelling, verdict_on(subject_of(store, name, "1")))
    store.set_registered_model_alias(name, "champion", spelling)
    assert aliases(store, name) == {"champion": "1"}
    put(store, name, "1", verdict_on(subject_of(store, name, "1"), outcome="fail", expires=2**52))
    assert "refusal" in refusal(store.set_registered_model_alias, name, "champion", spelling)


@pytest.mark.parametrize("version", ["1.0", "x", "", "9"])
def test_a_version_that_is_none_is_mlflows_own_error(store: Any, name: str, version: str) -> None:
    register(store, name)
    with pytest.raises(MlflowException) as caught:
        store.set_registered_model_alias(name, "champion", version)
    assert caught.value.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
    assert aliases(store, name) == {}


@pytest.mark.parametrize("stage", ["Production", "production", "PRODUCTION"])
def test_the_stage_production_is_protected(store: Any, name: str, stage: str) -> None:
    version = register(store, name)
    move = store.transition_model_version_stage
    move(name, version, "Staging", False)
    assert "may not enter the stage 'Production'" in refusal(move, name, version, stage, False)
    assert store.get_model_version(name, version).current_stage == "Staging"
    put(store, name, version, verdict_on(subject_of(store, name, version)))
    assert move(name, f"0{version}", stage, True).current_stage == "Production"
    put(store, name, version, verdict_on(subject_of(store, name, version), outcome="fail"))
    assert move(name, version, "archived", False).current_stage == "Archived"


def test_a_replayed_pass_does_not_win_over_a_newer_refusal(store: Any, name: str) -> None:
    version = register(store, name)
    subject = subject_of(store, name, version)
    old, new = verdict_on(subject), verdict_on(subject, outcome="fail")
    new = verdict_on(subject, outcome="fail", issued=old.statement.issued + 1)
    put(store, name, version, old)
    put(store, name, version, new)
    put(store, name, version, old)
    assert "refusal" in refusal(store.set_registered_model_alias, name, "champion", version)
    for tag in (old, new):
        assert "kept for good" in refusal(store.delete_model_version_tag, name, version, tag.tag)
    assert "belongs under the tag" in refusal(
        store.set_model_version_tag, name, version, ModelVersionTag(new.tag[:-1], old.text)
    )
    assert "kept for good" in refusal(
        store.set_model_version_tag, name, version, ModelVersionTag(new.tag, old.text)
    )
    assert tags(store, name, version)[new.tag] == new.text


def test_only_what_a_known_key_signed_becomes_a_tag_of_ours(store: Any, name: str) -> None:
    version, other = register(store, name), register(store, name)
    subject = subject_of(store, name, version)
    forged = verdict_on(subject, key=STRANGER)
    for sealed, why in (
        (forged, "its key is not one that this server knows"),
        (replace(verdict_on(subject), signature=forged.signature), "does not fit"),
        (verdict_on(subject_of(store, name, other)), f"it was made for models:/{name}/{other}"),
    ):
        said = refusal(put, store, name, version, sealed)
        assert why in said
    said = refusal(put, store, name, version, override_for(subject, key=CI))
    assert said.startswith(f"this override does not count for models:/{name}/{version}: the key ")
    assert "'forward-inf keys new NAME --may override'" in said
    assert "fi.override" not in said
    for key in ("fi.verdict.x", "FI.VERDICT.x", "fi.override.", "ｆｉ.override.x"):
        refusal(store.set_model_version_tag, name, version, ModelVersionTag(key, "x"))
    assert tags(store, name, version) == {}


@pytest.mark.parametrize("key", ["fi.history", "FI.History"])
def test_the_history_is_written_by_the_gate_alone(store: Any, name: str, key: str) -> None:
    version = register(store, name)
    refusal(store.set_registered_model_alias, name, "champion", version)
    written = tags(store, name, version)["fi.history"]
    assert [e["event"] for e in json.loads(written)] == ["refused"]
    assert "not set by clients" in refusal(
        store.set_model_version_tag, name, version, ModelVersionTag(key, "[]")
    )
    assert "kept for good" in refusal(store.delete_model_version_tag, name, version, key)
    assert tags(store, name, version)["fi.history"] == written


def test_other_tags_are_nobodys_business(store: Any, name: str) -> None:
    version = register(store, name)
    store.set_model_version_tag(name, version, ModelVersionTag("fi.gate", "pass"))
    store.set_model_version_tag(name, version, ModelVersionTag("ümlaut", "1"))
    store.delete_model_version_tag(name, version, "fi.gate")
    store.set_registered_model_tag(name, RegisteredModelTag("team", "a"))
    store.delete_registered_model_tag(name, "team")
    assert tags(store, name, version) == {"ümlaut": "1"}


def test_a_new_version_brings_no_verdict_along(store: Any, name: str) -> None:
    first = passed(store, name)
    brought = [ModelVersionTag(key, value) for key, value in tags(store, name, first).items()]
    brought += [ModelVersionTag("fi.history", "[]"), ModelVersionTag("FI.verdict.x", "y")]
    brought += [ModelVersionTag("fi.gate", "pass"), ModelVersionTag("FI.Run", "r")]
    brought += [ModelVersionTag("owner", "me")]
    copy = register(store, name, f"models:/{name}/{first}", tags=brought)
    assert tags(store, name, copy) == {"owner": "me"}
    assert "no signed verdict" in refusal(store.set_registered_model_alias, name, "champion", copy)
    model = store.create_registered_model(f"{name} 2", tags=brought)
    assert model.tags == {"fi.gate": "pass", "FI.Run": "r", "owner": "me"}


def test_a_version_that_is_deleted_and_made_again_has_no_verdict(store: Any, name: str) -> None:
    version = register(store, name)
    sealed = verdict_on(subject_of(store, name, version))
    store.delete_registered_model(name)
    assert register(store, name) == version
    assert "registered at another time" in refusal(put, store, name, version, sealed)
    refusal(store.set_registered_model_alias, name, "champion", version)


class Meanwhile:
    """Does something between the gate's decision and the write that follows it."""

    def __init__(self, patch: pytest.MonkeyPatch, method: str, act: Any) -> None:
        original = getattr(SqlAlchemyStore, method)

        def first_act(*arguments: Any, **more: Any) -> Any:
            patch.setattr(SqlAlchemyStore, method, original)
            act()
            return original(*arguments, **more)

        patch.setattr(SqlAlchemyStore, method, first_act)


def test_what_is_made_anew_between_decision_and_move_gets_no_alias(
    store: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = passed(store, name)

    def again() -> None:
        store.delete_registered_model(name)
        register(store, name)

    Meanwhile(monkeypatch, "set_registered_model_alias", again)
    assert "replaced meanwhile" in refusal(
        store.set_registered_model_alias, name, "champion", version
    )
    assert aliases(store, name) == {}


def test_what_is_deleted_between_decision_and_move_leaves_no_alias_behind(
    store: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = passed(store, name)
    looked = SqlAlchemyStore._get_sql_model_version
    original = SqlAlchemyStore.set_registered_model_alias

    def late(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        # As where another process deleted the model after this one had read it.
        with self.ManagedSessionMaker(read_only=False) as session:
            looked(self, session, name, int(version)).current_stage = "Deleted_Internal"

    monkeypatch.setattr(SqlAlchemyStore, "set_registered_model_alias", late)
    assert "replaced meanwhile" in refusal(
        store.set_registered_model_alias, name, "champion", version
    )
    assert aliases(store, name) == {}


def test_a_stage_is_taken_back_from_what_was_made_anew(
    store: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = passed(store, name)

    def again() -> None:
        store.delete_registered_model(name)
        register(store, name)

    Meanwhile(monkeypatch, "transition_model_version_stage", again)
    assert "replaced meanwhile" in refusal(
        store.transition_model_version_stage, name, version, "Production", False
    )
    assert store.get_model_version(name, version).current_stage == "Archived"


@pytest.fixture
def partly(folder: Path) -> None:
    """Protect only models whose names begin with 'prod'."""
    write_gate(folder, 'protect: [{models: ["prod*"], stages: [Production, Staging]}]')


@pytest.mark.usefixtures("partly")
def test_no_alias_and_no_stage_is_renamed_into_protection(store: Any, name: str) -> None:
    version, new = register(store, name), f"Prod {name}"
    store.set_registered_model_alias(name, "Champion", version)
    store.transition_model_version_stage(name, version, "staging", False)
    said = refusal(store.rename_registered_model, name, new)
    assert f"with the alias 'Champion' and version {version} in Staging" in said
    store.delete_registered_model_alias(name, "Champion")
    assert "in Staging" in refusal(store.rename_registered_model, name, new)
    store.transition_model_version_stage(name, version, "None", False)
    store.set_registered_model_alias(name, "free", version)
    assert store.rename_registered_model(name, new).name == new
    assert aliases(store, new) == {"free": version}
    refusal(store.set_registered_model_alias, new, "champion", version)
    store.rename_registered_model(new, name)
    store.set_registered_model_alias(name, "champion", version)


@pytest.mark.usefixtures("partly")
def test_an_alias_that_is_set_while_a_model_is_renamed_is_taken_away(
    store: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, new = register(store, name), f"prod {name}"

    def sneak() -> None:
        store.set_registered_model_alias(name, "champion", version)
        store.transition_model_version_stage(name, version, "Production", False)

    Meanwhile(monkeypatch, "rename_registered_model", sneak)
    assert "was taken away" in refusal(store.rename_registered_model, name, new)
    assert aliases(store, new) == {}
    assert store.get_model_version(new, version).current_stage == "Archived"


def test_a_verdict_does_not_follow_a_renamed_model(store: Any, name: str) -> None:
    version, new = passed(store, name), f"{name} new"
    store.rename_registered_model(name, new)
    assert f"it was made for models:/{name}/1" in refusal(
        store.set_registered_model_alias, new, "champion", version
    )
    store.rename_registered_model(new, name)
    store.set_registered_model_alias(name, "champion", version)
    assert store.rename_registered_model(name, name).name == name


def prompt(store: Any, name: str) -> str:
    """Register a prompt, as MLflow's client does it."""
    store.create_registered_model(name, tags=PROMPT[:1])
    return str(store.create_model_version(name, "prompt-template", tags=PROMPT).version)


def test_prompts_need_no_verdict(store: Any, name: str) -> None:
    version = prompt(store, name)
    store.set_registered_model_alias(name, "champion", version)
    store.rename_registered_model(name, f"{name} new")
    found = store.get_prompt_version_by_alias(f"{name} new", "champion")
    assert found.template == "hi"
    assert isinstance(store.get_prompt(f"{name} new"), Prompt)
    store.set_prompt_version_tag(f"{name} new", version, "a", "b")


def test_a_model_does_not_pass_for_a_prompt(store: Any, name: str) -> None:
    prompt(store, name)
    files = "s3://nowhere/model"
    with_tag = register(store, name, files, tags=PROMPT)
    without = register(store, name, files)
    plain = f"{name} plain"
    in_model = register(store, plain, "prompt-template", tags=PROMPT)
    for model, version in ((name, with_tag), (name, without), (plain, in_model)):
        assert "no signed verdict" in refusal(
            store.set_registered_model_alias, model, "champion", version
        )


@pytest.mark.parametrize("key", [IS_PROMPT_TAG_KEY, "MLflow.Prompt.is_prompt"])
def test_what_is_a_prompt_is_settled_when_it_is_made(store: Any, name: str, key: str) -> None:
    version = register(store, name)
    tag = ModelVersionTag(key, "true")
    refusal(store.set_model_version_tag, name, version, tag)
    refusal(store.set_registered_model_tag, name, tag)
    version = prompt(store, f"{name} p")
    refusal(store.delete_model_version_tag, f"{name} p", version, key)
    refusal(store.delete_registered_model_tag, f"{name} p", key)
    assert store.get_registered_model(f"{name} p")._is_prompt()


def test_an_override_by_name_opens_one_alias(store: Any, name: str) -> None:
    version = passed(store, name, outcome="fail")
    put(store, name, version, override_for(subject_of(store, name, version)))
    store.set_registered_model_alias(name, "champion", version)
    refusal(store.set_registered_model_alias, name, "production", version)
    moved, refused = json.loads(tags(store, name, version)["fi.history"])
    assert (moved["by"], moved["why"]) == ("ada", "overridden: a fix that cannot wait")
    assert (refused["alias"], refused["by"]) == ("production", None)


def test_history_says_where_the_alias_came_from(store: Any, name: str) -> None:
    first, second = passed(store, name), passed(store, name)
    store.set_registered_model_alias(name, "champion", first)
    store.set_registered_model_alias(name, "champion", second)
    (event,) = json.loads(tags(store, name, second)["fi.history"])
    assert (event["from"], event["event"], event["by"]) == (first, "moved", "ci")
    store.set_registered_model_alias(name, "champion", second)  # which moves nothing
    assert len(json.loads(tags(store, name, second)["fi.history"])) == 1


def test_a_revoked_key_closes_what_it_opened_before(store: Any, name: str, folder: Path) -> None:
    version = passed(store, name)
    gone = Ring(tuple(replace(key, revoked="2026-01-01") for key in RING.keys))
    write_gate(folder, ring=gone)
    assert "its key 'ci' was revoked" in refusal(
        store.set_registered_model_alias, name, "champion", version
    )
    write_gate(folder)
    store.set_registered_model_alias(name, "champion", version)


BROKEN = {
    "gone": (None, "there is no file gate.yaml"),
    "empty": ("", "gate.yaml is empty"),
    "wrong": ("protect: [{}]\nopen: true", "gate.yaml, line 2: unknown key 'open'"),
    "no keys": ("protect: [{}]\nkeys: other.yaml", "there is no file other.yaml"),
}


@pytest.mark.parametrize(("text", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_gate_is_closed_and_says_so(
    store: Any, name: str, folder: Path, text: str | None, why: str
) -> None:
    version = passed(store, name)
    sealed = verdict_on(subject_of(store, name, version), outcome="fail")
    if text is None:
        (folder / "gate.yaml").unlink()
    else:
        write_gate(folder, text)
    for act, *arguments in (
        (store.set_registered_model_alias, name, "champion", version),
        (store.set_registered_model_alias, name, "free", version),
        (store.transition_model_version_stage, name, version, "Production", False),
        (put, store, name, version, sealed),
    ):
        said = refusal(act, *arguments)
        assert why in said
        assert said.endswith(": ask whoever runs this server")
        assert str(folder) not in said
    # What leads nowhere stays possible.
    store.set_model_version_tag(name, version, ModelVersionTag("a", "b"))
    store.transition_model_version_stage(name, version, "Archived", False)
    store.delete_registered_model_alias(name, "champion")
    register(store, name)
    write_gate(folder)
    store.set_registered_model_alias(name, "champion", version)
    (folder / "gate.yaml").unlink()
    assert "closed" in refusal(store.rename_registered_model, name, f"{name} new")


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/../{}"])
def test_a_gate_file_where_clients_write_counts_for_nothing(
    store: Any, name: str, folder: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = passed(store, name)
    where = form.format(folder.parent, folder.parent.name)
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", where)
    assert "gate.yaml lies among the artifacts" in refusal(
        store.set_registered_model_alias, name, "champion", version
    )
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", "s3://bucket/artifacts")
    store.set_registered_model_alias(name, "champion", version)


@pytest.mark.parametrize("line", ["keys: art/keys.yaml", "keys: keys.yaml"])
def test_keys_and_policies_where_clients_write_count_for_nothing(
    store: Any, name: str, folder: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = passed(store, name)
    (folder / "art").mkdir(exist_ok=True)
    (folder / "art" / "keys.yaml").write_bytes((folder / "keys.yaml").read_bytes())
    (folder / "art" / "policy.yaml").write_text(default_text())
    policies = "" if "art" in line else "{policies: [art/policy.yaml]}, "
    write_gate(folder, f"{line}\nprotect: [{policies}{{}}]")
    store.set_registered_model_alias(name, "champion", version)
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "art"))
    assert "lies among the artifacts" in refusal(
        store.set_registered_model_alias, name, "champion", version
    )


def test_what_nobody_foresaw_is_a_refusal_and_stands_in_the_log(
    store: Any, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version = passed(store, name)

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("secret words")

    monkeypatch.setattr(judging_store, "admit", fail)
    with caplog.at_level(logging.ERROR, refusals.__name__):
        said = refusal(store.set_registered_model_alias, name, "champion", version)
    assert said == "the gate failed, so it is closed: the server's log says why"
    assert "ZeroDivisionError" in caplog.text
    assert aliases(store, name) == {}


def test_a_history_that_cannot_be_written_changes_no_decision(
    store: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = passed(store, name), register(store, name)

    def fail(*_: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr(judging_store, "with_event", fail)
    store.set_registered_model_alias(name, "champion", good)
    refusal(store.set_registered_model_alias, name, "champion", bad)
    assert aliases(store, name) == {"champion": good}


def test_an_alias_that_mlflow_refuses_is_not_remembered(store: Any, name: str) -> None:
    version = register(store, name)
    write_gate(store._file.parent, "protect: [{models: ['*'], aliases: ['*']}]")
    for alias in ("x" * 256, "x!", ""):
        with pytest.raises(MlflowException) as caught:
            store.set_registered_model_alias(name, alias, version)
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert tags(store, name, version) == {}
    refusal(store.set_registered_model_alias, name, "x" * 255, version)
    assert "fi.history" in tags(store, name, version)


def test_no_move_is_lost_among_refusals_of_the_same_moment(
    store: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have read the version before anyone writes what was decided."""
    version, spellings = register(store, name), ("champion", "Champion", "CHAMPION", "champioN")
    together = threading.Barrier(len(spellings), timeout=30)
    original = judging_store.admit

    def admit(*arguments: Any, **more: Any) -> Any:
        together.wait()
        return original(*arguments, **more)

    monkeypatch.setattr(judging_store, "admit", admit)
    with ThreadPoolExecutor(len(spellings)) as pool:
        for asked in [
            pool.submit(store.set_registered_model_alias, name, alias, version)
            for alias in spellings
        ]:
            assert "no signed verdict" in str(asked.exception())
    events = json.loads(tags(store, name, version)["fi.history"])
    assert {event["alias"] for event in events} == set(spellings)


@pytest.mark.parametrize("number", [2**31, 2**63, 10**40])
def test_a_number_that_no_column_holds_is_no_version(store: Any, name: str, number: int) -> None:
    register(store, name)
    acts: list[tuple[Any, ...]] = [
        (store.get_model_version, name, str(number)),
        (store.set_registered_model_alias, name, "champion", str(number)),
        (store.set_registered_model_alias, name, "free", str(number)),
        (store.transition_model_version_stage, name, str(number), "Production", False),
        (store.set_model_version_tag, name, str(number), ModelVersionTag("a", "b")),
        (store.set_model_version_tag, name, str(number), ModelVersionTag("fi.verdict.a", "b")),
        (store.delete_model_version_tag, name, str(number), "a"),
    ]
    for act, *arguments in acts:
        with pytest.raises(MlflowException) as caught:
            act(*arguments)
        assert caught.value.error_code in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")


def test_at_its_start_a_server_says_what_is_closed(
    database: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = folder / "gate.yaml"
    monkeypatch.setenv(judging_store.VARIABLE, str(file))
    with caplog.at_level(logging.WARNING, judging_store.__name__):
        build(f"forward-inf-gate:{database}")
        file.write_text("nonsense: 1")
        build(f"forward-inf-gate:{database}")
    ours = [r for r in caplog.records if r.name == judging_store.__name__]
    opened, closed = (record.getMessage() for record in ours)
    assert opened == (
        f"the gate {file}: 2 of 2 keys count, protected are champion, production, stage "
        "Production of *"
    )
    assert closed.startswith(f"the gate {file} is closed, no alias moves: gate.yaml, line 1: unkn")


def test_workspaces_keep_their_models_apart(
    database: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    monkeypatch.setenv(judging_store.VARIABLE, str(folder / "gate.yaml"))
    store = build(f"forward-inf-gate:{database}")
    assert store.supports_workspaces
    with WorkspaceContext("default"):
        version = passed(store, name)
        sealed = verdict_on(subject_of(store, name, version))
        store.set_registered_model_alias(name, "champion", version)
    with WorkspaceContext("other"):
        assert register(store, name) == version
        refusal(put, store, name, version, sealed)
        refusal(store.set_registered_model_alias, name, "champion", version)
        refusal(store.transition_model_version_stage, name, version, "Production", False)
        assert aliases(store, name) == {}
        store.delete_registered_model(name)  # else no store without workspaces opens it again
    with WorkspaceContext("default"):
        assert aliases(store, name) == {"champion": version}


def test_where_the_database_compares_loosely_foreign_letters_are_protected(
    store: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(store, name)
    if not store._loose:
        store.set_registered_model_alias(name, "chømpion", version)
        monkeypatch.setattr(store, "_loose", True)  # as before MySQL and SQL Server
    refusal(store.set_registered_model_alias, name, "chømpion", version)
    store.set_registered_model_alias(name, "challenger", version)
    store.set_model_version_tag(name, version, ModelVersionTag("größe", "1"))
    store.delete_model_version_tag(name, version, "größe")
    store.set_registered_model_tag(name, RegisteredModelTag("größe", "1"))
    with pytest.raises(MlflowException, match="version") as caught:
        store.set_model_version_tag(name, "x", ModelVersionTag("größe", "1"))
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_files_on_the_servers_disk_are_hashed_as_an_audit_hashes_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "MLmodel").write_text("flavors: {}")
    (tmp_path / "data" / "weights").write_bytes(bytes(100))
    assert stored_sha256(tmp_path.as_uri(), 111) == content_sha256(tmp_path)
    assert stored_sha256(str(tmp_path), 111) == content_sha256(tmp_path)
    with pytest.raises(VerdictError, match="have 111 bytes and the server reads up to 110"):
        stored_sha256(str(tmp_path), 110)
    with pytest.raises(VerdictError, match="cannot"):
        stored_sha256(str(tmp_path / "none"), 110)


def test_every_method_of_the_store_that_writes_is_one_that_was_looked_at() -> None:
    """Fails where a new MLflow has another way to write: look whether it leads to an alias."""
    gated = {name for name in vars(gated_registry._Gated) if not name.startswith("_")}
    harmless = {
        *("create_prompt", "create_prompt_version", "create_webhook"),
        *("delete_model_version", "delete_prompt", "delete_prompt_alias", "delete_prompt_tag"),
        *("delete_prompt_version", "delete_prompt_version_tag", "delete_registered_model"),
        *("delete_registered_model_alias", "delete_webhook", "link_prompt_version_to_model"),
        *("link_prompt_version_to_run", "link_prompts_to_trace", "set_prompt_alias"),
        *("set_prompt_tag", "set_prompt_version_tag", "test_webhook", "update_model_version"),
        *("update_registered_model", "update_webhook", "copy_model_version"),
    }
    reads = ("get_", "search_", "list_", "supports_")
    found = {
        name
        for name, value in vars_of(SqlAlchemyStore).items()
        if callable(value) and not name.startswith(("_", *reads)) and name[0].islower()
    }
    assert gated <= found
    assert found - gated == harmless


def vars_of(made: type) -> dict[str, Any]:
    """Return what a class and those above it define."""
    return {name: getattr(made, name) for name in dir(made)}


@pytest.mark.parametrize("uri", ["forward-inf-gate:", "forward-inf-gate:http://x", "", None])
def test_an_address_without_a_database_is_explained(uri: str | None) -> None:
    with pytest.raises(MlflowException, match="forward-inf-gate:postgresql://host/mlflow"):
        build(uri)
