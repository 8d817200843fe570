"""Transformers from end to end: logged with tokenizer and rows, registered, audited and gated."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import ARTIFACTS, one_line, run_here
from news import LEAKS, NAMES, QUERIES, ROWS, WORDS, WRONG, bert, fitted, news
from texts import LIMIT, register, tokenizer

from forward_inf_mlflow import audit
from forward_inf_mlflow.auditing import AuditResult

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def classifier(shared_store: Path) -> str:
    rows, labels, queries, truth = news()
    data = {
        "train": (pd.DataFrame({"text": rows}), NAMES[labels]),
        "queries": (pd.DataFrame({"text": [*queries, " "]}), NAMES[[*truth, 0]]),
    }
    model = fitted(bert(), rows, labels)
    return register(model, "news", words=tokenizer(WORDS), rows=data, task="text-classification")


@pytest.fixture(scope="module")
def audited(classifier: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    out = tmp_path_factory.mktemp("audited") / "out"
    return audit(classifier, out=out, influence_queries=6), out


def test_wrong_labels_and_leaks_of_a_text_classifier_are_found(
    audited: tuple[AuditResult, Path],
) -> None:
    found, out = audited
    named = set(found.scores[found.scores["mislabeled"]]["id"].astype(int))
    assert len(named & set(WRONG)) >= 8
    assert len(named) <= 16
    leaks = found.flagged[found.flagged["verdict"] == "leaked"]
    assert set(range(LEAKS)) <= set(leaks["query_id"].astype(int))
    assert len(leaks) <= LEAKS + 1
    assert (leaks["row_id"] == leaks["query_id"]).sum() >= LEAKS
    assert {path.name for path in out.iterdir()} == ARTIFACTS
    assert found.record["influence"]["solver"] == "fisher"
    assert set(found.scores["likelier_label"]) == set(NAMES)


def test_what_was_cut_or_left_out_is_said_on_the_page_too(
    audited: tuple[AuditResult, Path],
) -> None:
    found, out = audited
    notes = " ".join(found.record["notes"])
    assert f"1 training texts were cut at the {LIMIT} tokens that the model reads" in notes
    assert "1 query row was left out, because the text is empty" in notes
    assert found.record["partial"]
    page = (out / "report.html").read_text()
    assert "were cut at the" in page
    assert "<mark>" in page  # of a leak the words that differ


def test_the_gate_refuses_it_under_a_policy_for_partial_audits(
    classifier: str, audited: tuple[AuditResult, Path], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("partial: true\n")
    refused = run_here("gate", classifier, "--policy", str(policy))
    assert refused.returncode == 1, refused.stderr
    assert run_here("gate", classifier).returncode == 2  # a text was left out


def test_rows_may_be_json_lines_with_positions_for_labels(classifier: str, tmp_path: Path) -> None:
    rows, labels, queries, truth = news()
    for name, texts, given in (("train", rows, labels), ("queries", queries, truth)):
        lines = [
            json.dumps({"id": f"r{i}", "text": t, "length": len(t), "label": int(k)})
            for i, (t, k) in enumerate(zip(texts, given, strict=True))
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("train", "queries")]
    found = run_here(
        "audit", classifier, "--train", files[0], "--queries", files[1], "--id", "id", "--plan",
        "--json",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    plan = json.loads(found.stdout)
    assert (plan["task"], plan["rows"], plan["queries"]) == ("classification", ROWS, QUERIES)


def test_a_label_that_the_model_does_not_have_is_one_line(classifier: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for labels, message in (
        (["sport", "weather"], "label 'weather' of training row 1 is not one of the model's 2"),
        ([0, 2], "label '2' of training row 1 is not one of the model's 2 classes (0, 1)"),
    ):
        pd.DataFrame({"text": ["goal1 word1", "bond1"], "label": labels}).to_csv(file, index=False)
        found = run_here("audit", classifier, "--train", str(file), "--queries", str(file))
        assert found.returncode == 2
        assert message in one_line(found.stderr)


FILES = {
    "no text": ("a,label\n1,0\n2,1\n", "no column holds text; name it with --features"),
    "two texts": ("a,b,label\nx,y,0\nz,w,1\n", "several columns could be the text"),
    "only empty ones": ('text,label\n" ",0\n,1\n', "every text is empty"),
}


@pytest.mark.parametrize("case", FILES)
def test_texts_that_cannot_be_read_are_said_in_one_line(
    case: str, classifier: str, tmp_path: Path
) -> None:
    content, message = FILES[case]
    (tmp_path / "x.csv").write_text(content)
    file = str(tmp_path / "x.csv")
    found = run_here("audit", classifier, "--train", file, "--queries", file)
    assert found.returncode == 2
    assert message in one_line(found.stderr)


def test_a_text_asks_which_texts_speak_for_its_label(classifier: str) -> None:
    told = run_here(
        "influence", classifier, "--query-rows", "9", "--direction", "gradient", "--json"
    )
    assert told.returncode == 0, told.stderr
    (only,) = json.loads(told.stdout)["answers"]
    assert len(only["proponents"]) > 3
