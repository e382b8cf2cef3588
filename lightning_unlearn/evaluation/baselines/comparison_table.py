"""What `compare` gives: a row for each model, as one table and one figure."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lightning_unlearn._base.notebook import box, listed, table
from lightning_unlearn._base.text import columns, printable
from lightning_unlearn.evaluation.attacks.roc import Interval
from lightning_unlearn.evaluation.baselines import comparison_figure

SPLITS = ("forget", "retain", "test")
_HEAD = (
    "method", "seconds", "forget acc.", "retain acc.", "test acc.", "MIA AUC",
    "KL", "JS", "claimed",
)  # fmt: skip
_ENDS = "method", "claimed"
_NOTE = (
    "in brackets: less the retrained model's; near 0 is as it should be. The attack's "
    "AUC is far from 0.5 where forgotten and test samples differ by nature"
)


class Row(NamedTuple):
    """One model, measured beside the retrained one.

    Attributes:
        name: Of the method; "original" and "retrained" are the two models themselves.
        seconds: Wall time of the method alone; None where it was not measured.
        accuracy: In [0, 1], for "forget", "retain" and "test".
        gaps: The same, less the retrained model's.
        auc: Of the membership attack, forgotten against test samples.
        auc_gap: The same, less the retrained model's; see `MembershipResult`.
        kl: Mean ``KL(model || retrained)`` of the outputs on the forgotten samples.
        js: Mean Jensen-Shannon divergence on them, in [0, log 2].
        claim: What the method claims; measured numbers are no guarantee.
    """

    name: str
    seconds: float | None
    accuracy: Mapping[str, float]
    gaps: Mapping[str, float]
    auc: float
    auc_gap: Interval
    kl: float
    js: float
    claim: str


class Comparison(NamedTuple):
    """Rows of `compare`: original, retrained, then the methods in their order.

    ``str(comparison)`` is an aligned table. Gaps to the retrained model stand in
    brackets: near 0 is as it should be, on either side it is not.
    """

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        right = [i for i, head in enumerate(_HEAD) if head not in _ENDS]
        return "\n".join([*columns(self._cells(), right), _NOTE])

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        return box("Beside retraining", table(body, head), listed([_NOTE]))

    def markdown(self) -> str:
        """The same table for Markdown."""
        head, *body = (
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
            for line in self._cells()
        )
        rule = "|" + "|".join("---" if h in _ENDS else "---:" for h in _HEAD) + "|"
        return "\n".join([head, rule, *body])

    def figure(self, path: str | os.PathLike[str]) -> Path:
        """Draw forget quality against utility, with the time of each.

        Forget quality is the gap of the membership attack's AUC to the retrained
        model's with its 95% interval, utility the accuracy on test samples.

        Args:
            path: A new file that ends in .png, .pdf or .svg, in a folder that exists.

        Returns:
            The path.

        Raises:
            SetupError: If the path is none such, or matplotlib is missing: it comes
                with the extra ``figures``.
        """
        points = [
            comparison_figure.Point(
                row.name, row.seconds, row.auc_gap, row.accuracy["test"]
            )
            for row in self.rows
        ]
        return comparison_figure.draw(points, Path(path))

    def _cells(self) -> list[tuple[str, ...]]:
        return [_HEAD, *map(_line, self.rows)]


def _time(row: Row) -> str:
    return "-" if row.seconds is None else f"{row.seconds:.3g}"


def _line(row: Row) -> tuple[str, ...]:
    return (
        printable(row.name),
        _time(row),
        *(f"{row.accuracy[s]:.3f} ({row.gaps[s]:+.3f})" for s in SPLITS),
        f"{row.auc:.3f} ({row.auc_gap.value:+.3f})",
        f"{row.kl:.4f}",
        f"{row.js:.4f}",
        printable(row.claim),
    )
