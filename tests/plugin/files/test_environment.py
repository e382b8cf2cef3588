"""Rows that were kept are those of one environment: elsewhere they are read again."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lightning_unlearn import UnlearningCallback, prepare
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.weights.environment import changes, environment
from tests.helpers.nets import HeadNet, fitted, loader, same, trainer, weights
from tests.plugin.files.test_hostile_prepared_file import opened

FORGET = [0, 5, 77]
BARE = {"noise_std": 0.0, "prepared": "secret.pt"}
AGAIN = r"another environment \({}.*all samples are read again"


@pytest.fixture
def threads():
    """Puts the number back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trained():
    """The data; a checkpoint and prepared state are in the folder."""
    _, run, _, dataset = fitted(**BARE)
    run.save_checkpoint("trained.ckpt")
    prepare(run)
    return dataset


def requested(dataset, **options):
    """Weights and result of a request in a fresh process, as far as one can tell."""
    net = HeadNet()
    result = trainer(UnlearningCallback(**options)).unlearn(
        FORGET, model=net, train_dataloaders=loader(dataset), ckpt_path="trained.ckpt"
    )
    return weights(net), result


def change_head(**environment):
    head, tensors = opened("secret.pt")
    made_in = json.loads(head["environment"]) | environment
    save_file(tensors, "secret.pt", head | {"environment": json.dumps(made_in)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda: torch.set_num_threads(3), "threads was .*, is 3"),
        (lambda: change_head(torch="2.0.1"), "torch was 2.0.1, is 2"),
        (lambda: change_head(numpy="1.0"), "numpy was 1.0, is "),
        (lambda: change_head(device="cuda, H200, 9.0"), "device was cuda, H200, 9.0"),
        (lambda: change_head(kernels="AVX2", x="1", y="2", z="3"), ".*and 1 more"),
    ],
)
def test_what_was_prepared_elsewhere_is_read_again(change, told, trained, threads):
    change()
    with pytest.warns(UserWarning, match=AGAIN.format(told)):
        kept, _ = requested(trained, **BARE)
    cold, _ = requested(trained, noise_std=0.0)
    assert same(kept, cold)


def test_other_kernels_are_another_environment(trained):
    torch._C._set_mkldnn_enabled(False)
    try:
        with pytest.warns(UserWarning, match=AGAIN.format("mkldnn was True, is False")):
            kept, _ = requested(trained, **BARE)
        cold, _ = requested(trained, noise_std=0.0)
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert same(kept, cold)


def test_in_the_same_environment_it_is_used(trained):
    _, result = requested(trained, **BARE)
    assert result.solution.method == "Newton by a stored factor"
    assert not changes(
        environment(torch.device("cpu")), environment(torch.device("cpu"))
    )


def test_a_file_that_does_not_say_where_it_was_made_is_read_again(trained):
    head, tensors = opened("secret.pt")
    head.pop("environment")
    save_file(tensors, "secret.pt", head)
    with pytest.warns(UserWarning, match=AGAIN.format("in which one is not known")):
        requested(trained, **BARE)


def test_what_is_in_memory_is_bound_too(threads):
    _, run, callback, _ = fitted()
    prepare(run)
    before = callback.bound_state.environment
    torch.set_num_threads(torch.get_num_threads() + 1)
    with pytest.warns(UserWarning, match=AGAIN.format("threads was")):
        certificate = run.unlearn(FORGET).certificate
    assert certificate.grade is Grade.CERTIFIED
    assert callback.bound_state.environment != before  # read here, and kept
    assert run.unlearn([9]).certificate.grade is Grade.CERTIFIED
