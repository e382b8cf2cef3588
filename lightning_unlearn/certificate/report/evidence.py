"""What a report may show besides the certificate, and what epsilon does not cover."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What the model is worth on one set of samples.

    Args:
        data: Which samples: ``forget``, ``retain``, ``test``, ...
        before: The metric before the request.
        after: After it, noise included.
        retrained: Of a model retrained without the forgotten samples, if there is one.

    Raises:
        ArgumentError: If the name is empty or a number is not finite.
    """

    data: str
    before: float
    after: float
    retrained: float | None = None

    def __post_init__(self) -> None:
        _text("data", self.data)
        validate.finite(before=self.before, after=self.after)
        if self.retrained is not None:
            validate.finite(retrained=self.retrained)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was recorded of a request besides its certificate.

    All but `ledger` and `metric` is computed from the forgotten samples or before the
    noise, or names files: epsilon does not cover it, and a report that shows it is
    `internal`.

    Args:
        residuals: (step or pass, residual) of the solver, in order.
        quality: What the model is worth, a line for each set of samples.
        metric: What the numbers of `quality` are.
        audit: (what was tried, what was found) of attacks on the model.
        ledger: The ledger's text; it must hold the certificate's entry.
        duplicates: Retained samples that equal a forgotten one.
        seconds: Wall time of the request.
        deleted: Older checkpoints that were deleted after it.
        certificate_file: Name of the certificate's file, for the commands shown.
        ledger_file: Likewise.
        checkpoint_file: Likewise.

    Raises:
        ArgumentError: If a value is not of its type, or a number is not finite.
    """

    residuals: tuple[tuple[float, float], ...] = ()
    quality: tuple[Quality, ...] = ()
    metric: str = "accuracy"
    audit: tuple[tuple[str, str], ...] = ()
    ledger: str | None = None
    duplicates: int | None = None
    seconds: float | None = None
    deleted: tuple[str, ...] = ()
    certificate_file: str | None = None
    ledger_file: str | None = None
    checkpoint_file: str | None = None

    def __post_init__(self) -> None:
        for name in ("residuals", "quality", "audit", "deleted"):
            _tuple(name, getattr(self, name))
        for point in self.residuals:
            _pair("residuals", "(step, residual)", point)
            validate.non_negative(step=point[0], residual=point[1])
        for line in self.quality:
            if not isinstance(line, Quality):
                raise ArgumentError(
                    f"expected every line of quality to be a Quality, got {line!r:.60}"
                )
        _text("metric", self.metric)
        for finding in self.audit:
            _pair("audit", "(what was tried, what was found)", finding)
            _text("what was tried", finding[0])
            _text("what was found", finding[1])
        if not (self.ledger is None or isinstance(self.ledger, str)):
            raise ArgumentError(
                f"expected ledger to be the ledger's text or None, got "
                f"{self.ledger!r:.60}: read the file first"
            )
        if self.duplicates is not None:
            validate.count(0, duplicates=self.duplicates)
        if self.seconds is not None:
            validate.non_negative(seconds=self.seconds)
        for path in self.deleted:
            _text("a path in deleted", path)
        for name in ("certificate_file", "ledger_file", "checkpoint_file"):
            if getattr(self, name) is not None:
                _text(name, getattr(self, name))

    @property
    def internal(self) -> bool:
        """Whether there is anything here that epsilon does not cover."""
        found = (self.residuals, self.quality, self.audit, self.deleted)
        return any(found) or (self.duplicates, self.seconds) != (None, None)


def with_retrained(
    quality: tuple[Quality, ...], retrained: Mapping[str, float]
) -> tuple[Quality, ...]:
    """The lines with what a retrained model reaches.

    Raises:
        ArgumentError: If a name is not among the lines, or a number is not finite.
    """
    unknown = sorted(str(name) for name in set(retrained) - {q.data for q in quality})
    if unknown:
        known = ", ".join(q.data for q in quality) or "nothing"
        raise ArgumentError(
            f"expected retrained to name what was measured ({known}), got "
            f"{', '.join(unknown)}: name one of those"
        )
    return tuple(
        replace(line, retrained=retrained.get(line.data, line.retrained))
        for line in quality
    )


def _tuple(name: str, value: object) -> None:
    if not isinstance(value, tuple):
        raise ArgumentError(
            f"expected {name} to be a tuple, got {type(value).__name__}: wrap it in "
            "tuple(...)"
        )


def _pair(name: str, what: str, value: object) -> None:
    if not (isinstance(value, tuple) and len(value) == 2):
        raise ArgumentError(
            f"expected every entry of {name} to be a pair {what}, got {value!r:.60}"
        )


def _text(name: str, value: object) -> None:
    if not (isinstance(value, str) and value.strip()):
        raise ArgumentError(f"expected {name} to be text, got {value!r:.60}")
