"""FSDP2 with weights and vectors that stay shards: two real processes against one."""

import json
import re

import pytest
import torch

from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.weights.digests import state_digest
from tests.helpers.nets import UnlearningCallback, digits, loader, trainer
from tests.plugin.helpers.distributed_job import N, done, saved, start
from tests.plugin.helpers.distributed_nets import Deep, model

TWO = {"devices": 2}
SHARDED = TWO | {"strategy": "fsdp2-file"}
DIFFERENCES = {
    "curvature": "central_difference",
    "max_norm": 20.0,
    "accept_noise": True,
}
BARE = {"noise_std": 0.0, "damping": 0.5, "max_norm": 20.0}

TWO = {"devices": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model whose layers are not divisible by two, trained on one device."""
    own = trainer(UnlearningCallback(max_norm=20.0, accept_noise=True), max_epochs=3)
    own.fit(model("odd"), loader(digits(N)))
    path = tmp_path_factory.mktemp("trained") / "odd.ckpt"
    own.save_checkpoint(path)
    return str(path)


def test_gradient_and_product_are_those_of_one_process(trained, tmp_path):
    job = {"model": "odd", "ckpt_path": trained, "vectors": True}
    (one,) = done(tmp_path / "one", trainer={"devices": 1}, callback=BARE, **job)
    found = done(tmp_path / "two", trainer=SHARDED, callback=BARE | DIFFERENCES, **job)
    assert len(found) == 2
    for told in found:
        # The value, the gradient, the product by differences.
        for a, b, rtol in zip(one[:3], told[:3], (1e-6, 1e-6, 1e-3), strict=True):
            a, b = torch.tensor(a), torch.tensor(b)
            assert float((a - b).norm() / a.norm()) < rtol


def test_nothing_whole_is_ever_in_memory(tmp_path):
    found = done(
        tmp_path / "two", model="deep", vectors=True, ckpt_path=None,
        trainer=SHARDED, callback=BARE | DIFFERENCES,
    )  # fmt: skip
    p, layer = sum(q.numel() for q in Deep().parameters()), 64 * 64 + 64
    for told in found:
        assert told[3][0] <= p / 2 + layer  # a vector of shards; p = 25,610
        assert len(told[1]) == p


def test_two_processes_end_where_one_does(trained, tmp_path):
    job = {"model": "odd", "ckpt_path": trained}
    done(tmp_path / "one", trainer={"devices": 1}, callback=BARE, **job)
    told = done(tmp_path / "two", trainer=SHARDED, callback=BARE | DIFFERENCES, **job)
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    before = torch.load(trained, weights_only=True)["state_dict"]
    for key, value in one["state_dict"].items():
        moved = float((value - before[key]).norm())
        assert moved > 1e-3  # the request does something
        assert float((two["state_dict"][key] - value).norm()) < 5e-3 * moved
    entries = ledgers.read(tmp_path / "two" / "ledger.jsonl").entries
    assert [(e.n_forget, e.n_retain) for e in entries] == [(2, N - 2)]
    assert len({t["certificate"] for t in told}) == 1
    assert {t["state"] for t in told} == {state_digest(two["state_dict"])}
    assert all(t["record"] == told[0]["record"] for t in told)
    constants = json.loads(told[0]["certificate"])["constants"]
    stated = {c["name"]: c["value"] for c in constants}
    assert 0 < stated["measured_difference_error"] < 1e-2


def test_noise_on_every_shard_and_a_certificate_of_the_whole(tmp_path):
    told = done(
        tmp_path / "two", model="odd", fit=True, callback=DIFFERENCES,
        trainer=SHARDED | {"max_epochs": 2}, again=SHARDED | {"max_epochs": 3},
    )  # fmt: skip
    certificate = Certificate.from_json(told[0]["certificate"])
    certificate.verify()
    assert certificate.grade is Grade.VACUOUS  # the norm ball
    assert certificate.n_parameters == 64 * 13 + 13 + 13 * 10 + 10
    state = saved(tmp_path / "two")["state_dict"]
    assert state_digest(state) == certificate.weights_digest
    # The noise is projected back onto the ball, and no shard repeats another.
    flat = torch.cat([v.reshape(-1) for v in state.values()])
    assert float(flat.norm()) == pytest.approx(20.0, rel=1e-5)
    first, second = state["net.0.weight"][:6], state["net.0.weight"][7:13]
    assert float(torch.corrcoef(torch.stack([first.ravel(), second.ravel()]))[0, 1]) < (
        0.3
    )
    assert told[0]["after"] > 0


def test_a_process_that_holds_nothing_of_the_scope(tmp_path):
    told = done(tmp_path / "two", model="narrow", trainer=SHARDED, callback=DIFFERENCES)
    certificate = Certificate.from_json(told[0]["certificate"])
    assert certificate.n_parameters == 65
    assert certificate.noise_std > 0
    state = saved(tmp_path / "two")["state_dict"]
    assert state_digest(state) == certificate.weights_digest


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("head", {}, "expected guarantee=NormBall\\(\\) or None for weights that stay"),
        ("half", {}, "cuts over all processes, got net.2.weight"),
        ("steep", {}, "expected gradients that are slopes of the loss"),
        ("kinked", {}, "expected a smooth network .* got relu"),
        ("low", {}, "without a MixedPrecisionPolicy"),
        ("odd", {"solve_precision": "float64"}, "expected weights in float32"),
        ("odd", {"state_file": "s.state"}, "expected no state_file= or resume_from="),
    ],
)
def test_refused_in_every_process(name, options, message, tmp_path):
    ended = start(
        tmp_path / "two", model=name, trainer=SHARDED,
        callback=BARE | DIFFERENCES | options,
    )  # fmt: skip
    assert ended.returncode != 0
    assert re.search(message, " ".join(ended.stderr.split())), ended.stderr[-3000:]
    assert not (tmp_path / "two" / "clean.ckpt").exists()
    assert not (tmp_path / "two" / "ledger.jsonl").exists()
