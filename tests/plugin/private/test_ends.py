"""Private trainings that fail, or go on: what is claimed of what they leave."""

from datetime import timedelta

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from lightning_unlearn import PrivateTraining, UnlearningCallback
from lightning_unlearn.errors import GuaranteeError, ModelError, SetupError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import Callback, EarlyStopping, L, ModelCheckpoint, Timer
from tests.helpers.nets import MLP, digits, trainer

pytest.importorskip("dp_accounting")
#: A checkpoint that is saved after a batch makes Lightning 2.4 read that batch again.
REPEATS = L.__version__.startswith("2.4.")


def callback_and_loader(**loading):
    private = PrivateTraining(noise_multiplier=4.0)
    callback = UnlearningCallback(epsilon=4.0, delta=1e-4, private=private)
    return callback, DataLoader(digits(300), 30, shuffle=True, **loading)


class Fails(Callback):
    def on_train_epoch_end(self, trainer, module):
        raise RuntimeError("the disk is full")


def test_weights_that_moved_after_a_training_failed_are_others():
    net, (callback, loader) = MLP(), callback_and_loader()
    made = trainer(callback, 2, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="the disk is full"):
        made.fit(net, loader)
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED
    with torch.no_grad():
        next(net.parameters()).add_(0.1)
    with pytest.raises(GuaranteeError, match="the private training ended with, got"):
        made.unlearn([5])


def test_a_checkpoint_in_the_middle_of_a_training_that_goes_on(tmp_path):
    net, (callback, loader) = MLP(), callback_and_loader()
    trainer(callback, 1).fit(net, loader)
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    on = trainer(callback, 2, callbacks=[saves], enable_checkpointing=True)
    on.fit(net, loader)
    assert callback.record.private.done == 30
    found = sorted(tmp_path.glob("*.ckpt"))
    assert len(found) == 5
    for path in found[:2]:
        own, loader = callback_and_loader()
        c = trainer(own, 1).unlearn([1], MLP(), loader, ckpt_path=path).certificate
        assert c.grade is Grade.CERTIFIED
        assert {k.name: k.value for k in c.constants}["steps"] == 30


class Skips(MLP):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.trainer.current_epoch == 1 and batch_idx > 4 else None


class Lowers(Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.fit_loop.max_epochs = 1


@pytest.mark.parametrize(
    ("net", "others", "done"), [(Skips, [], 15), (MLP, [Lowers()], 10)]
)
def test_a_stop_that_says_nothing_costs_the_claim(net, others, done):
    callback, loader = callback_and_loader()
    made = trainer(callback, 2, callbacks=others)
    made.fit(net(), loader)
    with pytest.raises(GuaranteeError, match=f"stopped after {done} of 20 steps"):
        made.unlearn([3])


class SavesEach(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.folder / f"{batch_idx}.ckpt")


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")
@pytest.mark.parametrize("pieces", [1, 4])
def test_a_training_goes_on_from_the_middle_of_an_epoch_unless_read_in_pieces(
    pieces, tmp_path
):
    own = {"accumulate_grad_batches": pieces}
    callback, loader = callback_and_loader()
    trainer(callback, 2, callbacks=[SavesEach(tmp_path)], **own).fit(MLP(), loader)
    steps = callback.record.private.steps
    for batch in (1, 3, 9):  # in a step, after one, at the end
        callback, loader = callback_and_loader()
        made, path = trainer(callback, 2, **own), tmp_path / f"{batch}.ckpt"
        if pieces > 1 and batch < 9:
            match = rf"epoch has ended, got a .*batch {batch + 1} of 10.*epoch_end="
            with pytest.raises(SetupError, match=match):
                made.fit(MLP(), loader, ckpt_path=path)
            continue
        if REPEATS:
            with pytest.raises((GuaranteeError, ModelError), match="older|every batch"):
                made.fit(MLP(), loader, ckpt_path=path)
            continue
        made.fit(MLP(), loader, ckpt_path=path)
        assert callback.record.private.done == steps
        assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED


# -- who has stopped it -----------------------------------------------------------


def fit(others, net=None, epochs=2, **options):
    callback, loader = callback_and_loader()
    made = trainer(callback, epochs, callbacks=others, **options)
    validation = DataLoader(Subset(digits(), range(300, 360)), 30)
    made.fit(Validated() if net is None else net, loader, validation)
    return made, callback.record.private


class Validated(MLP):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))


class SkipsAndValidates(Validated):
    on_train_batch_start = Skips.on_train_batch_start


def idle(**options):
    return EarlyStopping("val_loss", **{"patience": 99, "strict": False, **options})


def at_once(**options):
    """Of a validation metric: below any first loss."""
    return EarlyStopping("val_loss", stopping_threshold=99.0, **options)


class StopsAt(Callback):
    """By a loss, a user would say."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


class TakesBack(Callback):
    def on_train_epoch_start(self, trainer, module):
        trainer.should_stop = False


class OwnRule(EarlyStopping):
    def _evaluate_stopping_criteria(self, current):
        return True, "a loss that it has seen"


class OwnTime(Timer):
    def time_elapsed(self, stage="train"):
        return 1e9 if self.start_time() else 0.0


@pytest.mark.parametrize(
    ("others", "net", "done"),
    [
        ([idle(), StopsAt(3)], None, 3),
        ([StopsAt(3), Timer(timedelta(hours=1))], None, 3),
        ([StopsAt(3), at_once()], None, 3),  # which would have too, but later
        ([at_once(), TakesBack(), StopsAt(13)], None, 20),
        ([OwnRule("val_loss")], None, 10),
        ([OwnTime(timedelta(hours=1), "step")], None, 1),
        ([idle(), Lowers()], None, 10),
        ([idle()], SkipsAndValidates, 35),
        ([idle(patience=1, min_delta=99.0)], SkipsAndValidates, 15),
    ],
)  # fmt: skip
def test_a_rule_that_stands_beside_has_not_stopped_it(others, net, done):
    least = 2 if any(isinstance(o, TakesBack) for o in others) else None
    made, steps = fit(others, net and net(), epochs=4, min_epochs=least)
    assert steps.done == done
    with pytest.raises(GuaranteeError, match="steps .should_stop.*rule that is not k"):
        made.unlearn([3])


def test_an_epoch_that_was_cut_short_costs_a_checkpoint_after_it(tmp_path):
    saves = ModelCheckpoint(tmp_path, save_top_k=-1)
    fit([saves], SkipsAndValidates(), epochs=3, enable_checkpointing=True)
    first, cut, later = sorted(tmp_path.glob("*.ckpt"))
    for path in (cut, later):
        own, loader = callback_and_loader()
        with pytest.raises(GuaranteeError, match="stopped after 15 of 30 steps"):
            trainer(own).unlearn([1], MLP(), loader, ckpt_path=path)
    own, loader = callback_and_loader()
    assert trainer(own).unlearn([1], MLP(), loader, ckpt_path=first)


@pytest.mark.parametrize(
    ("others", "options", "done"),
    [
        ([at_once()], {}, 10),
        ([at_once(min_delta=0.1)], {"val_check_interval": 5}, 5),
        ([at_once()], {"min_epochs": 2, "max_epochs": 3}, 20),
        ([idle(), Timer(timedelta(microseconds=1), "step")], {}, 1),
        ([Timer(timedelta(microseconds=1), "epoch")], {}, 10),
        ([idle()], {"max_steps": 13}, 13),
        ([idle(), Timer(timedelta(hours=1))], {}, 20),
        ([StopsAt(20)], {}, 20),
        ([], {"max_time": timedelta(hours=1)}, 20),
    ],
)
def test_a_rule_that_is_known_may_stop_it(others, options, done):
    made, steps = fit(others, epochs=options.pop("max_epochs", 2), **options)
    assert (steps.done, steps.problem) == (done, None)
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED
    for one in others:  # given back
        assert not {"_run_early_stopping_check", "_check_time_remaining"} & {*vars(one)}


def test_fewer_epochs_than_a_training_that_failed_had_planned():
    net, (callback, loader) = MLP(), callback_and_loader()
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer(callback, 9, callbacks=[Fails()]).fit(net, loader)
    made = trainer(callback, 1)
    made.fit(net, loader)
    assert (callback.record.private.done, callback.record.private.steps) == (20, 90)
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED


def test_workers_that_persist_go_by_the_coins_and_then_by_their_own_sampler():
    callback, loader = callback_and_loader(num_workers=1, persistent_workers=True)
    made = trainer(callback, 2)
    made.fit(MLP(), loader)
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED
    assert [len(x) for x, _ in loader] == [30] * 10
