"""One family of errors: each message says what was expected, got, and to do."""

from typing import Any


class UnlearningError(Exception):
    """Base of every error this package raises on purpose."""


class ArgumentError(UnlearningError, ValueError):
    """An argument is outside the range its meaning allows."""


class ForgetSetError(UnlearningError, ValueError):
    """The forget set is empty, everything, out of range, repeated or unknown."""


class DataError(UnlearningError, ValueError):
    """The training data cannot give every sample exactly once, always the same."""


class ModelError(UnlearningError, RuntimeError):
    """The model cannot be unlearned as it is (BatchNorm, NaN, no loss, ...)."""


class SetupError(UnlearningError, RuntimeError):
    """The Trainer lacks a callback, a model or data the request needs."""


class StrategyError(UnlearningError, RuntimeError):
    """The Trainer's strategy is not one the request can run under."""


class ShardError(UnlearningError, RuntimeError):
    """A shard failed after others had forgotten: `result` says which; ask again."""

    result: Any = None


class SolverError(UnlearningError, RuntimeError):
    """A linear or Newton solve ended without the answer that was asked for."""


class GuaranteeError(UnlearningError, RuntimeError):
    """What was asked for cannot be claimed: a condition of its proof does not hold."""


class CertificateError(UnlearningError, ValueError):
    """A certificate is malformed, or says what its constants do not support."""


class LedgerError(UnlearningError, ValueError):
    """A ledger is malformed, changed, cut off, or of another model."""


class BudgetError(UnlearningError, RuntimeError):
    """A request would exceed the announced number of releases."""


class AuditError(UnlearningError, RuntimeError):
    """An attack found more than is certified: the certificate or the code is wrong."""
