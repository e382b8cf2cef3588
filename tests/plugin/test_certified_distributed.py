"""A CertifiedClassifier solved and unlearned in two real processes, as in one."""

import json

import pytest
import torch

from lightning_unlearn.plugin.files import prepared_file
from tests.plugin.helpers import certified_job, forked
from tests.plugin.helpers.publics import private, solved


@pytest.fixture(scope="module")
def alone():
    """Heads on one device: solved, and after the request."""
    torch.manual_seed(0)
    net, own, _, _ = solved(dataset=private(), noise_std=0.0, tolerance=1e-8)
    before = net.head.weight.detach().clone()
    own.unlearn(range(40))
    rows = own.callbacks[0].bound_state.state
    return before, net.head.weight.detach().clone(), rows


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "fsdp2", "fsdp2-whole"])
def test_two_processes_solve_and_forget_as_one(strategy, alone, tmp_path):
    ended = forked.run(certified_job.main, tmp_path, strategy, strategy=strategy)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == ["strongly_convex", 560]
    *expected_weights, rows = alone
    for name, expected in zip(("solved", "clean"), expected_weights, strict=True):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        found = saved["state_dict"]["head.weight"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    store = prepared_file.read(tmp_path / "rows.store").state
    assert store.positions.tolist() == rows.positions.tolist() == [*range(40, 600)]
    torch.testing.assert_close(store.rows.features, rows.rows.features)
    assert torch.equal(store.rows.targets, rows.rows.targets)
    torch.testing.assert_close(store.start, rows.start, rtol=1e-4, atol=1e-5)
