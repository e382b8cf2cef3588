"""The console script ``lightning-unlearn``: verify, show and sign certificates."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_unlearn.certificate.record import Certificate
from lightning_unlearn.certificate.signature import sign
from lightning_unlearn.errors import CertificateError, SetupError, UnlearningError
from lightning_unlearn.scope import state_digest
from lightning_unlearn.verification import verify_text

_MAX_BYTES = 50_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        arguments: Of the command line; those of the process by default.

    Returns:
        0 if everything holds, 1 otherwise.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (UnlearningError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-unlearn",
        description="Certificates of machine unlearning, without data or model.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    verify = commands.add_parser(
        "verify",
        help="recompute a certificate's claim; exit status 0 if it holds",
        description="Recompute every bound, the noise, the grade and the chain.",
    )
    verify.add_argument("certificate", type=Path)
    verify.add_argument("--ledger", type=Path, help="the deletion ledger (JSON lines)")
    verify.add_argument("--checkpoint", type=Path, help="the released checkpoint")
    verify.add_argument(
        "--public-key", metavar="HEX", help="the Ed25519 key that must have signed it"
    )
    verify.set_defaults(run=_verify)

    show = commands.add_parser("show", help="print a certificate in words")
    show.add_argument("certificate", type=Path)
    show.set_defaults(run=_show)

    signing = commands.add_parser(
        "sign", help="add an Ed25519 signature (needs the extra 'sign')"
    )
    signing.add_argument("certificate", type=Path)
    signing.add_argument("--key", type=Path, required=True, help="private key, PEM")
    signing.set_defaults(run=_sign)
    return parser


def _verify(options: argparse.Namespace) -> int:
    digest = None
    if options.checkpoint is not None:
        digest = _checkpoint_digest(options.checkpoint)
    findings = verify_text(
        _text(options.certificate),
        None if options.ledger is None else _text(options.ledger),
        digest,
        options.public_key,
    )
    for finding in findings:
        print(finding)
    failed = any(finding.holds is False for finding in findings)
    print("NOT VERIFIED" if failed else "VERIFIED")
    return int(failed)


def _show(options: argparse.Namespace) -> int:
    certificate = Certificate.from_json(_text(options.certificate))
    certificate.verify()  # nothing is shown that does not hold
    print(certificate)
    return 0


def _sign(options: argparse.Namespace) -> int:
    text = _text(options.certificate)
    Certificate.from_json(text).verify()  # nobody signs what does not hold
    signed = sign(text, options.key.read_bytes())
    temporary = options.certificate.with_name(f".{options.certificate.name}.part")
    temporary.write_text(signed)
    temporary.replace(options.certificate)
    print(f"signed {options.certificate}")
    return 0


def _text(path: Path) -> str:
    if not path.is_file():
        raise SetupError(f"expected a file at {path}, found none there")
    if path.stat().st_size > _MAX_BYTES:
        raise SetupError(f"expected at most {_MAX_BYTES} bytes in {path}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CertificateError(f"expected text in {path}: {error}") from None


def _checkpoint_digest(path: Path) -> str:
    if not path.is_file():
        raise SetupError(f"expected a checkpoint at {path}, found none there")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return state_digest(content["state_dict"])
    except Exception as error:  # torch.load raises whatever a damaged file provokes
        raise SetupError(
            f"expected a Lightning checkpoint at {path} that torch.load(weights_only="
            f"True) reads: {type(error).__name__}"
        ) from None
