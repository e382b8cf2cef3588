"""Real processes: the same request on one and on two, and what happens if one dies."""

import itertools
import subprocess
import sys

import pytest
import torch

from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.guarantee.claims import Bound, Grade
from lightning_unlearn.weights.digests import state_digest
from tests.helpers.nets import UnlearningCallback, digits, loader, trainer
from tests.plugin.helpers.distributed_job import ROOT, N, done, saved, start
from tests.plugin.helpers.distributed_nets import model
from tests.plugin.helpers.language import text

BARE = {"noise_std": 0.0, "tolerance": 1e-9, "max_norm": 20.0}
TWO = {"devices": 2}
LEFT = {"job.json", ".ledger.jsonl.lock"}  # after a request that failed: an empty lock


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of both models, trained on one device."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("head", "mlp"):
        own = trainer(
            UnlearningCallback(max_norm=20.0, accept_noise=True), max_epochs=3
        )
        own.fit(model(name), loader(digits(N)))
        own.save_checkpoint(folder / f"{name}.ckpt")
    return folder


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory):
    """name -> the folder of its request on one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in ("head", "mlp"):
        done(
            folder / name, trainer={"devices": 1}, callback=BARE, model=name,
            ckpt_path=str(trained / f"{name}.ckpt"),
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def vectors(trained, tmp_path_factory):
    """Gradient and product of one process."""
    (found,) = done(
        tmp_path_factory.mktemp("vectors") / "one", trainer={"devices": 1},
        callback=BARE, model="mlp", ckpt_path=str(trained / "mlp.ckpt"), vectors=True,
    )  # fmt: skip
    return found


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "fsdp2"])
def test_gradient_and_product_of_two_processes_are_those_of_one(
    strategy, vectors, trained, tmp_path
):
    found = done(
        tmp_path / "two", model="mlp", ckpt_path=str(trained / "mlp.ckpt"),
        callback=BARE, vectors=True, trainer=TWO | {"strategy": strategy},
    )  # fmt: skip
    for told in found:
        for one, two in zip(vectors[:3], told[:3], strict=True):
            one, two = torch.tensor(one), torch.tensor(two)
            assert float((one - two).norm() / one.norm()) < 1e-6


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *itertools.product(
            ["head", "mlp"], ["ddp", "ddp_spawn", "ddp_fork", "fsdp2-file"]
        ),
        ("head", "ddp by Lightning"),
        ("head", "ddp_spawn by Lightning"),
    ],
)
def test_two_processes_end_where_one_does(name, strategy, alone, trained, tmp_path):
    ckpt = trained / f"{name}.ckpt"
    strategy, *anew = strategy.split(" by ")
    told = done(
        tmp_path / "two", model=name, ckpt_path=str(ckpt), callback=BARE,
        trainer=TWO | {"strategy": strategy}, anew=bool(anew),
    )  # fmt: skip
    assert len(told) == (2 if strategy in ("ddp", "fsdp2-file") else 1)
    assert {t["world"] for t in told} == {2}
    one, two = saved(alone / name), saved(tmp_path / "two")
    before = torch.load(ckpt, weights_only=True)["state_dict"]
    moved = 0.0
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(value, two["state_dict"][key], rtol=1e-5, atol=1e-5)
        moved = max(moved, float((value - before[key]).abs().max()))
    assert moved > 1e-3  # the request does something
    entries = ledgers.read(tmp_path / "two" / "ledger.jsonl").entries
    assert [(e.n_forget, e.n_retain) for e in entries] == [(2, N - 2)]
    assert len({t["certificate"] for t in told}) == 1
    assert len({t["state"] for t in told}) == 1
    assert told[0]["state"] == state_digest(two["state_dict"])
    assert told[0]["record"]["removed"] == [3, 100]
    assert all(t["record"] == told[0]["record"] for t in told)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "fsdp2-file"])
def test_certified_in_two_processes_with_one_noise(strategy, trained, tmp_path):
    told = done(
        tmp_path / "two", model="head", ckpt_path=str(trained / "head.ckpt"),
        trainer=TWO | {"strategy": strategy},
    )  # fmt: skip
    certificate = Certificate.from_json(told[0]["certificate"])
    certificate.verify()
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.noise_std > 0
    assert len({t["state"] for t in told}) == 1  # the same noise in every process
    state = saved(tmp_path / "two")["state_dict"]
    assert state_digest(state) == certificate.weights_digest


@pytest.mark.parametrize(
    ("strategy", "name"),
    [("ddp", "normed"), ("ddp_spawn", "normed"), ("fsdp2-file", "mlp")],
)
def test_retrained_in_two_processes(strategy, name, tmp_path):
    told = done(
        tmp_path / "two", model=name, fit=True, how="retrain",
        trainer=TWO | {"strategy": strategy, "max_epochs": 1},
    )  # fmt: skip
    certificate = Certificate.from_json(told[0]["certificate"])
    certificate.verify()
    assert certificate.grade is Grade.EXACT
    assert len({t["state"] for t in told}) == 1
    state = saved(tmp_path / "two")["state_dict"]
    assert state_digest(state) == certificate.weights_digest == told[0]["state"]
    assert told[0]["record"]["removed"] == [3, 100]
    assert ("net.1.running_mean" in certificate.rebuilt) == (name == "normed")


@pytest.mark.parametrize(
    ("strategy", "name", "bound"),
    [
        ("ddp", "normed", Bound.REWOUND),
        # The record of a first Trainer's processes stays with it: from the start.
        ("ddp_spawn", "normed", Bound.RETRAINED),
        ("fsdp2-file", "mlp", Bound.RETRAINED),  # shards are not kept: from the start
    ],
)
def test_retrained_from_a_stage_in_two_processes(strategy, name, bound, tmp_path):
    told = done(
        tmp_path / "two", model=name, first=200, fit=True, how="retrain",
        forget=[250, 390], callback={"stages": str(tmp_path / "stages")},
        trainer=TWO | {"strategy": strategy, "max_epochs": 1},
    )  # fmt: skip
    certificate = Certificate.from_json(told[0]["certificate"])
    assert (certificate.grade, certificate.bound) == (Grade.EXACT, bound)
    assert len({t["state"] for t in told}) == 1
    state = saved(tmp_path / "two")["state_dict"]
    assert state_digest(state) == certificate.weights_digest == told[0]["state"]
    stages = told[0]["record"]["stages"]
    assert [len(s["drawn"]) for s in stages] == [200] * (bound is Bound.REWOUND)


@pytest.mark.parametrize(
    ("strategy", "again"),
    [
        ("ddp", {"devices": 2, "strategy": "ddp"}),
        ("ddp_spawn", {"devices": 1}),
        ("fsdp2", {"devices": 2, "strategy": "fsdp2"}),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_fit_then_unlearn_then_fit_in_two_processes(strategy, again, resume, tmp_path):
    told = done(
        tmp_path / "two", model="head", fit=True, again=again | {"max_epochs": 3},
        resume=resume, trainer=TWO | {"strategy": strategy, "max_epochs": 2},
    )  # fmt: skip
    certificate = Certificate.from_json(told[0]["certificate"])
    assert certificate.grade is Grade.CERTIFIED
    assert not [w for w in certificate.warnings if "no record" in w]
    assert told[0]["record"]["n_train"] == N
    assert told[0]["record"]["removed"] == [3, 100]
    assert told[0]["after"] > 0


def test_a_number_that_one_process_has_kept_of_its_samples_is_seen(tmp_path):
    told = done(
        tmp_path / "two", model="peaked", fit=True,
        trainer=TWO | {"strategy": "ddp", "max_epochs": 1},
    )  # fmt: skip
    certificate = Certificate.from_json(told[0]["certificate"])
    assert certificate.grade is Grade.NONE
    assert certificate.unscrubbed == (
        "peak (number)", "what reaches the head (it changed in training: peak)",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "grade"),
    [
        ({"strategy": "ddp_spawn"}, {"devices": 1}, Grade.CONDITIONAL),
        ({"strategy": "ddp_fork"}, {"devices": 1}, Grade.CONDITIONAL),
        ({"devices": 1}, {"strategy": "ddp_spawn"}, Grade.NONE),
    ],
)
def test_a_backbone_trained_in_other_processes_is_not_public(
    first, second, grade, tmp_path
):
    told = done(
        tmp_path / "two", model="trained", fit=True,
        public=TWO | {"max_epochs": 1} | first,
        trainer=TWO | {"max_epochs": 1} | second,
    )  # fmt: skip
    certificate = Certificate.from_json(told[0]["certificate"])
    assert certificate.grade is grade


def test_a_module_that_saves_a_part_of_itself_comes_home_whole(tmp_path):
    told = done(
        tmp_path / "two", model="partial", fit=True, again={"devices": 1},
        trainer=TWO | {"strategy": "ddp_spawn", "max_epochs": 1},
    )  # fmt: skip
    assert told[0]["record"]["removed"] == [3, 100]
    assert Certificate.from_json(told[0]["certificate"]).grade is Grade.CERTIFIED


@pytest.mark.parametrize("name", ["suicide", "poisoned"])
def test_a_process_that_fails_or_is_killed_changes_nothing(name, trained, tmp_path):
    before = (trained / "mlp.ckpt").read_bytes()
    ended = start(
        tmp_path / "two", model=name, ckpt_path=str(trained / "mlp.ckpt"),
        callback=BARE | {"batch_size": 8, "graph_memory": 0},
        trainer=TWO | {"strategy": "ddp"}, anew=True,
    )  # fmt: skip
    assert ended.returncode != 0
    if name == "poisoned":
        assert ended.stderr.count("ModelError: expected a finite loss") == 2
    left = {path.name for path in (tmp_path / "two").iterdir()}
    assert left == LEFT  # no checkpoint, no part of one, no ledger
    assert (trained / "mlp.ckpt").read_bytes() == before


def test_processes_that_disagree_are_refused(trained, tmp_path):
    ended = start(
        tmp_path / "two", model="mlp", ckpt_path=str(trained / "mlp.ckpt"),
        callback=BARE, trainer=TWO | {"strategy": "ddp"}, disagree=True,
    )  # fmt: skip
    assert ended.returncode != 0
    assert "expected the same forget set in every process" in ended.stderr
    assert {path.name for path in (tmp_path / "two").iterdir()} == LEFT


@pytest.mark.parametrize("name", ["gpt", "lora"])
def test_a_language_model_under_ddp(name, tmp_path):
    n, damping = 61, 4.0
    own = trainer(UnlearningCallback(), max_epochs=3)
    own.fit(model(name), loader(text(n), 16))
    own.save_checkpoint(tmp_path / "run.ckpt")
    options = {
        "model": name, "n": n, "forget": [0, 17],
        "ckpt_path": str(tmp_path / "run.ckpt"),
        "callback": {"noise_std": 0.0, "damping": damping, "batch_size": 8},
    }  # fmt: skip
    done(tmp_path / "one", trainer={"devices": 1}, **options)
    told = done(tmp_path / "two", trainer=TWO | {"strategy": "ddp"}, **options)
    assert len({t["state"] for t in told}) == 1
    before = torch.load(options["ckpt_path"], weights_only=True)["state_dict"]
    one, two = (saved(tmp_path / f)["state_dict"] for f in ("one", "two"))
    moved = {k for k, v in one.items() if not torch.equal(v, before[k])}
    expected = {k for k in one if "up" in k or "down" in k} if name == "lora" else one
    assert moved == set(expected)
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-5, atol=1e-5)


def test_a_refusal_in_spawned_processes_keeps_its_name(trained, tmp_path):
    ended = start(
        tmp_path / "two", model="mlp", ckpt_path=str(trained / "mlp.ckpt"),
        callback=BARE, trainer=TWO | {"strategy": "ddp_spawn"}, forget=[N + 1],
    )  # fmt: skip
    assert ended.returncode != 0
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("lightning_unlearn.errors.ForgetSetError: expected")


def test_a_ddp_training_is_unlearned_on_one_device(tmp_path):
    path = tmp_path / "run.ckpt"
    subprocess.run(
        [sys.executable, "-m", "tests.plugin.helpers.ddp_train", str(path)],
        check=True, cwd=ROOT, timeout=300, capture_output=True,
    )  # fmt: skip
    state = torch.load(path, weights_only=True)
    record = state["callbacks"]["UnlearningCallback"]
    assert (record["n_train"], record["max_norm"]) == (600, 2.0)
    assert record["projections"] > 0
    head = [v for k, v in state["state_dict"].items() if k.startswith("head")]
    assert sum(float(v.square().sum()) for v in head) ** 0.5 <= 2.0
    certificate = (
        trainer(UnlearningCallback())
        .unlearn(
            [1, 2], model=model("head"), train_dataloaders=loader(digits(600)),
            ckpt_path=path,
        )
        .certificate
    )  # fmt: skip
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.n_retain == 598


@pytest.mark.parametrize("name", ["rebuilt", "marked"])
def test_each_process_compares_its_share_of_rebuilt_data(name, trained, tmp_path):
    job = {
        "model": name, "ckpt_path": str(trained / "head.ckpt"),
        "trainer": TWO | {"strategy": "ddp"},
    }  # fmt: skip
    if name == "marked":  # one process of the two has the only row that differs
        ended = start(tmp_path / "two", **job)
        assert ended.returncode != 0
        assert "got 1 of 395 that differ" in ended.stderr
        assert {p.name for p in (tmp_path / "two").iterdir()} == LEFT
        return
    told = done(tmp_path / "two", **job)
    certificate = Certificate.from_json(told[0]["certificate"])
    assert certificate.grade is Grade.CERTIFIED
    assert certificate.ways_checked
