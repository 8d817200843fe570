"""The gate's file: what a registry protects, under which policies, and whose keys count."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from forward_inf_mlflow.errors import ForwardInfError, VerdictError
from forward_inf_mlflow.policy import Policy, default_text, parse_policy
from forward_inf_mlflow.strict_yaml import Reader, is_empty, read_text, scalar
from forward_inf_mlflow.verdicts.keys import Ring, parse_ring
from forward_inf_mlflow.verdicts.names import fits, fold

_WHAT = "a gate file is a list of 'key: value' lines; write one with 'forward-inf gate-file init'"
_HASH = re.compile("[0-9a-fA-F]{64}")
#: Stages that somebody serves from; into the others a version falls back.
STAGES = ("Production", "Staging")
#: What MLflow computes by itself, so that nobody can be refused to set it.
_COMPUTED = re.compile("latest|v[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What some aliases and stages of some models need.

    Attributes:
        models: Patterns of model names.
        aliases: Patterns of aliases.
        stages: Stages, of `STAGES`.
        policies: The hashes of the policies under which a verdict counts.
        max_age_days: How old a verdict or an override may be, whatever it says itself; None for as
            long as it says.
        overrides: Whether an override by name opens these aliases.
    """

    models: tuple[str, ...] = ("*",)
    aliases: tuple[str, ...] = ("champion", "production")
    stages: tuple[str, ...] = ("Production",)
    policies: tuple[str, ...]
    max_age_days: float | None = None
    overrides: bool = True

    def covers(self, model: str, target: str, *, stage: bool, loose: bool) -> bool:
        """Return whether a model's alias or stage is one of these."""
        named = any(fits(model, glob, loose=loose) for glob in self.models)
        if stage:
            return named and fold(target) in map(fold, self.stages)
        return named and any(fits(target, glob, loose=loose) for glob in self.aliases)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A gate's file with all that it names.

    Attributes:
        rules: In their order; the first that covers an alias decides.
        ring: The keys that count.
        hash_up_to: Up to how many bytes a model's files are hashed before an alias moves; None
            where they are not.
        files: All files that were read.
    """

    rules: tuple[Rule, ...]
    ring: Ring
    hash_up_to: int | None = None
    files: tuple[Path, ...] = field(default=(), compare=False)

    def rule(
        self, model: str, target: str, *, stage: bool = False, loose: bool = False
    ) -> Rule | None:
        """Return what a model's alias or stage needs, None where it is free.

        Args:
            model: The registered model's name.
            target: The alias or stage.
            stage: Whether it is a stage.
            loose: See `names.fits`.
        """
        return next(
            (r for r in self.rules if r.covers(model, target, stage=stage, loose=loose)), None
        )

    def summary(self) -> str:
        """Return how many keys count and what is protected, as part of one line."""
        keys = sum(key.revoked is None for key in self.ring.keys)
        protected = "; ".join(
            f"{', '.join((*rule.aliases, *(f'stage {stage}' for stage in rule.stages)))} of "
            f"{', '.join(rule.models)}"
            for rule in self.rules
        )
        return f"{keys} of {len(self.ring.keys)} keys count, protected are {protected}"


def default_gate_text() -> str:
    """Return the default gate file, with its comments."""
    return resources.files("forward_inf_mlflow").joinpath("default_gate.yaml").read_text("utf-8")


def load_gate(path: Path) -> Gate:
    """Read a gate's file and the keys and policies that it names.

    Everything is read anew, so that an edit counts at once, and parsed only where it changed.

    Raises:
        VerdictError: Something cannot be read or is not valid; names file and line, and no folder.
    """
    parsed = _parse(_read(path), path.name)
    ring = _parse_ring(_read(path.parent / parsed.keys), parsed.keys)
    rules = []
    for draft in parsed.rules:
        policies = tuple(_policy_hash(path.parent, name, where) for where, name in draft.policies)
        values = {key: value for key, value in vars(draft).items() if key != "policies"}
        rules.append(Rule(policies=policies or (_default_policy(),), **values))
    named = [name for draft in parsed.rules for _, name in draft.policies]
    beside = [name for name in (parsed.keys, *named) if not _HASH.fullmatch(name)]
    files = (path, *(path.parent / name for name in beside))
    return Gate(rules=tuple(rules), ring=ring, hash_up_to=parsed.hash_up_to, files=files)


@dataclass(frozen=True, kw_only=True)
class _RuleDraft:
    """A rule whose policies are still what stands in the file, each with its place."""

    models: tuple[str, ...] = Rule.models
    aliases: tuple[str, ...] = Rule.aliases
    stages: tuple[str, ...] = Rule.stages
    policies: tuple[tuple[str, str], ...] = ()
    max_age_days: float | None = None
    overrides: bool = True


@dataclass(frozen=True)
class _Draft:
    keys: str
    rules: tuple[_RuleDraft, ...]
    hash_up_to: int | None


@functools.lru_cache(maxsize=8)
def _parse(text: str, name: str) -> _Draft:
    reader = Reader(name, VerdictError)
    root = reader.root(text, _WHAT)
    if root is None:  # such as a file that is being written: it must not open anything
        raise VerdictError(f"{name} is empty: {_WHAT}")
    entries = reader.entries(root, ("keys", "protect", "hash_artifacts"))
    if "protect" not in entries:
        raise VerdictError(f"{name} lacks 'protect', the list of what is protected")
    keys = "keys.yaml"
    if "keys" in entries:
        keys = _text(*entries["keys"], "'keys'")
    where, node = entries["protect"]
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise VerdictError(f"{where}: 'protect' is a list with one entry at least")
    rules = tuple(_parse_rule(item, reader) for item in node.value)
    limit = None
    if "hash_artifacts" in entries:
        limit = _parse_limit(*entries["hash_artifacts"], reader)
    return _Draft(keys, rules, limit)


def _parse_rule(node: yaml.Node, reader: Reader) -> _RuleDraft:
    where = reader.where(node)
    known = ("models", "aliases", "stages", "policies", "max_age_days", "overrides")
    if not isinstance(node, yaml.MappingNode):
        raise VerdictError(f"{where}: an entry of 'protect' has keys such as {', '.join(known)}")
    values: dict[str, Any] = {}
    for key, (place, value) in reader.entries(node, known).items():
        if is_empty(value):
            raise VerdictError(f"{place}: '{key}' has no value; leave the line out for the default")
        if key == "overrides":
            values[key] = _switch(place, value, key)
        elif key == "max_age_days":
            values[key] = _days(place, value)
        elif key == "policies":
            texts = _texts(place, value, key, reader)
            if not texts:
                raise VerdictError(f"{place}: 'policies' lists no policy, so nothing could pass")
            values[key] = texts
        else:
            values[key] = tuple(text for _, text in _texts(place, value, key, reader))
    draft = _RuleDraft(**values)
    if not draft.models or not (draft.aliases or draft.stages):
        raise VerdictError(f"{where}: this entry protects nothing")
    for stage in draft.stages:
        if fold(stage) not in map(fold, STAGES):
            raise VerdictError(f"{where}: a stage that can be protected is {' or '.join(STAGES)}")
    for alias in draft.aliases:
        if _COMPUTED.fullmatch(fold(alias)):
            raise VerdictError(
                f"{where}: '{alias}' cannot be protected, MLflow computes it: do not serve from it"
            )
    return draft


def _parse_limit(where: str, node: yaml.Node, reader: Reader) -> int:
    if not isinstance(node, yaml.MappingNode):
        raise VerdictError(f"{where}: 'hash_artifacts' needs 'max_bytes'")
    entries = reader.entries(node, ("max_bytes",))
    place, value = entries.get("max_bytes", (where, node))
    limit = scalar(value)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit <= 0:
        raise VerdictError(f"{place}: 'max_bytes' is a number of bytes such as 2_000_000_000")
    return limit


def _texts(where: str, node: yaml.Node, key: str, reader: Reader) -> tuple[tuple[str, str], ...]:
    """Return the texts of a list, each with its place."""
    if not isinstance(node, yaml.SequenceNode):
        raise VerdictError(f"{where}: '{key}' is a list such as [a, b]")
    places = [(reader.where(item), item) for item in node.value]
    return tuple((place, _text(place, item, f"an entry of '{key}'")) for place, item in places)


def _text(where: str, node: yaml.Node, what: str) -> str:
    value = scalar(node)
    if isinstance(node, yaml.ScalarNode) and _HASH.fullmatch(node.value):
        return str(node.value).lower()  # digits alone would be a number
    if not isinstance(value, str) or not value.strip():
        raise VerdictError(f"{where}: {what} is a text; put it between quotes")
    return value


def _switch(where: str, node: yaml.Node, key: str) -> bool:
    value = scalar(node)
    if not isinstance(value, bool):
        raise VerdictError(f"{where}: '{key}' is true or false")
    return value


def _days(where: str, node: yaml.Node) -> float:
    value = scalar(node)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value < 1e6:
        raise VerdictError(f"{where}: 'max_age_days' is a number of days such as 30")
    return float(value)


def _policy_hash(folder: Path, name: str, where: str) -> str:
    """Return a policy's hash, given so or as a file beside the gate's."""
    if _HASH.fullmatch(name):
        return name
    try:
        return _parse_policy(_read(folder / name), name).sha256
    except ForwardInfError as error:
        raise VerdictError(f"{where}: {error}") from error


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        raise VerdictError(f"there is no file {path.name}") from None
    except OSError as error:
        reason = error.strerror or error
        raise VerdictError(f"the file {path.name} cannot be read: {reason}") from error
    except ValueError as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "no such name"
        raise VerdictError(f"the file {path.name} cannot be read: {reason}") from error


@functools.lru_cache(maxsize=8)
def _parse_ring(text: str, name: str) -> Ring:
    return parse_ring(text, name=name)


@functools.lru_cache(maxsize=64)
def _parse_policy(text: str, name: str) -> Policy:
    return parse_policy(text, name=name)


@functools.lru_cache(maxsize=1)
def _default_policy() -> str:
    return parse_policy(default_text(), name="default_policy.yaml").sha256
