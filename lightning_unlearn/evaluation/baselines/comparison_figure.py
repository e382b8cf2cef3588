"""The figure of a comparison; matplotlib is imported only to draw it."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from lightning_unlearn._base.text import printable
from lightning_unlearn.errors import SetupError
from lightning_unlearn.evaluation.attacks.roc import Interval

_NO_MATPLOTLIB = (
    "expected the package matplotlib to draw a figure, found none: in your clone of "
    'this repository, pip install -e ".[figures]"'
)
_ENDINGS = (".png", ".pdf", ".svg")
_MARKERS = "osD^vP<>hd"


class Point(NamedTuple):
    """One model: its name, time, gap of the attack's AUC, and accuracy on test."""

    name: str
    seconds: float | None
    auc_gap: Interval
    accuracy: float


def _checked(path: Path) -> Path:
    if path.suffix.lower() not in _ENDINGS:
        raise SetupError(
            f"expected a figure's name to end in {', '.join(_ENDINGS)}, got "
            f"{path.name!r}"
        )
    if os.path.lexists(path) or not path.parent.is_dir():
        raise SetupError(
            f"expected a new file in a folder that exists for the figure, got {path}: "
            "name another; nothing is overwritten"
        )
    return path


def _label(point: Point) -> str:
    time = "" if point.seconds is None else f" ({point.seconds:.3g} s)"
    # A dollar sign would start a formula, and a leading underscore hide the entry.
    return " " + printable(point.name + time).replace("$", r"\$")


def draw(points: list[Point], path: Path) -> Path:
    """Draw a marker for each point, and the legend with names and times beside it.

    Args:
        points: In the order of the legend; the one named "retrained" gives the lines.
        path: A new .png, .pdf or .svg in a folder that exists.

    Returns:
        The path.

    Raises:
        SetupError: If the path is none such, or matplotlib is missing.
    """
    _checked(path)
    try:
        # Not pyplot: it would choose a backend for the whole process.
        from matplotlib.figure import Figure
    except ImportError:
        raise SetupError(_NO_MATPLOTLIB) from None
    figure: Any = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for i, point in enumerate(points):
        gap, y = point.auc_gap, point.accuracy
        axes.errorbar(
            gap.value,
            y,
            xerr=[[max(0.0, gap.value - gap.low)], [max(0.0, gap.high - gap.value)]],
            marker=_MARKERS[i % len(_MARKERS)],
            color=f"C{i % 10}",
            linestyle="none",
            markersize=7,
            elinewidth=0.8,
            label=_label(point),
        )
        if point.name == "retrained":
            axes.axvline(0, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            axes.axhline(y, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xlabel(
        "membership AUC less the retrained model's (0: no difference)\n"
        "left of 0: forgotten samples look less trained on; right: more"
    )
    axes.set_ylabel("accuracy on test samples")
    figure.legend(loc="outside right upper", frameon=False, title="method (time)")
    figure.savefig(path, dpi=150)
    return path
