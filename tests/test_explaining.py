"""Explanations: the engine's own numbers, what the run keeps, and a page that foreign texts cannot
leave."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import points, register_points
from mlflow import MlflowClient
from report_cases import make_explanation
from sklearn.linear_model import LinearRegression, LogisticRegression

from forward_inf_mlflow import explaining, log_training_data, sweep
from forward_inf_mlflow.asked_record import repeat
from forward_inf_mlflow.directions import GradientStep
from forward_inf_mlflow.errors import DataError, ForwardInfError
from forward_inf_mlflow.explaining import Explanation, explain, plan_explanation
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.portraits import picture, telling_columns
from forward_inf_mlflow.posing import pose
from forward_inf_mlflow.registry import Version, resolve
from forward_inf_mlflow.report.influence import MAX_ROWS, render_influence
from forward_inf_mlflow.tensors import Tensors

HOSTILE = "<script>alert(1)</script>\"'\u202e"
N = 60
#: Of an explanation's artifacts in its run.
FOLDER = "forward_inf_influence"


@pytest.fixture(scope="module")
def uri(shared_store: Path) -> str:
    """A version of three classes; ids and sources are hostile, query 2 is badly labeled."""
    data = points()
    x, y = data.x[:N].reset_index(drop=True), data.y[:N]
    truth = data.test_y[:6].copy()
    truth[2] = (truth[2] + 1) % 3
    model = LogisticRegression().fit(x, y)
    with mlflow.start_run():
        log_training_data(
            (x, y),
            (data.test_x[:6].reset_index(drop=True), truth),
            ids=np.array([f"{i}{HOSTILE}" for i in range(N)]),
            sources=np.array([f"s{i % 4}{HOSTILE}" for i in range(N)]),
        )
        mlflow.sklearn.log_model(
            model,
            name="model",
            input_example=x[:2],
            pip_requirements=["scikit-learn"],
            registered_model_name="why",
        )
    return "models:/why/1"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def found(uri: str, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Explanation:
    out = tmp_path_factory.mktemp("out")
    return explain(
        uri, query_rows=["4", 2, "4"], direction="gradient", top=5, work_dir=work, out=out
    )


def page_of(found: Explanation) -> str:
    path = mlflow.artifacts.download_artifacts(run_id=found.run_id, artifact_path=found.artifact)
    return Path(path).read_text("utf-8")


def runs() -> set[str]:
    ids = [e.experiment_id for e in MlflowClient().search_experiments()]
    return {run.info.run_id for run in MlflowClient().search_runs(ids)}


def test_the_rows_and_sums_are_those_of_the_engine_on_each_query(
    uri: str, found: Explanation
) -> None:
    problem = pose(uri).problem
    engine = ForwardInfluence(task=problem.task, direction=GradientStep())
    groups = QueryGroups.each(problem.queries.take(np.array([4, 2])), np.array(["4", "2"]))
    whole = engine.influence(problem.module, groups, problem.train, problem.train_rows.ids).scores
    columns = ["query_id", "kind", "rank", "train_id", "influence"]
    pd.testing.assert_frame_equal(found.influence[columns], whole.top(5))
    assert found.sources is not None
    assert problem.train_rows.sources is not None
    pd.testing.assert_frame_equal(found.sources, whole.by_source(problem.train_rows.sources))
    where = pd.Index(problem.train_rows.ids).get_indexer(found.influence["train_id"])
    assert (found.influence["label"] == problem.train_rows.labels[where]).all()
    assert (found.influence["source"] == problem.train_rows.sources[where]).all()


def test_a_row_is_named_only_for_what_it_does(uri: str, work: Path) -> None:
    found = explain(uri, query_rows=["0"], top=N, direction="gradient", work_dir=work)
    signs = np.where(found.influence["kind"] == "proponent", 1, -1)
    assert (np.sign(found.influence["influence"]) == signs).all()
    assert found.influence["train_id"].is_unique


def test_the_answer_says_what_the_model_says_and_whether_it_is_the_label(
    found: Explanation,
) -> None:
    (right,), (wrong,) = (answer["queries"] for answer in found.record["answers"])
    assert (right["id"], right["right"], wrong["id"], wrong["right"]) == ("4", True, "2", False)
    assert right["label"] == right["answer"]
    assert right["probability"] == right["label_probability"] > 0.5
    assert wrong["label"] != wrong["answer"]
    assert wrong["label_probability"] < 0.5 < wrong["probability"]
    assert wrong["loss"] == pytest.approx(-np.log(wrong["label_probability"]))


def test_a_run_keeps_everything_and_the_version_stays_as_it_was(
    uri: str, found: Explanation, work: Path
) -> None:
    client, version = MlflowClient(), resolve(uri)
    run = client.get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "forward-inf influence why 1"
    assert run.data.tags["forward_inf.kind"] == "influence"
    assert run.data.tags["forward_inf.model"] == uri
    assert [entry.model_id for entry in run.inputs.model_inputs] == [version.model_id]
    assert len(run.inputs.dataset_inputs) == 2
    files = {f.path.split("/")[1] for f in client.list_artifacts(found.run_id, FOLDER)}
    assert files == {"influence.html", "influence.json", "influence.parquet", "sources.parquet"}
    assert client.list_artifacts(found.run_id, "forward_inf") == []
    registered = client.get_model_version(version.name, version.version)
    assert not {"fi.gate", "fi.run", "fi.audit"} & set(registered.tags)
    assert not registered.description
    assert list(work.iterdir()) == [], "finished pieces are removed"


def test_the_tables_and_the_record_are_read_back_as_they_were_found(found: Explanation) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(run_id=found.run_id, artifact_path=FOLDER))
    rows = pd.read_parquet(folder / "influence.parquet")
    pd.testing.assert_frame_equal(rows, found.influence, check_dtype=False)
    record = json.loads((folder / "influence.json").read_bytes())
    assert record["answers"][0]["proponents"][0]["id"] == rows["train_id"][0]
    assert record["influence"]["direction"] == "gradient"
    assert record["repeat"].startswith("forward-inf influence models:/why/1 --query-rows 4,2,4")
    assert "--direction gradient" in record["repeat"]


def test_rows_asked_about_together_count_as_their_mean(uri: str, work: Path) -> None:
    options: dict[str, Any] = {"direction": "gradient", "top": N, "work_dir": work}
    alone = explain(uri, query_rows=["0", "1"], **options)
    both = explain(uri, query_rows=["0", "1"], together=True, **options)
    assert both.influence["query_id"].unique().tolist() == ["2 rows together"]
    assert [query["id"] for query in both.record["answers"][0]["queries"]] == ["0", "1"]
    mean = alone.influence.groupby("train_id")["influence"].sum() / 2
    together = both.influence.set_index("train_id")["influence"]
    np.testing.assert_allclose(together, mean[together.index], atol=2e-2 * mean.abs().max())


@pytest.mark.parametrize("names", [["x", "7"], ["6"]])
def test_an_unknown_id_is_named_with_what_ids_look_like(names: list[str], uri: str) -> None:
    before = runs()
    with pytest.raises(DataError) as caught:
        explain(uri, query_rows=["0", *names])
    text = str(caught.value)
    assert all(repr(name) in text for name in names)
    assert "look like '0', '1', '2', '3', '4'" in text
    assert "\n" not in text
    assert runs() == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"query_rows": []}, "--query-rows"),
        ({"query_rows": "34"}, "list of ids"),
        ({"top": 0}, "top is 0"),
        ({"direction": "up"}, "no direction 'up'"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"candidates": 0}, "candidates is 0|0 candidates"),
        ({"candidates": 9}, "9 candidates cannot hold the top 10"),
        ({"candidates": 10, "together": True}, "--candidates or --together"),
        ({"candidates": 10, "group_by": "town"}, "--candidates or --group-by"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_in_one_line(
    wrong: dict[str, Any], said: str, uri: str
) -> None:
    with pytest.raises(ForwardInfError, match=said) as caught:
        explain(uri, **{"query_rows": ["0"], **wrong})
    assert "\n" not in str(caught.value)


def test_all_query_rows_may_be_asked_about_over_candidates(uri: str, work: Path) -> None:
    options: dict[str, Any] = {"query_rows": ["all"], "direction": "gradient", "top": 3}
    whole = explain(uri, work_dir=work, **options)
    some = explain(uri, work_dir=work, candidates=N, **options)
    assert len(whole.record["answers"]) == len(pose(uri).problem.queries)
    assert some.influence.equals(whole.influence)
    assert (some.record["influence"]["candidates"], some.record["influence"]["recall"]) == (N, 1)
    assert some.sources is None
    assert "--candidates" in some.record["repeat"]


def test_a_plan_logs_nothing_and_counts_one_sweep_a_query(uri: str) -> None:
    before = runs()
    planned = plan_explanation(uri, query_rows=["0", "3"], direction="gradient")
    assert runs() == before
    assert (planned["rows"], planned["queries"]) == (N, 2)
    assert planned["plan"]["forward_equivalents"]["sweep"] == 3 * N


def test_an_interrupted_explanation_goes_on_and_gives_the_same(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = sweep._read, 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return read(*args)

    options: dict[str, Any] = {"query_rows": ["1"], "direction": "gradient", "batch_size": 4}
    monkeypatch.setattr(explaining, "ForwardInfluence", partial(ForwardInfluence, shard_rows=8))
    monkeypatch.setattr(sweep, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explain(uri, work_dir=tmp_path / "a", **options)
    resumed = explain(uri, work_dir=tmp_path / "a", **options)
    shards = -(-N // 8)
    assert calls == 4 + shards - 3, "what was finished is not read again"
    at_once = explain(uri, work_dir=tmp_path / "b", **options)
    assert (resumed.record["resumed_pieces"], at_once.record["resumed_pieces"]) == (3, 0)
    pd.testing.assert_frame_equal(resumed.influence, at_once.influence, check_exact=True)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_part_of_the_rows_is_called_a_part(uri: str, work: Path) -> None:
    found = explain(uri, query_rows=["0"], max_rows=30, direction="gradient", work_dir=work)
    assert found.record["partial"]
    assert found.record["costs"]["rows"] == 30
    assert "Only a part of the training rows was read" in page_of(found)


def test_rows_without_sources_and_numbers_without_classes_are_explained_too(
    shared_store: Path, work: Path
) -> None:
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(40, 3)), columns=list("abc"))
    y = x["a"].to_numpy() + rng.normal(size=40)
    with mlflow.start_run():
        log_training_data((x[:30], y[:30]), (x[30:].reset_index(drop=True), y[30:]))
        mlflow.sklearn.log_model(
            LinearRegression().fit(x[:30], y[:30]),
            name="model",
            input_example=x[:2],
            pip_requirements=["scikit-learn"],
            registered_model_name="numbers",
        )
    found = explain("models:/numbers/1", query_rows=[0, 1], top=3, work_dir=work)
    assert found.sources is None
    assert found.record["unit"] == "half squared units"
    assert set(found.record["answers"][0]["queries"][0]) == {"id", "label", "loss", "answer"}
    page = page_of(found)
    assert "target" in page
    assert "sources.parquet" not in page


def test_a_version_without_sources_says_none(shared_store: Path, work: Path) -> None:
    found = explain(register_points(points()), query_rows=["0"], top=1, work_dir=work)
    assert found.sources is None
    assert (found.influence["source"] == "").all()


# The page


def test_foreign_texts_stay_texts(found: Explanation) -> None:
    page = page_of(found)
    assert HOSTILE not in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_page_shows_what_the_table_says(found: Explanation) -> None:
    text = re.sub(r"<[^>]+>", " ", page_of(found))
    assert text.index("Query row 4") < text.index("Query row 2")
    assert "Where the model's answer is not the label" in text
    assert "its label gets" in text
    for row in found.influence.itertuples():
        assert f"{row.train_id.split('<')[0]}&lt;script" in text


def test_a_picture_stands_for_a_row_and_its_values_only_where_there_is_none() -> None:
    values = [{"train:1": [("height", 1.5)], "query:1": [("height", 2.5)]}]
    page = render_influence(make_explanation(), {"train:1": b"png"}, values)
    assert page.count("data:image/png;base64,cG5n") == 1, "held once"
    assert page.count('class="pic p0"') == MAX_ROWS
    assert "height <b>2.50</b>" in page
    assert "height <b>1.50</b>" not in page
    assert "and 2 more" in page
    assert "No training row harms." in page


def test_images_have_pictures_and_tables_have_none() -> None:
    labels = torch.zeros(2, dtype=torch.long)
    image, table = (
        Tensors(torch.rand(2, *shape), labels, torch.device("cpu"), 2)
        for shape in ((1, 8, 8), (5,))
    )
    assert (picture(image, 1) or b"").startswith(b"\x89PNG")
    assert picture(table, 1) is None


def test_the_telling_columns_are_those_in_which_the_query_is_unlike_the_rows() -> None:
    train = pd.DataFrame(
        {
            "same": [7.0] * 40,
            "usual": np.arange(40.0),
            "far": np.arange(40.0),
            "town": ["x"] * 39 + ["y"],
            "common": ["x", "z"] * 20,
        }
    )
    query = pd.DataFrame(
        {"same": [7.0], "usual": [20.0], "far": [900.0], "town": ["y"], "common": ["z"]}
    )
    assert telling_columns(train, query, 2) == ["far", "town"]
    assert telling_columns(train, query, 3) == ["far", "town", "common"]
    assert telling_columns(train[[]], query[[]]) == []


def test_the_line_that_asks_again_has_what_was_chosen_and_no_password() -> None:
    version = Version("m", "3", 0, "", None, None)
    signed = "https://user:secret@host/rows.parquet?signature=secret"
    asked = {"train": signed, "unseen": signed, "id": "auto", "device": "auto", "pixels": "unit"}
    address = "https://host/rows.parquet"
    assert repeat("trace", version, {**asked, "benchmark": None}) == (
        f"forward-inf trace models:/m/3 --train {address} --unseen {address} --id auto "
        "--pixels unit"
    )
