"""``lightning-unlearn exclusions``: make a list, add to it, hold data to it."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning_unlearn._base.text import some
from lightning_unlearn.errors import SetupError

_LIST = "the exclusion list (JSON lines)"
_KEY = "the file of the list's key, as secret as the data"


def add(
    commands: Any, debug: argparse.ArgumentParser, help: Callable[..., int]
) -> None:
    """Add them to the console script.

    Args:
        commands: Of its parser.
        debug: Options that every command has.
        help: What runs where no action is named.
    """
    parser = commands.add_parser(
        "exclusions",
        help="hold data to the list of who was forgotten",
        description="A list of keyed digests of who was forgotten, for all models of "
        "an organisation. Nobody can test guesses without its key.",
        parents=[debug],
    )
    parser.set_defaults(run=partial(help, parser))
    actions = parser.add_subparsers(metavar="action")
    new = actions.add_parser(
        "new",
        help="make an empty list, and its key unless there is one",
        parents=[debug],
    )
    new.add_argument("list", type=Path, help="a new file")
    new.add_argument("--key-file", type=Path, required=True, help=_KEY)
    new.set_defaults(run=_new)

    check = actions.add_parser(
        "check",
        help="exit status 0 if no row of a table names who was forgotten",
        description="Compare the ids in a column of a .csv file with those that "
        "requests have named with by=. Contents of samples are not compared. Exit "
        "status 1 if somebody is found, with the rows; the first, 1, has the names.",
        parents=[debug],
    )
    check.add_argument(
        "data", type=Path, help="a .csv file with names in its first row"
    )
    check.add_argument("--column", required=True, help="the column of ids")
    check.add_argument("--list", type=Path, required=True, help=_LIST)
    check.add_argument("--key-file", type=Path, required=True, help=_KEY)
    check.set_defaults(run=_check)

    more = actions.add_parser(
        "add",
        help="add a release from its private file of receipts",
        description="For a request that was made without exclusions=, or killed before "
        "it had written its line. Nothing is written twice.",
        parents=[debug],
    )
    more.add_argument("receipts", type=Path, help="clean.receipts.jsonl")
    more.add_argument("--list", type=Path, required=True, help=_LIST)
    more.add_argument("--key-file", type=Path, required=True, help=_KEY)
    more.set_defaults(run=_more)


def _new(options: argparse.Namespace) -> int:
    from lightning_unlearn.certificate import exclusions

    fresh = exclusions.make(options.list, options.key_file)
    new = f", and its key to {options.key_file}: keep it as secret as the data"
    print(f"an empty list written to {options.list}{new if fresh else ''}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from lightning_unlearn._base.csv_files import column
    from lightning_unlearn.certificate.exclusions import Exclusions

    listed = Exclusions.read(options.list, options.key_file)
    if not options.data.is_file():
        raise SetupError(f"expected a file at {options.data}, found none there")
    known: dict[str, bool] = {}
    found, rows = list[int](), 0
    for rows, name in enumerate(column(options.data, options.column), start=1):
        if name not in known:
            known[name] = listed.has_person(name)
        if known[name]:
            found.append(rows + 1)
    nameless = sum(not line.people for line in listed.lines)
    if nameless:
        print(
            f"note: {nameless} of {len(listed.lines)} releases named nobody by id; "
            "their samples are compared by a fit only"
        )
    if found:
        print(
            f"{len(found)} of {rows} rows name somebody who was forgotten: row"
            f"{'s' if len(found) > 1 else ''} {some(found, 1000)} (row 1 has the names)"
        )
        return 1
    print(f"none of {rows} rows names one of the {len(listed.people)} ids in the list")
    return 0


def _more(options: argparse.Namespace) -> int:
    from lightning_unlearn.certificate import exclusions, receipts

    if not options.receipts.is_file():
        raise SetupError(f"expected receipts at {options.receipts}, found none there")
    text = options.receipts.read_text(encoding="utf-8")
    leaves, request_id = receipts.from_text(text)
    listed = exclusions.Exclusions.read(options.list, options.key_file)
    line = listed.key.line(leaves, request_id)
    added = exclusions.append(options.list.resolve(), line)
    people, samples = len(line.people), len(line.samples)
    what = f"ids: {people}, contents: {samples}, of {len(leaves)} samples"
    print(
        f"added to the list: {what}" if added else "the list has this release already"
    )
    return 0
