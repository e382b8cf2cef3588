"""An audit of an experiment: honest ones pass, frauds raise, what is done is kept."""

import dataclasses
import json
import math
import os
import stat
import time

import numpy as np
import pytest
import torch

from lightning_unlearn.errors import ArgumentError, AuditError, SetupError
from lightning_unlearn.evaluation import Outcome, audit, noise_size
from lightning_unlearn.evaluation.audits.repeat import tossed
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon, gaussian_mu
from tests.evaluation.helpers.worlds import DELTA, certificate, none_certificate

R, MU = 200, 3.0


class Mechanism:
    """A Gaussian mechanism of a known mu over all canaries that are in."""

    n_canaries = R

    def __init__(self, mu=MU, offsets=0.0, far=None, identity="one", share=None):
        self.mu, self.offsets, self.far, self.identity = mu, offsets, far, identity
        self.share = share  # of the noise that is added; None keeps the release back
        self.calls = []

    def __call__(self, included):
        self.calls.append(included)
        shift = included * (self.mu / R**0.5)
        own = torch.arange(R) * self.offsets
        some = bool(included.any())
        c = certificate(gaussian_epsilon(MU, DELTA), n_forget=R, n_parameters=R)
        point = None
        if self.far is not None:
            point = torch.zeros(R, dtype=torch.float64)
            point[0] = self.far * 2e-3  # the certificate's sensitivity
        released = None
        if self.share is not None and point is not None and some:
            noise = torch.randn(R, dtype=torch.float64) * c.noise_std
            released = (point + self.share * noise).float()
        return Outcome(
            released=released,
            certificate=c if some else None,
            scores=shift + own + torch.randn(R, dtype=torch.float64),
            unlearned=point if some else None,
            retrained=None if point is None else torch.zeros_like(point),
        )


class Elsewhere(Mechanism):
    """Says in which process it ran."""

    def __call__(self, included):
        found = super().__call__(included)
        return Outcome(
            certificate=found.certificate,
            scores=torch.full((R,), float(os.getpid())).double(),
        )


def test_an_honest_experiment_passes_and_says_what_was_found():
    experiment = Mechanism()
    report = audit(experiment, runs=10, confidence=0.999)
    assert [int(c.sum()) == 0 for c in experiment.calls] == [False] * 10 + [True]
    assert report.runs == 10
    assert report.two_sample is report.white_box is None
    assert report.one_run.n == 10 * R
    assert report.one_run.confidence == 0.999
    assert report.one_run.mu_certified == pytest.approx(gaussian_mu(
        gaussian_epsilon(MU, DELTA), DELTA))  # fmt: skip
    assert "guesses right, 200 canaries in 10 runs" in str(report)
    assert report.found["guessing coins: lower bound of epsilon"] == (
        report.one_run.epsilon_lower
    )
    audit(experiment, calibrate=False)
    assert bool(experiment.calls[-1].any())


def test_ten_times_the_mu_that_is_certified_raises():
    with pytest.raises(AuditError, match="above what is certified"):
        audit(Mechanism(mu=10 * MU), runs=2)


def test_what_a_model_without_canaries_scores_is_subtracted():
    """Without it, what tells canaries apart drowns which of them were in."""
    experiment = Mechanism(mu=10 * MU, offsets=50.0)
    without = audit(experiment, runs=2, calibrate=False, confidence=0.999)
    assert without.one_run.mu_lower < MU
    with pytest.raises(AuditError):
        audit(experiment, runs=2)


def test_points_before_noise_and_draws():
    report = audit(Mechanism(far=0.9), runs=2, draws=400)
    assert report.white_box.mu_true == pytest.approx(0.9 * MU)
    assert report.white_box.ratio == pytest.approx(0.9)
    assert report.two_sample.n == 800
    assert 0.3 * MU < report.two_sample.mu_lower < 0.9 * MU * 1.1
    for part in (report.one_run, report.two_sample):
        assert part.confidence == pytest.approx(0.975)
    assert "true mu 2.7 (exact" in str(report)
    assert "draws of the noise at both points: 400 unlearned" in str(report)
    assert report.found["points before noise: true mu"] == pytest.approx(0.9 * MU)
    with pytest.raises(AuditError, match="expected mu of at most 3, .* got 3.03"):
        audit(Mechanism(far=1.01))


def test_the_noise_that_was_added_is_held_to_what_is_certified():
    report = audit(Mechanism(far=0.0, share=1.0), runs=5)
    assert report.one_run.confidence == pytest.approx(0.975)
    sigma = report.noise.std_certified
    assert report.noise.std == pytest.approx(sigma, rel=0.2)
    assert report.noise.std < sigma  # the smallest of five
    assert "noise that was added: noise_std" in str(report)
    assert report.found["noise that was added: noise_std"] == report.noise.std
    assert audit(Mechanism(far=0.0)).noise is None
    with pytest.raises(AuditError, match="noise of standard deviation .*as certified"):
        audit(Mechanism(far=0.0, share=0.5))
    more = audit(Mechanism(far=0.0, share=2.0))  # too much hurts no claim
    assert more.noise.std > 1.5 * sigma


def test_an_honest_noise_is_refuted_as_rarely_as_stated():
    """At the edge: no sensitivity and no cast to allow for."""
    c = dataclasses.replace(certificate(1.0), n_parameters=9, sensitivity=1e-300)
    rng, raised, tried = np.random.default_rng(0), 0, 4000
    for norm in np.sqrt(rng.chisquare(9, tried)) * c.noise_std:
        try:
            noise_size(c, float(norm), 0.0, 0.9)
        except AuditError:
            raised += 1
    assert abs(raised / tried - 0.1) < 4 * (0.09 / tried) ** 0.5
    wide = dataclasses.replace(c, sensitivity=c.noise_std)
    noise_size(wide, 0.0, c.noise_std, 0.999)  # 2 noise_std is not below that quantile
    with pytest.raises(AuditError, match=r"got nan.*1 honest release in 10 that"):
        noise_size(c, math.nan, 0.0, 0.9)


class UnsendableError(Exception):
    def __init__(self, what, where):
        super().__init__(f"{what} is missing at {where}")


class Complains(Mechanism):
    def __call__(self, included):
        raise UnsendableError("the data", "home")


def test_an_exception_that_cannot_travel_is_told_by_a_worker():
    with pytest.raises(
        SetupError, match="UnsendableError: the data is missing at home"
    ):
        audit(Complains(), workers=2)


def test_an_audit_that_is_stopped_goes_on(tmp_path):
    class Stopped(Mechanism):
        def __call__(self, included):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(included)

    folder = tmp_path / "made" / "here"
    with pytest.raises(KeyboardInterrupt):
        audit(Stopped(), runs=4, folder=folder)
    assert sorted(p.name for p in folder.iterdir()) == ["run-000.json", "run-001.json"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "run-000.json").stat().st_mode) == 0o600
    first = json.loads((folder / "run-000.json").read_text())
    experiment = Mechanism()
    report = audit(experiment, runs=4, folder=folder, confidence=0.999)
    assert len(experiment.calls) == 3  # two runs and the reference
    assert json.loads((folder / "run-000.json").read_text()) == first
    again = audit(experiment, runs=4, folder=folder, confidence=0.999)
    assert (report.kept, again.kept) == (2, 5)
    assert str(again).startswith("5 trainings were kept from an earlier call")
    assert dataclasses.replace(again, kept=2) == report
    assert len(experiment.calls) == 3


def test_runs_of_another_experiment_are_refused(tmp_path):
    audit(Mechanism(), folder=tmp_path)
    other = Mechanism(identity="other")
    with pytest.raises(SetupError, match="got run-000.json of another one.*remove it"):
        audit(other, folder=tmp_path)
    assert not other.calls
    file = tmp_path / "run-000.json"
    fields = json.loads(file.read_text())
    for wrong, message in (
        ("{", "expected a run in .* as JSON"),
        (json.dumps({**fields, "more": 1}), "expected the fields .* in a run in"),
        (
            json.dumps({**fields, "included": [1] * R}),
            "run .* bool, got 1",
        ),
        (json.dumps({**fields, "included": []}), "coins and scores"),
        (
            json.dumps({**fields, "scores": ["a"] * R}),
            "run .* float, got .a",
        ),
        (
            json.dumps({**fields, "scores": None}),
            "run .* list.float., got None",
        ),
        (
            json.dumps({**fields, "certificate": 3}),
            "run .* str, got 3",
        ),
        (json.dumps({**fields, "certificate": None}), "a certificate exactly where"),
        (
            json.dumps({**fields, "distance": "far"}),
            "run .* float, got .far",
        ),
        (json.dumps({**fields, "schema": 1}), "of another one"),
        (b"\xff\xfe".decode("latin-1"), "as JSON"),
    ):
        file.write_text(wrong)
        with pytest.raises(SetupError, match=message):
            audit(Mechanism(), folder=tmp_path)
    with pytest.raises(SetupError, match="folder for the runs at .*run-000.json"):
        audit(Mechanism(), folder=file)


def test_draws_need_the_points_and_runs_kept_with_as_many(tmp_path):
    with pytest.raises(ArgumentError, match=r"for 50 draws .*white_box=True"):
        audit(experiment := Mechanism(), runs=5, draws=50)
    assert len(experiment.calls) == 1  # the others are not paid for
    audit(Mechanism(far=0.5), draws=20, folder=tmp_path)
    again = Mechanism(far=0.5)
    with pytest.raises(ArgumentError, match="50 draws .* got 20"):
        audit(again, runs=3, draws=50, folder=tmp_path)
    assert not again.calls
    assert audit(again, calibrate=False, folder=tmp_path).kept == 1


def test_workers_are_processes_of_their_own(tmp_path):
    audit(Elsewhere(), runs=2, workers=2, folder=tmp_path)
    kept = [json.loads(p.read_text()) for p in sorted(tmp_path.iterdir())]
    assert len(kept) == 3
    assert {run["scores"][0] for run in kept}.isdisjoint({float(os.getpid())})
    local = Mechanism()
    local.mu = lambda: None
    with pytest.raises(ArgumentError, match="can be pickled for several workers"):
        audit(local, workers=2)


class Fails(Mechanism):
    """The reference does, after the others have begun."""

    def __call__(self, included):
        if not bool(included.any()):
            raise ZeroDivisionError("of the training")
        time.sleep(1)
        return super().__call__(included)


def test_what_other_workers_finish_is_kept_when_one_fails(tmp_path):
    with pytest.raises(ZeroDivisionError, match="of the training"):
        audit(Fails(), runs=2, workers=3, folder=tmp_path)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == ["run-000.json", "run-001.json"]


def test_one_of_several_processes_tosses_no_coins(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    experiment = Mechanism()
    with pytest.raises(SetupError, match="one process that calls audit.*ddp_spawn"):
        audit(experiment)
    assert not experiment.calls


class Dies(Mechanism):
    def __call__(self, included):
        os._exit(1)


def test_a_worker_that_ends_is_told():
    with pytest.raises(SetupError, match="workers that finish, but one ended"):
        audit(Dies(), workers=2)


def test_coins_are_fair_and_not_all_out(monkeypatch):
    coins = torch.tensor(tossed(10_000)).double()
    assert abs(coins.mean() - 0.5) < 0.025  # 5 standard deviations
    monkeypatch.setattr("secrets.randbits", lambda bits: 0)
    with pytest.raises(SetupError, match="the coins left all of them"):
        audit(Mechanism())


class Wrong(Mechanism):
    def __init__(self, **changes):
        super().__init__()
        self.changes = changes

    def __call__(self, included):
        found = super().__call__(included)
        return Outcome(**{**vars(found), **self.changes})


@pytest.mark.parametrize(
    ("experiment", "options", "message"),
    [
        (Wrong(scores=torch.ones(3)), {}, "scores of 200 canaries .* got 3 scores"),
        (Wrong(scores=torch.ones(R) * torch.nan), {}, "scores to be finite"),
        (Wrong(certificate=None), {}, "a certificate exactly .* none with"),
        (Wrong(unlearned=torch.ones(R), retrained=torch.ones(R)), {}, "in float64"),
        (Mechanism(), {"runs": 0}, "runs"),
        (Mechanism(), {"workers": 0}, "workers"),
        (Mechanism(), {"draws": -1}, "draws of 2 or more .* got -1"),
        (Mechanism(), {"draws": 1}, "draws of 2 or more .* got 1"),
        (Mechanism(), {"delta": 2.0}, "delta to be 0 or strictly between"),
        (Mechanism(), {"delta": 0.0}, "delta strictly between"),
        (Mechanism(), {"confidence": float("nan")}, "confidence strictly between"),
        (Mechanism(), {"guesses": 201}, "guesses of at most 200"),
    ],
)
def test_what_is_wrong_is_refused(experiment, options, message):
    with pytest.raises(ArgumentError, match=message):
        audit(experiment, **{"runs": 3, **options})
    assert len(experiment.calls) <= 1


def test_a_claim_of_nothing_without_delta_is_refused_after_one_training():
    nothing = dataclasses.replace(none_certificate(), n_forget=R)
    experiment = Wrong(certificate=nothing)
    with pytest.raises(ArgumentError, match="expected delta= for a certificate of"):
        audit(experiment, runs=4)
    assert len(experiment.calls) == 1


def test_few_canaries_are_refused():
    few = Mechanism()
    few.n_canaries = 19
    with pytest.raises(ArgumentError, match="at least 20 canaries, got 19"):
        audit(few)
    assert not few.calls
