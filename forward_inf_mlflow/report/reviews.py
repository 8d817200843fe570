"""Reviews: what a person who looked at some rows found, in sentences."""

from __future__ import annotations

from typing import Any

from forward_inf_mlflow.report.formats import count, label, number, percent
from forward_inf_mlflow.report.sections import Section, section


def review_sentences(review: Section) -> list[str]:
    """Return what ``audit.json`` holds of a review, in words; nothing where nobody looked.

    Raises:
        TrackingError: A part of it is not of the kind that this version reads.
    """
    if not review:
        return []
    looked, wrong = (_sum(section(review[part], f"review.{part}")) for part in ("looked", "wrong"))
    who = "a person" if review["by"] is None else label(review["by"])
    unsure = number(review["unsure"])
    said = f"{who} looked at {count(looked)} rows: {count(wrong)} are wrong"
    if unsure:
        said += f", and {count(unsure)} could not be told"
    rate = section(review["rate"], "review.rate")
    sentences = [said, f"of all training labels {_share(rate)} are wrong"]
    if precision := section(review["precision"], "review.precision"):
        sentences.append(f"of the labels that this audit calls wrong {_share(precision)} are")
    return sentences


def _share(share: Section) -> str:
    low, high = percent(share["low"]), percent(share["high"])
    return f"{percent(share['estimate'])} ({low} to {high})"


def _sum(counts: Section) -> Any:
    return sum(number(value) or 0.0 for value in counts.values())
