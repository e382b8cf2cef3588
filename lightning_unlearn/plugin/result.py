"""What ``trainer.unlearn`` returns."""

from dataclasses import dataclass
from pathlib import Path

from lightning_unlearn.certificate import Certificate
from lightning_unlearn.solvers import Solution


@dataclass(frozen=True, kw_only=True)
class UnlearningResult:
    """The outcome of one request; the model already has the new weights.

    Args:
        certificate: What is proved. Safe to publish.
        solution: The displacement before noise, and the solver's residual and cost.
            Secret: with it the noise can be subtracted.
        n_forget: Samples forgotten.
        n_retain: Samples retained.
        seconds: Wall time of the request, without writing the checkpoint.
        checkpoint_path: Where the clean checkpoint was written, or None.
        deleted: Older checkpoints that were deleted after it (``delete_stale``).
        residuals: (solver step, residual), the last recomputed from the solution.
            Internal: it depends on the forgotten samples, epsilon does not cover it.
        duplicates: Positions of retained samples that are exact copies of forgotten
            ones, and still in the model; None if they were not looked for.
    """

    certificate: Certificate
    solution: Solution
    n_forget: int
    n_retain: int
    seconds: float
    checkpoint_path: Path | None
    deleted: tuple[str, ...] = ()
    residuals: tuple[tuple[float, float], ...] = ()
    duplicates: tuple[int, ...] | None = None
