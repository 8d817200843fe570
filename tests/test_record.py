from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from forward_inf_mlflow.data.lineage import DataSet
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.decision import Facts, decide
from forward_inf_mlflow.detect.duplicates import duplicates
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.membership import Membership
from forward_inf_mlflow.detect.receipt import Receipt
from forward_inf_mlflow.detect.worth import worth
from forward_inf_mlflow.errors import TrackingError
from forward_inf_mlflow.metrics import metrics_of
from forward_inf_mlflow.models.audited import AuditedModel
from forward_inf_mlflow.policy import Policy
from forward_inf_mlflow.preparation import prepare
from forward_inf_mlflow.record import (
    data_as_dict,
    facts_of,
    make_record,
    measures_of,
    policy_of,
    read_record,
    write_record,
)
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.report import render
from forward_inf_mlflow.tracking import AuditRun

MEASURES = {
    "mislabeled": Measure(
        count=9, total=40, rate_low=0.1, rate_high=0.4, threshold=0.6, note="a note"
    ),
    "leaked": Measure(count=0, total=20, rate_low=0.0, rate_high=0.2, threshold=None, note="none"),
    "inflated": worth(np.arange(20) < 12, np.ones(20), np.arange(20) < 6).measure,
    "memorized": Measure.none(40, "no label has a probability"),
}
POLICY = Policy(max_mislabeled_rate=0.2, max_leakage_rate=None, data="declared")


def rows(n: int = 40) -> Rows:
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    ids = np.arange(n).astype(str)
    return Rows(x, np.arange(n) % 2, ids, None, "file.npz", "ab" * 32)


def data_set(origin: Any = "logged", digest: Any = "verified", problem: str | None = None) -> Any:
    return data_as_dict(DataSet(rows(), origin, digest, problem, "name", "d1"))


def made(**changes: Any) -> dict[str, Any]:
    """The record of an audit, written and read as a gate would."""
    model = AuditedModel(
        nn.Linear(3, 2),
        lambda x: np.asarray(x),
        "pt2",
        lambda x: np.asarray(x),
        notes=("was logged in train mode",),
        sha256="cd" * 32,
    )
    cpu = torch.device("cpu")
    problem = prepare(model, rows(), rows(20), task="auto", device=cpu, batch_size=None)
    arguments: dict[str, Any] = {
        "version": Version("m", "3", 17, "models:/m-1", "run", "m-1"),
        "model": model,
        "run": AuditRun("r1", "e1"),
        "data": {"train": data_set(), "queries": data_set()},
        "partial": False,
        "problem": problem,
        "settings": {"seed": np.int64(3), "rates": (0.1, 0.2)},
        "repeat": "forward-inf audit models:/m/3",
        "measures": MEASURES,
        "leak_scores": np.array([-7.5, np.nan, np.inf], dtype=np.float32),
        "leak_worth": worth(np.arange(20) < 12, np.ones(20), np.arange(20) < 6),
        "duplicates": duplicates(np.repeat(np.eye(2), 20, 0), np.zeros(40)),
        "membership": Membership("loss", 0.3, 0.2, 0.4, 300),
        "receipt": Receipt("accuracy", 9, 5, 0.8, 0.02, 0.01, 0.03, -0.01),
        "sources": pd.DataFrame({"source": ["a"], "influence_low": [math.nan]}),
        "seconds": 1.23456,
        "forward_passes": 99,
        "influence": {
            "direction": "curvature",
            "why": "few parameters",
            "forward_equivalents": {"sweep": 99, "halves": 1, "total": 100},
        },
        "resumed": 3,
        "reused": None,
        "kept": None,
        "columns": {"label": "y", "id": None, "features": None, "group_by": None},
        "policy": POLICY,
        "decision": decide(MEASURES, Facts(), POLICY),
    }
    return read_record(write_record(make_record(**(arguments | changes))), where="audit.json")


def edited(edit: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    record = made()
    edit(record)
    return record


def test_what_is_judged_survives_the_file() -> None:
    record = made()
    stored = measures_of(record)
    assert stored == {n: replace(m, estimate=m.rate) for n, m in MEASURES.items()}
    assert policy_of(record) == POLICY
    assert record["policy"]["sha256"] == POLICY.sha256
    assert facts_of(record) == Facts(receipt=record["receipt"]["sentence"])
    again = decide(measures_of(record), facts_of(record), policy_of(record))
    assert again.as_dict() == record["decision"]


def test_a_detector_without_a_verdict_has_no_metric() -> None:
    metrics = metrics_of(made())
    assert metrics["train"]["mislabeled_rate"] == 9 / 40
    assert metrics["train"]["gate_passed"] in (0.0, 1.0)
    assert metrics["train"]["mislabeled_rate_low"] == 0.1
    assert metrics["train"]["mislabeled_rate_high"] == 0.4
    assert metrics["queries"] == {
        "leakage_rate": 0.0,
        "leakage_rate_low": 0.0,
        "leakage_rate_high": 0.2,
        "leaked_count": 0.0,
        "accuracy_clean": 6 / 14,
        "accuracy_clean_low": pytest.approx(0.177, abs=1e-3),
        "accuracy_clean_high": pytest.approx(0.711, abs=1e-3),
        "accuracy_everything": 0.6,
        "accuracy_everything_low": pytest.approx(0.361, abs=1e-3),
        "accuracy_everything_high": pytest.approx(0.809, abs=1e-3),
        **{
            f"loss_{name}{end}": 1.0
            for name in ("clean", "everything")
            for end in ("", "_low", "_high")
        },
        "leak_inflation": pytest.approx(0.6 - 6 / 14),
        "leak_inflation_low": pytest.approx(0.05, abs=0.05),
        "leak_inflation_high": pytest.approx(0.25, abs=0.05),
    }
    assert "memorized_rate" not in metrics["train"]
    assert "memorized_count" not in metrics["train"]


def test_the_file_holds_what_repeats_the_audit() -> None:
    record = made()
    assert record["model"]["uri"] == "models:/m/3"
    assert record["model"]["creation_timestamp"] == 17
    assert record["model"]["sha256"] == "cd" * 32
    assert record["settings"] == {"seed": 3, "rates": [0.1, 0.2], "batch_size": 1024}
    assert record["costs"] == {
        "rows": 40,
        "queries": 20,
        "seconds": 1.235,
        "forward_passes": 99,
        "forward_equivalents": 100,
    }
    assert {"forward_inf_mlflow", "mlflow", "torch", "python", "device"} <= set(record["tool"])
    assert record["data"]["train"]["sha256"] == "ab" * 32
    assert record["measures"]["mislabeled"]["rate"] == 9 / 40


def test_the_report_shows_what_the_record_notes_as_whole_sentences() -> None:
    record = made()
    assert record["notes"] == ["the model was logged in train mode"]
    page = render(record, pd.DataFrame(), pd.DataFrame())
    audited = page.split("What was audited", 1)[1].split("</section>", 1)[0]
    assert ">the model was logged in train mode.<" in audited
    assert f"SHA-256 of its files <code>{'cd' * 32}</code>" in audited


def test_numbers_that_json_lacks_become_null_and_the_file_is_strict_json() -> None:
    record = made()
    assert record["leak_scores"] == [-7.5, None, None]
    assert record["sources"] == [{"source": "a", "influence_low": None}]
    assert made(sources=None)["sources"] is None

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(write_record({"x": math.nan, "y": [np.float64(np.inf)]}), parse_constant=refuse)


@pytest.mark.parametrize("text", ["ä€😀", "a\nb", '"quoted"', "\x00"])
def test_any_text_survives(text: str, tmp_path: Path) -> None:
    content = write_record(made() | {"notes": [text], text: 1})
    (tmp_path / "audit.json").write_bytes(content)
    record = read_record((tmp_path / "audit.json").read_bytes(), where="audit.json")
    assert record["notes"] == [text]
    assert record[text] == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not an audit's record"),
        (b"null", "is not an audit's record"),
        (b"{}", "is not an audit's record"),
        (b'{"model": "m"}', "is not an audit's record"),
        (b'{"model": {}}', "has format None"),
        (b'{"model": {}, "format": 3}', "has format 3"),
        (b'{"model": {}, "format": "1"}', "has format '1'"),
        (b'{"model": {}, "format": 2}', "did not finish"),
        (b'{"model": {}, "format": 2, "finished": 1}', "did not finish"),
        (b'{"model": {}, "format": 2, "finished": "true"}', "did not finish"),
    ],
)
def test_what_is_no_finished_record_is_refused_in_one_line(content: bytes, says: str) -> None:
    with pytest.raises(TrackingError, match=says) as error:
        read_record(content, where="audit.json of run r1")
    assert str(error.value).startswith("audit.json of run r1 ")
    assert "\n" not in str(error.value)


IMPOSSIBLE: dict[str, list[object]] = {
    "count": [-1, 41, 1.0, "9", None, True, math.nan, [], {}],
    "total": [-1, 8, 40.0, "40", None, False, math.inf, [40]],
    "rate_low": [7, -0.1, "0", None, True, math.nan, math.inf, -math.inf, [], 10**400],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in IMPOSSIBLE.items() for value in values],
    ids=lambda v: str(v)[:12],
)
def test_an_impossible_number_is_an_error_and_never_a_pass(key: str, value: object) -> None:
    record = edited(lambda r: r["measures"]["mislabeled"].update({key: value}))
    content = json.dumps(record).encode()  # NaN and infinity as a hand could write them
    with pytest.raises(TrackingError, match=r"no valid 'measures\.mislabeled\."):
        measures_of(read_record(content, where="audit.json"))


@pytest.mark.parametrize("key", list(IMPOSSIBLE))
def test_a_missing_number_is_an_error(key: str) -> None:
    with pytest.raises(TrackingError, match=rf"measures\.mislabeled\.{key}"):
        measures_of(edited(lambda r: r["measures"]["mislabeled"].pop(key)))


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_measures_that_are_no_mapping_are_an_error(value: object) -> None:
    with pytest.raises(TrackingError, match="'measures'"):
        measures_of(edited(lambda r: r.update(measures=value)))
    with pytest.raises(TrackingError, match=r"'measures\.leaked'"):
        measures_of(edited(lambda r: r["measures"].update(leaked=value)))


@pytest.mark.parametrize("value", [10**400, "high", None, [], True], ids=lambda v: str(v)[:8])
def test_a_threshold_is_for_the_reader_and_decides_nothing(value: object) -> None:
    record = edited(lambda r: r["measures"]["mislabeled"].update(threshold=value))
    (measure, *_) = measures_of(record).values()
    assert measure.threshold is None or isinstance(measure.threshold, float)


def test_a_detector_removed_from_the_record_is_undecided() -> None:
    record = edited(lambda r: r["measures"].pop("mislabeled"))
    decision = decide(measures_of(record), facts_of(record), Policy())
    assert decision.outcome == "undecided"


@pytest.mark.parametrize(
    ("train", "queries", "facts"),
    [
        (("logged", "verified"), ("logged", "verified"), Facts()),
        (("declared", "verified"), ("logged", "verified"), Facts(declared=("training rows",))),
        (("logged", "verified"), ("declared", "mismatch"), Facts(declared=("query rows",))),
        (("logged", "unverified"), ("logged", "verified"), Facts(unverified=("why",))),
        (("logged", "verified"), ("logged", "mismatch"), Facts(mismatches=("why",))),
        (("logged", "nonsense"), ("logged", None), Facts(mismatches=("why", "why"))),
        ((None, "verified"), ([], "verified"), Facts(declared=("training rows", "query rows"))),
    ],
    ids=["verified", "train", "queries", "unverified", "mismatch", "unknown digest", "no origin"],
)
def test_data_counts_as_logged_and_verified_only_where_the_record_says_so(
    train: tuple[Any, Any], queries: tuple[Any, Any], facts: Facts
) -> None:
    data = {"train": data_set(*train, "why"), "queries": data_set(*queries, "why")}
    assert facts_of({"data": data, "partial": False}) == facts


def test_a_mismatch_without_words_gets_some() -> None:
    data = {"train": data_set("logged", "mismatch", None), "queries": data_set()}
    assert facts_of({"data": data, "partial": False}).mismatches == (
        "the training rows could not be verified",
    )


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda r: r.pop("data"), "data"),
        (lambda r: r.update(data=[]), "data"),
        (lambda r: r["data"].pop("train"), "train"),
        (lambda r: r["data"].update(queries="verified"), "queries"),
        (lambda r: r.pop("partial"), "partial"),
        (lambda r: r.update(partial=0), "partial"),
        (lambda r: r.update(partial="false"), "partial"),
    ],
    ids=["no data", "a list", "no train", "a word", "no partial", "zero", "a string"],
)
def test_a_record_that_does_not_say_what_was_read_is_an_error(
    edit: Callable[[dict[str, Any]], Any], key: str
) -> None:
    with pytest.raises(TrackingError, match=f"no valid '{key}'"):
        facts_of(edited(edit))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r.pop("policy"),
        lambda r: r.update(policy="default"),
        lambda r: r["policy"].update(max_leakage_rate=7),
        lambda r: r["policy"].update(max_leakage_rate="7"),
        lambda r: r["policy"].update(max_leakage_rate=math.nan),
        lambda r: r["policy"].update(max_leakage_rate=nested(800)),
        lambda r: r["policy"].update(allow="everything"),
        lambda r: r["policy"].update(data="anything"),
        lambda r: r["policy"].update(data="\ud800"),
    ],
    ids=["none", "word", "7", "text", "nan", "deep", "unknown key", "unknown data", "surrogate"],
)
def test_a_policy_that_is_none_is_an_error(edit: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(TrackingError) as error:
        policy_of(edited(edit))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [0.0, 1e-7, 0.03, 1.0, None])
def test_any_bound_survives_the_record(rate: float | None) -> None:
    policy = Policy(max_leakage_rate=rate)
    assert policy_of(made(policy=policy)) == policy


@pytest.mark.parametrize("low", [-0.01, 0.0, None, "0.01", True])
def test_a_receipt_that_shows_no_harm_is_no_reason(low: object) -> None:
    data = {key: {"origin": "logged", "digest": "verified"} for key in ("train", "queries")}
    told = {"sentence": "receipt: +1 point", "low": low}
    record = {"data": data, "partial": False}
    assert facts_of({**record, "receipt": told}).receipt is None
    assert facts_of({**record, "receipt": {**told, "low": 0.002}}).receipt == "receipt: +1 point"
