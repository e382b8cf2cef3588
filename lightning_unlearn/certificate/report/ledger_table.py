"""A ledger as a table for the terminal."""

import math

from lightning_unlearn._base.text import columns, number, printable
from lightning_unlearn.certificate.ledger import Entry, Ledger

_NOTES = """\
mu = sensitivity / noise of a release: the smaller, the closer to retraining.
all = mu of all releases so far seen together; none if one had no guarantee.
A mu in a row that says vacuous is true and worthless."""
_PRIVATE = """\
+ = of the head alone: its backbone was trained privately, and the epsilon of the
certificate is of both together."""


def ledger_table(ledger: Ledger) -> str:
    """The entries, at most 80 columns wide where numbers are of ordinary size.

    Args:
        ledger: A chain that holds.

    Returns:
        Several lines; no epsilon, which would need its delta and its grade.
    """
    if not ledger.entries:
        return "no entries"
    head = ("#", "date", "grade", "forgot", "retained", "mu", "all", "weights")
    rows: list[tuple[str, ...]] = [head]
    together: float | None = 0.0
    for entry in ledger.entries:
        if together is not None:  # as compose_mu of all mus so far
            together = None if entry.mu is None else math.hypot(together, entry.mu)
        rows.append(_row(entry, together))
    lines = columns(rows, right={0, 3, 4, 5, 6})
    name = printable(ledger.entries[0].ledger_id[:32])
    notes = [_NOTES, _PRIVATE] if any(map(_on_private, ledger.entries)) else [_NOTES]
    return "\n".join([f"ledger {name}, {_budget(ledger)}", "", *lines, "", *notes])


def _on_private(entry: Entry) -> bool:
    return entry.group is not None and entry.mu is not None


def _row(entry: Entry, together: float | None) -> tuple[str, ...]:
    plus = "+" if _on_private(entry) else ""
    return (
        str(entry.index),
        printable(entry.time[:10]),
        entry.grade,
        f"{entry.n_forget:,}",
        f"{entry.n_retain:,}",
        "none" if entry.mu is None else f"{number(entry.mu)}{plus}",
        "none" if together is None else f"{number(together)}{plus}",
        printable(entry.weights_after[:10]),
    )


def _budget(ledger: Ledger) -> str:
    made, exact = len(ledger.noisy), sum(e.mu == 0 for e in ledger.entries)
    releases = ledger.noisy[-1].releases if made else None
    also = f", {exact} retrained" if exact else ""
    stayed = len(ledger.entries) - made - exact
    also += f", {stayed} that changed no weight" if stayed else ""
    if releases is None:
        return f"{made} made, no number announced{also}"
    return f"{made} of {releases} announced releases made{also}"
