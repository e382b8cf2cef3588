"""A long solve that is stopped and goes on, in another process, to the same end."""

import os
import stat
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lightning_unlearn import CG, FlexibleCG, NewtonStep, NystromCG
from lightning_unlearn.errors import DataError, SetupError, SolverError
from lightning_unlearn.plugin.files import solve_file
from lightning_unlearn.plugin.files.solve_file import SolveState
from tests.helpers.nets import (
    MLP,
    HeadNet,
    UnlearningCallback,
    digits,
    loader,
    same,
    trainer,
    weights,
)


class Stopped(BaseException):
    """Not an error: the process ends here."""


def stop_after(monkeypatch, writes):
    """End the process, as it were, right after a number of writes of the state."""
    made, write = [], solve_file.write

    def counted(path, saved):
        write(path, saved)
        made.append(saved.label)
        if len(made) == writes:
            raise Stopped

    monkeypatch.setattr(solve_file, "write", counted)
    return made


CASES = {
    "cg": (lambda: MLP(nn.Tanh), {"solver": CG(rtol=1e-6), "damping": 1.0}),
    "flexible": (lambda: MLP(nn.Tanh), {"solver": FlexibleCG(rtol=1e-6, samples=60)}),
    "nystrom": (
        lambda: MLP(nn.Tanh),
        {"solver": NystromCG(rtol=1e-8, samples=60, rank=5), "damping": 1.0},
    ),
    "lean": (
        lambda: MLP(nn.Tanh),
        {"low_memory": True, "solver": CG(rtol=1e-4), "damping": 1.0},
    ),
    "head": (HeadNet, {"solver": CG(rtol=1e-2), "tolerance": 1e-8}),
    "factor": (HeadNet, {"tolerance": 1e-8}),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    for name, make in (("net", lambda: MLP(nn.Tanh)), ("head", HeadNet)):
        own = trainer(UnlearningCallback())
        torch.manual_seed(0)
        own.fit(make(), loader(digits(1300)))
        own.save_checkpoint(folder / f"{name}.ckpt")
    return folder


def run(case, checkpoints, resume_from=None, processes=None, **more):
    """One request in what could be a fresh process."""
    make, options = CASES[case]
    net = make()
    own = UnlearningCallback(noise_std=0.0, **options, **more)
    name = "head" if isinstance(net, HeadNet) else "net"
    result = trainer(own, **(processes or {})).unlearn(
        [1, 2, 3], model=net, train_dataloaders=loader(digits(1300)),
        ckpt_path=checkpoints / f"{name}.ckpt", resume_from=resume_from,
    )  # fmt: skip
    return weights(net), result


@pytest.mark.parametrize("writes", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_resumed_end_is_the_uninterrupted_one(
    case, writes, checkpoints, tmp_path, monkeypatch
):
    whole, result = run(case, checkpoints)
    file = tmp_path / "solve.state"
    made = stop_after(monkeypatch, writes)
    with pytest.raises((Stopped, SystemExit)):
        run(case, checkpoints, state_file=file, state_every=1)
    assert len(made) == writes
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.undo()
    calls = stop_after(monkeypatch, 10**9)
    resumed, again = run(case, checkpoints, resume_from=file, state_every=1)
    if case == "factor":  # made anew where the descent stands
        near = 2 * 1e-8 / 1e-3
        for key, value in whole.items():
            assert float((resumed[key] - value).norm()) <= near
    else:
        assert same(resumed, whole)
        assert again.solution.steps == result.solution.steps
        assert again.solution.residual == result.solution.residual
    assert len(calls) < result.solution.steps or case in ("head", "factor")
    assert not file.exists()  # a secret that is of no use any more


@pytest.mark.slow
def test_two_processes_go_on_from_what_the_first_wrote(
    checkpoints, tmp_path, monkeypatch
):
    two = {"devices": 2, "strategy": "ddp_fork"}
    whole, result = run("cg", checkpoints, processes=two)
    file = tmp_path / "solve.state"
    stop_after(monkeypatch, 3)
    with pytest.raises((Exception, SystemExit, Stopped)):
        run("cg", checkpoints, processes=two, state_file=file, state_every=1)
    assert file.exists()
    monkeypatch.undo()
    resumed, again = run("cg", checkpoints, processes=two, resume_from=file)
    assert same(resumed, whole)
    assert again.solution.steps == result.solution.steps
    assert not file.exists()


def test_a_state_is_of_one_request(checkpoints, tmp_path, monkeypatch):
    file = tmp_path / "solve.state"
    stop_after(monkeypatch, 2)
    with pytest.raises((Stopped, SystemExit)):
        run("cg", checkpoints, state_file=file, state_every=1)
    monkeypatch.undo()
    raw = file.read_bytes()
    with pytest.raises(DataError, match="of another model, forget set, solver"):
        run("lean", checkpoints, resume_from=file)
    own, net = UnlearningCallback(noise_std=0.0, **CASES["cg"][1]), MLP(nn.Tanh)
    with pytest.raises(DataError, match="of another model, forget set, solver"):
        trainer(own).unlearn(
            [1, 2], model=net, train_dataloaders=loader(digits(1300)),
            ckpt_path=checkpoints / "net.ckpt", resume_from=file,
        )  # fmt: skip
    assert file.read_bytes() == raw
    assert b"forget" not in raw


def test_files_that_are_something_else(checkpoints, tmp_path):
    with pytest.raises(DataError, match="resume_from=.*No such file"):
        run("cg", checkpoints, resume_from=tmp_path / "nowhere")
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    with pytest.raises(DataError, match="state_file=, got .*precious.txt"):
        run("cg", checkpoints, state_file=precious, state_every=1)
    with pytest.raises(DataError, match="resume_from="):
        run("cg", checkpoints, resume_from=precious)
    assert precious.read_text() == "precious"
    with pytest.raises(SetupError, match="name one file"):
        run(
            "cg", checkpoints, state_file=tmp_path / "one", resume_from=tmp_path / "two"
        )
    for name in ("ledger", "prepared"):
        with pytest.raises(SetupError, match="a file of its own for state_file="):
            run("cg", checkpoints, state_file=precious, **{name: precious})


def test_a_disk_that_is_full_ends_the_request_and_not_the_model(
    checkpoints, tmp_path, monkeypatch
):
    def full(path, saved):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(solve_file, "write", full)
    with pytest.raises(OSError, match="No space left"):
        run("cg", checkpoints, state_file=tmp_path / "solve.state", state_every=1)


STATE = SolveState("ab" * 32, 0.5, {"x": torch.arange(4.0), "numbers": torch.ones(2)})


def test_round_trip(tmp_path):
    path = tmp_path / "a.state"
    solve_file.write(path, STATE)
    found = solve_file.read(path, STATE.made_from)
    assert (found.made_from, found.label) == (STATE.made_from, STATE.label)
    assert {k: v.tolist() for k, v in found.state.items()} == {
        k: v.tolist() for k, v in STATE.state.items()
    }


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_states_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "a.state"
    solve_file.write(path, STATE)
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    how = data.draw(st.sampled_from(["cut", "byte", "add", "numbers"]))
    if how == "cut":
        del raw[at:]
    elif how == "byte":
        raw[at] ^= data.draw(st.integers(1, 255))
    elif how == "add":
        raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        raw[-8:] = data.draw(st.sampled_from([b"\xff" * 8, b"\x7f\xf0" + b"\0" * 6]))
    path.write_bytes(raw)
    try:
        found = solve_file.read(path, STATE.made_from)
    except DataError:
        return
    # A number or a name that was changed to another: it can prove nothing anyway.
    assert sorted(t.numel() for t in found.state.values()) == [2, 4]
    assert all(bool(torch.isfinite(t).all()) for t in found.state.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "nan"}, {"label": "far"}, {"more": "1"},
        {"format": "lightning_unlearn solve 1"}, {"digest": "ab"},
    ],
)  # fmt: skip
def test_forged_heads_are_refused(changes, tmp_path):
    path = tmp_path / "a.state"
    solve_file.write(path, STATE)
    with safe_open(path, framework="pt") as held:
        names = list(held.keys())
        head, tensors = held.metadata(), {k: held.get_tensor(k) for k in names}
    save_file({k: v.clone() for k, v in tensors.items()}, path, {**head, **changes})
    with pytest.raises(DataError, match="expected where a solve stood"):
        solve_file.read(path, STATE.made_from)
    path.write_bytes(b"[" * 70_000)
    with pytest.raises(DataError, match="expected where a solve stood"):
        solve_file.read(path, STATE.made_from)
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="expected where a solve stood"):
        solve_file.read(path, STATE.made_from)
    assert os.listdir(tmp_path) == ["a.state"]


@pytest.mark.parametrize(
    ("case", "vectors", "numbers"),
    [
        ("cg", ("x", "r", "p"), (1.0, 1e9, 3)),
        ("cg", ("x", "r", "p"), (1.0, 0.5, 3)),
        ("flexible", ("x", "r", "p", "Ap"), (0.0, 2)),
        ("flexible", ("x", "r", "p", "Ap"), (1.0, 1e9)),
        ("flexible", ("x",), (1.0, 1.0)),
        ("head", ("w",), (0, 1e300, 1.0, 1.0)),
        ("head", ("w",), (0, -1.0, 1.0, 1.0)),
    ],
)
def test_states_that_lie_are_named(case, vectors, numbers, checkpoints, tmp_path):
    file = tmp_path / "solve.state"
    with pytest.raises(SolverError, match="in the state of a solve"):
        run(
            case, checkpoints,
            resume_from=forged(case, checkpoints, file, vectors, numbers),
        )  # fmt: skip


@pytest.mark.parametrize("before", [0.0, 1e-300, 1e300])
def test_a_head_goes_on_from_any_norm(before, checkpoints, tmp_path):
    file = forged("head", checkpoints, tmp_path / "s", ("w",), (0, 1, 1.0, before))
    resumed, _ = run("head", checkpoints, resume_from=file)
    whole, _ = run("head", checkpoints)
    for key, value in whole.items():
        assert float((resumed[key] - value).norm()) <= 2 * 1e-8 / 1e-3


def forged(case, checkpoints, file, vectors, numbers):
    """A state file of the very request, with other contents."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises((Stopped, SystemExit)):
            run(case, checkpoints, state_file=file, state_every=1)
    with safe_open(file, framework="pt") as held:
        head, names = held.metadata(), list(held.keys())
        size = max(held.get_tensor(name).numel() for name in names)
    state = {name: torch.rand(size, dtype=torch.float64) for name in vectors}
    state["numbers"] = torch.tensor(numbers, dtype=torch.float64)
    solve_file.write(file, SolveState(head["made_from"], float(head["label"]), state))
    return file


def test_a_solver_s_word_supports_no_claim(checkpoints):
    """The residual of a certificate is measured, whatever the solver says."""

    class Boaster(CG):
        def solve(self, A, b, observer):
            found = super().solve(A, b)
            return replace(found, residual=0.0)

    own = UnlearningCallback(
        max_norm=20.0, accept_noise=True, damping=2.0, solver=Boaster(rtol=0.5),
        solve_precision="float64",
        guarantee=NewtonStep(
            hessian_lipschitz=1e3, lambda_min=-1.5, retrained_gradient_norm=1.0,
            residual=1e-6,
        ),
    )  # fmt: skip
    net = MLP(nn.Tanh)
    with pytest.raises(SolverError, match="expected a residual of at most 1e-06"):
        trainer(own).unlearn(
            [1, 2, 3], model=net, train_dataloaders=loader(digits(1300)),
            ckpt_path=checkpoints / "net.ckpt",
        )  # fmt: skip


def test_a_folder_that_is_not_there_is_named_at_once(checkpoints, tmp_path):
    with pytest.raises(SetupError, match="the folder of state_file=.* to exist"):
        run("cg", checkpoints, state_file=tmp_path / "nowhere" / "solve.state")
