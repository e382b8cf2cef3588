"""Forged certificates, sealed anew: refused by name; honest ones of each bound hold."""

import dataclasses
import json

import pytest
import torch
import torchmetrics
from safetensors.torch import save_file
from torch import nn

from lightning_unlearn import NewtonStep, NormBall
from lightning_unlearn._base.strict_json import canonical_digest
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.console import main
from lightning_unlearn.certificate.fields import entries_digest, fields_after
from lightning_unlearn.certificate.verification import verdict, verify_text
from lightning_unlearn.errors import CertificateError
from lightning_unlearn.guarantee.claims import Bound, Grade
from lightning_unlearn.guarantee.constants import Constant, Origin
from lightning_unlearn.guarantee.gaussian import compose_mu, gaussian_epsilon
from tests.certificate.helpers.pages import ledger_of
from tests.helpers.certificates import BALL, convex_constants, make, noise_std
from tests.helpers.nets import MLP, HeadNet, digits, fitted
from tests.plugin.helpers import publics


def resealed(folder, change, name="clean.certificate.json"):
    """The certificate in a folder, changed and sealed anew, as another file."""
    plain = json.loads((folder / name).read_text())
    plain.pop("digest")
    change(plain)
    path = folder / "forged.certificate.json"
    path.write_text(json.dumps({**plain, "digest": canonical_digest(plain)}))
    return path


def verify(folder, *more, certificate=None):
    path = certificate or folder / "clean.certificate.json"
    return main(["verify", str(path), *map(str, more)])


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A certified request: certificate, checkpoint, ledger, the public network."""
    folder = tmp_path_factory.mktemp("head")
    net, fit_trainer, _, _ = fitted(ledger=folder / "ledger.jsonl")
    fit_trainer.unlearn([1, 2, 3], save_to=folder / "clean.ckpt")
    torch.save(net.backbone.state_dict(), folder / "public.pt")
    return folder


# --- words --------------------------------------------------------------------------


def test_another_reference_is_refused():
    with pytest.raises(CertificateError, match="got 'any model whatsoever'"):
        make(reference="any model whatsoever").verify()


@pytest.mark.parametrize("bound", [Bound.STRONGLY_CONVEX, Bound.NORM_BALL])
def test_every_standing_limit_must_be_there(bound):
    of = {"bound": bound}
    if bound is Bound.NORM_BALL:
        of |= {"constants": BALL, "grade": Grade.VACUOUS}
    honest = make(**of)
    honest.verify()
    standing = honest.not_covered[:-1]
    assert len(standing) >= 4
    for text in standing:
        left = tuple(t for t in honest.not_covered if t != text)
        with pytest.raises(CertificateError, match="expected not_covered to say"):
            dataclasses.replace(honest, not_covered=left).verify()
    with pytest.raises(CertificateError, match="expected not_covered to say .*nothing"):
        dataclasses.replace(honest, not_covered=()).verify()


def test_a_standing_warning_must_be_there():
    honest = make(bound=Bound.NORM_BALL, constants=BALL, grade=Grade.VACUOUS)
    honest.verify()
    assert honest.warnings[0].startswith("Delta/(2C) = 1")
    with pytest.raises(CertificateError, match=r"expected warnings to say 'Delta/\(2C"):
        dataclasses.replace(honest, warnings=("all is well",)).verify()


def other_reason(name, value, origin):
    reason = "the optimiser's weight decay"
    return Constant(name=name, value=value, origin=origin, reason=reason)


def test_a_proved_number_has_the_theorem_s_reason():
    tolerance, _ = convex_constants()
    forged = (tolerance, other_reason("strong_convexity", 1e9, Origin.PROVED))
    with pytest.raises(CertificateError, match="strong_convexity .*got proved"):
        make(constants=forged).verify()
    word = (tolerance, other_reason("strong_convexity", 1e9, Origin.ASSUMED))
    make(constants=word, grade=Grade.CONDITIONAL).verify()  # free: whose word it is


@pytest.mark.parametrize(
    ("name", "origin"),
    [("feature_norm", Origin.MEASURED), ("true_epsilon", Origin.PROVED)],
)
def test_numbers_beside_the_claim_have_reasons_too(name, origin):
    forged = (*convex_constants(), other_reason(name, 0.0, origin))
    with pytest.raises(CertificateError, match=f"for the constant {name}"):
        make(constants=forged).verify()


def test_no_theorem_here_proves_the_constants_of_theorem_a():
    values = {"hessian_lipschitz": 1e-4, "lambda_min": 1.0,
              "retrained_gradient_norm": 0.0}  # fmt: skip
    forged = [other_reason(k, v, Origin.PROVED) for k, v in values.items()]
    enforced = [other_reason(k, 0.0, Origin.ENFORCED) for k in ("damping", "residual")]
    with pytest.raises(CertificateError, match="of the bound newton_step"):
        make(bound=Bound.NEWTON_STEP, constants=(*BALL, *forged, *enforced)).verify()


# --- strength -----------------------------------------------------------------------


def of_strength(epsilon, delta, **changes):
    noise = noise_std(epsilon, delta, 2e-3)
    mus = (2e-3 / noise,)
    return make(
        **{
            "epsilon": epsilon, "delta": delta, "noise_std": noise,
            "release_mus": mus, "composed_epsilon": gaussian_epsilon(mus[0], delta),
            **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize(("epsilon", "delta"), [(1e6, 0.99), (32.0, 1e-5), (1.0, 0.01)])
def test_certified_at_any_epsilon_is_refused(epsilon, delta):
    with pytest.raises(CertificateError, match="grade=certified.*give vacuous"):
        of_strength(epsilon, delta).verify()
    true = of_strength(epsilon, delta, grade=Grade.VACUOUS)
    true.verify()
    assert "indistinguishable" not in str(true)
    assert str(true).startswith("VACUOUS: ")


def test_the_announced_total_counts_and_so_does_what_came_before():
    made = make()
    mu = made.release_mus[0]  # .268
    twenty = make(releases=20, epsilon=1.0)
    twenty.verify()  # all twenty together are the epsilon it states
    many = (mu,) * 90  # together 2.54, more than 2.326
    fields = {
        "release": 90, "release_mus": many,
        "composed_epsilon": gaussian_epsilon(compose_mu(*many), 1e-5),
    }  # fmt: skip
    with pytest.raises(CertificateError, match="composed_grade=certified.*vacuous"):
        make(**fields).verify()
    long = make(**fields, composed_grade=Grade.VACUOUS)
    long.verify()
    assert long.grade is Grade.CERTIFIED  # for those forgotten by this release
    assert "(vacuous)" in str(long)
    few = {**fields, "release": 70, "release_mus": many[:70]}
    few["composed_epsilon"] = gaussian_epsilon(compose_mu(*many[:70]), 1e-5)
    make(**few).verify()


# --- what came before ---------------------------------------------------------------


def forged_history():
    mu = make(releases=10).release_mus[0]
    mus = (1e-6,) * 9 + (mu,)
    return make(
        releases=10,
        release=10,
        release_mus=mus,
        composed_epsilon=gaussian_epsilon(compose_mu(*mus), 1e-5),
    )


def test_forged_earlier_releases_are_its_word_until_the_ledger_is_there():
    forged = forged_history()
    findings = verify_text(forged.to_json())
    (note,) = (f for f in findings if f.text.startswith("earlier releases"))
    assert note.holds is None
    assert "that its 9 earlier releases were as it says is its word" in note.text
    assert "on the word of whoever made it" in verdict(findings)
    assert "earlier releases" in verdict(findings).split("on the word of")[1]
    text = ledger_of(forged)  # one entry is all it has
    found = verify_text(forged.to_json(), text)
    assert any(f.holds is False and "position" in f.text for f in found)
    assert verdict(found) == "NOT VERIFIED"


# --- schemas ------------------------------------------------------------------------


def test_schema_1_verifies_and_says_less(head, capsys):
    def downgrade(plain):
        plain["schema"] = 1
        for part in (plain, *plain["public_parts"]):
            for name in fields_after(1) & {*part}:
                part.pop(name)
        for part in plain["public_parts"]:
            part.pop("note")
        plain["reference"] = "any model whatsoever"

    path = resealed(head, downgrade)
    assert verify(head, certificate=path) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "words" not in last.split("on the word of")[0]
    assert "words" in last.split("on the word of")[1]
    assert "A certificate of schema 1" in str(Certificate.from_json(path.read_text()))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (1, "expected the fields of schema 1, got others besides"),
        (3, "expected a certificate of schema 1 to 2, got 3"),
        (True, "expected a certificate of schema 1 to 2, got True"),
    ],
)
def test_a_schema_has_its_own_fields(head, schema, message):
    path = resealed(head, lambda plain: plain.update(schema=schema))
    with pytest.raises(CertificateError, match=message):
        Certificate.from_json(path.read_text())


@pytest.mark.parametrize("name", ["scope", "rebuilt", "composed_grade"])
def test_schema_2_has_all_of_its_fields(head, name):
    path = resealed(head, lambda plain: plain.pop(name))
    with pytest.raises(CertificateError, match="expected the fields"):
        Certificate.from_json(path.read_text())


# --- parts of the model -------------------------------------------------------------


def seal_part(part):
    part["digest"] = entries_digest(part["entries"])


def drop_parts(plain):
    plain["public_parts"] = []


def drop_entry(plain):
    (part,) = plain["public_parts"]
    part["entries"].pop()
    seal_part(part)


def claim_scope(plain):
    (part,) = plain["public_parts"]
    plain["scope"] += [name for name, _ in part["entries"]]
    plain["public_parts"] = []


def claim_scope_and_count(plain):
    claim_scope(plain)
    plain["n_parameters"] += 64 * 32 + 32


def other_bytes(plain):
    (part,) = plain["public_parts"]
    part["entries"][0][1] = "0" * 64
    seal_part(part)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (drop_parts, "expected every entry outside the scope in one, got backbone.0."),
        (drop_entry, "expected every entry outside the scope in one, got backbone.0."),
        (claim_scope, "scope: expected 330 weights, got 2,410"),
        (claim_scope_and_count, "scope: expected the weight and bias of one affine"),
        (other_bytes, "public parts: other bytes in backbone.0."),
    ],
)
def test_dropped_public_parts_are_found_in_the_checkpoint(head, capsys, forge, message):
    path = resealed(head, forge)
    assert verify(head, certificate=path) == 0  # by itself it holds
    capsys.readouterr()
    assert verify(head, "--checkpoint", head / "clean.ckpt", certificate=path) == 1
    out = capsys.readouterr().out
    assert message in out
    assert out.endswith("NOT VERIFIED\n")


def rebuild(plain):
    (part,) = plain["public_parts"]
    plain["rebuilt"] = [name for name, _ in part["entries"]]
    plain["public_parts"] = []


def wrong_part_digest(plain):
    plain["public_parts"][0]["digest"] = "0" * 64


def twice(plain):
    plain["scope"].append(plain["public_parts"][0]["entries"][0][0])


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (rebuild, "expected nothing rebuilt under the bound strongly_convex"),
        (wrong_part_digest, "expected the digest of the public part backbone to be"),
        (twice, "expected every entry of the model in one place"),
        (lambda plain: plain.update(scope=[]), "expected scope to name the entries"),
    ],
)
def test_lists_that_contradict_each_other_are_refused(head, capsys, forge, message):
    assert verify(head, certificate=resealed(head, forge)) == 1
    assert message in capsys.readouterr().out


# --- the public network -------------------------------------------------------------


def test_the_published_network_is_found_in_the_certificate(head, capsys):
    save_file(torch.load(head / "public.pt"), head / "public.safetensors")
    prefixed = {f"model.{k}": v for k, v in torch.load(head / "public.pt").items()}
    torch.save({"state_dict": prefixed}, head / "prefixed.pt")
    for name in ("public.pt", "public.safetensors", "prefixed.pt"):
        assert verify(head, "--backbone", head / name) == 0
        out = capsys.readouterr().out
        assert f"ok     backbone: 2 entries of backbone are {name}" in out
        assert "prefix 'backbone.' in the model taken off" in out
        assert ("prefix 'model.' in the file" in out) == (name == "prefixed.pt")


def test_another_network_is_not(head, capsys):
    state = torch.load(head / "public.pt")
    torch.save({k: v.clone().add_(1e-6) for k, v in state.items()}, head / "other.pt")
    assert verify(head, "--backbone", head / "other.pt") == 1
    assert "to be a public part (backbone), got another network" in (
        capsys.readouterr().out
    )
    torch.save({**state, "0.bias": state["0.bias"] + 1}, head / "half.pt")
    assert verify(head, "--backbone", head / "half.pt") == 1
    assert "backbone has other bytes than half.pt in backbone.0.bias" in (
        capsys.readouterr().out
    )
    torch.save({"a": 3}, head / "none.pt")
    assert verify(head, "--backbone", head / "none.pt") == 1
    assert "expected a checkpoint or weights at" in capsys.readouterr().err


def test_a_public_backbone_is_checked_entry_by_entry(tmp_path, capsys):
    net, own, *_ = publics.solved()
    own.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    torch.save(net.backbone.model.state_dict(), tmp_path / "net.pt")
    files = ("--checkpoint", tmp_path / "clean.ckpt", "--backbone", tmp_path / "net.pt")
    assert verify(tmp_path, *files) == 0
    out = capsys.readouterr().out
    assert "ok     public parts: digests of all" in out
    assert "of backbone are net.pt; prefix 'backbone.model.' in the model taken" in out
    (rest,) = (line for line in out.splitlines() if "not in net.pt" in line)
    assert rest.startswith("note   backbone: backbone.")
    assert "and 1 more of backbone not in net.pt: not checked" in rest

    def other_options(plain):
        (part,) = plain["public_parts"]
        (options,) = [e for e in part["entries"] if e[0].endswith("_extra_state")]
        options[1] = "0" * 64
        seal_part(part)

    path = resealed(tmp_path, other_options)
    assert verify(tmp_path, *files, certificate=path) == 1
    assert "other bytes in backbone._extra_state" in capsys.readouterr().out


# --- honest certificates ------------------------------------------------------------


class Tied(HeadNet):
    """A frozen weight under two names, and one that no checkpoint has."""

    def __init__(self):
        super().__init__()
        self.again = self.backbone
        self.register_buffer("shift", torch.zeros(32), persistent=False)


class Metered(HeadNet):
    """A metric that checkpoints keep: a request empties it."""

    def __init__(self):
        super().__init__()
        self.mean, self.least = torchmetrics.MeanMetric(), torchmetrics.MinMetric()
        self.mean.persistent(True)
        self.least.persistent(True)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mean.update(loss.detach())
        self.least.update(loss.detach())
        return loss


HONEST = {
    "metrics": (Metered, {}, "certified"),
    "head": (HeadNet, {}, "certified"),
    "no backbone": (lambda: HeadNet(backbone=False), {}, "certified"),
    "tied": (Tied, {}, "certified"),
    "ball": (
        MLP,
        {"max_norm": 20.0, "accept_noise": True, "guarantee": NormBall()},
        "vacuous",
    ),
    "statistics": (
        lambda: MLP(norm=nn.BatchNorm1d),
        {"max_norm": 20.0, "accept_noise": True, "guarantee": NormBall()},
        "vacuous",
    ),
    "theorem A": (
        MLP,
        {
            "max_norm": 20.0, "accept_noise": True, "damping": 1.0,
            "guarantee": NewtonStep(
                hessian_lipschitz=100.0, lambda_min=-0.5, retrained_gradient_norm=1.0
            ),
        },
        "vacuous",
    ),
    "by hand": (MLP, {"noise_std": 0.0}, "none"),
    "weak": (HeadNet, {"epsilon": 8.0}, "certified"),
    "strength": (HeadNet, {"epsilon": 32.0}, "vacuous"),
}  # fmt: skip


def test_a_large_delta_is_told_before_the_training_and_by_the_certificate():
    with pytest.warns(UserWarning, match="delta = 0.01 is not below 1/n = 0.0017"):
        _, fit_trainer, _, _ = fitted(delta=0.01)
    look = fit_trainer.preflight([1, 2])
    assert "which is graded vacuous: lower delta" in look.advice[0]
    assert fit_trainer.unlearn([1, 2]).certificate.grade is Grade.VACUOUS


def test_a_large_epsilon_is_told_by_the_preflight():
    _, fit_trainer, _, _ = fitted(epsilon=32.0)
    look = fit_trainer.preflight([1, 2])
    assert look.grade is Grade.VACUOUS
    assert "of 100, which is graded vacuous: lower epsilon" in look.advice[0]
    assert not any("ConvexHead" in text for text in look.advice)


@pytest.mark.parametrize("name", list(HONEST))
def test_honest_certificates_hold(tmp_path, capsys, name):
    make_net, options, grade = HONEST[name]
    ledger = tmp_path / "ledger.jsonl"
    _, fit_trainer, _, _ = fitted(make_net(), digits(300), ledger=ledger, **options)
    result = fit_trainer.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    assert result.certificate.grade.value == grade
    files = ("--checkpoint", tmp_path / "clean.ckpt", "--ledger", ledger)
    assert verify(tmp_path, *files) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("VERIFIED: digest, claim, words, ledger")
    assert "FAILED" not in out
