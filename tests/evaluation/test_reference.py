"""The public names are documented, and every metric keeps torchmetrics' contract."""

import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lightning_unlearn import evaluation
from lightning_unlearn.evaluation import (
    AccuracyGaps,
    ForgettingQuality,
    Klom,
    MembershipInference,
    OutputDivergence,
    ULiRA,
)

ROOT = Path(__file__).parents[2]
Y = torch.tensor([0, 1, 1, 0])
PHI = (torch.arange(16.0).reshape(4, 4).sin(), torch.arange(16.0).reshape(4, 4).cos())
GIVEN = {
    AccuracyGaps: (Y, Y.flip(0), Y, "forget"),
    ForgettingQuality: PHI,
    Klom: PHI,
    MembershipInference: (PHI[0][0], Y.bool(), PHI[1][0]),
    OutputDivergence: PHI,
    ULiRA: PHI,
}


def make(kind):
    return kind(("forget",)) if kind is AccuracyGaps else kind()


def numbers(result):
    """All numbers of a result, in order."""
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, tuple):
        return [number for part in result for number in numbers(part)]
    return torch.as_tensor(result).flatten().tolist()


def test_every_public_name_is_in_the_reference():
    listed = [
        name
        for page in [ROOT / "docs/api.md", *ROOT.glob("docs/api/*.md")]
        for name in re.findall(
            r"^::: lightning_unlearn\.evaluation\.(\w+)$", page.read_text(), re.M
        )
    ]
    assert sorted(listed) == sorted(evaluation.__all__)


@pytest.mark.parametrize("kind", GIVEN)
def test_metrics_are_reset_cloned_and_pickled(kind):
    metric = make(kind)
    metric.update(*GIVEN[kind])
    expected = numbers(metric.compute())
    assert expected
    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert numbers(copy.compute()) == pytest.approx(expected)
    metric.reset()
    metric.update(*GIVEN[kind])
    assert numbers(metric.compute()) == pytest.approx(expected)


@pytest.mark.parametrize("kind", GIVEN)
def test_forward_gives_the_batch_and_keeps_the_total(kind):
    metric, batch = make(kind), make(kind)
    batch.update(*GIVEN[kind])
    metric.update(*GIVEN[kind])
    assert numbers(metric(*GIVEN[kind])) == pytest.approx(numbers(batch.compute()))
    assert len(numbers(metric.compute())) >= len(numbers(batch.compute()))


@pytest.mark.parametrize("kind", GIVEN)
def test_processes_are_gathered(kind):
    """Two processes with the same samples: as one that saw them twice."""
    both = make(kind)
    both.update(*GIVEN[kind])
    both.update(*GIVEN[kind])
    options = {
        "distributed_available_fn": lambda: True,
        "dist_sync_fn": lambda tensor, group=None: [tensor, tensor],
    }
    first = kind(("forget",), **options) if kind is AccuracyGaps else kind(**options)
    first.update(*GIVEN[kind])
    assert numbers(first.compute()) == pytest.approx(numbers(both.compute()))


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.filterwarnings(
    "ignore:The ``compute`` method of metric .* was called before"
)
def test_a_process_may_have_no_sample(kind):
    """Few forgotten samples, many processes: all of them compute the same.

    Real collectives crash on tensors of another dtype or dimension.
    """
    alone = make(kind)
    alone.update(*GIVEN[kind])
    barrier, slots = threading.Barrier(2, timeout=30), [None, None]

    def work(rank):
        def gather(tensor, group=None):
            slots[rank] = tensor
            barrier.wait()
            found = list(slots)
            barrier.wait()
            assert len({(each.dtype, each.ndim) for each in found}) == 1
            return found

        options = {"distributed_available_fn": lambda: True, "dist_sync_fn": gather}
        metric = (
            kind(("forget",), **options) if kind is AccuracyGaps else kind(**options)
        )
        if rank:
            metric.update(*GIVEN[kind])
        return numbers(metric.compute())

    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(work, range(2)):
            assert got == pytest.approx(numbers(alone.compute()))


@pytest.mark.parametrize("kind", GIVEN)
def test_contract_of_torchmetrics_is_declared(kind):
    assert kind.is_differentiable is False
    assert kind.full_state_update is False
    assert kind.higher_is_better in (None, True, False)


@pytest.mark.parametrize("kind", GIVEN)
def test_inputs_keep_no_graph(kind):
    metric = make(kind)
    given = [
        x.clone().requires_grad_()
        if torch.is_tensor(x) and x.is_floating_point()
        else x
        for x in GIVEN[kind]
    ]
    metric.update(*given)
    states = metric.metric_state.values()
    kept = [
        t for state in states for t in (state if isinstance(state, list) else [state])
    ]
    assert kept
    assert not any(tensor.requires_grad for tensor in kept)
