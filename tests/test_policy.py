from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from forward_inf_mlflow.errors import PolicyError
from forward_inf_mlflow.policy import Policy, default_text, load_policy, parse_policy

OTHER = Policy(
    max_mislabeled_rate=0.5,
    max_leakage_rate=None,
    max_leak_inflation=0.25,
    max_memorized_rate=0.125,
    data="declared",
    partial=True,
    kept=False,
)


@pytest.mark.parametrize("policy", [Policy(), OTHER], ids=["default", "other"])
def test_a_policy_survives_its_file(policy: Policy, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(asdict(policy)))
    read = load_policy(path)
    assert read == policy
    assert read.sha256 == policy.sha256


def test_the_default_file_says_what_the_defaults_are() -> None:
    assert load_policy(None) == parse_policy(default_text()) == Policy()
    written = yaml.safe_load(default_text())
    assert set(written) == {field.name for field in fields(Policy)}, "every key is explained"


def test_every_default_stands_below_a_comment_that_says_why() -> None:
    lines = default_text().splitlines()
    for i, line in enumerate(lines):
        if line and not line.startswith("#"):
            assert lines[i - 1].startswith("# "), line


def test_comments_order_spacing_and_left_out_defaults_do_not_change_the_hash() -> None:
    plain = "max_mislabeled_rate: 0.5\npartial: true\n"
    dressed = "# why\npartial:   true # yes\n\nmax_mislabeled_rate: .50\ndata: logged\n"
    assert parse_policy(plain).sha256 == parse_policy(dressed).sha256
    assert parse_policy("max_mislabeled_rate: 1").sha256 == Policy(max_mislabeled_rate=1.0).sha256


@pytest.mark.parametrize("field", [field.name for field in fields(Policy)])
def test_every_key_changes_the_hash(field: str) -> None:
    changed: dict[str, Any] = {field: getattr(OTHER, field)}
    assert replace(Policy(), **changed).sha256 != Policy().sha256
    assert Policy().as_dict() == {"sha256": Policy().sha256, **asdict(Policy())}


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n"])
def test_an_empty_file_is_the_default_policy(text: str) -> None:
    assert parse_policy(text) == Policy()


@pytest.mark.parametrize("text", ["null", "~"])
def test_null_bounds_nothing(text: str) -> None:
    assert parse_policy(f"max_leakage_rate: {text}").max_leakage_rate is None


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("max_mislabelled_rate: 0.1", "did you mean 'max_mislabeled_rate'?"),
        ("qwerty: 1", "unknown key 'qwerty'; known: data, kept, max_leak_inflation"),
        ("[1, 2]: 3", "unknown key '?'"),
        ("1: 3", "unknown key '1'"),
        ("data: logged", "'data' stands here a second time"),
        ("max_leakage_rate: 7", "is 7, but a rate lies between 0 and 1 (3% is 0.03)"),
        ("max_leakage_rate: -0.1", "is -0.1, but a rate lies between 0 and 1"),
        ("max_leakage_rate: .nan", "is a share such as 0.03"),
        ("max_leakage_rate: .inf", "a rate lies between 0 and 1"),
        ("max_leakage_rate: true", "is a share such as 0.03"),
        ("max_leakage_rate: 3%", "is a share such as 0.03"),
        ('max_leakage_rate: "0.03"', "is a share such as 0.03"),
        ("max_leakage_rate: [0.1]", "is a share such as 0.03"),
        ("max_leakage_rate: {a: 1}", "is a share such as 0.03"),
        ("max_leakage_rate: 2020-99-99", "is a share such as 0.03"),
        ("max_leakage_rate: !!python/name:os.system", "an explicit type"),
        ("max_leakage_rate: !!int x", "an explicit type"),
        ("partial: 1", "'partial' is true or false"),
        ('partial: "true"', "'partial' is true or false"),
        ("partial: null", "'partial' is true or false"),
        ("partial: [true]", "'partial' is true or false"),
    ],
)
def test_a_mistake_is_told_with_its_line(bad: str, says: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(f"# a policy\ndata: logged\n{bad}\n", name="p.yaml")
    assert str(error.value).startswith("p.yaml, line 3: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["trusted", "1", "null", "[logged]", "{logged: 1}", "LOGGED"])
def test_data_is_one_of_three_words(value: str) -> None:
    with pytest.raises(PolicyError, match=r"line 2: 'data' is 'verified', 'logged' or 'declared'"):
        parse_policy(f"\ndata: {value}")


@pytest.mark.parametrize(
    "text",
    [
        "data: logged\nmax_leakage_rate: [\n",
        "data: logged\n\tpartial: true\n",
        "data: logged\n--- \ndata: logged\n",
        "data: logged\npartial: *unknown\n",
        "data: logged\n\x00",
    ],
    ids=["open bracket", "tab", "two documents", "unknown alias", "zero byte"],
)
def test_what_is_not_yaml_is_told_in_one_line(text: str) -> None:
    with pytest.raises(PolicyError, match=r"^p\.yaml") as error:
        parse_policy(text, name="p.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- data", "logged", "3"])
def test_a_policy_is_key_and_value(text: str) -> None:
    with pytest.raises(PolicyError, match="line 1: a policy is a list of 'key: value' lines"):
        parse_policy(text)


def test_a_file_that_is_not_there_is_told_with_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="forward-inf policy init"):
        load_policy(tmp_path / "none.yaml")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"# \xe4\n")
    with pytest.raises(PolicyError, match=r"latin\.yaml cannot be read"):
        load_policy(latin)


@pytest.mark.parametrize(
    "text",
    [
        "max_leakage_rate:",
        "max_leakage_rate: ''",
        "max_leakage_rate: 1" + "0" * 400,
        "partial: !!bool maybe",
        "max_leakage_rate: !!int ''",
        "[" * 3000,
        "max_leakage_rate: .inf",
        "max_leakage_rate: .nan",
        "max_leakage_rate: !!null 0.01",
        "max_leakage_rate: !!timestamp x",
        "partial: !!bool xyz",
        "<<: {partial: true}",
    ],
    ids=[
        *("nothing", "empty", "huge", "no bool", "no int", "deep", "infinite", "nan"),
        *("null tag", "timestamp tag", "bool tag", "merge"),
    ],
)
def test_odd_yaml_is_one_line_that_names_the_file_and_never_no_bound(text: str) -> None:
    with pytest.raises(PolicyError, match=r"^odd\.yaml") as caught:
        parse_policy(text, name="odd.yaml")
    assert "\n" not in str(caught.value)
