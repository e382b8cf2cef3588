"""Ed25519 signatures of certificates, through the `cryptography` package.

A certificate's digest shows that nobody changed a field by accident; anyone can
compute it anew. A signature shows who vouches for the certificate.
"""

import json
from typing import TYPE_CHECKING

from lightning_unlearn._base.strict_json import strict_object
from lightning_unlearn.errors import CertificateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_INSTALL = 'install it from your clone of this repository: pip install -e ".[sign]"'


def sign(certificate_json: str, private_key_pem: bytes) -> str:
    """Add a signature of the digest to a certificate's JSON.

    Args:
        certificate_json: What `Certificate.to_json` returned.
        private_key_pem: An Ed25519 private key in PEM (PKCS 8), unencrypted.

    Returns:
        The JSON with a field ``signature``; `Certificate.from_json` reads both.

    Raises:
        CertificateError: If the key is not an Ed25519 private key, the text is not a
            certificate, or the package `cryptography` is missing.
    """
    plain = strict_object(certificate_json, CertificateError, "a certificate")
    key = _private_key(private_key_pem)
    public = key.public_key().public_bytes_raw().hex()
    value = key.sign(_message(plain)).hex()
    plain["signature"] = {"algorithm": "ed25519", "public_key": public, "value": value}
    return json.dumps(plain, indent=2) + "\n"


def signer(certificate_json: str) -> str | None:
    """The public key whose signature a certificate carries, after checking it.

    Args:
        certificate_json: A certificate, signed or not.

    Returns:
        The raw public key in hexadecimal, or None if it is unsigned.

    Raises:
        CertificateError: If there is a signature and it does not hold.
    """
    plain = strict_object(certificate_json, CertificateError, "a certificate")
    signature = plain.get("signature")
    if signature is None:
        return None
    fields = {"algorithm", "public_key", "value"}
    if not (
        isinstance(signature, dict)
        and set(signature) == fields
        and all(isinstance(v, str) for v in signature.values())
        and signature["algorithm"] == "ed25519"
    ):
        raise CertificateError(
            f"expected a signature with the fields {sorted(fields)}, ed25519, got "
            f"{signature!r:.80}"
        )
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise CertificateError(
            f"expected the package cryptography to check a signature: {_INSTALL}"
        ) from None
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["public_key"]))
        key.verify(bytes.fromhex(signature["value"]), _message(plain))
    except (ValueError, InvalidSignature):
        raise CertificateError(
            "the certificate's signature does not hold: it was changed after it was "
            "signed, or signed with another key"
        ) from None
    return signature["public_key"]


def _message(plain: dict[str, object]) -> bytes:
    digest = plain.get("digest")
    if not isinstance(digest, str):
        raise CertificateError("expected a certificate with a digest, got none")
    return b"lightning_unlearn certificate " + digest.encode()


def _private_key(pem: bytes) -> "Ed25519PrivateKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise CertificateError(
            f"expected the package cryptography to sign: {_INSTALL}"
        ) from None
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"expected a private key in PEM: {error}") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise CertificateError(
            f"expected an Ed25519 private key, got {type(key).__name__}: make one with "
            "openssl genpkey -algorithm ed25519"
        )
    return key
