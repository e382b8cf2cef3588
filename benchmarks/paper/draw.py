"""From the cache to ``paper-<model>.json``, and from that alone to tables and pictures.

The JSON holds every number by seed; the tables show mean and standard deviation over
the seeds.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models  # noqa: F401 - puts the folder of common.py on the path

# isort: split
import series
import tables
from deviations import deviations
from figures import DRAWN, pictures
from methods import rows
from reading import findings
from settings import Setting, slug, stored_setting, write

Found = dict[str, Any]


def draw(folder: Path, results: Path) -> None:
    """Collect a folder of the cache; write JSON, tables and pictures."""
    found = collected(folder)
    results.mkdir(parents=True, exist_ok=True)
    name = f"paper-{found['setting']['model']}"
    write(results / f"{name}.json", found)
    pictures(found, results, name)
    (results / f"{name}.md").write_text(page(results / f"{name}.json"))


def page(file: Path) -> str:
    """What belongs beside a ``paper-<model>.json``: its text, and nothing else's."""
    pngs = {part: f"{file.stem}-{ending}.png" for part, (ending, _) in DRAWN.items()}
    shown = {part: png for part, png in pngs.items() if (file.parent / png).exists()}
    return text(json.loads(file.read_text()), shown)


def collected(folder: Path) -> Found:
    """All seeds of a folder: rows, and the parts that are runs of their own."""
    stored = stored_setting(folder)
    seeds, stamps = {}, set()
    for place in sorted(folder.glob("seed*"), key=lambda p: int(p.name[4:])):
        one: Found = {"rows": {}}
        for name in (*rows(), "part e", "part f", "part g"):
            file = place / f"{slug(name)}.json"
            if not file.exists():
                continue
            kept = json.loads(file.read_text())
            stamps.add(kept.pop("machine"))
            if name.startswith("part "):
                one[name[-1]] = kept["found"]
            else:
                one["rows"][name] = kept
        if one["rows"]:
            seeds[place.name[4:]] = one
    plain = vars(stored) | {"lissa": list(stored.lissa)}
    return {"setting": plain, "machine": sorted(stamps), "seeds": _short(seeds)}


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def text(found: Found, shown: dict[str, str]) -> str:
    """The page: what was run, what it shows, and a table for every part."""
    s = Setting(**{**found["setting"], "lissa": tuple(found["setting"]["lissa"])})
    seeds = ", ".join(found["seeds"])
    parts = [
        f"# The paper's experiments: {s.model} on {s.data}",
        "Written by `python benchmarks/paper/run.py --draw`"
        + ("" if s.model == "mlp" else f" (`--model {s.model}`)")
        + f" from paper-{s.model}.json, which has every number by seed. Seeds {seeds}; "
        "mean ± standard deviation over them.",
        "Measured: " + "; ".join(found["machine"]) + ".",
        *found.get("notes", []),
        "## What the numbers show",
        "\n".join(f"* {line}" for line in findings(found)),
        "## What differs from the paper",
        "\n".join(f"* {line}" for line in deviations(s, _missing(found))),
    ]
    for part, (title, write_part) in PAGES.items():
        body = write_part(found)
        if body:
            parts += [f"## {title}", *body]
            if part in shown:
                parts.append(f"![{title}]({shown[part]})")
    return "\n\n".join(parts) + "\n"


def _missing(found: Found) -> list[str]:
    every = [s["rows"] for s in found["seeds"].values()]
    return [name for name in rows() if not all(name in one for one in every)]


PAGES: dict[str, tuple[str, Callable[[Found], list[str]]]] = {
    "a": ("(a) F1, macro", tables.f1),
    "b": ("(b) Membership inference", tables.membership),
    "c": ("(c) Relearn time", tables.relearning),
    "d": ("(d) Unlearning time (the paper's Figure 2)", tables.time),
    "e": ("(e) Requests in a row (Figure 3)", series.sequence),
    "f": ("(f) Sweeps (Figure 4)", series.swept),
    "g": ("(g) Bound against distance (Table 3)", tables.distances),
}


if __name__ == "__main__":  # the page of a JSON, without writing it
    print(page(Path(sys.argv[1])), end="")
