"""Every way in which a version is admitted or refused, and what is said."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from gate_cases import ADA, CI, DEFAULT_POLICY, HOUR, RING, STRANGER, override_for, verdict_on

from forward_inf_mlflow.verdicts.admission import Admission, admit
from forward_inf_mlflow.verdicts.events import Event, read_events, with_event
from forward_inf_mlflow.verdicts.gate_file import Rule
from forward_inf_mlflow.verdicts.keys import Ring
from forward_inf_mlflow.verdicts.seal import Sealed
from forward_inf_mlflow.verdicts.statement import Subject

NOW = 1_700_000_000_000
DAY = 24 * HOUR
SUBJECT = Subject(
    name="m", version="3", creation_timestamp=NOW - DAY, source="models:/m-1", model_id="m-1"
)
RULE = Rule(policies=(DEFAULT_POLICY,))
REMEDY = (
    "; run 'forward-inf audit models:/m/3', then 'forward-inf sign models:/m/3 --key KEY "
    "--audit-sha256 SHA256', or ask for 'forward-inf approve' by a person who may"
)
AUDIT, SIGN = "'forward-inf audit models:/m/3', then ", "--audit-sha256 SHA256'"


def verdict(**changes: Any) -> Sealed:
    times = {"issued": NOW - HOUR, "expires": NOW + HOUR}
    return verdict_on(changes.pop("subject", SUBJECT), **{**times, **changes})


def override(**changes: Any) -> Sealed:
    times = {"issued": NOW - HOUR, "expires": NOW + HOUR}
    return override_for(changes.pop("subject", SUBJECT), **{**times, **changes})


def ask(*sealed: Sealed, rule: Rule = RULE, ring: Ring = RING, **more: Any) -> Admission:
    tags = {"fi.gate": "pass", "stage": "x", **{one.tag: one.text for one in sealed}}
    return admit(SUBJECT, more.pop("target", "champion"), tags, rule, ring, now=NOW, **more)


def test_a_pass_admits_and_says_by_whom() -> None:
    assert ask(verdict()) == Admission(
        allowed=True, why="its verdict of 2023-11-14 is a pass", by="ci", model_sha256="b" * 64
    )


def revoked(name: str) -> Ring:
    return Ring(tuple(replace(k, revoked="2023-01-01") if k.name == name else k for k in RING.keys))


OTHER = replace(SUBJECT, name="other", version="7")
AGAIN = replace(SUBJECT, creation_timestamp=NOW - 2 * DAY)
FORGED = replace(verdict(), signature=verdict(outcome="fail").signature)
REFUSED: dict[str, tuple[Admission, str]] = {
    "nothing": (ask(), "it has no signed verdict"),
    "fail": (ask(verdict(outcome="fail")), "its newest verdict, of 2023-11-14, is a refusal"),
    "undecided": (
        ask(verdict(outcome="undecided")),
        "its newest verdict, of 2023-11-14, is undecided",
    ),
    "expired": (ask(verdict(expires=NOW)), "its verdict expired on 2023-11-14"),
    "too old": (
        ask(verdict(issued=NOW - 3 * DAY), rule=replace(RULE, max_age_days=2)),
        "its verdict of 2023-11-11 is older than the 2 days that count here",
    ),
    "revoked": (
        ask(verdict(), ring=revoked("ci")),
        "its verdict does not count, its key 'ci' was revoked",
    ),
    "unknown": (
        ask(verdict(key=STRANGER)),
        "its verdict does not count, its key is not one that this server knows",
    ),
    "not its right": (
        ask(verdict(key=ADA)),
        "its verdict does not count, the key 'ada' may not sign verdicts",
    ),
    "forged": (
        ask(FORGED),
        "its verdict does not count, its signature does not fit what it says",
    ),
    "copied": (
        ask(verdict(subject=OTHER)),
        "its verdict does not count, it was made for models:/other/7",
    ),
    "made again": (
        ask(verdict(subject=AGAIN)),
        "its verdict does not count, it was made for models:/m/3, which was registered at another "
        "time or from another source",
    ),
    "stale": (
        ask(verdict(policy_sha256="f" * 64)),
        f"its verdict is under another policy (ffffffffffff) than the alias needs "
        f"({DEFAULT_POLICY[:12]})",
    ),
    "replaced": (
        ask(verdict(), model_sha256="c" * 64),
        "its files were replaced after the audit",
    ),
    "future": (
        ask(verdict(issued=NOW + HOUR, expires=NOW + DAY)),
        "its verdict does not count, it is dated in the future, compare the clocks",
    ),
}


@pytest.mark.parametrize(("answer", "problem"), REFUSED.values(), ids=REFUSED.keys())
def test_each_refusal_has_its_own_sentence(answer: Admission, problem: str) -> None:
    remedy = REMEDY
    if "newest verdict" in problem:
        end = "or ask for" + REMEDY.split("or ask for")[1]
        remedy = f"; see 'forward-inf report models:/m/3' for what to mend, {end}"
    elif "another policy" in problem:
        remedy = REMEDY.replace(SIGN, SIGN[:-1] + " --policy FILE'")
    elif "key" in problem:
        remedy = REMEDY.replace(SIGN, f"{SIGN} with a key of the server's ring")
    said = f"models:/m/3 may not become 'champion': {problem}{remedy}"
    assert answer == Admission(allowed=False, why=said)
    assert len(said) < 450


@pytest.mark.parametrize(
    ("sealed", "ring", "again"),
    [
        ((), RING, False),
        ((verdict(),), revoked("ci"), False),
        ((verdict(key=STRANGER),), RING, False),
        ((verdict(expires=NOW),), RING, False),
        ((verdict(policy_sha256="f" * 64),), RING, False),
        ((verdict(subject=OTHER),), RING, True),
    ],
)
def test_where_the_tags_name_an_audit_nobody_is_sent_to_audit_again(
    sealed: tuple[Sealed, ...], ring: Ring, again: bool
) -> None:
    tags = {"fi.run": "r" * 32, **{one.tag: one.text for one in sealed}}
    said = admit(SUBJECT, "champion", tags, RULE, ring, now=NOW).why
    assert (AUDIT in said) is again
    assert "'forward-inf sign models:/m/3 --key KEY --audit-sha256 SHA256" in said
    replaced = {"fi.run": "r" * 32, verdict().tag: verdict().text}
    why = admit(SUBJECT, "champion", replaced, RULE, RING, now=NOW, model_sha256="c" * 64).why
    assert AUDIT in why


def test_the_guide_shows_the_sentence_as_it_is() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "gate.md").read_text("utf-8")
    assert REFUSED["nothing"][0].why in " ".join(guide.split())


def test_no_two_causes_share_a_sentence() -> None:
    assert len({problem for _, problem in REFUSED.values()}) == len(REFUSED)


def test_a_tag_under_anothers_name_does_not_count() -> None:
    sealed = verdict()
    tags = {"fi.verdict.000000000000": sealed.text, "fi.verdict.x": "{}"}
    answer = admit(SUBJECT, "champion", tags, RULE, RING, now=NOW)
    assert f"it belongs under the tag {sealed.tag}" in answer.why
    tags = {"fi.verdict.x": "not sealed"}
    answer = admit(SUBJECT, "champion", tags, RULE, RING, now=NOW)
    assert "does not count, it is not a sealed statement" in answer.why


@pytest.mark.parametrize("first", [True, False])
def test_an_older_pass_does_not_outlive_a_newer_refusal(first: bool) -> None:
    passed = verdict(issued=NOW - 2 * HOUR, expires=NOW + 9 * DAY)
    failed = verdict(outcome="fail", issued=NOW - HOUR, expires=NOW + DAY)
    order = (passed, failed) if first else (failed, passed)
    assert "is a refusal" in ask(*order).why
    assert ask(passed).allowed
    newest = verdict(issued=NOW - 1)
    assert ask(*order, newest).allowed


def test_a_refusal_that_expired_still_hides_the_pass_before_it() -> None:
    passed = verdict(issued=NOW - 2 * DAY, expires=NOW + DAY)
    failed = verdict(outcome="fail", issued=NOW - DAY, expires=NOW - HOUR)
    assert "is a refusal" in ask(passed, failed).why


@pytest.mark.parametrize("worse", ["fail", "undecided"])
def test_of_two_verdicts_of_one_millisecond_the_worse_counts(worse: str) -> None:
    assert not ask(verdict(), verdict(outcome=worse)).allowed
    assert not ask(verdict(outcome=worse), verdict()).allowed


def test_a_verdict_under_another_policy_neither_opens_nor_closes() -> None:
    other = verdict(outcome="fail", policy_sha256="f" * 64, issued=NOW - 1)
    assert ask(verdict(), other).allowed
    both = replace(RULE, policies=(DEFAULT_POLICY, "f" * 64))
    assert not ask(verdict(), other, rule=both).allowed


def test_a_clock_that_is_a_little_ahead_is_honest() -> None:
    assert ask(verdict(issued=NOW + HOUR // 20, expires=NOW + DAY)).allowed


def test_the_right_files_are_admitted() -> None:
    assert ask(verdict(), model_sha256="b" * 64).allowed


def test_an_override_opens_its_alias_and_no_other() -> None:
    failed = verdict(outcome="fail", issued=NOW - 1)
    answer = ask(failed, override())
    assert answer == Admission(allowed=True, why="overridden: a fix that cannot wait", by="ada")
    assert ask(override()).allowed, "it needs no verdict"
    assert ask(override(), target="Champion").allowed
    assert not ask(failed, override(), target="production").allowed
    assert ask(override(alias="production"), target="Production", stage=True).allowed


CLOSED = {
    "over": (override(expires=NOW), RULE, " (the one that is there is over)"),
    "too old": (
        override(issued=NOW - 3 * DAY),
        replace(RULE, max_age_days=2),
        " (the one that is there is over)",
    ),
    "not its right": (
        override(key=CI),
        RULE,
        " (the one that is there does not count: the key 'ci' may not sign overrides)",
    ),
    "another version": (
        override(subject=OTHER),
        RULE,
        " (the one that is there does not count: it was made for models:/other/7)",
    ),
}


@pytest.mark.parametrize(("sealed", "rule", "hint"), CLOSED.values(), ids=CLOSED.keys())
def test_an_override_that_opens_nothing_says_why(sealed: Sealed, rule: Rule, hint: str) -> None:
    answer = ask(sealed, rule=rule)
    assert not answer.allowed
    assert answer.why.endswith("by a person who may" + hint)


def test_where_overrides_are_off_nobody_is_sent_for_one() -> None:
    answer = ask(override(), rule=replace(RULE, overrides=False))
    assert not answer.allowed
    assert "approve" not in answer.why
    assert answer.why.endswith("; an approval is there, and this gate takes none for it")


def test_a_stage_is_called_one() -> None:
    assert (
        "models:/m/3 may not enter the stage 'Production': "
        in ask(stage=True, target="Production").why
    )


@pytest.mark.parametrize("field", [f.name for f in fields(Subject)])
def test_a_verdict_is_of_one_version_in_every_part(field: str) -> None:
    other = {"creation_timestamp": 1, "version": "4", "model_id": None}.get(field, "other")
    assert not ask(verdict(subject=replace(SUBJECT, **{field: other}))).allowed
    assert not ask(override(subject=replace(SUBJECT, **{field: other}))).allowed


def test_names_of_others_stay_on_the_line() -> None:
    subject = replace(SUBJECT, name="a\nb 'c\u202e")
    why = admit(subject, "champion\n", {}, RULE, RING, now=NOW).why
    assert why.isprintable()


def moved(at: int, kind: Any = "moved", why: str = "why", alias: str = "champion") -> Event:
    return Event(at=at, event=kind, alias=alias, before="1", why=why, by=None)


def test_events_are_kept_in_order_and_old_ones_go() -> None:
    text = None
    for at in range(60):
        text = with_event(text, moved(at))
    assert [e["at"] for e in read_events(text)] == list(range(10, 60))
    assert read_events(text)[0] == {
        "at": 10, "event": "moved", "alias": "champion", "from": "1", "why": "why", "by": None,
    }  # fmt: skip


def test_refusals_do_not_push_out_what_happened() -> None:
    text = with_event(None, moved(0))
    for at in range(1, 200):
        text = with_event(text, moved(at, "refused", why=f"reason {at % 7}"))
    events = read_events(text)
    assert len(events) == 50
    assert events[0]["event"] == "moved"
    for at in range(200, 300):
        text = with_event(text, moved(at, "refused", why="the same"))
    assert [e["at"] for e in read_events(text) if e["why"] == "the same"] == [299]


@pytest.mark.parametrize("text", ["", "{", "7", "[7, null]", "[" * 9000, json.dumps({"a": 1})])
def test_a_history_that_is_none_is_begun_anew(text: str) -> None:
    assert [e["at"] for e in read_events(with_event(text, moved(5)))] == [5]


def test_a_long_sentence_is_cut() -> None:
    assert len(read_events(with_event(None, moved(1, why="x" * 9000)))[0]["why"]) == 500


def test_a_history_stays_short_whatever_aliases_are_called_and_drops_refusals_first() -> None:
    text = with_event(None, moved(0))
    for at in range(1, 40):
        event = replace(moved(at, "refused", why="\u4e16" * 900), alias=f"{at}" + "\u4e16" * 900)
        text = with_event(text, event)
    events = read_events(text)
    assert len(text) <= 50_000
    assert len(events) > 3
    assert {len(e["alias"]) for e in events[1:]} == {255}
    assert [e["at"] for e in events] == [0, *range(41 - len(events), 40)]
