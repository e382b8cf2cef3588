"""The residual curve: where its points and ticks lie in a small drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_unlearn._base.text import number

WIDTH, HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 390, 14, 190
_MOST_POINTS = 400
_MOST_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """The curve on a logarithmic scale, in units of the drawing.

    Args:
        points: (x, y) of the curve.
        x_ticks: Along the lower edge.
        y_ticks: Powers of ten along the left edge.
        summary: The curve in words, for who does not see it.
    """

    points: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM

    @property
    def line(self) -> str:
        """The points as an SVG polyline takes them."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.points)


def chart(residuals: Sequence[tuple[float, float]]) -> Chart | None:
    """The drawing of a solver's residuals; None if there are none.

    Zeros are drawn at the lower edge. Of many points, runs of neighbours are drawn as
    the largest among them.

    Args:
        residuals: (step, residual), finite and >= 0.

    Returns:
        Places in the drawing, or None.
    """
    if not residuals:
        return None
    logs = [math.log10(r) for _, r in residuals if r > 0] or [0.0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    if high == low:
        low, high = low - 1, high + 1
    if any(r == 0 for _, r in residuals):
        low -= 1
    first, last = min(s for s, _ in residuals), max(s for s, _ in residuals)
    span = last - first or 1.0

    def x(step: float) -> float:
        return round(_LEFT + 8 + (step - first) / span * (_RIGHT - _LEFT - 16), 2)

    def y(log: float) -> float:
        return round(_BOTTOM - (log - low) / (high - low) * (_BOTTOM - _TOP), 2)

    points = tuple(
        (x(step), y(math.log10(r) if r > 0 else low)) for step, r in _thin(residuals)
    )
    pace = max(1, math.ceil((high - low) / _MOST_TICKS))
    return Chart(
        points=points,
        x_ticks=tuple(Tick(x(s), number(s)) for s in _round_steps(first, last)),
        y_ticks=tuple(Tick(y(k), f"1e{k}") for k in range(low, high + 1, pace)),
        summary=_summary(residuals),
    )


def _thin(residuals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(residuals) / _MOST_POINTS)
    if size == 1:
        return list(residuals)
    runs = (residuals[i : i + size] for i in range(0, len(residuals) - 1, size))
    return [*(max(run, key=lambda point: point[1]) for run in runs), residuals[-1]]


def _round_steps(first: float, last: float) -> list[float]:
    """Few round numbers between the first step and the last."""
    rough = (last - first) / _MOST_TICKS
    if not rough > 1e-300:  # one step, or none that a float tells apart
        return [first]
    power = 10.0 ** math.floor(math.log10(rough))
    pace = next((power * k for k in (1, 2, 5, 10) if power * k >= rough), rough)
    begin = math.ceil(first / pace)
    return [k * pace for k in range(begin, math.floor(last / pace) + 1)]


def _summary(residuals: Sequence[tuple[float, float]]) -> str:
    (step, residual), (end, final) = residuals[0], residuals[-1]
    if len(residuals) == 1:
        return f"One measurement: residual {number(residual)} at step {number(step)}."
    return (
        f"{len(residuals):,} measurements: from {number(residual)} at step "
        f"{number(step)} to {number(final)} at step {number(end)}."
    )
