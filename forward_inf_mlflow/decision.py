"""The gate: may this version be promoted? A pure function of an audit's measures and a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.policy import Policy

Outcome = Literal["pass", "fail", "undecided"]
#: What people read, the same everywhere.
WORDS: dict[str, str] = {"pass": "PASS", "fail": "REFUSED", "undecided": "UNDECIDED"}

#: What a policy bounds: the measure, the policy's key, and what the rows are called.
BOUNDS = (
    ("mislabeled", "max_mislabeled_rate", "mislabeled rows", "training rows"),
    ("leaked", "max_leakage_rate", "leaked rows", "query rows"),
    ("inflated", "max_leak_inflation", "rows right because they leaked", "query rows"),
    ("memorized", "max_memorized_rate", "memorized rows", "training rows"),
)

#: What would tell more, where a rate is not known well enough.
_MODELS = "take --effort thorough with --trainer, which trains more models as this one was trained"
_MORE = {"memorized": (f"{_MODELS}, or look at the named rows", _MODELS)}
_MORE_QUERIES = (
    "look at the named rows, or give more query rows",
    "give more query rows, or a model that is right more often",
)

#: How far above a bound the upper end of a rate may lie in a version that passes. A few hundred
#: query rows and a useful model bring it below; models that are mostly wrong do not.
DOUBT = 0.10


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an audit looked at, as far as it decides whether the audit counts.

    Attributes:
        declared: The sets ("training rows", "query rows") that are not the version's logged data.
        unverified: A sentence for each logged set of which only a part, or nothing, can be held
            against what the version recorded.
        mismatches: A sentence for each set that no longer is what the version recorded.
        partial: Only some of the training rows were read.
        kept: Training rows that a verdict does not name because a person kept them.
        receipt: What training without the mislabeled rows changed for the better beyond chance, a
            sentence; None if it did not, or nobody tried.
    """

    declared: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    mismatches: tuple[str, ...] = ()
    partial: bool = False
    kept: int = 0
    receipt: str | None = None


@dataclass(frozen=True)
class Decision:
    """What the gate says, and why.

    Attributes:
        outcome: "pass", "fail" or "undecided"; only "pass" promotes.
        reasons: Sentences, the ones that decided first.
    """

    outcome: Outcome
    reasons: tuple[str, ...]

    @property
    def allowed(self) -> bool:
        """Return whether the version may be promoted."""
        return self.outcome == "pass"

    def as_dict(self) -> dict[str, Any]:
        """Return the decision as ``audit.json`` keeps it."""
        return {"outcome": self.outcome, "reasons": list(self.reasons)}


def decide(measures: Mapping[str, Measure], facts: Facts, policy: Policy) -> Decision:
    """Hold an audit against a policy.

    Doubt about *what* was audited comes first: a verdict on other rows is no verdict. Then a
    bound that is surely exceeded refuses. Undecided is a version where a detector had to abstain,
    where the bound is exceeded by the estimate but not surely, or where so little is known that the
    rate could lie far beyond it. Else it passes.

    A bound on what rows of this kind do not have (wrong labels of texts without labels) is no
    reason to refuse; but where nothing that the policy bounds applies, nothing was looked at, and
    the version stays undecided.
    """
    doubts = list(facts.mismatches)
    if policy.data == "verified":
        doubts.extend(facts.unverified)
    if facts.declared and policy.data != "declared":
        doubts.append(
            f"the {' and '.join(facts.declared)} are not the version's logged ones, and the policy "
            "counts only data that the version logged (data: declared would allow it)"
        )
    if facts.partial and not policy.partial:
        doubts.append(
            "only some of the training rows were read, and the policy counts only whole audits "
            "(partial: true would allow it)"
        )
    if facts.kept and not policy.kept:
        doubts.append(
            f"{facts.kept:,} training rows are not named because a person kept them, and the "
            "policy counts only audits that name every row: audit again under this policy (kept: "
            "true would allow it)"
        )
    if doubts:
        return Decision("undecided", tuple(doubts))

    exceeded, within, abstained, beside = [], [], [], []
    for name, key, rows, total in BOUNDS:
        bound = getattr(policy, key)
        if bound is None:
            continue
        measure = measures.get(name)
        look, more = _MORE.get(name, _MORE_QUERIES)
        if measure is None:
            abstained.append(f"{rows}: no verdict, because the audit has no such measure")
            continue
        found = (
            f"{rows}: about {measure.rate:.1%} of {measure.total:,} {total} "
            f"({measure.rate_low:.1%} to {measure.rate_high:.1%}), {measure.count:,} named"
        )
        if measure.rate_low > bound:
            # What was found is enough, even where the detector could not find it all.
            exceeded.append(f"{found}; the policy allows {bound:.1%}")
            if name == "mislabeled" and facts.receipt is not None:
                exceeded.append(facts.receipt)  # a cause, not only a suspicion
        elif not measure.applies:
            beside.append(f"{rows}: does not apply, because {measure.abstained}")
        elif measure.abstained is not None:
            abstained.append(f"{rows}: no verdict, because {measure.abstained}")
        elif measure.rate > bound:
            abstained.append(
                f"{found}; the policy allows {bound:.1%}, and whether that is exceeded is not "
                f"certain: {look}"
            )
        elif measure.rate_high > bound + DOUBT:
            abstained.append(
                f"{found}; the policy allows {bound:.1%}, and this audit cannot tell: {more}"
            )
        else:
            within.append(f"{found}; within the policy's {bound:.1%}")
    if exceeded:
        return Decision("fail", tuple(exceeded + abstained))
    if abstained:
        return Decision("undecided", tuple(abstained + within + beside))
    if beside and not within:
        keys = " or ".join(key for name, key, _, _ in BOUNDS if _applies(measures.get(name)))
        return Decision(
            "undecided",
            (f"nothing that the policy bounds applies to this model: bound {keys}", *beside),
        )
    return Decision("pass", tuple(within + beside) or ("the policy bounds nothing",))


def _applies(measure: Measure | None) -> bool:
    return measure is not None and measure.applies
