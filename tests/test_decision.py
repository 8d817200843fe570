from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from forward_inf_mlflow.decision import BOUNDS, DOUBT, Facts, decide
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.policy import Policy

CLEAN = Measure(count=10, total=1000, rate_low=0.005, rate_high=0.02, threshold=0.5, note="")
BAD = Measure(count=100, total=1000, rate_low=0.08, rate_high=0.12, threshold=0.5, note="")
NONE = Measure.none(1000, "there were too few queries")
GOOD = {"mislabeled": CLEAN, "leaked": CLEAN, "memorized": CLEAN}
MISMATCH = Facts(mismatches=("the training rows changed",))
UNVERIFIED = Facts(unverified=("nothing to hold the training rows against",))
DECLARED = Facts(declared=("training rows",))
PARTIAL = Facts(partial=True)


@pytest.mark.parametrize(
    ("measures", "facts", "policy", "outcome", "reason"),
    [
        (GOOD, Facts(), Policy(), "pass", "within the policy's 3.0%"),
        (GOOD | {"mislabeled": BAD}, Facts(), Policy(), "fail", "the policy allows 3.0%"),
        (
            GOOD | {"leaked": BAD},
            Facts(),
            Policy(),
            "fail",
            "leaked rows: about 10.0% of 1,000 query",
        ),
        (GOOD | {"memorized": BAD}, Facts(), Policy(), "pass", "within"),
        (
            GOOD | {"memorized": BAD},
            Facts(),
            Policy(max_memorized_rate=0.05),
            "fail",
            "memorized rows: about 10.0% of 1,000 training rows (8.0% to 12.0%), 100 named",
        ),
        (GOOD | {"mislabeled": NONE}, Facts(), Policy(), "undecided", "too few queries"),
        (
            GOOD | {"mislabeled": NONE, "leaked": BAD},
            Facts(),
            Policy(),
            "fail",
            "leaked rows: about 10.0%",
        ),
        (
            GOOD | {"mislabeled": replace(BAD, abstained="only some can be named")},
            Facts(),
            Policy(),
            "fail",
            "mislabeled rows: about 10.0%",
        ),
        ({"leaked": CLEAN}, Facts(), Policy(), "undecided", "the audit has no such measure"),
        ({}, Facts(), Policy(), "undecided", "the audit has no such measure"),
        (
            {"memorized": NONE},
            Facts(),
            Policy(max_mislabeled_rate=None, max_leakage_rate=None),
            "pass",
            "the policy bounds nothing",
        ),
        (GOOD, MISMATCH, Policy(), "undecided", "the training rows changed"),
        (GOOD, MISMATCH, Policy(data="declared"), "undecided", "the training rows changed"),
        (GOOD, UNVERIFIED, Policy(), "pass", "within"),
        (GOOD, UNVERIFIED, Policy(data="verified"), "undecided", "nothing to hold"),
        (GOOD, DECLARED, Policy(), "undecided", "data: declared would allow it"),
        (GOOD, DECLARED, Policy(data="verified"), "undecided", "not the version's logged ones"),
        (GOOD, DECLARED, Policy(data="declared"), "pass", "within"),
        (GOOD, PARTIAL, Policy(), "undecided", "partial: true would allow it"),
        (GOOD, PARTIAL, Policy(partial=True), "pass", "within"),
        (GOOD | {"leaked": BAD}, PARTIAL, Policy(partial=True), "fail", "leaked rows"),
        (GOOD | {"leaked": BAD}, MISMATCH, Policy(), "undecided", "the training rows changed"),
    ],
    ids=[
        "clean",
        "mislabeled",
        "leaked",
        "memorized, unbounded",
        "memorized, bounded",
        "one detector abstains",
        "a refusal outweighs an abstention",
        "what was found is enough although the detector abstains",
        "a measure is missing",
        "nothing was measured",
        "nothing is bounded",
        "changed data",
        "changed data, whatever the policy",
        "unverified data, allowed",
        "unverified data, not allowed",
        "declared data",
        "declared data, verified wanted",
        "declared data, allowed",
        "partial",
        "partial, allowed",
        "partial and bad",
        "doubt about the data comes before a bound",
    ],
)
def test_the_outcome_follows_from_measures_facts_and_policy(
    measures: dict[str, Measure], facts: Facts, policy: Policy, outcome: str, reason: str
) -> None:
    decision = decide(measures, facts, policy)
    assert decision.outcome == outcome
    assert reason in decision.reasons[0]
    assert decision.allowed is (outcome == "pass")
    assert decision.as_dict() == {"outcome": outcome, "reasons": list(decision.reasons)}


@pytest.mark.parametrize(("name", "key"), [(b[0], b[1]) for b in BOUNDS])
def test_a_bound_is_kept_at_its_own_number_and_broken_just_above(name: str, key: str) -> None:
    policy = replace(Policy(max_mislabeled_rate=None, max_leakage_rate=None), **{key: 0.25})
    for low, rate, high, outcome in (
        (0.25, 0.25, 0.3, "pass"),
        (0.2500001, 0.26, 0.3, "fail"),
        (0.0, 0.25, 0.3, "pass"),
        (0.25, 0.2500001, 0.3, "undecided"),
        (0.0, 0.0, 0.25 + DOUBT, "pass"),
        (0.0, 0.0, 0.26 + DOUBT, "undecided"),
    ):
        measure = Measure(
            count=30,
            total=100,
            rate_low=low,
            rate_high=high,
            estimate=rate,
            threshold=None,
            note="",
        )
        assert decide({name: measure}, Facts(), policy).outcome == outcome


def test_a_rate_above_the_bound_in_doubt_neither_refuses_nor_passes() -> None:
    doubtful = Measure(count=2, total=30, rate_low=0.009, rate_high=0.2, threshold=None, note="")
    assert doubtful.rate > 0.03
    decision = decide(GOOD | {"leaked": doubtful}, Facts(), Policy())
    assert decision.outcome == "undecided"
    assert "whether that is exceeded is not certain" in decision.reasons[0]


def test_too_little_knowledge_is_no_pass() -> None:
    vague = Measure(count=0, total=30, rate_low=0.0, rate_high=0.4, threshold=None, note="")
    decision = decide(GOOD | {"mislabeled": vague}, Facts(), Policy())
    assert decision.outcome == "undecided"
    assert "this audit cannot tell: give more query rows" in decision.reasons[0]


def test_a_bound_of_zero_is_a_bound() -> None:
    policy = Policy(max_leakage_rate=0.0)
    assert decide(GOOD, Facts(), policy).outcome == "fail"
    none = Measure(count=0, total=100, rate_low=0.0, rate_high=0.03, threshold=None, note="")
    assert decide(GOOD | {"leaked": none}, Facts(), policy).outcome == "pass"


def test_all_doubts_are_named_together_and_those_of_changed_data_first() -> None:
    facts = Facts(
        declared=("training rows", "query rows"),
        unverified=("unverified",),
        mismatches=("changed",),
        partial=True,
    )
    reasons = decide(GOOD, facts, Policy(data="verified")).reasons
    assert reasons[:2] == ("changed", "unverified")
    assert "the training rows and query rows are not" in reasons[2]
    assert "only some of the training rows" in reasons[3]


def test_every_bound_that_was_looked_at_has_a_reason() -> None:
    policy = Policy(max_memorized_rate=0.5)
    assert len(decide(GOOD, Facts(), policy).reasons) == 3
    mixed = decide(GOOD | {"leaked": BAD, "memorized": NONE}, Facts(), policy)
    assert [r.split(":")[0] for r in mixed.reasons] == ["leaked rows", "memorized rows"]


def test_judging_loads_neither_torch_nor_mlflow() -> None:
    code = (
        "import sys, forward_inf_mlflow\n"
        "assert not {'numpy', 'pandas'} & set(sys.modules)\n"
        "from forward_inf_mlflow import decision, policy, record\n"
        "from forward_inf_mlflow.detect import measure\n"
        "assert not {'torch', 'mlflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_refusal_for_mislabeled_rows_cites_what_they_cause() -> None:
    facts = Facts(receipt="receipt: accuracy changes by +2.0 points")
    refused = decide(GOOD | {"mislabeled": BAD}, facts, Policy())
    assert facts.receipt in refused.reasons
    assert facts.receipt not in decide(GOOD, facts, Policy()).reasons
    assert facts.receipt not in decide(GOOD | {"leaked": BAD}, facts, Policy()).reasons


def test_what_a_few_half_models_cannot_tell_is_undecided_and_says_what_would() -> None:
    wide = replace(CLEAN, rate_low=0.0, rate_high=0.4)
    policy = Policy(max_memorized_rate=0.05)
    found = decide(GOOD | {"memorized": wide}, Facts(), policy)
    assert found.outcome == "undecided"
    assert "--effort thorough with --trainer" in found.reasons[0]
    assert "query rows" not in found.reasons[0]
    more = decide(GOOD | {"memorized": replace(wide, count=100)}, Facts(), policy)
    assert more.outcome == "undecided"
    assert more.reasons[0].endswith("or look at the named rows")


NOT_MEANT = Measure.none(1000, "these rows have no labels that could be wrong", applies=False)


def test_a_bound_on_what_does_not_apply_is_no_reason_to_refuse() -> None:
    found = decide(GOOD | {"mislabeled": NOT_MEANT}, Facts(), Policy())
    assert found.outcome == "pass"
    assert "mislabeled rows: does not apply, because these rows have no labels" in found.reasons[-1]
    refused = decide({"mislabeled": NOT_MEANT, "leaked": BAD}, Facts(), Policy())
    assert refused.outcome == "fail"
    assert decide({"mislabeled": NOT_MEANT, "leaked": NONE}, Facts(), Policy()).outcome == (
        "undecided"
    )


def test_a_policy_that_bounds_nothing_that_applies_passes_nothing() -> None:
    found = decide(GOOD | {"mislabeled": NOT_MEANT}, Facts(), Policy(max_leakage_rate=None))
    assert found.outcome == "undecided"
    assert "bound max_leakage_rate or max_memorized_rate" in found.reasons[0]
