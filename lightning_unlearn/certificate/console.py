"""The console script ``lightning-unlearn``: certificates, reports and ledgers.

Exit status: 0 if it is done and holds, 1 if it was refused or does not hold (with one
line that says why), 2 for a wrong command line, 130 if it was interrupted.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from lightning_unlearn._base.files import close_output, create_file
from lightning_unlearn._base.text import one_line, printable
from lightning_unlearn.certificate import exclusion_commands
from lightning_unlearn.certificate.inbox import due_command
from lightning_unlearn.errors import (
    CertificateError,
    LedgerError,
    SetupError,
    UnlearningError,
)

if TYPE_CHECKING:
    from lightning_unlearn.certificate.verification import Finding

# Commands import what they need: neither scipy nor torch is there for the others.
_A = TypeVar("_A")
_B = TypeVar("_B")
_MAX_BYTES = 50_000_000
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        arguments: Of the command line; those of the process by default.

    Returns:
        0 if everything holds, 1 otherwise, 130 if interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough
        close_output()
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if getattr(options, "debug", False):
            traceback.print_exc()
        text = one_line(error, (UnlearningError, OSError), "--debug shows where")
        print(f"error: {text}", file=sys.stderr)
        return 1


class _Version(argparse.Action):
    """Print the version and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        try:
            version = metadata.version("lightning_unlearn")
        except metadata.PackageNotFoundError:  # run from a source tree
            version = "(not installed: run from a source tree)"
        print(f"lightning-unlearn {version}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    # SUPPRESS: a subcommand that is not given the flag must not take it away
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    parser = argparse.ArgumentParser(
        prog="lightning-unlearn",
        description="Certificates of machine unlearning, without data or model.",
        parents=[debug],
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    parser.set_defaults(run=partial(_help, parser))
    commands = parser.add_subparsers(metavar="command")
    _add_certificates(commands, debug)
    _add_receipts(commands, debug)
    _add_report(commands, debug)
    _add_ledger(commands, debug)
    exclusion_commands.add(commands, debug, _help)
    return parser


def _add_certificates(commands: _Commands, debug: argparse.ArgumentParser) -> None:
    verify = commands.add_parser(
        "verify",
        help="recompute a certificate's claim; exit status 0 if it holds",
        description="Recompute every bound, the noise, the grade, the words and the "
        "chain. The last line says what was checked, and whose word the rest is.",
        parents=[debug],
    )
    verify.add_argument("certificate", type=Path)
    verify.add_argument("--ledger", type=Path, help="the deletion ledger (JSON lines)")
    verify.add_argument(
        "--checkpoint",
        type=Path,
        help="the released checkpoint: its weights, and every entry outside the scope",
    )
    verify.add_argument(
        "--backbone",
        type=Path,
        metavar="FILE",
        help="the published weights that a public part must be: a state_dict "
        "(torch.save) or safetensors",
    )
    verify.add_argument(
        "--public-key", metavar="HEX", help="the Ed25519 key that must have signed it"
    )
    verify.add_argument(
        "--receipt",
        type=Path,
        help="receipts of one person: that the certificate speaks of these samples",
    )
    verify.set_defaults(run=_verify)

    show = commands.add_parser(
        "show", help="print a certificate in words", parents=[debug]
    )
    show.add_argument("certificate", type=Path)
    show.set_defaults(run=_show)

    signing = commands.add_parser(
        "sign",
        help="add an Ed25519 signature (needs the extra 'sign')",
        parents=[debug],
    )
    signing.add_argument("certificate", type=Path)
    signing.add_argument("--key", type=Path, required=True, help="private key, PEM")
    signing.set_defaults(run=_sign)


def _add_receipts(commands: _Commands, debug: argparse.ArgumentParser) -> None:
    receipt = commands.add_parser(
        "receipt",
        help="write one person's receipts, from the private file of all",
        description="Take the receipts of one person from clean.receipts.jsonl, which "
        "is as secret as the data. Who has them can show that the certificate speaks "
        "of these samples. Nothing is overwritten.",
        parents=[debug],
    )
    receipt.add_argument("receipts", type=Path, help="clean.receipts.jsonl")
    receipt.add_argument(
        "--person", action="append", default=[], help="an id that was asked for"
    )
    receipt.add_argument(
        "--position",
        action="append",
        type=int,
        default=[],
        help="of a sample in the training dataset; may be given several times",
    )
    receipt.add_argument("--output", type=Path, required=True, help="a new file")
    receipt.set_defaults(run=_receipt)


def _add_report(commands: _Commands, debug: argparse.ArgumentParser) -> None:
    report = commands.add_parser(
        "report",
        help="make a page that may be published, printable to PDF",
        description="Verify a certificate and write a report of it: one HTML file "
        "that shows what the certificate says, and no more. Nothing is overwritten.",
        parents=[debug],
    )
    report.add_argument("certificate", type=Path)
    report.add_argument("--ledger", type=Path, help="the deletion ledger (JSON lines)")
    report.add_argument(
        "--output",
        type=Path,
        metavar="HTML",
        help="default: beside the certificate, named after it",
    )
    report.set_defaults(run=_report)


def _add_ledger(commands: _Commands, debug: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "ledger",
        help="look at a ledger, check it, or see which requests are due",
        parents=[debug],
    )
    parser.set_defaults(run=partial(_help, parser))
    actions = parser.add_subparsers(metavar="action")
    show = actions.add_parser(
        "show", help="print its entries as a table", parents=[debug]
    )
    show.add_argument("ledger", type=Path)
    show.set_defaults(run=_show_ledger)
    check = actions.add_parser(
        "check", help="exit status 0 if chain and budget hold", parents=[debug]
    )
    check.add_argument("ledger", type=Path)
    check.add_argument(
        "--checkpoint", type=Path, help="the checkpoint of the last request"
    )
    check.set_defaults(run=_check_ledger)
    due_command.add(actions, debug)


def _help(parser: argparse.ArgumentParser, _: argparse.Namespace) -> int:
    """What there is to ask for, where nothing was asked for: nothing was done."""
    parser.print_help()
    return 2


def _verify(options: argparse.Namespace) -> int:
    from lightning_unlearn.certificate.certificate import Certificate
    from lightning_unlearn.certificate.verification import (
        on_your_word,
        verdict,
        verify_text,
    )

    text = _text(options.certificate)
    state = _given(options.checkpoint, _model)
    published = _given(options.backbone, _model)
    findings = verify_text(
        text,
        _given(options.ledger, _text),
        _given(state, _digest),
        options.public_key,
        _given(options.receipt, _text),
    )
    if any(finding.text.startswith("certificate: ") for finding in findings):
        return _print_findings(findings, verdict(findings))
    certificate = Certificate.from_json(text)
    if state is not None or published is not None:
        from lightning_unlearn.certificate import model_state

        if state is not None:
            findings += model_state.check_model(certificate, state)
            findings += model_state.check_company(options.checkpoint)
        if published is not None:
            file = options.backbone.name
            findings += model_state.check_published(certificate, published, file)
    return _print_findings(findings, verdict(findings, on_your_word(certificate)))


def _print_findings(findings: Sequence["Finding"], verdict: str) -> int:
    for finding in findings:
        print(printable(str(finding)))
    print(printable(verdict))
    return int(any(finding.holds is False for finding in findings))


def _show(options: argparse.Namespace) -> int:
    from lightning_unlearn.certificate.certificate import Certificate

    certificate = Certificate.from_json(_text(options.certificate))
    certificate.verify()  # nothing is shown that does not hold
    print(certificate)
    return 0


def _sign(options: argparse.Namespace) -> int:
    from lightning_unlearn.certificate.certificate import Certificate
    from lightning_unlearn.certificate.signature import sign

    text = _text(options.certificate)
    Certificate.from_json(text).verify()  # nobody signs what does not hold
    if not options.key.is_file():
        raise SetupError(f"expected a private key at {options.key}, found none there")
    signed = sign(text, options.key.read_bytes())
    temporary = options.certificate.with_name(f".{options.certificate.name}.part")
    temporary.write_text(signed)
    temporary.replace(options.certificate)
    print(f"signed {options.certificate}")
    return 0


def _receipt(options: argparse.Namespace) -> int:
    from lightning_unlearn.certificate import receipts

    if not (options.person or options.position):
        raise SetupError("expected --person or --position, got neither: name whose")
    leaves, request_id = receipts.from_text(_text(options.receipts))
    places = receipts.chosen(leaves, options.person, options.position)
    made = [receipts.receipt(leaves, place, request_id).to_json() for place in places]
    create_file(options.output, "".join(made), 0o600)
    print(f"receipts of {len(made)} samples written to {options.output}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from lightning_unlearn.certificate.report.evidence import Evidence
    from lightning_unlearn.certificate.report.page import write

    path = options.output
    if path is None:
        name = options.certificate.name
        for ending in (".certificate.json", ".json"):
            name = name.removesuffix(ending)
        path = options.certificate.with_name(f"{name}.report.html")
    evidence = Evidence(
        ledger=_given(options.ledger, _text),
        certificate_file=options.certificate.name,
        ledger_file=_given(options.ledger, lambda path: path.name),
    )
    write(path, _text(options.certificate), evidence)
    print(f"report written to {path}")
    return 0


def _show_ledger(options: argparse.Namespace) -> int:
    from lightning_unlearn.certificate.ledger import Ledger
    from lightning_unlearn.certificate.report.ledger_table import ledger_table

    ledger = Ledger.from_text(_text(options.ledger))  # a broken chain is not shown
    print(ledger_table(ledger))
    return 0


def _check_ledger(options: argparse.Namespace) -> int:
    from lightning_unlearn.certificate.verification import verify_ledger

    digest = _given(_given(options.checkpoint, _model), _digest)
    findings = verify_ledger(_text(options.ledger), digest)
    failed = [finding.text for finding in findings if finding.holds is False]
    if failed:
        raise LedgerError(failed[0])
    return _print_findings(findings, "VERIFIED")


def _given(value: _A | None, read: Callable[[_A], _B]) -> _B | None:
    """What is read of a file, if one was named."""
    return None if value is None else read(value)


def _text(path: Path) -> str:
    if not path.is_file():
        raise SetupError(f"expected a file at {path}, found none there")
    if path.stat().st_size > _MAX_BYTES:
        raise SetupError(f"expected at most {_MAX_BYTES} bytes in {path}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        own = path.with_name(f"{path.stem}.certificate.json")
        found = f" (beside it is {own})" if own.is_file() else ""
        raise CertificateError(
            f"expected the JSON of a certificate or a ledger in {path}, got a file "
            f"that is no text ({error.reason} at byte {error.start}): a checkpoint's "
            f"certificate stands beside it, as <name>.certificate.json{found}"
        ) from None


def _model(path: Path) -> dict[str, object]:
    from lightning_unlearn.certificate.model_state import load

    return load(path)


def _digest(state: dict[str, object]) -> str:
    from lightning_unlearn.weights.digests import state_digest

    return state_digest(state)
