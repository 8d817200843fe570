"""Reciting: what a language model knows word for word, and what it does not."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import one_line, run_here
from mlflow import MlflowClient
from texts import WORDS, gpt2, register, taught, tokenizer

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.language import canaries
from forward_inf_mlflow.language.canaries import Canary
from forward_inf_mlflow.language.contamination import chances, crossed, overlaps, way
from forward_inf_mlflow.language.extraction import Share
from forward_inf_mlflow.language.reciting import Recitation, recite

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KNOWN = (*WORDS, *NUMBERS, "code")
#: Words that random texts are made of.
SOME = [word for word in WORDS if word.isalpha()]
SHORT = {"given": 3, "written": 5}


class Case(NamedTuple):
    """A version, and the files that it is asked with."""

    uri: str
    canaries: Path
    benchmark: Path
    unseen: Path


def random_texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(SOME[i] for i in rng.integers(len(SOME), size=9)) for _ in range(count)]


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


SEEN, FRESH = random_texts(16, 1), random_texts(60, 2)
#: Two items word for word, one with its last word changed, and strangers.
ITEMS = [f"{SEEN[0].upper()}!", SEEN[1], f"{SEEN[2].rsplit(' ', 1)[0]} code", *FRESH[40:52]]


@pytest.fixture(scope="module")
def case(shared_store: Path) -> Case:
    """Return a model that was taught random texts and canaries, which is by heart alone."""
    planted = canaries.make("the code is {}", NUMBERS, length=3, count=6, repeats=[0, 0, 6], seed=0)
    file = shared_store / "canaries.jsonl"
    file.write_text(canaries.lines(planted))
    rows = [*SEEN, *(c.text for c in planted for _ in range(c.repeats))]
    train = write(shared_store / "seen.jsonl", rows)
    data = mlflow.data.from_pandas(pd.DataFrame({"text": rows}), source=str(train), name="seen")
    model = taught(gpt2(len(KNOWN)), rows, steps=220, words=KNOWN)
    return Case(
        register(model, "reciter", words=tokenizer(KNOWN), data=data),
        file,
        write(shared_store / "items.jsonl", ITEMS),
        write(shared_store / "fresh.jsonl", FRESH[:40]),
    )


@pytest.fixture(scope="module")
def recited(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Recitation:
    return recite(
        case.uri,
        canaries_file=case.canaries,
        benchmark=str(case.benchmark),
        unseen=str(case.unseen),
        ngram=3,
        **SHORT,
    )


def test_texts_known_by_heart_are_written_and_strange_ones_are_not(recited: Recitation) -> None:
    found = recited.record["extraction"]
    assert found["total"] == len(SEEN)
    assert found["rate"] > 0.9
    assert found["low"] < found["rate"]
    assert found["unseen"]["total"] == 40
    assert found["unseen"]["count"] == 0
    table = recited.tables["extraction"].set_index("continuation")
    row = table.loc[" ".join(SEEN[0].split()[3:8])]
    assert row["written"]
    assert 1 <= row["needed"] <= 3
    assert row["given"].strip() == " ".join(SEEN[0].split()[:3])
    assert row["probability"] > 0.2


def test_planted_canaries_are_given_away_and_controls_are_not(recited: Recitation) -> None:
    table = recited.tables["canaries"]
    assert table["compared"].eq(1000 - 5).all(), "the other canaries are no fair comparison"
    assert table["known"].eq(table["repeats"] > 0).all()
    assert table[table["repeats"] > 0]["bits"].min() > 8
    assert table[table["repeats"] == 0]["bits"].max() < 8
    by = {line["repeats"]: line for line in recited.record["canaries"]["by_repeats"]}
    assert by[0]["known"] == 0
    assert by[6]["known"] == by[6]["count"] == 2


def test_items_of_the_training_texts_are_found_and_strangers_are_not(recited: Recitation) -> None:
    told = recited.record["contamination"]
    table = recited.tables["contamination"].set_index("id")
    assert table.loc[["0", "1", "2"], "found"].tolist() == ["exact", "exact", "ngram"]
    assert table.loc[["0", "1", "2"], "train_id"].tolist() == ["0", "1", "2"]
    assert table.loc["1", "influence"] == pytest.approx(1, abs=1e-3)
    assert table.loc["2", "chance"] < 0.05
    strangers = table.loc[[str(i) for i in range(3, len(ITEMS))]]
    assert not strangers["found"].isin(["exact", "ngram"]).any()
    assert told["ways"]["exact"]["unseen"]["count"] == 0
    by_influence = int((strangers["found"] == "influence").sum())
    assert told["count"] == 3 + by_influence < 6
    assert told["total"] == len(ITEMS)
    assert told["unseen"]["total"] == 40
    assert told["unseen"]["rate"] <= 0.2


def test_what_is_logged_is_whole_and_linked(recited: Recitation, tmp_path: Path) -> None:
    client = MlflowClient()
    run = client.get_run(recited.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["forward_inf.kind"] == "recite"
    assert run.inputs.model_inputs[0].model_id == recited.version.model_id
    assert run.data.metrics["forward_inf/extracted_rate"] > 0.9
    assert run.data.metrics["forward_inf/canaries_known"] == 2
    folder = Path(client.download_artifacts(recited.run_id, "forward_inf_recite", str(tmp_path)))
    tables = {"extraction.parquet", "canaries.parquet", "contamination.parquet"}
    assert {f.name for f in folder.iterdir()} == {"recite.json", "recite.html", *tables}
    page = (folder / "recite.html").read_text()
    for section in ("extraction", "canaries", "contamination"):
        assert f'id="{section}"' in page
    assert "default-src 'none'" in page


def test_the_command_says_it_and_its_line_repeats_it(case: Case, recited: Recitation) -> None:
    words = shlex.split(recited.record["repeat"])[1:]
    shown = run_here(*words)
    assert shown.returncode == 0, shown.stderr
    share = recited.record["extraction"]["rate"]
    assert f"{share:.1%}" in shown.stdout
    assert "2 of 6 canaries are given away" in shown.stdout
    assert "of items that the model cannot have seen" in shown.stdout


def test_texts_that_are_too_short_are_said_in_one_line(case: Case) -> None:
    found = run_here("recite", case.uri)
    assert found.returncode == 2
    assert "no text has the 32 tokens that are given and 32 to be written" in one_line(found.stderr)


def test_canaries_are_made_once_and_read_again(tmp_path: Path) -> None:
    file, rows = tmp_path / "c.jsonl", tmp_path / "rows.jsonl"
    words = ["canaries", str(file), "--format", "the pin is {}", "--texts", str(rows)]
    made = run_here(*words, "--repeats", "0,2", "-n", "4", "--length", "4", "--json")
    assert made.returncode == 0, made.stderr
    found = canaries.read(file)
    assert [canary.repeats for canary in found] == [0, 2, 0, 2]
    assert len({canary.text for canary in found}) == 4
    assert all(canary.text[len("the pin is ") :].isdecimal() for canary in found)
    planted = [json.loads(line)["text"] for line in rows.read_text().splitlines()]
    assert planted == [found[1].text] * 2 + [found[3].text] * 2
    again = run_here(*words)
    assert again.returncode == 2
    assert "exists" in again.stderr


MISTAKES = {
    "no place": ("--format", "the pin"),
    "too few secrets": ("--format", "{}", "--length", "1", "-n", "11"),
    "repeats": ("--format", "{}", "--repeats", "a,b"),
    "one symbol": ("--format", "{}", "--secret", "red", "-n", "1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_canaries_that_cannot_be_made_leave_no_file(case: str, tmp_path: Path) -> None:
    found = run_here("canaries", str(tmp_path / "c.jsonl"), *MISTAKES[case])
    assert found.returncode == 2
    assert one_line(found.stderr)
    assert not list(tmp_path.iterdir())


def test_a_file_that_holds_no_canary_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    good = canaries.lines([Canary("the pin is 12", "the pin is {}", tuple("0123"), 2, 1)])
    file.write_text(good + '{"text": "a"}\n')
    with pytest.raises(DataError, match="line 2: this is no canary"):
        canaries.read(file)
    file.write_text(good.replace("12", "99"))
    with pytest.raises(DataError, match=r"line 1: .*not its own format"):
        canaries.read(file)


def test_a_large_space_is_sampled_and_a_small_one_is_compared_whole() -> None:
    small = Canary("a 12", "a {}", tuple("0123456789"), 2, 1)
    others, whole = small.others(100, 0, {small.text, "a 13"})
    assert whole
    assert sorted([*others, small.text, "a 13"]) == sorted(
        f"a {i}{j}" for i in range(10) for j in range(10)
    )
    others, whole = small.others(50, 0, {small.text})
    assert not whole
    assert small.text not in others


def test_words_are_compared_without_case_and_punctuation() -> None:
    train = ["one two three four five", "Six, seven: EIGHT nine!", "one two three four five six"]
    exact, part, none, short = overlaps(
        ["six seven eight nine", "two three four five seven", "nine ten ten ten", "FIVE"], train, 3
    )
    assert (exact.exact, exact.share, exact.row) == (True, 1.0, 1)
    assert (part.exact, part.share, part.row) == (False, 2 / 3, 0)
    assert (none.exact, none.share, none.row) == (False, 0.0, None)
    assert (short.exact, short.row, short.words) == (True, 0, 1)
    (order,) = overlaps(["two one"], ["one two", "two x one"], 1)
    assert (order.exact, order.share) == (False, 1.0), "the words alone are not the item"


def test_the_way_an_item_is_found_is_the_surest() -> None:
    exact, part, none = overlaps(["a b c", "a b d", "x y z"], ["a b c"], 2)
    assert way(exact, 0.5, 0.5, 0.05) == "exact"
    assert way(part, 0.5, 0.001, 0.05) == "ngram"
    assert way(part, 0.6, 0.001, 0.05) == "influence"
    assert way(none, 0.5, 0.06, 0.05) is None
    assert way(none, 0.5, None, 0.05) is None


def test_unseen_items_are_accused_no_more_often_than_was_allowed() -> None:
    rng = np.random.default_rng(0)
    rates = [(chances(rng.normal(size=200), rng.normal(size=99)) <= 0.05).mean() for _ in range(50)]
    assert 0.03 < np.mean(rates) <= 0.06
    assert 0.01 < np.mean([crossed(rng.normal(size=99), 0.05, i).mean() for i in range(50)]) <= 0.06
    assert chances(np.array([5.0]), rng.normal(size=99))[0] == 0.01


def test_a_share_has_its_exact_interval_and_of_nothing_it_may_be_anything() -> None:
    share = Share.of(0, 40)
    assert (share.rate, share.low) == (0, 0)
    assert share.high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert (Share.of(0, 0).low, Share.of(0, 0).high) == (0, 1)
