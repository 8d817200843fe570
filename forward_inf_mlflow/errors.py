"""Every error that this package raises on purpose.

ForwardInfError             anything below; its text is one line that says what to do
├── ModelError              the model version: missing, not loadable, not supported
│   └── UnsafeModelError    loading it would run code of its own
├── DataError               the rows: missing, unreadable, unusable
├── PolicyError             the policy file is wrong; names the line
├── VerdictError            a signed verdict, a key, or the server's gate file is not valid
└── TrackingError           the MLflow server: unreachable, refusing, no finished audit
    ├── NoAuditError        there is no finished audit of exactly this version, untouched
    └── RefusedError        the server's own gate refuses the move of an alias
"""

from __future__ import annotations


class ForwardInfError(Exception):
    """Something the user can mend; the message is one line that says how."""


class ModelError(ForwardInfError):
    """The model version does not exist, cannot be loaded, or is of a kind that is not supported."""


class UnsafeModelError(ModelError):
    """Loading the model would run code that came with it, and nobody permitted that."""


class DataError(ForwardInfError):
    """Rows are missing, cannot be read, or cannot be used with this model."""


class PolicyError(ForwardInfError):
    """The policy file is not valid; the message names the line."""


class VerdictError(ForwardInfError):
    """A signed verdict, a key, or a file of the server's gate is not valid."""


class SignerError(VerdictError):
    """A key does not count: unknown, revoked, or not for this; ``remedy`` says what helps."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class TrackingError(ForwardInfError):
    """The MLflow server cannot be reached, refuses, or holds no finished audit."""


class NoAuditError(TrackingError):
    """There is no finished audit of exactly this version, or it is not as it was logged."""


class RefusedError(TrackingError):
    """The server was asked to move an alias, and its gate refuses."""
