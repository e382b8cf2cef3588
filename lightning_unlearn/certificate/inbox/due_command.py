"""``lightning-unlearn ledger due``: what is pending, the first that is due on top."""

import argparse
from datetime import date
from pathlib import Path
from typing import Any


def add(actions: Any, debug: argparse.ArgumentParser) -> None:
    """Add it to the actions of ``ledger``.

    Args:
        actions: Of its parser.
        debug: Options that every command has.
    """
    due = actions.add_parser(
        "due",
        help="list pending requests; exit status 1 if one is overdue",
        description="List the requests in a .csv file that are still pending, in the "
        "order in which they are due. One without a date in its column due is due one "
        "month after it was received (GDPR, Article 12(3)). Exit status 1 if one is "
        "overdue.",
        parents=[debug],
    )
    due.add_argument("requests", type=Path, help="the .csv file of requests")
    due.set_defaults(run=_due)


def _due(options: argparse.Namespace) -> int:
    from lightning_unlearn._base.text import columns, printable
    from lightning_unlearn.certificate.inbox import inbox

    found, today = inbox.Inbox(options.requests), date.today()
    refused = sum(row.state == inbox.REFUSED for row in found.rows)
    table, late = [("request", "due", "")], 0
    for row in found.pending:
        over = row.days_over(today)
        late += over > 0
        left = "today" if over == 0 else f"{inbox.days(-over)} left"
        if over > 0:
            left = f"OVERDUE by {inbox.days(over)}"
        if row.due is None:
            left = "half a line: it will be refused"
        until = "" if row.due is None else row.due.isoformat()
        until += " *" if row.derived else ""
        table.append((printable(row.request), until, left))
    if len(table) > 1:
        print("\n".join(columns(table)))
    if any(row.derived for row in found.pending):
        print("* one month after it was received (GDPR, Article 12(3))")
    print(
        f"{len(found.pending)} pending, {late} overdue"
        + (f"; {refused} refused: the file says why" if refused else "")
    )
    return int(late > 0)
