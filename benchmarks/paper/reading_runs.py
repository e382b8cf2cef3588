"""What the parts that are runs of their own show: e, f and the head of g."""

import statistics
from typing import Any

from means import STEP, Numbers

Found = dict[str, Any]


def sequence(of: Numbers, found: Found) -> str:
    """Of part e."""
    every = [s["e"]["no noise"] for s in of.seeds if "e" in s]
    if not every:
        raise LookupError
    first, last = [e[0] for e in every], [e[-1] for e in every]

    def mean(states: list[Found], key: str) -> float:
        return statistics.fmean(s[key] for s in states)

    bounds = [s["theorem_3_4"] for e in every for s in e[1:] if s["theorem_3_4"]]
    line = (
        f"{len(every[0]) - 1} requests in a row: the gradient norm falls from "
        f"{mean(first, 'gradient_norm'):.2g} to {mean(last, 'gradient_norm'):.2g} and "
        f"F1 on test goes from {mean(first, 'test'):.3f} to {mean(last, 'test'):.3f}: "
        f"they are steps of a second-order optimiser. F1 on the forgotten ends at "
        f"{mean(last, 'forget'):.3f}, the retrained model's is "
        f"{of('retrained', 'a', 'forget'):.3f}."
    )
    if bounds:
        trivial = 2 * found["setting"]["max_norm"]
        line += (
            f" Theorem 3.4, even with M = 1, gives {min(bounds):,.0f} to "
            f"{max(bounds):,.0f}; 2C = {trivial:g} is always true."
        )
    return line


def sweeps(of: Numbers, found: Found) -> str:
    """Of part f."""
    every = [s["f"] for s in of.seeds if "f" in s]
    if not every:
        raise LookupError
    columns = list(zip(*(f["epsilon"] for f in every), strict=True))
    good = of("original", "a", "test") - 0.02
    useful = [
        c[0]["value"]
        for c in columns
        if statistics.fmean(s.get("test", 0.0) for s in c) >= good
    ]
    noises = {c[0]["value"]: c[0] for c in
              zip(*(f["noise_std"] for f in every), strict=True)}  # fmt: skip
    line = "Sweeps: "
    refused = [d["value"] for d in every[0]["damping"] if "refused" in d]
    if refused:
        values = ", ".join(f"{x:g}" for x in refused)
        line += f"damping {values} leaves the system indefinite and is refused; "
    line += "more damping is a smaller step, nothing else. "
    lowest = min(s["rows"][STEP]["d"]["constants"].get("ritz_min", 0.0)
                 for s in of.seeds if STEP in s["rows"])  # fmt: skip
    solved = [d["value"] for d in every[0]["damping"] if "refused" not in d]
    below = [x for x in solved if x < -lowest]
    if below:
        line += (
            f"Damping {', '.join(f'{x:g}' for x in below)} was solved although the "
            f"Hessian has an eigenvalue of at most {lowest:.2g}: that a solve meets no "
            "negative curvature proves nothing. "
        )
    if useful:
        line += f"F1 on test stays within 0.02 from epsilon = {min(useful):.0e} on. "
    if 0.01 in noises:
        line += (
            "The paper's noise of 0.01 is worth epsilon = "
            f"{noises[0.01]['epsilon_at_2C']:.0e} at the one bound that is true."
        )
    return line


def convex(of: Numbers, found: Found) -> str:
    """Of part g, the head."""
    every = [s["g"] for s in of.seeds if "g" in s]
    if not every:
        raise LookupError
    last = [g[-1] for g in every]
    certified = last[0]["certified"]
    true = statistics.fmean(s["true_distance"] for s in last)
    test = statistics.fmean(s["test"] for s in last)
    before = statistics.fmean(g[0]["test"] for g in every)
    return (
        f"**Where a bound means something:** the convex head, solved to "
        f"{last[0]['tolerance']:g}, is certified within {certified:.0e} of the exact "
        f"minimiser and is within {true:.0e}; with the noise of epsilon = 1 "
        f"({last[0]['noise_std']:.2g}) F1 on test is {test:.3f}, {before:.3f} as "
        "trained."
        " At larger tolerances the certificate is as true, and its noise leaves "
        "nothing of the head: certified says that a claim is proved, not that the "
        "model is useful."
    )
