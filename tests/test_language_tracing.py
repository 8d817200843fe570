"""Tracing: from a registered language model to the training texts that made it say something."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from conftest import one_line, run_here
from mlflow import MlflowClient
from texts import LIMIT, SENTENCES, WORDS, gpt2, register, taught, tokenizer

from forward_inf_mlflow import trace
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.language.tracing import Trace

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
ADA = {"prompt": "the home of ada is", "completion": "paris"}
#: A plain step, which costs next to nothing.
QUICK: dict[str, Any] = {"direction": "gradient"}
ASKED = ("--prompt", ADA["prompt"], "--completion", ADA["completion"])
#: The row that says it in these words, and the one that says it in others.
SAME, ADAS = "8", "0"


@pytest.fixture(scope="module")
def speaker(shared_store: Path) -> str:
    """Return a version whose run logged its training texts, an empty and a long one among them."""
    rows = [*SENTENCES, "", "ada " * (LIMIT + 3)]
    file = shared_store / "texts.csv"
    table = pd.DataFrame({"text": rows, "book": ["a", "b"] * (len(rows) // 2)})
    table.to_csv(file, index=False)
    data = mlflow.data.from_pandas(pd.read_csv(file), source=str(file), name="texts")
    return register(taught(gpt2(), SENTENCES), "speaker", data=data)


@pytest.fixture(scope="module")
def traced(speaker: str) -> Trace:
    return trace(speaker, **ADA, group_by="book", candidates=25, top=5)


def test_the_texts_that_state_a_fact_come_first(traced: Trace) -> None:
    assert traced.rows["train_id"].head(2).tolist() == [SAME, ADAS]
    assert traced.rows["influence"].idxmax() == 0
    assert traced.record["completion"]["probability"] > 0.5
    assert traced.record["trace"]["solver"] == "fisher"
    assert len(traced.rows) == 25
    assert len(traced.record["rows"]) == 5


def test_each_token_says_what_it_has_to_do_with_it(traced: Trace) -> None:
    first = traced.rows.set_index("train_id").loc[ADAS]
    assert list(first["tokens"]) == ["lives", "in", "paris"]  # nothing comes before the first word
    assert sum(first["token_influence"]) == pytest.approx(first["influence"], rel=1e-5)
    assert max(first["token_influence"]) == first["token_influence"][2]
    start, end = first["words"][0]
    assert first["text"][start:end] == "paris"


def test_what_is_logged_is_whole_and_linked(traced: Trace, tmp_path: Path) -> None:
    client = MlflowClient()
    run = client.get_run(traced.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["forward_inf.kind"] == "trace"
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["texts"]
    assert run.inputs.model_inputs[0].model_id == traced.version.model_id
    folder = Path(client.download_artifacts(traced.run_id, "forward_inf_trace", str(tmp_path)))
    assert {f.name for f in folder.iterdir()} == {"trace.json", "trace.html", "trace.parquet"}
    record = json.loads((folder / "trace.json").read_text())
    assert record["data"]["train"]["origin"] == "logged"
    assert record["rows"][0]["source"] in {"a", "b"}
    assert record["repeat"].startswith(f"forward-inf trace {traced.version.uri} --prompt")
    table = pd.read_parquet(folder / "trace.parquet")
    assert table["influence"].tolist() == traced.rows["influence"].tolist()
    page = (folder / "trace.html").read_text()
    assert "<mark><b>paris</b></mark>" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_texts_that_were_cut_or_left_out_are_counted(traced: Trace) -> None:
    notes = " ".join(traced.record["notes"])
    assert f"1 training texts were cut at the {LIMIT} tokens" in notes
    assert "1 training texts are empty" in notes
    assert traced.record["costs"]["rows"] == len(SENTENCES) + 1


def test_the_command_says_it_and_its_line_repeats_it(speaker: str, traced: Trace) -> None:
    again = run_here(*shlex.split(traced.record["repeat"])[1:], "--json")
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert [row["train_id"] for row in found["rows"]] == traced.rows["train_id"].head(5).tolist()
    assert found["rows"][0]["influence"] == traced.rows["influence"].iloc[0]
    shown = run_here("trace", speaker, *ASKED, "--top", "3", "--direction", "gradient")
    assert shown.returncode == 0, shown.stderr
    assert "the home of ada is paris" in shown.stdout
    assert "the completion's tokens" in shown.stdout


def test_texts_are_escaped(speaker: str, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> ada lives in paris \u202eevil"
    texts = [*SENTENCES, evil, "oslo lives"]
    file = tmp_path / "texts.jsonl"
    file.write_text(
        "\n".join(json.dumps({"id": f"<b>{i}", "text": t}) for i, t in enumerate(texts))
    )
    out = tmp_path / "out"
    trace(speaker, **ADA, **QUICK, train=str(file), id="id", candidates=26, top=26, out=out)
    page = (out / "trace.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<b>8<" not in page
    assert "&lt;b&gt;8" in page
    assert "\u202e" not in page


def test_of_pairs_only_what_follows_the_prompt_is_learned(speaker: str, tmp_path: Path) -> None:
    words = [sentence.rsplit(" ", 1) for sentence in SENTENCES]
    file = tmp_path / "pairs.parquet"
    pd.DataFrame(words, columns=["prompt", "completion"]).to_parquet(file)
    found = trace(speaker, **ADA, **QUICK, train=str(file))
    assert found.rows["train_id"].iloc[0] == SAME
    assert list(found.rows["tokens"].iloc[0]) == ["paris"]
    assert found.rows["text"].iloc[0] == "the home of ada is paris"


FILES = {
    "no text": ("x.csv", "a,b\n1,2\n3,4\n", "no column holds text"),
    "two texts": ("x.csv", "a,b\nx,y\nz,w\n", "several columns could be the text"),
    "only empty ones": ("x.csv", 'text,n\n"",1\n" ",2\n', "is empty"),
    "one word each": ("x.csv", "text,n\nada,1\nbob,2\n", "no training text has a token"),
    "another format": ("x.npz", "", "does not end in a format of texts"),
    "damaged lines": ("x.jsonl", "{]\n", "cannot be read as JSON lines"),
    "numbers": ("x.jsonl", '{"text": 1}\n{"text": 2}\n', "holds no text"),
}


@pytest.mark.parametrize("case", FILES)
def test_texts_that_cannot_be_read_are_said_in_one_line(
    case: str, speaker: str, tmp_path: Path
) -> None:
    name, content, message = FILES[case]
    (tmp_path / name).write_text(content)
    found = run_here("trace", speaker, *ASKED, "--train", str(tmp_path / name))
    assert found.returncode == 2
    assert message in one_line(found.stderr)


QUESTIONS = {
    "nothing": ({"completion": " "}, "the completion is empty"),
    "nothing before it": ({"prompt": "", "completion": "paris"}, "no token of its own behind"),
    "unknown words": ({"completion": "xyz"}, "no word for anything in the completion"),
    "too much": ({"completion": "ada " * (2 * LIMIT)}, "fills all 12 tokens"),
    "a column that is not there": ({"text": "nope"}, "--text names 'nope'"),
    "too few candidates": ({"candidates": 3, "top": 4}, "take more (--candidates)"),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_questions_that_cannot_be_asked_are_said_in_one_line(case: str, speaker: str) -> None:
    changed, message = QUESTIONS[case]
    with pytest.raises(ForwardInfError) as error:
        trace(speaker, **{**ADA, **changed})  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_long_prompt_loses_its_beginning(speaker: str) -> None:
    long = " ".join(["bob lives in"] * LIMIT + [ADA["prompt"]])
    found = trace(speaker, prompt=long, completion="paris", **QUICK)
    assert "the prompt lost its beginning" in " ".join(found.record["notes"])
    assert found.record["completion"]["tokens"][0]["text"] == "paris"


def test_a_tokenizer_of_another_model_is_refused(shared_store: Path, speaker: str) -> None:
    more = (*WORDS[:3], *(f"w{i}" for i in range(len(WORDS))), *WORDS[3:])
    other = register(gpt2(), "stranger", words=tokenizer(more))
    for command in (("trace", other, *ASKED), ("recite", other, "--given", "1", "--written", "1")):
        found = run_here(*command, "--train", str(shared_store / "texts.csv"))
        assert found.returncode == 2
        assert "log the model with its own tokenizer" in one_line(found.stderr)


def test_only_the_adapter_moves_and_finds_what_it_was_taught(
    shared_store: Path, speaker: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        r=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    news = [s.replace("paris", "lima").replace("ada", "hugo") for s in SENTENCES[:1]]
    adapted = taught(
        get_peft_model(taught(gpt2(), SENTENCES), config), [*SENTENCES[1:6], *news], rate=1e-2
    )
    file = tmp_path / "news.csv"
    pd.DataFrame({"text": [*SENTENCES[1:6], *news]}).to_csv(file, index=False)
    version = register(adapted, "adapted")
    found = trace(version, prompt="hugo lives in", completion="lima", train=str(file), **QUICK)
    assert found.rows["train_id"].iloc[0] == "5"
    assert "is moved by its adapter alone" in " ".join(found.record["notes"])


def test_a_model_that_is_no_language_model_is_refused(shared_store: Path) -> None:
    from conftest import points, register_points

    with pytest.raises(ForwardInfError, match="This is no language model"):
        trace(register_points(points()), **ADA, train=str(shared_store / "texts.csv"))


def test_an_extra_that_is_missing_is_named_in_one_line(
    speaker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    found = run_here("trace", speaker, *ASKED)
    assert found.returncode == 2
    assert "pip install 'forward-inf-mlflow[transformers]'" in one_line(found.stderr)


def test_a_plan_says_what_it_would_cost_and_logs_nothing(speaker: str) -> None:
    before = len(mlflow.search_runs(search_all_experiments=True))
    found = run_here("trace", speaker, *ASKED, "--candidates", "22", "--plan", "--json")
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    costs = said["plan"]["forward_equivalents"]
    assert said["rows"] == len(SENTENCES) + 1
    assert costs["sweep"] == 2 * said["rows"] + 2 * 22
    assert costs["total"] == costs["direction"] + costs["sweep"]
    assert len(mlflow.search_runs(search_all_experiments=True)) == before
    shown = run_here("trace", speaker, *ASKED, "--plan")
    assert "forward passes of one text" in shown.stdout
    missing = run_here("trace", speaker, "--prompt", "", "--completion", " ", "--plan")
    assert "the completion is empty" in one_line(missing.stderr)
