"""``lightning-unlearn`` as an auditor uses it."""

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from lightning_unlearn._records import canonical_digest
from lightning_unlearn.certificate.signature import sign, signer
from lightning_unlearn.console import main
from lightning_unlearn.errors import CertificateError
from tests.certificate.test_record import make
from tests.plugin.nets import fitted


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture
def released(tmp_path):
    """Two requests' files: clean.ckpt, clean.certificate.json, ledger.jsonl, ..."""
    _, fit_trainer, _, _ = fitted(ledger=tmp_path / "ledger.jsonl")
    fit_trainer.unlearn([1, 2], save_to=tmp_path / "one.ckpt")
    fit_trainer.unlearn([3], save_to=tmp_path / "two.ckpt")
    return tmp_path


def run(folder, *arguments):
    named = [
        str(folder / a) if a.endswith(("json", "jsonl", "ckpt", "pem")) else a
        for a in arguments
    ]
    return main(named)


WHOLE = ("verify", "two.certificate.json", "--ledger", "ledger.jsonl",
         "--checkpoint", "two.ckpt")  # fmt: skip


def test_everything_holds(released, capsys):
    assert run(released, *WHOLE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "VERIFIED"
    assert [line[:7].strip() for line in lines[:-1]] == [
        "ok", "ok", "note", "ok", "ok", "note",
    ]  # fmt: skip
    assert "entry 2" in lines[3]
    assert all(len(line) < 120 for line in lines)


def test_the_wrong_checkpoint_and_ledger_fail(released, capsys):
    arguments = list(WHOLE)
    arguments[-1] = "one.ckpt"
    assert run(released, *arguments) == 1
    assert "FAILED checkpoint: its weights have digest" in capsys.readouterr().out
    text = (released / "ledger.jsonl").read_text()
    (released / "ledger.jsonl").write_text(text.splitlines(keepends=True)[0])
    assert run(released, *WHOLE) == 1
    assert "FAILED ledger: expected one entry for request" in capsys.readouterr().out
    (released / "ledger.jsonl").write_text(text.replace('"index": 2', '"index": 3'))
    assert run(released, *WHOLE) == 1
    assert "FAILED ledger: ledger entry 2 was changed" in capsys.readouterr().out


def test_a_changed_certificate_fails_even_with_a_new_digest(released, capsys):
    path = released / "two.certificate.json"
    plain = json.loads(path.read_text())
    plain["n_forget"] = 1000
    path.write_text(json.dumps(plain))
    assert run(released, *WHOLE) == 1
    assert "digest does not match" in capsys.readouterr().out
    plain.pop("digest")
    plain["digest"] = canonical_digest(plain)
    path.write_text(json.dumps(plain))
    assert run(released, *WHOLE) == 1  # the ledger knows the true one
    assert "another certificate, number of samples" in capsys.readouterr().out


def test_signatures(released, capsys):
    key, other = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))
    (released / "key.pem").write_bytes(pem(key))
    assert run(released, "sign", "two.certificate.json", "--key", "key.pem") == 0
    public = key.public_key().public_bytes_raw().hex()
    assert run(released, *WHOLE, "--public-key", public) == 0
    assert f"ok     signature: Ed25519, by {public}" in capsys.readouterr().out
    wrong = other.public_key().public_bytes_raw().hex()
    assert run(released, *WHOLE, "--public-key", wrong) == 1
    assert run(released, "verify", "one.certificate.json", "--public-key", public) == 1
    assert "FAILED signature: none" in capsys.readouterr().out


def test_a_signature_does_not_survive_a_change():
    key = ed25519.Ed25519PrivateKey.generate()
    text = sign(make().to_json(), pem(key))
    assert signer(text) == key.public_key().public_bytes_raw().hex()
    assert signer(make().to_json()) is None
    plain = json.loads(text)
    plain["epsilon"] = 0.1
    signature = plain.pop("signature")
    plain.pop("digest")
    forged = {**plain, "digest": canonical_digest(plain), "signature": signature}
    with pytest.raises(CertificateError, match="signature does not hold"):
        signer(json.dumps(forged))
    for bad in ("x", {}, {"algorithm": "ed25519", "public_key": "zz", "value": "00"}):
        with pytest.raises(CertificateError, match=r"signature"):
            signer(json.dumps({**plain, "digest": "0", "signature": bad}))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"not a key", "expected a private key in PEM"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "expected an Ed25519 private"),
    ],
)
def test_other_keys_are_refused(key, message):
    with pytest.raises(CertificateError, match=message):
        sign(make().to_json(), key)


def test_show_and_errors_are_one_line(released, capsys):
    assert run(released, "show", "two.certificate.json") == 0
    assert capsys.readouterr().out.startswith("CERTIFIED")
    for arguments in (
        ("verify", "nowhere.json"),
        ("show", "ledger.jsonl"),
        ("verify", "two.certificate.json", "--checkpoint", "ledger.jsonl"),
        ("sign", "two.certificate.json", "--key", "nowhere.pem"),
    ):
        assert run(released, *arguments) == 1
        assert capsys.readouterr().err.startswith("error: ")
        assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
