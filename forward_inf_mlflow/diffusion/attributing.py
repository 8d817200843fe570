"""Attribute: which training images made a diffusion model generate this? From a version to them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from forward_inf_mlflow import asked_record, asked_run, output
from forward_inf_mlflow.asked_run import Answer
from forward_inf_mlflow.asking import DirectionName
from forward_inf_mlflow.data.drawing import at_most
from forward_inf_mlflow.data.images import ImageColumns, Images, damaged_note
from forward_inf_mlflow.data.lineage import declared_images, logged_images
from forward_inf_mlflow.diffusion.answers import answers, images_table, pictures
from forward_inf_mlflow.diffusion.attributed import Attributed, attribute_images
from forward_inf_mlflow.diffusion.pixels import Pixels
from forward_inf_mlflow.diffusion.question import Asked, attribution_key, planned, pose_images
from forward_inf_mlflow.influence import ForwardInfluence
from forward_inf_mlflow.models.noise_schedule import Schedule, chosen_schedule
from forward_inf_mlflow.planning import require_positive
from forward_inf_mlflow.preparation import choose_device
from forward_inf_mlflow.progress import Progress, silent, stage
from forward_inf_mlflow.record import data_as_dict
from forward_inf_mlflow.registry import load_denoiser, resolve
from forward_inf_mlflow.report.attribution import MAX_ANSWERS, render_attribution
from forward_inf_mlflow.workplace import named_direction

#: Raised when ``attribution.json`` changes its shape.
FORMAT = 1
#: Times of noise that every image is read at.
TIMES = 10


@dataclass(frozen=True)
class Attribution(Answer):
    """The training images behind some generated ones; ``attribution.json`` is its record.

    Attributes:
        influence: One line per generated image and training image: query_id, kind ("proponent" or
            "opponent"), rank (from 1), train_id, label, influence (per added copy), likeness (the
            cosine of what the model's last layer sees), source.
    """

    KIND = "attribution"
    KEYS = ("answers", "attribution", "unit", "per", "partial")

    influence: pd.DataFrame


def attribute(
    model_uri: str,
    *,
    generated: str,
    train: str | None = None,
    images: str | None = None,
    label: str | None = None,
    id: str | None = None,
    group_by: str | None = None,
    schedule: str | None = None,
    steps: int | None = None,
    pixels: Pixels = "auto",
    parameters: str | None = None,
    times: int = TIMES,
    top: int = 10,
    direction: DirectionName = "auto",
    weight_decay: float | None = None,
    max_rows: int | None = None,
    work_dir: str | Path | None = None,
    fresh: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
    experiment: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Ask a registered diffusion model which training images made it generate some; log it.

    Args:
        model_uri: ``models:/name/3`` or ``models:/name@alias``.
        generated: Path or URI of the generated images: npz, or a folder of pictures.
        train: Path or URI of the training images; None for the version's own logged data.
        images: Array of the images in npz files; None for a usual name.
        label: Array of the labels; None for a usual name. A model without conditions needs none.
        id: Array of the ids; None for ``ids``, or the position.
        group_by: Array that says where an image came from.
        schedule: "cosine", "linear" or a JSON file; None for what the version says.
        steps: Of a named schedule.
        pixels: How numbers become what the model takes; see `pixels.scaled`.
        parameters: Let only the parameters move whose names match; patterns as of file names.
        times: Times of noise that every image is read at, spread over the schedule.
        top: Proponents and opponents of each generated image.
        direction: How a generated image moves the model; "auto" leaves it to the planner.
        weight_decay: The training objective's penalty per row; None for none.
        max_rows: Look at so many training images only, drawn at random.
        work_dir, fresh, device, batch_size, seed, experiment, out, progress: As
            `explaining.explain`.
        allow_pickle: Permit models whose loading runs code of their own.

    Raises:
        ForwardInfError: There is no answer; the message says what to do.
    """
    began = time.monotonic()
    require_positive(top=top, times=times, max_rows=max_rows, batch_size=batch_size, steps=steps)
    if out is not None:
        output.require_writable(Path(out))
    on = choose_device(device)
    version = resolve(model_uri)
    model = load_denoiser(version, allow_pickle=allow_pickle)
    under = chosen_schedule(model.schedule, schedule, steps)
    columns = ImageColumns(images, label, id, group_by)
    channels = model.shape[0] if model.shape is not None and len(model.shape) == 3 else None
    made, queries = declared_images(
        generated, "queries", replace(columns, source=None, id=None), channels
    )
    data, rows = (
        declared_images(train, "train", columns, channels)
        if train
        else logged_images(version, columns, channels)
    )
    data, partial = at_most(data, max_rows, seed)
    rows = replace(rows, rows=data.rows)
    question = pose_images(
        model,
        under,
        rows,
        queries,
        pixels=pixels,
        parameters=parameters,
        times=times,
        device=on,
        batch_size=batch_size,
        seed=seed,
    )
    plan = planned(
        question,
        direction=named_direction(direction, weight_decay, seed),
        weight_decay=weight_decay,
        seed=seed,
    )
    labelled = rows.labelled and model.conditional
    passes = question.task.passes

    with asked_run.begun(version, experiment, Attribution.KIND) as run:
        key = attribution_key(version, question, plan)
        work, earlier = asked_run.pieces(run, work_dir, key, fresh=fresh)
        engine = ForwardInfluence(task=question.task, direction=plan.direction)
        found = attribute_images(
            engine,
            question.module,
            question.features,
            question.groups,
            question.train,
            question.train_rows.ids,
            work=work,
            progress=stage(
                progress or silent, "reading the training images", plan.costs["sweep"] // passes
            ),
        )
        table = images_table(question, found, top, labelled=labelled)
        record = {
            **asked_record.heading(
                Attribution.KIND,
                FORMAT,
                version,
                run,
                model_kind=model.kind,
                device=on,
                notes=_notes(question, rows, under),
            ),
            "data": {"train": data_as_dict(data), "generated": data_as_dict(made)},
            "partial": partial or len(question.train) < len(data.rows),
            "task": question.task.name,
            "unit": question.task.unit,
            "per": asked_record.per(plan.direction),
            "settings": {
                "seed": seed,
                "top": top,
                "max_rows": max_rows,
                "batch_size": question.train.batch_size,
                "schedule": under.said,
                "predicts": under.predicts,
                "times": list(question.task.chosen_times),
                "pixels": pixels,
                "parameters": parameters,
                "moved": question.moved,
            },
            "attribution": {**asked_record.how(plan, found), "order": _order(found)},
            "resumed_pieces": work.done - earlier,
            "costs": {
                "rows": len(question.train),
                "generated": len(question.query_rows),
                "seconds": round(time.monotonic() - began, 3),
                "forward_passes": found.forward_passes * passes,
            },
            "repeat": asked_record.repeat(
                "attribute",
                version,
                {
                    "generated": generated,
                    "train": train,
                    "images": images,
                    "label": label,
                    "id": id,
                    "group_by": group_by,
                    "schedule": schedule,
                    "steps": steps,
                    "pixels": pixels,
                    "parameters": parameters,
                    "times": times,
                    "top": top,
                    "direction": direction,
                    "weight_decay": weight_decay,
                    "max_rows": max_rows,
                    "device": device,
                    "batch_size": batch_size,
                    "seed": seed,
                    "allow_pickle": allow_pickle,
                },
            ),
            "answers": answers(question, table, labelled=labelled),
        }
        page = render_attribution(record, pictures(question, record, MAX_ANSWERS))
        tables = {"attribution": table}
        where = asked_run.keep(run, version, record, page, tables, data, made, out=out)
        work.remove()
    return Attribution(
        version=version, run_id=run.run_id, page=where, record=record, influence=table
    )


def _notes(question: Asked, rows: Images, schedule: Schedule) -> list[str]:
    notes = [*question.notes, f"noise schedule: {schedule.said}"]
    if (damaged := damaged_note(rows)) is not None:
        notes.append(damaged)
    return notes


def _order(found: Attributed) -> str:
    if found.likeness is None:
        return "in the order of their influence"
    return (
        "in the order of influence plus likeness (the cosine of what the model's last layer sees), "
        "each in standard deviations over the training images"
    )
