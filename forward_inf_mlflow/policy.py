"""Policy: the bounds that a version must keep, read from YAML, named by its hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from forward_inf_mlflow.errors import PolicyError
from forward_inf_mlflow.strict_yaml import Reader, is_empty, read_text, scalar


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a version must keep to be promoted. Rates are shares, 0 to 1; None bounds nothing.

    ``default_policy.yaml`` says where each default number comes from.
    """

    max_mislabeled_rate: float | None = 0.03
    max_leakage_rate: float | None = 0.01
    max_leak_inflation: float | None = None
    max_memorized_rate: float | None = None
    data: Literal["verified", "logged", "declared"] = "logged"
    partial: bool = False
    kept: bool = True

    @property
    def sha256(self) -> str:
        """Return the hash of the policy's meaning: comments and order do not change it."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return the policy as ``audit.json`` keeps it."""
        return {"sha256": self.sha256, **asdict(self)}


def default_text() -> str:
    """Return the default policy file, with its comments."""
    return resources.files("forward_inf_mlflow").joinpath("default_policy.yaml").read_text("utf-8")


def load_policy(path: Path | None) -> Policy:
    """Read a policy file; the default policy for None.

    Raises:
        PolicyError: If it cannot be read or is not valid; names file and line.
    """
    if path is None:
        return parse_policy(default_text(), name="default_policy.yaml")
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise PolicyError(
            f"there is no policy file {path}: write one with 'forward-inf policy init {path}'"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"the policy file {path} cannot be read: {error}") from error
    return parse_policy(text, name=str(path))


def parse_policy(text: str, *, name: str = "policy") -> Policy:
    """Read a policy from YAML text; keys that it leaves out keep their defaults.

    Raises:
        PolicyError: For an unknown key, a key given twice, or a value that the key cannot have.
    """
    reader = Reader(name, PolicyError)
    root = reader.root(text, "a policy is a list of 'key: value' lines")
    if root is None:
        return Policy()
    values: dict[str, Any] = {}
    known = [field.name for field in fields(Policy)]
    for key, (where, node) in reader.entries(root, known).items():
        if is_empty(node):
            # YAML reads nothing as null, and null means no bound: too much for a slip.
            raise PolicyError(f"{where}: '{key}' has no value; write null for no bound")
        values[key] = _checked(key, scalar(node), where)
    return Policy(**values)


def _checked(key: str, value: Any, where: str) -> Any:
    if key == "data":
        if value not in ("verified", "logged", "declared"):
            raise PolicyError(f"{where}: 'data' is 'verified', 'logged' or 'declared'")
        return value
    if key in ("partial", "kept"):
        if not isinstance(value, bool):
            raise PolicyError(f"{where}: '{key}' is true or false")
        return value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise PolicyError(f"{where}: '{key}' is a share such as 0.03, or null for no bound")
    if not 0 <= value <= 1:
        raise PolicyError(
            f"{where}: '{key}' is {str(value)[:20]}, but a rate lies between 0 and 1 (3% is 0.03)"
        )
    return float(value)
