"""The tables with a line for every row: parts a, b, c, d and g."""

from collections.abc import Callable
from typing import Any

from common import table
from methods import rows
from series import convex, spread

Found = dict[str, Any]


def values(found: Found, name: str, part: str, key: str) -> list[Any]:
    """Of one row, by seed; what is not there is left out."""
    each = (s["rows"].get(name, {}).get(part, {}) for s in found["seeds"].values())
    return [one[key] for one in each if one.get(key) is not None]


def names(found: Found) -> list[str]:
    """The rows there are, in their order."""
    have = [set(s["rows"]) for s in found["seeds"].values()]
    return [name for name in rows() if any(name in h for h in have)]


def _rows(
    found: Found, head: list[str], cells: Callable[[str], list[str]]
) -> list[str]:
    lines = [[name, *cells(name)] for name in names(found)]
    return [table(["", *head], lines)] if lines else []


def f1(found: Found) -> list[str]:
    """Macro F1 on three sets."""

    def cells(name: str) -> list[str]:
        keys = ("forget", "retain", "test")
        return [spread(values(found, name, "a", key)) for key in keys]

    return _rows(found, ["forgotten", "retained", "test"], cells)


def membership(found: Found) -> list[str]:
    """The attack by the loss."""

    def cells(name: str) -> list[str]:
        gap = "" if name == "retrained" else spread(values(found, name, "b", "auc_gap"))
        return [
            spread(values(found, name, "b", "auc")),
            gap,
            spread(values(found, name, "b", "tpr_at_1_percent")),
            spread(values(found, name, "b", "kl_to_retrained"), 2),
        ]

    head = ["AUC", "AUC less the retrained's", "true positives at 1% false"]
    return [
        "A threshold on the loss tells forgotten from test images; KL is that of the "
        "outputs on the forgotten images from the retrained model's, in nats.",
        *_rows(found, [*head, "KL"], cells),
    ]


def relearning(found: Found) -> list[str]:
    """Steps until they are back."""
    most = found["setting"]["relearn_steps"]

    def cells(name: str) -> list[str]:
        steps, back = (values(found, name, "c", k) for k in ("steps", "reached"))
        shown = [f"{n}" if b else f"> {n}" for n, b in zip(steps, back, strict=True)]
        return [", ".join(shown), spread(values(found, name, "c", "loss_before"))]

    return [
        "Steps of Adam (batch 128) on the forgotten images until their loss is at most "
        f"0.05 above the original model's, by seed; given up after {most}.",
        *_rows(found, ["steps", "loss before"], cells),
    ]


def time(found: Found) -> list[str]:
    """Seconds, and against retraining."""

    def cells(name: str) -> list[str]:
        own = [
            (s["rows"][name]["d"]["seconds"], s["rows"]["retrained"]["d"]["seconds"])
            for s in found["seeds"].values()
            if name in s["rows"] and "retrained" in s["rows"]
        ]
        alone = not values(found, name, "d", "shared")
        grades = sorted({str(g) for g in values(found, name, "d", "grade")})
        refused = len(values(found, name, "d", "refused"))
        grades += [f"refused with {refused} seeds"] if refused else []
        return [
            spread((a for a, _ in own), 2),
            spread((b / a for a, b in own), 1) if alone else "with other work",
            spread(values(found, name, "d", "passes"), 1),
            ", ".join(grades),
        ]

    head = ["seconds", "times faster than retraining", "passes", "grade"]
    return _rows(found, head, cells)


def distances(found: Found) -> list[str]:
    """Bound and distance of every row, and of the convex head."""
    C = found["setting"]["max_norm"]

    def cells(name: str) -> list[str]:
        stated = values(found, name, "d", "sensitivity")
        return [
            f"{min(2 * C, *stated):g}" if stated else "",
            spread(values(found, name, "g", "to_retrained"), 2),
            spread(values(found, name, "g", "of_original")),
            spread(values(found, name, "g", "to_original"), 3),
            spread(values(found, name, "g", "gradient_norm"), 4),
        ]

    head = ["bound, at most 2C", "distance to retrained", "/ the original's",
            "distance moved", "gradient norm"]  # fmt: skip
    note = (
        "The distance is to the one model retrained here, from the original's initial "
        'weights; "retrained again" (another seed) shows how little that one is *the* '
        "retrained model. The bound holds for every pair of weights in the ball."
    )
    return [note, *_rows(found, head, cells), *convex(found)]
