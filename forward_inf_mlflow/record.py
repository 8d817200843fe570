"""audit.json: all that is needed to repeat an audit and to judge it, written and read."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from forward_inf_mlflow.decision import Decision, Facts
from forward_inf_mlflow.detect.duplicates import Duplicates
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.membership import Membership
from forward_inf_mlflow.detect.receipt import Receipt
from forward_inf_mlflow.detect.worth import LeakWorth
from forward_inf_mlflow.errors import PolicyError, TrackingError
from forward_inf_mlflow.policy import Policy, parse_policy
from forward_inf_mlflow.version import __version__

if TYPE_CHECKING:  # the gate reads records without torch
    from forward_inf_mlflow.data.lineage import DataSet
    from forward_inf_mlflow.models.audited import AuditedModel
    from forward_inf_mlflow.preparation import Problem
    from forward_inf_mlflow.registry import Version
    from forward_inf_mlflow.tracking import AuditRun

#: Raised when a reader of this version could no longer judge an older record.
FORMAT = 2


def make_record(
    *,
    version: Version,
    model: AuditedModel,
    run: AuditRun,
    data: Mapping[str, Mapping[str, Any]],
    partial: bool,
    problem: Problem,
    settings: Mapping[str, Any],
    repeat: str,
    measures: Mapping[str, Measure],
    leak_scores: np.ndarray,
    leak_worth: LeakWorth | None,
    duplicates: Duplicates,
    membership: Membership | None,
    receipt: Receipt | None,
    sources: pd.DataFrame | None,
    seconds: float,
    forward_passes: int,
    influence: Mapping[str, Any],
    resumed: int,
    reused: Mapping[str, Any] | None,
    kept: Mapping[str, Any] | None,
    columns: Mapping[str, Any],
    policy: Policy,
    decision: Decision,
) -> dict[str, Any]:
    """Return the content of ``audit.json`` for a finished audit."""
    return {
        "format": FORMAT,
        "finished": True,
        "finished_at": int(time.time() * 1000),
        "tool": tools(str(problem.train.device)),
        "model": {
            **asdict(version),
            "uri": version.uri,
            "kind": model.kind,
            "sha256": model.sha256,
        },
        "notes": list(problem.notes),
        "run": asdict(run),
        "data": data,
        "partial": partial,
        "task": problem.task.name,
        "unit": problem.task.unit,
        "settings": {**settings, "batch_size": problem.train.batch_size},
        "repeat": repeat,
        "measures": {
            name: {**asdict(measure), "rate": measure.rate} for name, measure in measures.items()
        },
        "duplicates": {
            "rows": int((duplicates.twin >= 0).sum()),
            "exact": int(duplicates.exact.sum()),
            "conflicts": int(duplicates.conflict.sum()),
            "sentence": duplicates.sentence(),
        },
        "membership": None
        if membership is None
        else {**asdict(membership), "sentence": membership.sentence()},
        "receipt": None if receipt is None else receipt.as_dict(),
        "sources": None if sources is None else sources.to_dict("records"),
        "leak_scores": leak_scores,
        "leak_worth": None
        if leak_worth is None
        else {
            "leaked": asdict(leak_worth.leaked),
            "clean": asdict(leak_worth.clean),
            "everything": asdict(leak_worth.everything),
            "sentence": leak_worth.sentence(),
        },
        "influence": dict(influence),
        "resumed_pieces": resumed,
        "reused": reused,
        "kept": kept,
        "columns": columns,
        "costs": {
            "rows": len(problem.train),
            "queries": len(problem.queries),
            "seconds": round(seconds, 3),
            "forward_passes": forward_passes,
            "forward_equivalents": influence["forward_equivalents"]["total"],  # as planned
        },
        "policy": policy.as_dict(),
        "decision": decision.as_dict(),
    }


def data_as_dict(data: DataSet) -> dict[str, Any]:
    """Return what the record keeps of a data set."""
    return {
        "uri": data.rows.uri,
        "rows": len(data.rows),
        "sha256": data.rows.sha256,
        "origin": data.origin,
        "digest": data.digest,
        "problem": data.problem,
        "name": data.name,
    }


def write_record(record: Mapping[str, Any]) -> bytes:
    """Return the record as JSON; numbers that JSON lacks (NaN, infinity) become null."""
    return json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False).encode()


def read_record(content: bytes, *, where: str) -> dict[str, Any]:
    """Read a record that anyone with access to the run may have written.

    Raises:
        TrackingError: It is not a finished audit in a format that this version can judge.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TrackingError(f"{where} is not JSON: audit the version again") from error
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict):
        raise TrackingError(f"{where} is not an audit's record: audit the version again")
    if record.get("format") != FORMAT:
        raise TrackingError(
            f"{where} has format {record.get('format')!r}, this version reads {FORMAT}: audit the "
            "version again, or use the release that wrote it"
        )
    if record.get("finished") is not True:
        raise TrackingError(f"{where} is of an audit that did not finish: audit the version again")
    return record


def measures_of(record: Mapping[str, Any]) -> dict[str, Measure]:
    """Return the measures of a record.

    Raises:
        TrackingError: A number is missing or impossible.
    """
    measures = {}
    for name, stored in _mapping(record, "measures").items():
        if not isinstance(stored, dict):
            raise _malformed(f"measures.{name}")
        count, total = (_count(stored, name, key) for key in ("count", "total"))
        low, rate, high = (_share(stored, name, key) for key in ("rate_low", "rate", "rate_high"))
        if count > total:
            raise _malformed(f"measures.{name}.count")
        abstained, threshold = stored.get("abstained"), stored.get("threshold")
        measures[name] = Measure(
            count=count,
            total=total,
            rate_low=low,
            rate_high=high,
            estimate=rate,
            certain=_whole_number(stored.get("certain")),
            reliability=_share_or_none(stored.get("reliability")),
            threshold=threshold if isinstance(threshold, float) else None,
            note=str(stored.get("note", "")),
            abstained=None if abstained is None else str(abstained),
            # What gives a verdict applies, whatever is written.
            applies=abstained is None or stored.get("applies") is not False,
        )
    return measures


def _share_or_none(value: Any) -> float | None:
    return value if isinstance(value, float) and 0 <= value <= 1 else None


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def facts_of(record: Mapping[str, Any]) -> Facts:
    """Return what the record says was looked at.

    Raises:
        TrackingError: It does not say.
    """
    declared, unverified, mismatches = [], [], []
    for role, rows in (("train", "training rows"), ("queries", "query rows")):
        data = _mapping(_mapping(record, "data"), role)
        problem = str(data.get("problem") or f"the {rows} could not be verified")
        if data.get("origin") != "logged":
            declared.append(rows)
        elif data.get("digest") == "unverified":
            unverified.append(problem)
        elif data.get("digest") != "verified":
            mismatches.append(problem)
    partial = record.get("partial")
    if not isinstance(partial, bool):
        raise _malformed("partial")
    receipt = record.get("receipt")
    kept = record.get("kept")
    return Facts(
        declared=tuple(declared),
        unverified=tuple(unverified),
        mismatches=tuple(mismatches),
        partial=partial,
        kept=0 if kept is None else _number_kept(kept),
        receipt=_cause(receipt),
    )


def _cause(receipt: Any) -> str | None:
    """Return what a receipt says if it shows harm beyond chance; else it is no reason to refuse."""
    low = receipt.get("low") if isinstance(receipt, Mapping) else None
    harm = isinstance(low, float) and low > 0
    return str(receipt.get("sentence")) if harm else None


def _number_kept(kept: Any) -> int:
    rows = _whole_number(kept.get("rows")) if isinstance(kept, Mapping) else None
    if rows is None:
        raise _malformed("kept")
    return rows


def policy_of(record: Mapping[str, Any]) -> Policy:
    """Return the policy that the audit was made under.

    Raises:
        TrackingError: The record holds no valid policy.
    """
    stored = dict(_mapping(record, "policy"))
    stored.pop("sha256", None)
    try:
        return parse_policy(yaml.safe_dump(stored), name="the audit's policy")
    except (PolicyError, yaml.YAMLError) as error:
        raise TrackingError(f"{error}; name one with --policy") from error
    except RecursionError as error:
        raise _malformed("policy") from error


def tools(device: str) -> dict[str, str]:
    """Return the versions that a repetition needs, and where it ran."""
    packages = ("mlflow", "torch", "scikit-learn", "numpy", "pandas")
    return {
        "forward_inf_mlflow": __version__,
        **{name: installed(name) for name in packages},
        "python": platform.python_version(),
        "device": device,
    }


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    if not isinstance(value, dict):
        raise _malformed(key)
    return value


def _share(stored: Mapping[str, Any], name: str, key: str) -> float:
    value = stored.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _malformed(f"measures.{name}.{key}")
    return float(value)


def _count(stored: Mapping[str, Any], name: str, key: str) -> int:
    value = stored.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _malformed(f"measures.{name}.{key}")
    return value


def _malformed(key: str) -> TrackingError:
    return TrackingError(f"audit.json has no valid '{key}': audit the version again")


def _plain(value: Any) -> Any:
    """Return a value in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
