"""What one step draws may be read in pieces; and what a training shows of itself."""

import csv
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unlearn import PrivateTraining, UnlearningCallback
from lightning_unlearn.errors import ModelError, SetupError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.data.drawn import Drawable, PoissonBatches
from lightning_unlearn.plugin.private import per_sample, private_run, shown
from lightning_unlearn.plugin.private.private_steps import epsilon_one
from lightning_unlearn.plugin.training.training_record import PrivateSteps
from tests.helpers.lightning import Callback, CSVLogger, EarlyStopping
from tests.helpers.nets import MLP, digits, trainer

pytest.importorskip("dp_accounting")
N = 300


def fitted(callbacks=(), net=None, epochs=2, **options):
    settings = PrivateTraining(noise_multiplier=4.0)
    callback = UnlearningCallback(epsilon=4.0, delta=1e-4, private=settings)
    made = trainer(callback, epochs, callbacks=list(callbacks), **options)
    net = MLP() if net is None else net
    made.fit(net, DataLoader(digits(N), 30, shuffle=True))
    return net, made, callback


class Watch(Callback):
    """What each batch holds, and the gradient after a step."""

    def __init__(self):
        self.pieces, self.grads = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.piece = trainer.callbacks[0].attached.private._piece
        self.pieces.append(self.piece)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.piece.last:
            grads = [p.grad.flatten() for p in module.parameters()]
            self.grads.append(torch.cat(grads))


def test_a_step_is_drawn_at_once_and_read_in_pieces():
    watch = Watch()
    _, made, callback = fitted([watch], epochs=4, accumulate_grad_batches=4)
    steps = callback.record.private
    assert steps.sampling_rate == pytest.approx(4 * 30 / N)
    assert (steps.done, steps.steps) == (12, 12)  # 10 batches: 4, 4 and 2
    drawn, ends = [[]], [0]
    for piece in watch.pieces:
        drawn[-1] += piece.positions
        ends[-1] += 1
        if piece.last:
            drawn, ends = [*drawn, []], [*ends, 0]
    assert ends[:-1] == [4, 4, 2] * 4
    for one in drawn[:-1]:  # of 120, whether in four pieces or in two
        assert 80 < len(one) < 160
        assert len({*one}) == len(one)
    # The noise once a step, by the number that is drawn on average.
    std = float(torch.stack(watch.grads).std())
    assert std == pytest.approx(4.0 / 120, rel=0.15)
    found = made.unlearn([3]).certificate
    assert found.grade is Grade.CERTIFIED
    values = {c.name: c.value for c in found.constants}
    assert (values["sampling_rate"], values["steps"]) == (pytest.approx(0.4), 12)


def test_pieces_add_up_to_the_gradient_of_the_whole(monkeypatch):
    monkeypatch.setattr(private_run, "add_noise", lambda total, std: total)
    seen = []

    class Compare(Watch):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            super().on_train_batch_start(trainer, module, batch, batch_idx)
            self.rows = [*getattr(self, "rows", ()), *self.piece.positions]
            if self.piece.last:
                x, y = digits(N)[self.rows]
                names = [name for name, _ in module.named_parameters()]
                whole = per_sample.clipped_sum(module, [x, y], names, 1.0)
                self.whole = torch.cat([g.flatten() for g in whole.values()]) / 90
                self.rows = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
            if self.piece.last:
                seen.append((self.whole, self.grads[-1].double()))

    fitted([Compare()], accumulate_grad_batches=3)
    assert len(seen) == 8
    for whole, taken in seen:
        torch.testing.assert_close(taken, whole, rtol=1e-4, atol=1e-6)


class Plain(MLP):
    """Logs nothing: Lightning's `log` cannot be compiled."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


def whole(net):
    return torch.compile(net, backend="aot_eager")


def a_part(net):
    net.net = torch.compile(net.net, backend="aot_eager")
    return net


def in_place(net):
    net.compile(backend="aot_eager")
    return net


@pytest.mark.parametrize("compiled", [whole, a_part, in_place])
def test_a_compiled_module_takes_the_same_steps(compiled, monkeypatch):
    stds, seen = [], []

    def little(total, std):
        stds.append(std)
        return total

    monkeypatch.setattr(private_run, "add_noise", little)

    class Compare(Watch):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            super().on_train_batch_start(trainer, module, batch, batch_idx)
            plain = Plain()
            values = list(module.parameters())
            with torch.no_grad():
                for p, value in zip(plain.parameters(), values, strict=True):
                    p.copy_(value)
            x, y = digits(N)[self.piece.positions]
            names = [name for name, _ in plain.named_parameters()]
            found = per_sample.clipped_sum(plain, [x, y], names, 1.0)
            self.whole = torch.cat([g.flatten() for g in found.values()]) / 30

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
            seen.append((self.whole, self.grads[-1].double()))

    torch._dynamo.reset()
    _, made, callback = fitted([Compare()], net=compiled(Plain()))
    assert callback.record.private.done == len(seen) == 20
    assert stds == [4.0] * 20  # once a step
    for expected, taken in seen:
        torch.testing.assert_close(taken, expected, rtol=1e-4, atol=1e-6)
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED


class Changes(Callback):
    def on_train_epoch_start(self, trainer, module):
        trainer.accumulate_grad_batches = 2 + trainer.current_epoch


def test_pieces_that_become_others_are_refused():
    with pytest.raises(SetupError, match="accumulate_grad_batches=2 to the end"):
        fitted([Changes()], accumulate_grad_batches=2)


class Early(MLP):
    """Steps after each piece."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.trainer.optimizers[0].step()


class Moves(Callback):
    """Moves the weights between two pieces of a step."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 0:
            next(module.parameters()).data.add_(0.1)


def test_nothing_happens_between_the_pieces():
    with pytest.raises(ModelError, match="every accumulate_grad_batches of them"):
        fitted(net=Early(), accumulate_grad_batches=2)
    with pytest.raises(ModelError, match="nothing moves but the private steps"):
        fitted([Moves()], accumulate_grad_batches=2)


def test_processes_share_everybody_and_pieces_hold_what_was_drawn():
    people = [[0, 5], [1], [2, 3, 4], [6]]
    everybody = Drawable([*range(7)], people)
    shares = [
        PoissonBatches(everybody, 1.0, 3, pieces=2, rank=r, world=2) for r in (0, 1)
    ]
    assert [list(s) for s in shares] == [
        [[0, 5], [2, 3, 4], [0, 5, 2, 3, 4]],
        [[1], [6], [1, 6]],
    ]
    assert [[p.last for p in s.ahead] for s in shares] == [[False, True, True]] * 2
    nobody = PoissonBatches(everybody, 0.0, 2, rank=1, world=2)
    assert list(nobody) == [[1], [1]]  # a filler of its own
    assert [p.positions for p in nobody.ahead] == [[], []]


# -- what it shows ----------------------------------------------------------------


def test_epsilon_so_far_is_logged_and_said_at_the_end(tmp_path, monkeypatch):
    logger, said = CSVLogger(tmp_path), []
    monkeypatch.setattr(shown, "rank_zero_info", said.append)
    _, made, callback = fitted(epochs=3, logger=logger, log_every_n_steps=1)
    steps = callback.record.private
    expected = [epsilon_one(steps, 1e-4, done) for done in (10, 20, 30)]
    assert expected == sorted(expected)
    logged = made.callback_metrics["unlearn/epsilon_one"]
    assert float(logged) == pytest.approx(expected[-1])
    assert "unlearn/epsilon_one" in made.progress_bar_metrics
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        written = [row["unlearn/epsilon_one"] for row in csv.DictReader(file)]
    assert [float(x) for x in written if x] == pytest.approx(expected)
    (line,) = said
    assert line.startswith("private training: epsilon = ")
    assert f"epsilon = {expected[-1]:.4g} of one sample at delta = 0.0001" in line
    assert f"of all 30 steps; {steps.capacity} samples may be forgotten" in line
    assert "within epsilon = 4" in line


def test_a_training_may_stop_by_it():
    stops = EarlyStopping(
        "unlearn/epsilon_one", mode="max", stopping_threshold=0.01,
        check_on_train_epoch_end=True, patience=9,
    )  # fmt: skip
    _, made, callback = fitted([stops], epochs=3)
    steps = callback.record.private
    assert (steps.done, steps.steps, steps.problem) == (10, 30, None)
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED


def test_many_epochs_take_few_of_the_epsilons(monkeypatch, tmp_path):
    asked = []

    def counting(steps, delta, done=None):
        asked.append(done)
        return 1.0

    monkeypatch.setattr(shown, "epsilon_one", counting)
    fitted(epochs=60, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert len(asked) == 21  # one of them for the line at the end
    assert asked[0] == 30
    assert asked[-2:] == [600, None]


def test_a_training_of_which_nothing_is_claimed_says_so():
    moved = "something but its steps has changed w"
    steps = PrivateSteps(1.0, 4.0, 0.1, 10, problem=moved)
    said = f"private training: nothing is claimed of this one, {moved}"
    assert shown.line(steps, 1.0, 1e-5) == said
    people = PrivateSteps(1.0, 4.0, 0.1, 10, capacity=1, by="user_id")
    said = shown.line(people, 5.0, 1e-5)
    assert "of one person at delta" in said
    assert "1 person may be forgotten within epsilon = 5" in said
    absurd = PrivateSteps(1.0, 4.0, 0.1, 10, capacity=64)
    said = shown.line(absurd, 1000.0, 1e-5)
    assert "at least 64 samples may be forgotten within epsilon = 1000" in said


@pytest.mark.parametrize("kind", ["autocast", "medium", "long"])
def test_the_clip_holds_whatever_precision_is_set(kind):
    net, clip = MLP(), 0.01
    names = [name for name, _ in net.named_parameters()]
    x, y = next(iter(DataLoader(digits(N), 128)))
    before = torch.get_float32_matmul_precision()
    if kind == "long":  # float32 would miss a hundredth of the norm of so many
        total = {"w": torch.zeros(20_000_000, dtype=torch.float64)}
        per_sample._add(total, {"w": torch.full((1, 20_000_000), 1e-3)}, clip)
        assert float(total["w"].norm()) == pytest.approx(clip, rel=1e-5)
        return
    torch.set_float32_matmul_precision("medium" if kind == "medium" else before)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            found = [
                per_sample.clipped_sum(net, (x[i:], 0 * y[i:]), names, clip)
                for i in (0, 1)
            ]
        assert torch.get_float32_matmul_precision() != before or kind != "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    moved = torch.cat([(found[0][n] - found[1][n]).flatten() for n in names])
    assert 0.9 * clip < float(moved.norm()) <= clip


def test_weights_of_half_precision_are_refused_by_name():
    with pytest.raises(SetupError, match=r"float32 or float64, not .*weight.*bfloat16"):
        fitted(net=MLP().bfloat16())
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(SetupError, match="no torch.autocast around fit"),
    ):
        fitted()
