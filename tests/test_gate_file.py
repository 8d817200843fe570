from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from conftest import one_line, run_here
from gate_cases import DEFAULT_POLICY, RING, write_gate

from forward_inf_mlflow.errors import VerdictError
from forward_inf_mlflow.policy import Policy, default_text
from forward_inf_mlflow.strict_yaml import repeated
from forward_inf_mlflow.verdicts.gate_file import Gate, Rule, default_gate_text, load_gate
from forward_inf_mlflow.verdicts.names import fold


def load(folder: Path, text: str) -> Gate:
    return load_gate(write_gate(folder, text))


def test_the_default_protects_champion_and_production_of_all_models(tmp_path: Path) -> None:
    gate = load(tmp_path, default_gate_text())
    assert gate == Gate(rules=(Rule(policies=(DEFAULT_POLICY,)),), ring=RING, hash_up_to=None)
    assert gate.rule("any", "champion") is not None
    assert gate.rule("any", "challenger") is None
    assert gate.rule("any", "Production", stage=True) is not None
    assert gate.rule("any", "Staging", stage=True) is None


def test_what_stands_in_the_file_counts(tmp_path: Path) -> None:
    (tmp_path / "strict.yaml").write_text("max_leakage_rate: 0\n")
    gate = load(
        tmp_path,
        f"""
        keys: keys.yaml
        protect:
          - models: [fraud-*, "score?"]
            aliases: [prod-*]
            stages: []
            policies: [strict.yaml, {"AB" * 32}, {"1" * 64}]
            max_age_days: 1.5
            overrides: false
          - {{}}
        hash_artifacts: {{max_bytes: 2_000_000}}
        """,
    )
    first, second = gate.rules
    strict = Policy(max_leakage_rate=0.0).sha256
    assert first.policies == (strict, "ab" * 32, "1" * 64)
    assert (first.max_age_days, first.overrides, first.stages) == (1.5, False, ())
    assert second == Rule(policies=(DEFAULT_POLICY,))
    assert gate.hash_up_to == 2_000_000
    assert gate.rule("fraud-eu", "prod-1") is first
    assert gate.rule("score7", "prod-1") is first
    assert gate.rule("score77", "prod-1") is None
    assert gate.rule("fraud-eu", "champion") is second, "the first that fits the alias too"
    assert gate.rule("fraud-eu", "Production", stage=True) is second


@pytest.mark.parametrize(
    ("model", "alias"),
    [
        ("Fraud", "champion"),
        ("fraud", "CHAMPION"),
        ("ｆｒａｕｄ", "champion"),
        ("fráud", "chámpion"),
        ("fraud ", "champion\n"),
        ("fra\u0001ud", "champion"),
        ("fra\u200bud", "champ\u00adion"),
    ],
)
def test_a_name_in_another_spelling_is_the_same_name(
    tmp_path: Path, model: str, alias: str
) -> None:
    gate = load(tmp_path, "protect: [{models: [Fraud], aliases: [Champion]}]")
    assert gate.rule(model, alias) is gate.rules[0]


def test_where_the_database_compares_loosely_letters_beyond_ascii_fit_everything(
    tmp_path: Path,
) -> None:
    gate = load(tmp_path, "protect: [{models: [fraud], aliases: [champion]}]")
    assert fold("frøud") == "frøud"
    assert gate.rule("frøud", "champion") is None
    assert gate.rule("frøud", "champion", loose=True) is gate.rules[0]
    assert gate.rule("fraud", "chømpion", loose=True) is gate.rules[0]
    assert gate.rule("other", "champion", loose=True) is None
    assert gate.rule("fraud", "other", loose=True) is None


WRONG = {
    "": "gate.yaml is empty",
    "# nothing": "gate.yaml is empty",
    "7": "line 1: a gate file is",
    "- a": "line 1: a gate file is",
    "protect: [": "gate.yaml, line",
    "[" * 3000: "gate.yaml",
    "keys: keys.yaml": "lacks 'protect'",
    "protect:": "line 1: 'protect' is a list",
    "protect: []": "line 1: 'protect' is a list",
    "protect: all": "line 1: 'protect' is a list",
    "protect: [all]": "line 1: an entry of 'protect' has keys",
    "protect: [{}]\nprotects: []": "line 2: unknown key 'protects'; did you mean 'protect'?",
    "protect: [{}]\nprotect: [{}]": "line 2: 'protect' stands here a second time",
    "protect: [{}]\nkeys:": "line 2: 'keys' is a text",
    "protect: [{}]\nkeys: [a]": "line 2: 'keys' is a text",
    "protect: [{}]\nkeys: none.yaml": "there is no file none.yaml",
    "protect: [{}]\nkeys: .": "cannot be read",
    'protect: [{}]\nkeys: "a\\0b"': "cannot be read",
    "protect:\n- model: [a]": "line 2: unknown key 'model'; did you mean 'models'?",
    "protect:\n- models: [a]\n  models: [b]": "line 3: 'models' stands here a second time",
    "protect:\n- models:": "line 2: 'models' has no value",
    "protect:\n- models: a": "line 2: 'models' is a list",
    "protect:\n- models: []": "line 2: this entry protects nothing",
    "protect:\n- models: [7]": "line 2: an entry of 'models' is a text",
    "protect:\n- models: ['']": "line 2: an entry of 'models' is a text",
    "protect:\n- aliases: [yes]": "line 2: an entry of 'aliases' is a text",
    "protect:\n- aliases: [null]": "line 2: an entry of 'aliases' is a text",
    "protect:\n- aliases: [[a]]": "line 2: an entry of 'aliases' is a text",
    "protect:\n- aliases: []\n  stages: []": "line 2: this entry protects nothing",
    "protect:\n- aliases: [Latest]": "'Latest' cannot be protected, MLflow computes it",
    "protect:\n- stages: [Archived]": "a stage that can be protected is Production or Staging",
    "protect:\n- policies: []": "line 2: 'policies' lists no policy",
    "protect:\n- policies: [gone.yaml]": "line 2: there is no file gone.yaml",
    "protect:\n- policies: [bad.yaml]": "line 2: bad.yaml, line 1: unknown key 'leaks'",
    "protect:\n- policies: [7]": "line 2: an entry of 'policies' is a text",
    "protect:\n- max_age_days: 0": "line 2: 'max_age_days' is a number of days",
    "protect:\n- max_age_days: -1": "line 2: 'max_age_days' is a number of days",
    "protect:\n- max_age_days: .inf": "line 2: 'max_age_days' is a number of days",
    "protect:\n- max_age_days: .nan": "line 2: 'max_age_days' is a number of days",
    "protect:\n- max_age_days: true": "line 2: 'max_age_days' is a number of days",
    "protect:\n- max_age_days: 30 days": "line 2: 'max_age_days' is a number of days",
    "protect:\n- overrides: maybe": "line 2: 'overrides' is true or false",
    "protect:\n- overrides: 1": "line 2: 'overrides' is true or false",
    "protect:\n- &a {<<: *a}": "gate.yaml, line 2",
    "protect: [{}]\nhash_artifacts: true": "line 2: 'hash_artifacts' needs 'max_bytes'",
    "protect: [{}]\nhash_artifacts: {}": "line 2: 'max_bytes' is a number of bytes",
    "protect: [{}]\nhash_artifacts: {max_bytes: 0}": "line 2: 'max_bytes' is a number of bytes",
    "protect: [{}]\nhash_artifacts: {max_bytes: 1.5}": "line 2: 'max_bytes' is a number of bytes",
    "protect: [{}]\nhash_artifacts: {max_bytes: true}": "line 2: 'max_bytes' is a number of bytes",
    "protect: [{}]\nhash_artifacts: {bytes: 9}": "line 2: unknown key 'bytes'",
    "protect: [{}]\nkeys: !!timestamp x": "line 2: an explicit type",
    "protect:\n- overrides: !!bool xyz": "line 2: an explicit type",
    "protect:\n- max_age_days: !!null 1": "line 2: an explicit type",
    "protect:\n- max_age_days: 0x_": "line 2: 'max_age_days' is a number of days",
    "protect:\n- <<: {overrides: true}": "line 2: the merge key",
    "protect: [{}]\n!!python/name:os.system a: b": "gate.yaml, line 2",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=[t[:40] for t in WRONG])
def test_a_slip_is_named_with_its_line_and_no_folder(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("leaks: 1\n")
    with pytest.raises(VerdictError) as caught:
        load(tmp_path, text)
    said = str(caught.value)
    assert message in said
    assert "\n" not in said
    assert str(tmp_path) not in said


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = write_gate(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VerdictError, match=r"gate.yaml cannot be read: not UTF-8"):
        load_gate(path)
    path.unlink()
    with pytest.raises(VerdictError, match="there is no file gate"):
        load_gate(path)


def test_an_edit_of_any_of_the_files_counts_at_once(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("max_leakage_rate: 0.5\n")
    path = write_gate(tmp_path, "protect: [{policies: [policy.yaml]}]")
    before = load_gate(path)
    (tmp_path / "policy.yaml").write_text("max_leakage_rate: 0.4\n")
    assert load_gate(path).rules != before.rules
    (tmp_path / "keys.yaml").write_text("keys: []\n")
    assert load_gate(path).ring.keys == ()
    path.write_text("protect: [{aliases: [other]}]")
    assert load_gate(path).rule("m", "champion") is None


def test_reading_it_again_costs_next_to_nothing(tmp_path: Path) -> None:
    path = write_gate(tmp_path)
    load_gate(path)
    start = time.perf_counter()
    for _ in range(100):
        load_gate(path)
    assert (time.perf_counter() - start) / 100 < 0.005, "parsed only where it changed"


def test_the_command_line_writes_and_checks_it(tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    assert run_here("gate-file", "init", str(file)).returncode == 0
    again = run_here("gate-file", "init", str(file))
    assert again.returncode == 2
    assert "exists" in one_line(again.stderr)
    assert "there is no file keys.yaml" in run_here("gate-file", "check", str(file)).stderr
    write_gate(tmp_path)
    checked = run_here("gate-file", "check", str(file), "--json")
    assert checked.returncode == 0, checked.stderr
    content = json.loads(checked.stdout)
    assert [key["name"] for key in content["keys"]] == ["ci", "ada"]
    assert content["protect"][0]["policies"] == [DEFAULT_POLICY]
    assert "keys that count: ci, ada" in run_here("gate-file", "check", str(file)).stdout


def test_a_repeated_key_is_found_wherever_it_stands() -> None:
    import yaml

    def line(text: str) -> int | None:
        return repeated(yaml.compose(text, Loader=yaml.SafeLoader))

    assert line("a: 1\nb: {c: 1}\n") is None
    assert line("a:\n- b: 1\n  c: 2\n  b: 3\n") == 4
    assert line("a: &x [*x]\n") is None
    assert line("") is None


def test_the_guides_example_is_a_gate_file(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "gate.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "policy.yaml").write_text(default_text())
    gate = load(tmp_path, example)
    assert [rule.models for rule in gate.rules] == [("fraud-*",), ("*",)]
    assert gate.hash_up_to == 2_000_000_000
