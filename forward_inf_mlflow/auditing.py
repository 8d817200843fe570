"""The audit: from a model version's address to a decision, read top to bottom."""

from __future__ import annotations

import errno
import hashlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from forward_inf_mlflow import output, tables, tracking
from forward_inf_mlflow.command_line import command_line
from forward_inf_mlflow.comparing import since_previous
from forward_inf_mlflow.data.fetch import public_uri
from forward_inf_mlflow.data.lineage import DataSet
from forward_inf_mlflow.decision import Decision, decide
from forward_inf_mlflow.description import describe_version
from forward_inf_mlflow.detect.kept import leaks_without, memorized_without
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.examine import Findings, examine, plan_influence
from forward_inf_mlflow.keeping import Kept, recall
from forward_inf_mlflow.metrics import metrics_of
from forward_inf_mlflow.planning import planned_costs, require_positive, settings_of
from forward_inf_mlflow.policy import Policy, load_policy
from forward_inf_mlflow.portraits import portraits_of
from forward_inf_mlflow.posing import pose
from forward_inf_mlflow.preparation import choose_device
from forward_inf_mlflow.progress import Progress, silent
from forward_inf_mlflow.record import data_as_dict, facts_of, make_record
from forward_inf_mlflow.registry import Version
from forward_inf_mlflow.report import rows_to_show
from forward_inf_mlflow.sealed_tags import find_approvals, tags_of
from forward_inf_mlflow.settings import Effort
from forward_inf_mlflow.training_function import load_trainer
from forward_inf_mlflow.ui_table import PICTURES
from forward_inf_mlflow.workplace import AuditWork, earlier_runs


@dataclass(frozen=True)
class AuditResult:
    """What an audit found and decided.

    Attributes:
        decision: pass, fail or undecided, with reasons.
        version: The audited version.
        run_id: Its MLflow run.
        report: The report's address inside the MLflow UI.
        record: The content of ``audit.json``.
        scores: One row per training row.
        flagged: One row per verdict.
        influence: Top proponents and opponents of single queries.
        audit_sha256: SHA-256 of ``audit.json``, for `sign`.
        warning: What could not be done besides, one sentence; None if all was.
    """

    decision: Decision
    version: Version
    run_id: str
    report: str
    record: Mapping[str, Any]
    scores: pd.DataFrame
    flagged: pd.DataFrame
    influence: pd.DataFrame
    audit_sha256: str
    warning: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``--json``."""
        keys = (
            *("measures", "sources", "costs", "policy", "data", "partial", "notes"),
            *("kept", "reused", "since"),
        )
        return {
            "model": self.version.uri,
            **self.decision.as_dict(),
            "run_id": self.run_id,
            "audit_sha256": self.audit_sha256,
            "report": self.report,
            "warning": self.warning,
            **{key: self.record[key] for key in keys},
        }


def audit(
    model_uri: str,
    *,
    train: str | None = None,
    queries: str | None = None,
    label: str | None = None,
    id: str | None = None,
    features: Sequence[str] | None = None,
    group_by: str | None = None,
    task: Literal["auto", "classification", "regression"] = "auto",
    class_weight: str | None = None,
    chosen_output: str | None = None,
    schedule: str | None = None,
    steps: int | None = None,
    policy: Policy | str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    max_rows: int | None = None,
    pixels: str | None = None,
    resize: bool = False,
    effort: Effort = "standard",
    fdr: float = 0.1,
    trainer: str | None = None,
    influence_queries: int = 100,
    allow_pickle: bool = False,
    experiment: str | None = None,
    out: str | Path | None = None,
    run_id: str | None = None,
    log_metrics: bool = True,
    direction: Literal["auto", "gradient", "optimizer", "replay", "curvature"] = "auto",
    readout: Literal["auto", "loss", "margin"] = "auto",
    weight_decay: float | None = None,
    work_dir: str | Path | None = None,
    fresh: bool = False,
    compiled: bool = False,
    progress: Progress | None = None,
    on_plan: Callable[[Mapping[str, Any]], None] | None = None,
) -> AuditResult:
    """Audit a registered model version, log everything to MLflow, and decide.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        train: Path or URI of the training rows; None for the version's own logged data.
        queries: Path or URI of the query (test) rows, whose labels are trusted; None as above.
        label: Column of the label, or ``A,B`` of several; None for what was logged, or a usual
            name.
        id: Column of the row ids; None for what was logged, or the position.
        features: Columns that the model reads; None for all others.
        group_by: Column that says where a row came from.
        task: "auto" takes it from the model and the labels.
        class_weight: How a module's training loss weighed the classes: ``balanced``, or a number
            for each, ``1,5``; None for all alike (an estimator says it itself).
        chosen_output: Which output is meant of a module that returns several: its key or position.
        schedule: Noise schedule of a diffusion model, where the version does not say it: "cosine",
            "linear", or a JSON file.
        steps: Of a named schedule.
        policy: A policy or its file; None for the default policy.
        device: "auto", "cpu", "cuda" ...
        batch_size: Rows read at once; None chooses.
        seed: Decides the halves and their training.
        max_rows: Audit only so many training rows, drawn at random; the audit is marked partial.
        pixels: What the pixels 0 and 255 of pictures become, ``0:1``; None takes it from the
            model's input example.
        resize: Resize pictures of another size than the model takes; else they are refused.
        effort: "quick" trains nothing: neighbours and the model itself are asked about labels, and
            memorized rows are ranked, not named. "standard" trains half-models twice, "thorough"
            eight times.
        fdr: Largest expected share of innocent rows among those that are certainly mislabeled.
        trainer: ``module:function`` that trains a model as this one was trained; see
            `training_function.load_trainer`. It trains the half-models, and shows what the
            mislabeled rows cause. A model that no query can move is fitted anew by it, with
            queries and without. This runs the module's code.
        influence_queries: How many rows to ask about one by one (``influence.parquet``), each at
            the cost of a sweep (or of a fit a seed, and then eight at most): queries that are
            copies first, up to half of the rest for mislabeled training rows, then the queries with
            the largest loss.
        allow_pickle: Permit models whose loading runs code of their own.
        experiment: Where the run goes; None for the environment's, else the version's own.
        out: Folder that gets a copy of all artifacts.
        run_id: Log into this run, whose end is left to whoever began it.
        log_metrics: False for a caller that logs the metrics itself, as MLflow's ``evaluate`` does.
        direction: How queries move the model; "auto" leaves it to the planner.
        readout: What is read of a training row; "auto" leaves it to the planner.
        weight_decay: The training objective's penalty in nats per row; None takes an estimator's
            own, and none for other models.
        work_dir: Where finished pieces are kept, so that an interrupted audit goes on, and the next
            one uses what is exactly the same; None for the user's cache folder. Of audits that
            ended no more than ``FORWARD_INF_KEEP_MIB`` (1024) stay.
        fresh: Begin again even if there are such pieces, or those of an audit that finished.
        compiled: Run the sweep's passes through ``torch.compile``.
        progress: Called as ``progress(stage, done, total)``.
        on_plan: Called with the plan and what it costs, as `planning.plan_audit` returns them,
            before it is carried out.

    Raises:
        ForwardInfError: The audit cannot be made; the message says what to do.
    """
    began = time.monotonic()
    require_positive(
        batch_size=batch_size, max_rows=max_rows, influence_queries=influence_queries, steps=steps
    )
    bounds = policy if isinstance(policy, Policy) else load_policy(Path(policy) if policy else None)
    options = {
        # A signed URL is a password, and the report is for everybody.
        "train": public_uri(train) if train else None,
        "queries": public_uri(queries) if queries else None,
        "label": label,
        "id": id,
        "features": features or None,
        "group-by": group_by,
        "task": task if task != "auto" else None,
        "class-weight": class_weight,
        "output": chosen_output,
        "schedule": schedule,
        "steps": steps,
        # Not the caller's file, which may change: the copy among the audit's artifacts.
        "policy": output.POLICY if bounds != load_policy(None) else None,
        "device": device if device != "auto" else None,
        "batch-size": batch_size,
        "seed": seed,
        "max-rows": max_rows,
        "pixels": pixels,
        "resize": resize or None,
        "effort": effort if effort != "standard" else None,
        "fdr": fdr if fdr != 0.1 else None,
        "trainer": trainer,
        "influence-queries": influence_queries if influence_queries != 100 else None,
        "direction": direction if direction != "auto" else None,
        "readout": readout if readout != "auto" else None,
        "weight-decay": weight_decay,
        "compiled": compiled or None,
        "allow-pickle": allow_pickle or None,
    }
    settings = settings_of(
        seed=seed,
        effort=effort,
        fdr=fdr,
        trainer=trainer,
        influence_queries=influence_queries,
        direction=direction,
        readout=readout,
        weight_decay=weight_decay,
        compiled=compiled,
    )
    choose_device(device)
    if trainer is not None:
        load_trainer(trainer)  # a slip is told before anything long begins
    if out is not None:
        output.require_writable(Path(out))
    posed = pose(
        model_uri,
        train=train,
        queries=queries,
        label=label,
        id=id,
        features=features,
        group_by=group_by,
        task=task,
        device=device,
        batch_size=batch_size,
        seed=seed,
        max_rows=max_rows,
        pixels=pixels,
        resize=resize,
        allow_pickle=allow_pickle,
        fixed=trainer is not None,
        class_weight=class_weight,
        chosen_output=chosen_output,
        schedule=schedule,
        steps=steps,
    )
    version, model, problem, partial = posed.version, posed.model, posed.problem, posed.partial
    train_set, query_set = posed.train, posed.queries
    kept, digests = recall(version) if bounds.kept else Kept(), problem.train_rows.digests
    looked_at = kept.summary(digests)
    said = (looked_at["sentence"], *looked_at["ignored"]) if looked_at else ()
    problem = replace(problem, notes=(*problem.notes, *filter(None, said)))

    with tracking.audit_run(version, experiment=experiment, run_id=run_id) as run:
        work = AuditWork(work_dir, version, problem, settings, fresh=fresh)
        earlier = earlier_runs(work, run.run_id)
        tracking.end_killed(earlier)
        planned = plan_influence(model, problem, settings)
        plan = planned_costs(planned, model, problem, settings, work)
        if on_plan is not None:
            on_plan(plan)
        right = kept.of("mislabeled", digests)
        found = examine(model, problem, planned, settings, progress or silent, work, right)
        found = _without_kept(found, kept, digests)
        problem = replace(problem, notes=(*problem.notes, *_doubts(found)))
        scores = tables.scores_table(problem, found).assign(kept=kept.any_of(digests))
        flagged = tables.flagged_table(problem, found, scores)
        data = {"train": data_as_dict(train_set), "queries": data_as_dict(query_set)}
        receipt = None if found.receipt is None else found.receipt.as_dict()
        facts = facts_of({"data": data, "partial": partial, "receipt": receipt, "kept": looked_at})
        decision = decide(found.measures, facts, bounds)
        record = make_record(
            version=version,
            model=model,
            run=run,
            data=data,
            partial=partial,
            problem=problem,
            settings={**settings.describe(), "max_rows": max_rows},
            repeat=command_line("audit", version.uri, options),
            measures=found.measures,
            leak_scores=found.leaked.score,
            leak_worth=found.labels.leak_worth,
            duplicates=found.duplicates,
            membership=found.labels.membership,
            receipt=found.receipt,
            sources=tables.sources_table(problem, scores, found.measures),
            seconds=time.monotonic() - began,
            forward_passes=found.forward_passes,
            influence={**plan, **found.facts},
            resumed=sum(work.found.values()) if earlier else 0,
            reused=None if earlier else work.reused(),
            kept=looked_at,
            columns={
                "label": label,
                "id": id,
                "features": features,
                "group_by": group_by,
                "labelled": problem.task.labelled,
                "pictures": None if posed.pictures is None else posed.pictures.as_dict(),
            },
            policy=bounds,
            decision=decision,
        )
        record["since"] = since_previous(version, run.run_id, record, scores)
        influence = tables.influence_table(found, settings.top)
        artifacts = output.Artifacts(
            record=record,
            scores=scores,
            flagged=flagged,
            influence=influence,
            policy=bounds,
            portraits=portraits_of(problem, rows_to_show(flagged, scores, influence)),
            approvals=find_approvals(version, tags_of(version)),
        )
        digest, warning = _save(
            artifacts, run, version, train_set, query_set, out, log_metrics=log_metrics
        )
        work.finish(run.run_id)
    if warning is not None:
        warnings.warn(warning, stacklevel=2)
    return AuditResult(
        decision=decision,
        version=version,
        run_id=run.run_id,
        report=run.link("report.html"),
        record=record,
        scores=scores,
        flagged=flagged,
        influence=artifacts.influence,
        audit_sha256=digest,
        warning=warning,
    )


def _doubts(found: Findings) -> list[str]:
    """Return what the audit's own trainings leave in doubt, a sentence each."""
    said, receipt, own = [], found.receipt, found.labels.leak_worth.clean
    if found.facts.get("refused"):
        said.append(f"influence: {found.facts['read_why']}")
    if receipt is not None and receipt.metric == "accuracy" and receipt.before < own.low:
        said.append(
            f"the trainer's models are right on {receipt.before:.1%} of the query rows and the "
            f"audited one on {own.accuracy:.1%}: what half-models say holds for what the trainer "
            "trains, so check that it trains this model"
        )
    return said


def _without_kept(found: Findings, kept: Kept, digests: np.ndarray) -> Findings:
    """Return the findings without the leaks and memorized rows that a person kept."""
    memorized = memorized_without(found.labels.memorized, kept.of("memorized", digests))
    return replace(
        found,
        leaked=leaks_without(found.leaked, kept.of("leaked", digests)),
        labels=replace(found.labels, memorized=memorized),
    )


def _save(
    artifacts: output.Artifacts,
    run: tracking.AuditRun,
    version: Version,
    train: DataSet,
    queries: DataSet,
    out: str | Path | None,
    *,
    log_metrics: bool,
) -> tuple[str, str | None]:
    """Write everything, log it, and only then say on the version that it was audited.

    Returns:
        The SHA-256 of ``audit.json``, and what to tell the user, if anything.
    """
    record = artifacts.record
    outcome = record["decision"]["outcome"]
    try:
        with output.written(artifacts) as folder:
            tracking.link_inputs(run, version, train, queries)
            if log_metrics:
                metrics = metrics_of(record)
                tracking.log_metrics(run, version, train, metrics["train"])
                tracking.log_metrics(run, version, queries, metrics["queries"])
            path = f"{tracking.FOLDER}/{output.FLAGGED}"
            tracking.log_table(run, path, artifacts.table.pictures, PICTURES)
            tracking.log_files(run, folder, last=output.RECORD)
            if out is not None:
                output.publish(folder, Path(out))
            digest = hashlib.sha256((folder / output.RECORD).read_bytes()).hexdigest()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        hint = "free some space" if error.errno == errno.ENOSPC else "check the folder"
        raise ForwardInfError(
            f"the audit could not be saved: {error.strerror or error}{where}; {hint} and audit "
            "again"
        ) from error
    tracking.tag_version(version, outcome, run, digest)
    return digest, describe_version(version, record["decision"], run)
