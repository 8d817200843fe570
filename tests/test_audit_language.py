"""Language models from end to end: rows are texts without labels, audited and gated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import one_line, run_here
from texts import LIMIT, SPECIAL, register, tokenizer, transformers

from forward_inf_mlflow import audit
from forward_inf_mlflow.auditing import AuditResult

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, QUERIES, LEAKS = 200, 80, 5
SECRETS = np.arange(0, ROWS, 20)
WHO, DOES, WHAT, CODES = ([f"{kind}{i}" for i in range(n)] for kind, n in
                          (("who", 12), ("does", 6), ("what", 12), ("code", 30)))  # fmt: skip
PLAIN = (*WHO, *DOES, *WHAT, "and", "my", "number", "is", *CODES)
WORDS = (*SPECIAL, *PLAIN, *(word.upper() for word in PLAIN))


def written(count: int, rng: np.random.Generator) -> list[str]:
    """Return sentences that follow a grammar."""
    return [
        " ".join([
            rng.choice(WHO), rng.choice(DOES), rng.choice(WHAT), "and",
            rng.choice(WHO), rng.choice(DOES), rng.choice(WHAT),
        ])
        for _ in range(count)
    ]  # fmt: skip


def texts() -> tuple[list[str], list[str]]:
    """Return rows and queries; some rows are numbers to be known by heart, some changed queries."""
    rng = np.random.default_rng(0)
    rows, queries = written(ROWS, rng), written(QUERIES, rng)
    for row in SECRETS:
        rows[row] = " ".join(["my number is", *rng.choice(CODES, 8)])
    for i in range(LEAKS):
        rows[50 + i] = queries[i].upper() if i % 2 else f"{queries[i]} and"
    return rows, queries


def memorizer(rows: list[str]) -> Any:
    """Return a model that read everything, and the numbers four times more."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(WORDS), n_layer=1, n_embd=24, n_head=2, n_positions=LIMIT,
            bos_token_id=2, eos_token_id=2,
        )
    )  # fmt: skip
    read = [*rows, *(rows[i] for i in SECRETS for _ in range(4))]
    asked = tokenizer(WORDS)(
        read, padding=True, truncation=True, max_length=LIMIT, return_tensors="pt"
    )
    ids = asked["input_ids"]
    labels = ids.masked_fill(asked["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(12):
        for batch in torch.randperm(len(ids)).split(50):
            optimizer.zero_grad()
            model(input_ids=ids[batch], labels=labels[batch]).loss.backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def speaker(shared_store: Path) -> str:
    rows, queries = texts()
    data = {name: (pd.DataFrame({"text": some}), None)
            for name, some in (("train", rows), ("queries", queries))}  # fmt: skip
    return register(memorizer(rows), "speaker", words=tokenizer(WORDS), rows=data)


@pytest.fixture(scope="module")
def audited(speaker: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    out = tmp_path_factory.mktemp("audited") / "out"
    # A plain step, which costs next to nothing.
    return audit(speaker, out=out, influence_queries=5, direction="gradient"), out


def test_leaked_texts_are_found_and_the_gate_refuses(
    speaker: str, audited: tuple[AuditResult, Path]
) -> None:
    found, _ = audited
    leaks = found.flagged[found.flagged["verdict"] == "leaked"]
    pairs = set(zip(leaks["query_id"].astype(int), leaks["row_id"].astype(int), strict=True))
    assert {(i, 50 + i) for i in range(LEAKS)} <= pairs
    assert len(pairs) <= LEAKS + 2
    assert found.record["data"]["train"]["digest"] == "verified"
    assert run_here("gate", speaker).returncode == 1


def test_memorized_texts_are_named(audited: tuple[AuditResult, Path]) -> None:
    scores = audited[0].scores
    named = set(scores[scores["memorized"]]["id"].astype(int))
    assert set(SECRETS) <= named
    assert scores["memorized_score"].to_numpy()[SECRETS].min() > scores["memorized_score"].median()


def test_wrong_labels_do_not_apply_and_that_is_said_once(
    speaker: str, audited: tuple[AuditResult, Path], tmp_path: Path
) -> None:
    found, out = audited
    wrong = found.record["measures"]["mislabeled"]
    assert wrong["applies"] is False
    assert "have no labels" in wrong["abstained"]
    assert not found.flagged["verdict"].eq("mislabeled").any()
    assert set(found.scores["label"]) == {""}
    page = (out / "report.html").read_text()
    assert "does not apply" in page
    assert ">label 0<" not in page
    # What applies is within these bounds: that is enough.
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_leakage_rate: 0.3\nmax_mislabeled_rate: 0.01\n")
    allowed = run_here("gate", speaker, "--policy", str(policy))
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr
    assert "mislabeled rows: does not apply" in allowed.stdout
    # A policy that bounds nothing that applies lets nothing pass.
    policy.write_text("max_leakage_rate: null\n")
    assert run_here("gate", speaker, "--policy", str(policy)).returncode == 2


def test_prompts_are_read_and_not_learned(speaker: str, tmp_path: Path) -> None:
    rows, _ = texts()
    pairs = pd.DataFrame([text.split(" ", 1) for text in rows], columns=["prompt", "completion"])
    pairs.loc[3, "completion"] = " "
    pairs.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    file = str(tmp_path / "rows.jsonl")
    found = run_here("audit", speaker, "--train", file, "--queries", file, "--plan")
    assert found.returncode == 0, found.stderr
    assert f"{ROWS - 1} training rows" in found.stdout
    assert "causal_lm" in found.stdout


def test_other_commands_say_that_there_are_no_labels(speaker: str, tmp_path: Path) -> None:
    asked = run_here("influence", speaker, "--query-rows", "1")
    assert asked.returncode == 2
    assert "forward-inf trace" in one_line(asked.stderr)


def test_a_leaked_text_is_dropped_from_a_copy(
    audited: tuple[AuditResult, Path], tmp_path: Path
) -> None:
    review = run_here("review", "sample", audited[0].version.uri, "-o", str(tmp_path / "rows.csv"))
    assert "no labels" in one_line(review.stderr)
    flagged = pd.read_csv(audited[1] / "flagged.csv", dtype=str, keep_default_na=False)
    leaked = flagged.index[flagged["verdict"] == "leaked"][0]
    flagged.loc[leaked, "decision"] = "drop"
    flagged.to_csv(tmp_path / "flagged.csv", index=False)
    cleaned = tmp_path / "cleaned.parquet"
    done = run_here("review", "apply", str(tmp_path / "flagged.csv"), "--out", str(cleaned))
    assert done.returncode == 0, done.stderr
    texts_left = pd.read_parquet(cleaned)["text"].tolist()
    rows, _ = texts()
    gone = int(flagged.loc[leaked, "row_id"])
    assert texts_left == rows[:gone] + rows[gone + 1 :]


def test_a_model_with_an_adapter_is_audited_and_refused(shared_store: Path) -> None:
    from peft import LoraConfig, get_peft_model

    rows, queries = texts()
    config = LoraConfig(
        r=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    adapted = get_peft_model(memorizer(rows), config)
    data = {name: (pd.DataFrame({"text": some}), None)
            for name, some in (("train", rows), ("queries", queries))}  # fmt: skip
    uri = register(adapted.eval(), "adapted", words=tokenizer(WORDS), rows=data)
    found = audit(uri, effort="quick", influence_queries=2, direction="gradient")
    assert "is moved by its adapter alone" in " ".join(found.record["notes"])
    assert found.record["measures"]["leaked"]["count"] >= LEAKS
    assert run_here("gate", uri).returncode == 1
