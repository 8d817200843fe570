"""forward-inf influence: what a person reads, what a machine reads, one line for an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import one_line, points, register_points, run_here
from mlflow import MlflowClient

FAST = ("--direction", "gradient")


@pytest.fixture(scope="module")
def uri(shared_store: Path) -> str:
    return register_points(points())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep unfinished pieces out of the user's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def runs() -> int:
    ids = [e.experiment_id for e in MlflowClient().search_experiments()]
    return len(MlflowClient().search_runs(ids))


def test_a_person_reads_answer_rows_plan_and_where_the_page_is(uri: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_here(
        *("influence", uri, "--query-rows", "3, 17", "--top", "2", "--out", str(out), *FAST)
    )
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert text.index("3: label 0, the model says 0 (") < text.index("17: label 2, the model says")
    assert text.count("proponents, influence in nats per unit of step") == 2
    assert text.count("opponents, influence in nats per unit of step") == 2
    assert "plan: the direction was asked for" in text
    assert "240 training rows read by difference of losses" in text
    assert f"page:   {out}/influence.html" in text
    files = {file.name for file in out.iterdir()}
    assert files == {"influence.html", "influence.json", "influence.parquet"}


def test_of_all_queries_some_are_printed_and_recall_is_said(uri: str) -> None:
    done = run_here("influence", uri, "--query-rows", "all", "--candidates", "40", *FAST)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("opponents, influence in nats") == 10
    assert f"and {len(points().test_y) - 10} more queries, see influence.parquet" in done.stdout
    assert "candidates: 40 of each kind a query hold " in done.stdout
    assert "% of the top rows (measured on 4 queries)" in done.stdout


def test_sources_are_summed_where_a_column_names_them(uri: str, tmp_path: Path) -> None:
    data = points()
    rows = data.x.assign(y=data.y, shop=["<a>", "b"] * 120)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    words = ("--train", str(tmp_path / "rows.csv"), "--label", "y", "--group-by", "shop")
    test = data.test_x.assign(y=data.test_y)
    test.to_csv(tmp_path / "test.csv", index=False)
    words = (*words, "--queries", str(tmp_path / "test.csv"))
    done = run_here("influence", uri, "--query-rows", "3", "--json", *words, *FAST)
    assert (done.returncode, done.stderr) == (0, "")
    (answer,) = json.loads(done.stdout)["answers"]
    assert {source["source"] for source in answer["sources"]} == {"<a>", "b"}
    for source in answer["sources"]:
        assert source["rows"] == 120
        assert source["low"] < source["influence"] < source["high"]
    assert {row["source"] for row in answer["proponents"]} <= {"<a>", "b"}


def test_json_is_one_object_that_names_the_run(uri: str) -> None:
    done = run_here("influence", uri, "--query-rows", "3,4", "--together", "true", "--json", *FAST)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert MlflowClient().get_run(found["run_id"]).info.status == "FINISHED"
    assert found["model"] == uri
    assert [answer["query_id"] for answer in found["answers"]] == ["2 rows together"]
    assert len(found["answers"][0]["proponents"]) == 10


def test_a_plan_is_printed_and_nothing_runs(uri: str, tmp_path: Path) -> None:
    before = runs()
    words = ("influence", uri, "--query-rows", "3,4", "--plan", "--out", str(tmp_path / "no"))
    said = run_here(*words)
    assert (said.returncode, said.stderr) == (0, "")
    assert "curvature as a whole matrix" in said.stdout
    assert "forward passes of one row" in said.stdout
    planned = json.loads(run_here(*words, "--json").stdout)
    assert planned["rows"] == 240
    assert planned["plan"]["forward_equivalents"]["sweep"] == 3 * 240
    assert runs() == before
    assert not (tmp_path / "no").exists()


def test_a_replay_says_how_reliable_it_is(uri: str) -> None:
    done = run_here(
        *("influence", uri, "--query-rows", "3", "--max-rows", "30", "--direction", "replay")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "reliability, from " in done.stdout


def test_quiet_says_nothing_and_logs_all_the_same(uri: str) -> None:
    before = runs()
    done = run_here("influence", uri, "--query-rows", "3", "-q", *FAST)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert runs() == before + 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--query-rows", "3,nobody"], "no query row is called 'nobody'"),
        (["--query-rows", ","], "--query-rows names nothing"),
        ([], "--query-rows"),
        (["--query-rows", "3", "--direction", "up"], "--direction"),
        (["--query-rows", "3", "--top", "0"], "--top"),
        (["--query-rows", "3", "--features", ","], "--features"),
        (["--query-rows", "3", "--train", "nowhere.csv"], "nowhere.csv"),
        (["--query-rows", "3", "--device", "nonsense"], "use auto, cpu or cuda"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(words: list[str], said: str, uri: str) -> None:
    before = runs()
    done = run_here("influence", uri, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in one_line(done.stderr)
    assert runs() == before
