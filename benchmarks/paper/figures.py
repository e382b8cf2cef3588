"""The pictures: means with standard deviations over the seeds, from the JSON alone."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Found = dict[str, Any]
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")
SPLITS = {"forget": "forgotten", "retain": "retained", "test": "test"}


def pictures(found: Found, results: Path, name: str) -> None:
    """Draw what there are numbers for; a picture there are none for is removed."""
    for ending, draw in DRAWN.values():
        file = results / f"{name}-{ending}.png"
        file.unlink(missing_ok=True)
        figure = draw(found)
        if figure is not None:
            figure.tight_layout()
            # No date or version in the file: the same numbers give the same picture.
            options = {"dpi": 110, "metadata": {"Software": None}}
            figure.savefig(file, **options)
            plt.close(figure)


def _names(found: Found, part: str) -> list[str]:
    order: list[str] = []
    for seed in found["seeds"].values():
        order += [n for n in seed["rows"] if n not in order]
    return [n for n in order if _all(found, n, part)]


def _all(found: Found, name: str, part: str) -> list[Found]:
    rows = (s["rows"].get(name, {}).get(part) for s in found["seeds"].values())
    return [row for row in rows if row and not {"error", "refused"} & set(row)]


def _mean(numbers: list[float]) -> tuple[float, float]:
    middle = statistics.fmean(numbers)
    return middle, statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def _plain(axis: Any, *, x: str = "", y: str = "", title: str = "") -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _f1(found: Found) -> Any:
    names = _names(found, "a")
    if not names:
        return None
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.42 * len(names)))
    for k, (split, label) in enumerate(SPLITS.items()):
        both = [_mean([r[split] for r in _all(found, n, "a")]) for n in names]
        y = [i + 0.22 * (k - 1) for i in range(len(names))]
        x, error = [m for m, _ in both], [s for _, s in both]
        axis.errorbar(x, y, xerr=error, fmt="o", color=COLOURS[k], label=label, ms=5)
    aim = [r["forget"] for r in _all(found, "retrained", "a")]
    if aim:
        level = _mean(aim)[0]
        axis.axvline(level, color=COLOURS[0], lw=0.8, ls=":")
    tests = {n: [r["test"] for r in _all(found, n, "a")] for n in names}
    best = max(_mean(t)[0] for t in tests.values())
    useful = [n for n in names if _mean(tests[n])[0] > 0.7 * best]
    shown = [r[split] for n in useful for r in _all(found, n, "a") for split in SPLITS]
    low, high = min(shown), max(shown)
    margin = 0.1 * (high - low) + 1e-3
    axis.set_xlim(low - margin, high + margin)
    for i, n in enumerate(names):
        if n not in useful:
            each = ", ".join(f"{x:.2f}" for x in tests[n])
            left = low - 0.8 * margin
            axis.text(
                left,
                i,
                f"(off the scale: on test {each}, by seed)",
                va="center",
                fontsize=9,
            )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncol=3, frameon=False)
    _plain(axis, x="macro F1 (dotted: the retrained model's on the forgotten)")
    return figure


def _time(found: Found) -> Any:
    names = [
        n
        for n in _names(found, "d")
        if not any(r.get("shared") for r in _all(found, n, "d"))
    ]
    if not names:
        return None
    both = [_mean([r["seconds"] for r in _all(found, n, "d")]) for n in names]
    x, error = [m for m, _ in both], [s for _, s in both]
    low = [min(e, 0.9 * m) for m, e in both]
    figure, axis = plt.subplots(figsize=(8, 1.0 + 0.36 * len(names)))
    axis.barh(names, x, xerr=[low, error], color=COLOURS[0], height=0.7)
    for i, (m, e) in enumerate(both):
        axis.text((m + e) * 1.08, i, f"{m:.3g} s", va="center", fontsize=9)
    axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.invert_yaxis()
    _plain(axis, x="seconds, log scale")
    return figure


def _line(axis: Any, x: list[float], columns: list[list[float]], **style: Any) -> None:
    both = [_mean(c) for c in columns]
    y, error = [m for m, _ in both], [s for _, s in both]
    axis.errorbar(x, y, yerr=error, ms=3, lw=1, capsize=2, **style)


def _sequence(found: Found) -> Any:
    every = [s["e"] for s in found["seeds"].values() if "e" in s]
    if not every:
        return None
    figure, (norms, bound, f1) = plt.subplots(1, 3, figsize=(11, 3.6))
    for way, style in zip(every[0], ("-", "--"), strict=False):
        columns = list(zip(*(e[way] for e in every), strict=True))
        x = [c[0]["request"] for c in columns]

        def of(key: str, columns: list = columns) -> list[list[float]]:
            return [[s[key] for s in c if s.get(key) is not None] for c in columns]

        black = {"color": "black", "ls": style, "label": way, "marker": "o"}
        _line(norms, x, of("gradient_norm"), **black)
        stated = [(i, v) for i, v in zip(x, of("theorem_3_4"), strict=True) if v]
        if stated:
            _line(bound, [i for i, _ in stated], [v for _, v in stated], **black)
        for k, (split, label) in enumerate(SPLITS.items()):
            _line(f1, x, of(split), color=COLOURS[k], ls=style, marker="o",
                  label=label if style == "-" else None)  # fmt: skip
    C = found["setting"]["max_norm"]
    bound.axhline(2 * C, color=COLOURS[1], label=f"2C = {2 * C:g}, always true")
    true = [s["g"]["to_retrained"] for s in _rows_of(found, "original")]
    if true:
        bound.axhline(_mean(true)[0], color=COLOURS[2], label="to the retrained")
    norms.set_yscale("log")
    bound.set_yscale("log")
    for axis in (norms, bound, f1):
        axis.legend(fontsize=8, frameon=False)
    _plain(norms, x="requests", title="gradient norm on the retained")
    _plain(bound, x="requests", title="Theorem 3.4 with M = 1 assumed")
    _plain(f1, x="requests", title="macro F1 (dashed: with noise)")
    return figure


def _rows_of(found: Found, name: str) -> list[Found]:
    return [s["rows"][name] for s in found["seeds"].values() if name in s["rows"]]


def _sweeps(found: Found) -> Any:
    every = [s["f"] for s in found["seeds"].values() if "f" in s]
    if not every:
        return None
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4))
    for axis, swept in zip(axes.flat, every[0], strict=True):
        columns = list(zip(*(f[swept] for f in every), strict=True))
        given = [(c[0]["value"], [s for s in c if "refused" not in s]) for c in columns]
        given = [(x, c) for x, c in given if c]
        for k, (split, label) in enumerate(SPLITS.items()):
            columns_of = [[s[split] for s in c] for _, c in given]
            style = {"color": COLOURS[k], "marker": "o", "label": label}
            _line(axis, [x for x, _ in given], columns_of, **style)
        for c in columns:
            if any("refused" in s for s in c):
                axis.axvspan(c[0]["value"] / 1.6, c[0]["value"] * 1.6, color="#dddddd")
        axis.set_xscale("log")
        fixed = "" if swept == "damping" else ", damping 100"
        more = " (grey: refused)" if swept == "damping" else ""
        _plain(axis, x=f"{swept}{fixed}", title=f"{swept}{more}", y="macro F1")
    axes.flat[1].legend(fontsize=8, frameon=False, loc="lower right")
    axes.flat[2].set_ylim(0, 1)
    return figure


def _distances(found: Found) -> Any:
    names = _names(found, "g")
    every = [s["g"] for s in found["seeds"].values() if "g" in s]
    if not names:
        return None
    figure, axes = plt.subplots(
        1, 1 + bool(every), figsize=(11 if every else 7, 1 + 0.36 * len(names)),
        squeeze=False,
    )  # fmt: skip
    axis = axes[0, 0]
    both = [_mean([r["to_retrained"] for r in _all(found, n, "g")]) for n in names]
    x, error = [m for m, _ in both], [s for _, s in both]
    axis.barh(names, x, xerr=error, color=COLOURS[0], height=0.7)
    bound = 2 * found["setting"]["max_norm"]
    axis.axvline(bound, color=COLOURS[1])
    axis.set_xlim(0, 1.05 * bound)
    for i, far in enumerate(x):
        if far > bound:  # it is not kept in the ball
            axis.text(0.02 * bound, i, f"{far:,.0f}, outside the ball: off the scale",
                      va="center", fontsize=9, color="white")  # fmt: skip
    axis.invert_yaxis()
    _plain(axis, x="distance to the retrained weights (red: the bound, 2C)")
    if every:
        axis = axes[0, 1]
        columns = [c for c in zip(*every, strict=True) if c[0]["tolerance"]]
        x = [c[0]["tolerance"] for c in columns]
        lines: dict[str, str] = {
            "certified": "certified before", "measured_bound": "measured after",
            "true_distance": "true",
        }  # fmt: skip
        for k, (key, label) in enumerate(lines.items()):
            _line(axis, x, [[s[key] for s in c] for c in columns], color=COLOURS[k],
                  marker="o", label=label)  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.legend(fontsize=8, frameon=False)
        _plain(axis, x="tolerance", y="distance to the minimiser", title="convex head")
    return figure


DRAWN: dict[str, tuple[str, Callable[[Found], Any]]] = {
    "a": ("f1", _f1),
    "d": ("time", _time),
    "e": ("requests", _sequence),
    "f": ("sweeps", _sweeps),
    "g": ("distance", _distances),
}
