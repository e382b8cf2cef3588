"""``lightning-unlearn`` as an auditor uses it."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from lightning_unlearn._base.strict_json import canonical_digest
from lightning_unlearn.certificate import console
from lightning_unlearn.certificate.console import main
from lightning_unlearn.certificate.ledger import Ledger
from lightning_unlearn.certificate.signature import sign, signer
from lightning_unlearn.errors import CertificateError
from tests.helpers.certificates import make
from tests.helpers.nets import fitted


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
        str(folder / a)
        if a.endswith(("json", "jsonl", "ckpt", "pem", "html", "pdf"))
        else a
        for a in arguments
    ]
    return main(named)


WHOLE = ("verify", "two.certificate.json", "--ledger", "ledger.jsonl",
         "--checkpoint", "two.ckpt")  # fmt: skip


def test_everything_holds(released, capsys):
    assert run(released, *WHOLE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == (
        "VERIFIED: digest, claim, words, ledger, checkpoint, scope, public parts; on "
        "the word of whoever made it: signature, that the constants are true, how "
        "samples were read, that backbone never saw the samples"
    )
    assert [line[:7].strip() for line in lines[:-1]] == [
        "ok", "ok", "ok", "note", "ok", "ok", "ok", "ok",
    ]  # fmt: skip
    assert "entry 2" in lines[4]
    assert all(len(line) < 120 for line in lines[:-1])


def also(folder, **values):
    """two.ckpt with more in it."""
    held = torch.load(folder / "two.ckpt", weights_only=True)
    for key, value in values.items():
        held[key] = value(held[key]) if callable(value) else value
    torch.save(held, folder / "two.ckpt")


@pytest.mark.parametrize(
    "more",
    [
        {"ema_state_dict": {"head.weight": torch.ones(10, 32)}},
        {"Data": [{"mean": torch.ones(3)}]},
        {"callbacks": lambda c: {**c, "Average": {"head.weight": torch.ones(3)}}},
        {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]},
    ],
)
def test_tensors_beside_the_state_dict_fail(more, released, capsys):
    also(released, **more)
    assert run(released, *WHOLE) == 1
    out = capsys.readouterr().out
    assert "FAILED whole file: expected tensors in state_dict alone, got" in out
    assert next(iter(more)) in out


def test_what_a_file_also_holds_is_named(released, capsys):
    also(released, Data={"labels": [3, 4]}, callbacks=lambda c: {**c, "Mine": {"a": 1}})
    assert run(released, *WHOLE) == 0
    out = capsys.readouterr().out
    assert "note   whole file: it also holds Data, callbacks['Mine'], which the" in out
    assert "whole file" in out.splitlines()[-1]


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


def test_report_of_a_request(released, capsys):
    arguments = ("report", "two.certificate.json", "--ledger", "ledger.jsonl")
    assert run(released, *arguments) == 0
    path = released / "two.report.html"
    assert capsys.readouterr().out == f"report written to {path}\n"
    html = path.read_text(encoding="utf-8")
    for text in ("May be published", "Grade: CERTIFIED", "Entry 2 of 2", "box 6"):
        assert text in html
    assert "Internal" not in html
    assert run(released, *arguments) == 1  # nothing is overwritten
    assert "expected a new file in a folder that exists" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == html
    assert run(released, *arguments, "--output", "other.html") == 0
    assert run(released, *arguments, "--output", "other.pdf") == 1
    assert "expected a report's name to end in .html" in capsys.readouterr().err
    text = (released / "ledger.jsonl").read_text().splitlines(keepends=True)[0]
    (released / "cut.jsonl").write_text(text)
    cut = ("--ledger", "cut.jsonl", "--output", "cut.html")
    assert run(released, "report", "two.certificate.json", *cut) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: expected a certificate that verifies, got ledger")
    assert error.count("\n") == 1


def test_ledger_show(released, capsys):
    assert run(released, "ledger", "show", "ledger.jsonl") == 0
    out = capsys.readouterr().out
    title, _, head, first, second, *_ = out.splitlines()
    ledger = Ledger.from_text((released / "ledger.jsonl").read_text())
    name = ledger.entries[0].ledger_id
    assert title == f"ledger {name}, 2 made, no number announced"
    words = "# date grade forgot retained mu all weights"
    assert head.split() == words.split()
    assert first.split()[:5] == [
        "1",
        ledger.entries[0].time[:10],
        "certified",
        "2",
        "598",
    ]
    index, _, grade, n_forget, _, mu, together, weights = second.split()
    assert (index, grade, n_forget) == ("2", "certified", "1")
    assert float(together) == pytest.approx(2**0.5 * float(mu), rel=1e-3)
    assert ledger.entries[1].weights_after.startswith(weights)
    assert "epsilon" not in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_ledger_show_of_releases_without_a_guarantee(released, capsys):
    entry = Ledger.from_text((released / "ledger.jsonl").read_text()).entries[0]
    fields = {
        "ledger_id": "a\x1b[31m",
        "time": "\x1b" * 3,
        "weights_after": "\u202e" * 4,
    }
    old = Ledger().append(type(entry)(**{**vars(entry), **fields, "grade": "none",
                                         "mu": None, "n_forget": 10**6}))  # fmt: skip
    (released / "none.jsonl").write_text(old.append(entry).to_text())
    assert run(released, "ledger", "show", "none.jsonl") == 0
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    first, second = out.splitlines()[3:5]
    assert first.split()[2:7] == ["none", "1,000,000", "598", "none", "none"]
    assert second.split()[6] == "none"  # nothing is proved of both together
    (released / "empty.jsonl").write_text("")
    assert run(released, "ledger", "show", "empty.jsonl") == 0
    assert capsys.readouterr().out == "no entries\n"


CHECK = ("ledger", "check", "ledger.jsonl", "--checkpoint")


def test_ledger_check(released, capsys):
    assert run(released, *CHECK, "two.ckpt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok     chain: 2 entries, none changed"
    assert lines[1] == "note   budget: no number of releases was announced"
    assert lines[2] == "ok     checkpoint: its weights are of the last entry"
    assert lines[-1] == "VERIFIED"


def announced(entry, *numbers):
    ledger = Ledger()
    for releases in numbers:
        ledger = ledger.append(type(entry)(**{**vars(entry), "releases": releases}))
    return ledger.to_text()


def test_ledger_check_finds_what_is_wrong(released, capsys):
    text = (released / "ledger.jsonl").read_text()
    entry = Ledger.from_text(text).entries[0]
    bare = {**vars(entry), "grade": "none", "mu": None, "releases": None}
    beyond = Ledger.from_text(announced(entry, 1)).append(type(entry)(**bare))
    cases = [
        ("", "chain: expected entries, got an empty ledger"),
        (text.replace('"n_forget": 2', '"n_forget": 3'), "chain: ledger entry 1 was"),
        (text.splitlines(keepends=True)[1], "chain: expected ledger entry 1 to follow"),
        (text[:-9], "chain: expected every entry to end its line"),
        (announced(entry, 5, 4), "budget: expected one announced number of releases, "
                                 "got 4, 5"),
        (beyond.to_text(), "budget: expected at most 1 releases, got 1 more"),
    ]  # fmt: skip
    for wrong, message in cases:
        (released / "wrong.jsonl").write_text(wrong)
        assert run(released, "ledger", "check", "wrong.jsonl") == 1
        out, error = capsys.readouterr()
        assert error.startswith(f"error: {message}")
        assert (out, error.count("\n")) == ("", 1)
    (released / "wrong.jsonl").write_text(announced(entry, 5, 5))
    assert run(released, "ledger", "check", "wrong.jsonl") == 0
    assert "ok     budget: 3 of 5 announced" in capsys.readouterr().out
    assert run(released, *CHECK, "one.ckpt") == 1
    assert "its weights are of entry 1, expected those of the last, 2" in (
        capsys.readouterr().err
    )
    assert (
        run(released, "ledger", "check", "wrong.jsonl", "--checkpoint", "two.ckpt") == 1
    )
    assert "of no entry" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--debug", "verify", "nowhere.json"),
        ("verify", "nowhere.json", "--debug"),
        ("ledger", "check", "nowhere.json", "--debug"),
        ("ledger", "--debug", "show", "nowhere.json"),
        ("--debug", "report", "nowhere.json"),
    ],
    ids=" ".join,
)
def test_only_debug_shows_a_traceback(tmp_path, capsys, arguments):
    assert run(tmp_path, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("error: expected a file at")
    assert run(tmp_path, *(a for a in arguments if a != "--debug")) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: expected a file at")
    assert error.count("\n") == 1


def test_any_error_is_one_printable_line(tmp_path, capsys, monkeypatch):
    def fail(options):
        raise KeyError("two\nlines \x1b[31m\u202e")

    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "_show", fail)
    assert run(tmp_path, "show", "x.json") == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: KeyError: ")
    assert error.endswith("(--debug shows where)\n")
    assert all(c.isprintable() for c in error[:-1])
    monkeypatch.setattr(console, "_show", interrupt)
    assert run(tmp_path, "show", "x.json") == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    (tmp_path / "c.json").write_text(make().to_json())
    code = "import sys; from lightning_unlearn.certificate import console as c"
    code += "; sys.exit(c.main())"
    gone, pipe = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "show", str(tmp_path / "c.json")],
        stdout=pipe,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(pipe)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [[], ["--debug"], ["ledger"]])
def test_without_a_command_it_says_what_there_is(arguments, capsys):
    assert main(arguments) == 2  # nothing was done: a script must not go on
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: lightning-unlearn")
    assert ("verify" in shown.out) == ("ledger" not in arguments)
    assert shown.err == ""


def test_the_version_is_shown(capsys, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("lightning-unlearn ")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "run from a source tree" in capsys.readouterr().out
