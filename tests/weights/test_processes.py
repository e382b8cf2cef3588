"""Several processes compute what one does, and fail together."""

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import ConvexHead
from lightning_unlearn.errors import DataError, ModelError, StrategyError
from lightning_unlearn.plugin.data.exact_batches import ExactBatches
from lightning_unlearn.solvers.lissa import LiSSA
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.factor import factorise
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.rows.feature_data import FeatureData
from lightning_unlearn.step.network.damped_step import damped_step
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from lightning_unlearn.step.network.products import PRODUCTS
from lightning_unlearn.weights.processes import Processes
from lightning_unlearn.weights.scope import Scope
from tests.helpers import teams
from tests.helpers.problems import classification, mlp

ALONE = Processes()
NET = mlp()  # made once: threads share the seed


@settings(max_examples=60)
@given(
    n=st.integers(1, 40), batch_size=st.integers(1, 9), world=st.integers(1, 5),
    by_position=st.booleans(), gap=st.integers(1, 3),
)  # fmt: skip
def test_every_sample_is_in_one_process_once(n, batch_size, world, by_position, gap):
    dataset = TensorDataset(torch.arange(n * gap))
    indices = list(range(0, n * gap, gap))
    read, steps = [], set()
    for rank in range(world):
        batches = ExactBatches(
            DataLoader(dataset, batch_size), indices, batch_size,
            by_position=by_position, rank=rank, world=world,
        )  # fmt: skip
        seen = [(weight, batch[0].tolist()) for weight, batch in batches]
        steps.add(len(seen))
        # By position a batch is filled up with samples that do not count.
        assert by_position or all(weight in (0, len(rows)) for weight, rows in seen)
        own = [row for weight, rows in seen for row in rows[:weight]]
        assert own == [indices[place] for place in batches.places]
        assert batches.n == n
        read += own
    assert sorted(read) == indices
    assert len(steps) == 1


def network(processes, n=37, l2=0.01, **options):
    X, y = classification(n)
    net = copy.deepcopy(NET)
    batches = ExactBatches(
        DataLoader(TensorDataset(X, y), 5), list(range(n)), 5,
        rank=processes.rank, world=processes.world,
    )  # fmt: skip
    return EmpiricalObjective(
        lambda b, i: F.cross_entropy(net(b[0]), b[1]),
        Scope(net, net.parameters()), batches, l2, processes=processes, **options,
    )  # fmt: skip


@pytest.mark.parametrize("world", [2, 3, 9])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("kept", [0, 100])
def test_a_network_is_the_same_on_several(world, curvature, kept):
    v = torch.randn(39, generator=torch.Generator().manual_seed(0)).double()

    def work(processes):
        product = PRODUCTS[curvature]
        F = network(processes, product=product, kept=kept, chunk=4)
        value, gradient = F.value_and_gradient()
        seeded = [torch.Generator().manual_seed(i) for i in range(3)]
        proxy = F.proxy(50, seeded[0])
        return [
            torch.tensor(value), gradient, F.importance, F.hvp(v), F.hessian(v),
            proxy(v), F.sampled_hvp(v, 7, seeded[1]),
            F.sampled_hessian(11, seeded[2])(v),
        ]  # fmt: skip

    expected = work(ALONE)
    for found in teams.run(world, work):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", [None, LiSSA(scale=20.0, steps=50)])
def test_a_step_is_the_same_on_several(solver):
    def work(processes):
        F = network(processes, n=130, l2=0.1)
        return damped_step(
            F, damping=None if solver is None else 1.0, solver=solver,
            guarantee=None, max_norm=None,
        ).weights  # fmt: skip

    expected = work(ALONE)
    for found in teams.run(3, work):
        torch.testing.assert_close(expected, found, rtol=1e-8, atol=1e-10)


def head(processes, n=200, block=16, loss="cross_entropy", dtype=torch.float64):
    X, y = classification(n)
    if loss != "cross_entropy":
        y = F.one_hot(y, 3).to(dtype)
    batches = ExactBatches(
        DataLoader(TensorDataset(X, y), block), list(range(n)), block,
        by_position=True, rank=processes.rank, world=processes.world,
    )  # fmt: skip
    own = batches.places
    return ConvexObjective(
        ConvexHead(5, 3, loss=loss), FeatureData(X[own].to(dtype), y[own]), 0.01,
        processes=processes, n=n, places=own,
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "mse"])
@pytest.mark.parametrize(("n", "world"), [(200, 2), (200, 3), (30, 4)])
def test_a_head_is_the_same_on_several(loss, n, world):
    w = torch.randn(18, generator=torch.Generator().manual_seed(0)).double()

    def work(processes):
        F = head(processes, n, loss=loss)
        F.set_hessian_at(w)
        gradient, rounding = F.gradient(w)
        seeded = [torch.Generator().manual_seed(i) for i in range(4)]
        return [
            gradient, torch.tensor(rounding), F.rough_gradient(w), F.hvp(w),
            torch.tensor(F.feature_norm), F.proxy(60, seeded[0])(w),
            F.sampled_hvp(w, 9, seeded[1]), factorise(F, n, seeded[2]).inverse,
            factorise(F, n // 2, seeded[3]).inverse,
        ]  # fmt: skip

    expected = work(ALONE)
    for found in teams.run(world, work):
        for one, other in zip(expected, found, strict=True):
            rtol = 1e-9 if one.dtype == torch.float64 else 1e-3
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


def test_a_head_is_minimised_to_the_same_weights_on_several():
    def work(processes):
        return minimise(head(processes), torch.zeros(18).double(), tolerance=1e-10)

    expected = work(ALONE)
    for found in teams.run(3, work):
        torch.testing.assert_close(expected.weights, found.weights, rtol=0, atol=1e-8)
        assert expected.constants == found.constants


def test_an_error_in_one_process_is_raised_in_all():
    def work(processes):
        F = network(processes)
        if processes.rank == 1:
            bad = torch.full((5, 5), torch.nan).double()
            F.batches._cache = [(5, (bad, torch.zeros(5, dtype=torch.int64)))]
        return F.value_and_gradient()

    for error in teams.run(3, work):
        assert isinstance(error, ModelError)
        assert "expected a finite loss" in str(error)


def test_foreign_errors_name_their_process():
    def work(processes):
        with processes.together():
            if processes.rank == 2:
                raise OSError("disk on fire")
        return "went on"

    found = teams.run(3, work)
    assert isinstance(found[2], OSError)
    for error in found[:2]:
        assert isinstance(error, StrategyError)
        assert "process 2 failed: RuntimeError: OSError: disk on fire" in str(error)


def test_the_first_process_decides():
    def work(processes):
        return processes.first(lambda: f"made by {processes.rank}")

    assert teams.run(3, work) == ["made by 0"] * 3

    def fails(processes):
        return processes.first(lambda: 1 / 0)

    zero, *others = teams.run(3, fails)
    assert isinstance(zero, ZeroDivisionError)
    assert all(isinstance(error, StrategyError) for error in others)


def test_processes_that_disagree_are_told_so():
    def work(processes):
        processes.agree(forget_set=[1, 2], data=processes.rank == 2)

    for error in teams.run(3, work):
        assert isinstance(error, DataError)
        assert "expected the same data in every process" in str(error)
    assert teams.run(2, lambda p: p.agree(forget_set=[1])) == [None, None]
