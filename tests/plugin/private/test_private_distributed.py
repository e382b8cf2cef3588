"""A private training in two real processes; a fault in one of them ends both."""

import json
import re

import pytest
from torch.utils.data import DataLoader

from lightning_unlearn import PrivateTraining, UnlearningCallback
from lightning_unlearn.certificate.verification import verify_text
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import MLP, digits, trainer
from tests.plugin.helpers import forked, private_job
from tests.plugin.helpers.private_job import N

pytest.importorskip("dp_accounting")

FAULTS = {
    "rows": "DataError: expected the drawn samples in the batch",
    "weights": "ModelError: expected weights that nothing moves",
    "skips": "ModelError: expected one step of the optimizer for every batch",
    "twice": "ModelError: expected one step of the optimizer for every batch",
    "order": "DataError: expected the same training data in every process",
    "early": "DataError: expected the same weights in every process",
    "late": "GuaranteeError: expected a training that was private.*something but its",
}


def run(folder, strategy, *faults):
    """What each process told, of each fault."""
    told = (private_job.main, folder, strategy, *faults)
    ended = forked.run(*told, strategy=strategy, timeout=900)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("?.json"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def told(folder):
    """Of two processes that go on after each refusal: so none was left waiting."""
    return run(folder, "ddp", *FAULTS, "none")


@pytest.mark.slow
def test_two_processes_are_one_training(told):
    one, two = (each["none"] for each in told)
    assert "error" not in one, one["error"]
    for name in ("grads", "weights", "after", "certificate", "private"):
        assert one[name] == two[name], name
    assert one["weights"] == one["after"]
    assert one["sampler"] == "BatchSampler"  # Lightning's own is given back
    # Each draws from a part of its own; together it is everybody.
    first, second = ({i for batch in t["drawn"] for i in batch} for t in (one, two))
    assert first <= {*range(0, N, 2)}
    assert second <= {*range(1, N, 2)}
    private = one["private"]
    steps = 2 * 11  # 151 samples a process, 15 a batch
    assert private["sampling_rate"] == pytest.approx(30 / N)
    assert (private["steps"], private["done"]) == (steps, steps)
    sizes = [len(batch) for t in (one, two) for batch in t["drawn"]]
    assert len(sizes) == 2 * steps
    assert 11 < sum(sizes) / len(sizes) < 19  # of 15
    # The noise of one process, once: of both it would be 1.41 times as much.
    assert one["std"] == pytest.approx(4.0 / 30, rel=0.1)
    findings = verify_text(one["certificate"])
    assert all(found.holds is not False for found in findings), findings
    assert json.loads(one["certificate"])["grade"] == "certified"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_process_ends_all(told, fault):
    assert len(told) == 2
    for each in told:
        assert re.search(FAULTS[fault], each[fault]["error"]), each[fault]["error"]


KINDS = ("none", "zero", "unused", "idle", "bucket")
REFUSED = {
    "static": "StrategyError: expected DDP without static_graph=True .*strategy='ddp'",
    "momentum": "ModelError: expected an optimizer whose state .momentum. only its pri",
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Of optimizers and DDPs that do otherwise than the ordinary ones."""
    return run(tmp_path_factory.mktemp("kinds"), "ddp", *REFUSED, *KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_right_under_other_optimizers_and_kinds_of_ddp(kinds, kind):
    one, two = (each[kind] for each in kinds)
    assert "error" not in one, one["error"]
    for name in ("grads", "weights", "after", "certificate", "private"):
        assert one[name] == two[name], name
    assert one["private"]["problem"] is None
    assert one["private"]["done"] == 22
    # The noise once, and each weight goes where it says.
    assert one["std"] == pytest.approx(4.0 / 30, rel=0.1)
    assert one["off"] < 1e-5 < 0.1 < one["moved"]
    assert json.loads(one["certificate"])["grade"] == "certified"


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name_in_all(kinds, kind):
    for each in kinds:
        assert re.search(REFUSED[kind], each[kind]["error"]), each[kind]["error"]


@pytest.mark.slow
def test_a_request_in_one_process_after_two(told, folder):
    settings = PrivateTraining(noise_multiplier=4.0)
    callback = UnlearningCallback(epsilon=4.0, delta=1e-4, private=settings)
    loader = DataLoader(digits(N), 15, shuffle=True)
    clean = folder / "clean.ckpt"
    found = trainer(callback).unlearn([5], MLP(), loader, ckpt_path=clean)
    assert found.certificate.grade is Grade.CERTIFIED
    assert found.certificate.group == 3  # two were forgotten under ddp


@pytest.mark.slow
def test_spawned_processes_send_their_record(tmp_path):
    (told,) = run(tmp_path, "ddp_spawn", "none")
    assert "error" not in told["none"], told["none"]["error"]
    assert json.loads(told["none"]["certificate"])["grade"] == "certified"
    assert told["none"]["private"]["done"] == 22


@pytest.mark.slow
def test_sharded_weights_are_refused_by_name(tmp_path):
    told = run(tmp_path, "fsdp2", "none")
    match = "StrategyError: expected one device or ddp for PrivateTraining, got ModelP"
    assert all(match in each["none"]["error"] for each in told), told
