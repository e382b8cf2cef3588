"""Noise that keeps the model: a tolerance set before the data, and loud noise asked."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_unlearn import (
    Certificate,
    CertifiedClassifier,
    CertifiedRegressor,
    NormBall,
    UnlearningCallback,
    compare_heads,
)
from lightning_unlearn.errors import ArgumentError, CertificateError, GuaranteeError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import MLP, HeadNet, fitted
from tests.plugin.helpers.publics import backbone, held_out, private, solved


def constant(certificate, name):
    return next(c for c in certificate.constants if c.name == name)


def logit_noise(certificate):
    return certificate.noise_std * constant(certificate, "feature_norm").value


def scaled(factor, loss="mse", **options):
    """Certificate of a regression on targets times a factor, the same public part."""
    x, _ = private().tensors
    data = TensorDataset(x, factor * x.flatten(1)[:, :1])
    net = CertifiedRegressor(backbone(), l2=1e-3, loss=loss)
    return solved(net, data, **options)[1].unlearn([3]).certificate


def test_by_default_the_noise_moves_a_logit_by_three_hundredths():
    _, own, _, _ = solved()
    certificate = own.unlearn([3]).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert logit_noise(certificate) == pytest.approx(0.03, rel=1e-5)
    assert constant(certificate, "row_norm").value == pytest.approx(65**0.5)
    reason = constant(certificate, "tolerance").reason
    assert reason.startswith("set before the request from epsilon, delta, releases")


def test_it_is_for_all_releases_together():
    _, own, _, _ = solved(releases=9, epsilon=2.0)
    assert logit_noise(own.unlearn([3]).certificate) == pytest.approx(0.03, rel=1e-5)


def test_it_does_not_depend_on_the_data():
    tolerances = {constant(scaled(f), "tolerance").value for f in (0.01, 1.0, 3.0)}
    assert len(tolerances) == 1


@pytest.mark.parametrize("net", [HeadNet, lambda: unit(unit_norm=False)])
def test_rows_whose_norm_only_data_would_tell_get_a_constant(net):
    _, own, _, _ = fitted(net()) if net is HeadNet else solved(net())
    certificate = own.unlearn([3]).certificate
    stated = constant(certificate, "tolerance")
    assert stated.value == 1e-6
    assert stated.reason.startswith("the default, a constant set before the request")
    assert "row_norm" not in {c.name for c in certificate.constants}


def unit(**options):
    return CertifiedClassifier(backbone(**options), 5)


def test_where_float32_binds_it_is_said():
    net = CertifiedClassifier(backbone(), 5, l2=1e-5)
    _, own, _, _ = solved(net)
    look, certificate = own.preflight([3]), own.unlearn([3]).certificate
    reason = constant(certificate, "tolerance").reason
    assert "as fine as rows in float32 allow" in reason
    assert any("as fine as rows in float32" in text for text in look.advice)
    assert 0.03 < logit_noise(certificate) < 0.1


def test_a_number_of_one_s_own_stays_one_s_own():
    _, own, _, _ = solved(tolerance=3e-7)
    stated = constant(own.unlearn([3]).certificate, "tolerance")
    assert stated.value == 3e-7
    assert stated.reason.startswith("set before the request, which fails unless")


@pytest.mark.parametrize("field", ["tolerance", "row_norm", "delta"])
def test_a_tolerance_that_does_not_follow_is_found(field):
    _, own, _, _ = solved()
    certificate = own.unlearn([3]).certificate
    if field == "delta":
        changed = replace(certificate, delta=certificate.delta / 2)
    else:
        new = [
            replace(c, value=c.value / 2) if c.name == field else c
            for c in certificate.constants
        ]
        changed = replace(
            certificate,
            constants=tuple(new),
            sensitivity=certificate.sensitivity / (1 + (field == "tolerance")),
            noise_std=certificate.noise_std / (1 + (field == "tolerance")),
        )
    with pytest.raises(CertificateError, match="expected tolerance=|states|expected"):
        changed.verify()
    Certificate.from_json(certificate.to_json()).verify()


def test_no_row_norm_behind_a_tolerance_that_is_said_to_follow_from_it():
    _, own, _, _ = solved()
    certificate = own.unlearn([3]).certificate
    few = tuple(c for c in certificate.constants if c.name != "row_norm")
    with pytest.raises(CertificateError, match=r"expected tolerance=1e-06 \(usual\)"):
        replace(certificate, constants=few).verify()


def test_the_tolerance_is_a_number_or_auto():
    assert UnlearningCallback().options.tolerance == "auto"
    for bad in (0.0, math.nan, -1.0):
        with pytest.raises(ArgumentError, match="tolerance"):
            UnlearningCallback(tolerance=bad)
    with pytest.raises(ArgumentError, match="accept_noise"):
        UnlearningCallback(accept_noise="yes")


# -- noise that would destroy the model --------------------------------------------


def refused(own, net, match):
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(GuaranteeError, match=match):
        own.unlearn([3])
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_a_network_is_not_replaced_by_noise_unasked():
    with pytest.warns(UserWarning, match="would be refused after this training.*noise"):
        net, own, _, _ = fitted(MLP(nn.ReLU), max_norm=20.0)
    words = "smaller than the weights.*Four ways out.*ConvexHead.*noise_std=.*accept_"
    refused(own, net, words)
    look = own.preflight([3])
    assert look.advice[0].startswith("trainer.unlearn would be refused: expected noise")
    assert look.grade is Grade.VACUOUS


def test_it_is_replaced_when_that_is_accepted():
    net, own, _, _ = fitted(MLP(nn.ReLU), max_norm=20.0, accept_noise=True)
    assert not any("refused" in text for text in own.preflight([3]).advice)
    assert own.unlearn([3]).certificate.grade is Grade.VACUOUS
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_ball_whose_noise_leaves_the_weights_is_ordinary_use():
    options = {"epsilon": 1e7, "guarantee": NormBall(), "max_norm": 20.0}
    _, own, _, _ = fitted(MLP(nn.ReLU), **options)
    assert own.unlearn([3]).certificate.noise_std < 0.1


def test_noise_by_hand_on_a_network_was_asked_for():
    _, own, _, _ = fitted(MLP(nn.ReLU), noise_std=1.0)
    assert own.unlearn([3]).certificate.noise_std == 1.0


def test_a_head_whose_logits_would_be_noise_asks_first():
    with pytest.warns(UserWarning, match="would be refused after this training.*logit"):
        net, own, _, _ = solved(tolerance=1e-4)
    words = "moves a logit by at most 1, got 6.02 .*Three ways out.*auto.*l2.*accept_"
    refused(own, net, words)
    _, own, _, _ = solved(tolerance=1e-4, accept_noise=True)
    assert logit_noise(own.unlearn([3]).certificate) > 1


def test_measured_rows_count_where_none_are_fixed():
    net, own, _, _ = fitted(HeadNet(), tolerance=1e-3)
    refused(own, net, "moves a logit by at most 1, got .* on rows of norm")
    assert any("refused" in text for text in own.preflight([3]).advice)


def test_rows_that_are_longer_than_the_backbone_makes_them_are_measured():
    class Stretched(CertifiedClassifier):
        def unlearning_loss(self, batch, batch_idx):
            x, y = batch
            return self.head.loss(100 * self.backbone(x), y)

    net, own, _, _ = solved(Stretched(backbone(), 5))
    refused(own, net, "got 2.98 .* on rows of norm 800")


def test_heads_are_ranked_by_what_is_left_with_the_noise():
    data, val = private(), TensorDataset(*held_out())
    loud = compare_heads(backbone(), data, val, loss="mse", l2=[1e-5, 1e-3],
                         tolerance=1e-6)  # fmt: skip
    assert loud.choices[0].score > loud.choices[0].score_with_noise + 0.3
    assert loud.recommended is loud.choices[1]
    usual = compare_heads(backbone(), data, val, loss="mse", l2=[1e-5, 1e-3])
    first = usual.choices[0]
    assert first.logit_noise < 0.1
    assert first.score_with_noise > first.score - 0.05
    noise = {c.l2: c.noise_std for c in usual.choices}
    _, own, _, _ = solved()
    assert own.unlearn([3]).certificate.noise_std == pytest.approx(noise[1e-3])


def test_the_curve_of_a_preflight_takes_the_tolerance_of_each_epsilon():
    _, own, _, _ = solved()
    stds = {epsilon: std for epsilon, std, _ in own.preflight([3]).curve}
    assert stds[1.0] == pytest.approx(0.03 / 65**0.5, rel=1e-6)
    assert stds[3.0] <= stds[1.0] * (1 + 1e-9)
    assert json.loads(own.unlearn([3]).certificate.to_json())["noise_std"] == (
        pytest.approx(stds[1.0])
    )
