"""Ordinary habits under which one sample would reach the gradient of another."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_unlearn import PrivateTraining, UnlearningCallback
from lightning_unlearn.errors import DataError, GuaranteeError, ModelError, SetupError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import Callback, EarlyStopping, L, ModelCheckpoint
from tests.helpers.nets import MLP, digits, trainer

pytest.importorskip("dp_accounting")
N = 300


def fit(net, callbacks=(), data=None, epochs=2, validation=None, workers=0, **options):
    private = PrivateTraining(noise_multiplier=4.0)
    callback = UnlearningCallback(epsilon=4.0, delta=1e-4, private=private)
    made = trainer(callback, epochs, callbacks=list(callbacks), **options)
    data = digits(N) if data is None else data
    loader = DataLoader(data, 30, shuffle=True, num_workers=workers)
    made.fit(net, loader, validation)
    return made


def certified(*args, **options):
    found = fit(*args, **options).unlearn([3]).certificate
    return found.grade is Grade.CERTIFIED


class Net(MLP):
    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def unlearning_loss(self, batch, batch_idx):
        return self.loss(batch)


# -- what a loss reads ---------------------------------------------------------


class Smoothed(Net):
    """Scales a loss by a running one, which each epoch begins anew."""

    def __init__(self):
        super().__init__()
        self.mean = 1.0

    def unlearning_loss(self, batch, batch_idx):
        return self.loss(batch) * self.mean

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.mean = 0.9 * self.mean + 0.1 * loss.item()
        return loss

    def on_train_epoch_end(self):
        self.mean = 1.0


class Centred(Net):
    """Keeps a mean that no checkpoint has, and empties it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(64), persistent=False)

    def forward(self, x):
        return self.net(x - self.mean)

    def training_step(self, batch, batch_idx):
        self.mean.mul_(0.9).add_(0.1 * batch[0].mean(0))
        return self.loss(batch)

    def on_train_epoch_end(self):
        self.mean.zero_()


class Remembers(Net):
    """Keeps losses in an object of its own."""

    def __init__(self):
        super().__init__()
        self.memory = type("Memory", (), {"values": [0.0]})()

    def unlearning_loss(self, batch, batch_idx):
        return self.loss(batch) * (1 + self.memory.values[-1])

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.memory.values.append(loss.item())
        return loss


class OwnCoins(Net):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def unlearning_loss(self, batch, batch_idx):
        noise = torch.randn(batch[0].shape, generator=self.generator)
        return F.cross_entropy(self(batch[0] + noise), batch[1])


@pytest.mark.parametrize("kind", [Smoothed, Centred, Remembers, OwnCoins])
def test_a_loss_that_others_have_changed(kind):
    with pytest.raises(ModelError, match="a loss of one sample that no training step"):
        fit(kind())


class ResetBuffer(Net):
    """Fills a buffer after a step and empties it before the end."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(64))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen += batch[0].sum(0)

    def on_train_epoch_end(self):
        self.seen.zero_()


def test_a_statistic_that_is_reset_is_seen():
    with pytest.raises(ModelError, match="also if it is reset later"):
        fit(ResetBuffer())


class Dropped(Net):
    def __init__(self):
        super().__init__()
        self.drop, self.count = nn.Dropout(0.5), 0

    def training_step(self, batch, batch_idx):
        self.count += 1
        return self.loss(batch)

    def forward(self, x):
        return self.net(self.drop(x))


def test_dropout_and_a_counter_are_fine():
    assert certified(Dropped())


# -- rows of a batch -----------------------------------------------------------


class LaterInPlace(Net):
    def training_step(self, batch, batch_idx):
        if self.current_epoch > 0:
            batch[0].sub_(batch[0].mean(0))
        return self.loss(batch)


class LaterReplaced(Net):
    def on_train_batch_start(self, batch, batch_idx):
        if self.current_epoch > 0:
            batch[0] = batch[0] - batch[0].mean(0)


class LaterTransferred(Net):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        later = self.trainer.training and self.current_epoch > 0
        return [batch[0] - batch[0].mean(0), batch[1]] if later else batch


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (LaterInPlace, "changed in place"),
        (LaterReplaced, "changed in place"),
        (LaterTransferred, "change with the others of their batch"),
    ],
)
def test_mixing_that_begins_in_a_later_epoch(kind, match):
    with pytest.raises(DataError, match=match):
        fit(kind())


class OwnRows(Net):
    def training_step(self, batch, batch_idx):
        return self.loss([batch[0] - 0.5, batch[1]])


def test_rows_that_a_step_makes_of_itself_are_fine():
    assert certified(OwnRows())


# -- coins of augmentation -----------------------------------------------------


class Augmented(Dataset):
    def __init__(self, generator=None):
        self.data, self.generator = digits(N), generator

    def __len__(self):
        return N

    def __getitem__(self, index):
        noise = torch.randn(64, generator=self.generator)
        x, y = self.data[index]
        return x + noise, y


def test_augmentation_by_a_generator_of_its_own():
    with pytest.raises(DataError, match=r"generator of the dataset's own.*global ones"):
        fit(Net(), data=Augmented(torch.Generator().manual_seed(0)))


class Spied(Augmented):
    """Shows its coins in its rows."""

    def __getitem__(self, index):
        return torch.randn(64), self.data[index][1]


class Rows(Callback):
    def __init__(self):
        self.seen = set()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen |= {float(x[0]) for x in batch[0]}


@pytest.mark.parametrize("workers", [0, 1])
def test_global_coins_are_no_longer_those_of_a_seed(workers):
    found = []
    for _ in range(2):
        L.seed_everything(0, workers=True, verbose=False)
        rows = Rows()
        fit(Net(), [rows], data=Spied(), epochs=1, workers=workers)
        found.append(rows.seen)
    assert not found[0] & found[1]


def test_augmentation_by_global_coins_is_fine():
    assert certified(Net(), data=Augmented())


# -- decisions -----------------------------------------------------------------


class ByHand(Net):
    def on_train_epoch_end(self):
        for group in self.optimizers().param_groups:
            group["lr"] *= 0.5


class Scheduled(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_a_learning_rate_that_somebody_sets():
    with pytest.raises(SetupError, match="lr changed by hand.*LambdaLR"):
        fit(ByHand())


def test_a_schedule_is_fine():
    assert certified(Scheduled())


class OwnSteps(Scheduled):
    """Steps its schedule by hand: as often as it shall, or by a loss."""

    def __init__(self, always=True):
        super().__init__()
        self.always = always

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def lr_scheduler_step(self, scheduler, metric):
        if self.always or self.trainer.callback_metrics["train_loss"] > 100:
            scheduler.step()


class Epochwise(OwnSteps):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize("kind", [OwnSteps, Epochwise])
def test_a_schedule_that_a_module_steps(kind):
    assert certified(kind(), epochs=3)
    assert certified(kind(), epochs=3, accumulate_grad_batches=2)
    with pytest.raises(SetupError, match=r"leaves some out.*scheduler.step\(\) once"):
        fit(kind(always=False))


class Plateau(Net):
    def __init__(self, monitor):
        super().__init__()
        self.monitor = monitor

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        falls = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, threshold=99.0, threshold_mode="abs"
        )
        schedule = {"scheduler": falls, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


@pytest.mark.parametrize("name", ["train_loss", "train_loss_epoch"])
def test_a_schedule_by_a_training_loss(name):
    with pytest.raises(SetupError, match=f"ReduceLROnPlateau by '{name}'.*validation"):
        fit(Plateau(name), validation=validated(N, N + 60))


def test_a_schedule_by_a_loss_of_other_samples_is_fine():
    made = fit(Plateau("val_loss"), validation=validated(N, N + 60), epochs=3)
    assert made.optimizers[0].param_groups[0]["lr"] < 0.1
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED


class OwnClipping(Net):
    """Clips a gradient that makes way for the private one."""

    def configure_gradient_clipping(self, optimizer, *args, **options):
        self.clip_gradients(optimizer, 1e-9, "norm")


def test_a_clipping_of_the_modules_own_changes_no_step():
    net = OwnClipping()
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert certified(net)
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert float((after - before).abs().max()) > 0.01


class Stops(Net):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        if loss < 100:
            self.trainer.should_stop = True
        return loss


def test_a_stop_by_an_unknown_rule_costs_the_claim():
    made = fit(Stops())
    with pytest.raises(GuaranteeError, match="stopped after 1 of 20 steps"):
        made.unlearn([3])


class StopsInEpoch(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= 3


def test_a_checkpoint_saved_after_such_a_stop_knows_of_it(tmp_path):
    saves = ModelCheckpoint(tmp_path, save_last=True)
    fit(Net(), [StopsInEpoch(), saves], enable_checkpointing=True)
    own = trainer(UnlearningCallback(epsilon=4.0, delta=1e-4), 2)
    with pytest.raises(GuaranteeError, match="stopped after 3 of 20 steps"):
        own.unlearn(
            [3], Net(), DataLoader(digits(N), 30), ckpt_path=saves.last_model_path
        )


class Validated(Net):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))


def validated(first, last):
    return DataLoader(Subset(digits(), range(first, last)), 30)


def test_early_stopping_by_the_training_samples_as_validation_data():
    stops = EarlyStopping("val_loss")
    match = r"validation data that are no training data.*EarlyStopping by 'val_loss'"
    data = digits(N)
    for validation in (data, Subset(data, range(40, 50)), digits(N)):
        with pytest.raises(SetupError, match=match):
            fit(Validated(), [stops], data=data, validation=DataLoader(validation, 30))
    assert certified(Validated(), [stops], validation=validated(N, N + 60))
    assert certified(
        Validated(), validation=validated(0, 60)
    )  # nothing is decided by it


def test_a_copy_among_the_validation_data_costs_its_own_claim():
    """Of another dataset, and another place: known by what it holds."""
    x, y = digits(N).tensors
    later, labels = digits()[N : N + 60]
    mixed = TensorDataset(torch.cat([later, x[7:8]]), torch.cat([labels, y[7:8]]))
    validation, stops = DataLoader(mixed, 30), EarlyStopping("val_loss")
    made = fit(Validated(), [stops], validation=validation)
    with pytest.raises(GuaranteeError, match="got 1 of these among.*EarlyStopping by"):
        made.unlearn([3, 7])
    assert made.unlearn([3]).certificate.grade is Grade.CERTIFIED
    assert fit(Validated(), validation=validation).unlearn([7])  # nothing decided


class LogsLate(Net):
    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def on_train_epoch_end(self):
        self.log("late", 1.0)


def test_a_checkpoint_chosen_by_what_the_epochs_end_logs(tmp_path):
    saves = ModelCheckpoint(tmp_path, monitor="late")
    made = fit(LogsLate(), [saves], epochs=1, enable_checkpointing=True)
    with pytest.raises(GuaranteeError, match="ModelCheckpoint by 'late'"):
        made.unlearn([3])


class WithMomentum(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Writes(Callback):
    """Adds the raw gradient to the momentum."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        for p in module.parameters():
            if p in optimizer.state:
                optimizer.state[p]["momentum_buffer"].add_(p.grad)


class HooksAfter(Callback):
    def on_train_start(self, trainer, module):
        trainer.optimizers[0].register_step_post_hook(lambda *args: None)


def test_only_private_steps_move_an_optimizer():
    assert certified(WithMomentum())
    with pytest.raises(ModelError, match="state .momentum. only its private steps"):
        fit(WithMomentum(), [Writes()])
    with pytest.raises(ModelError, match="nor after it"):
        fit(Net(), [HooksAfter()])


def test_a_learning_rate_found_by_private_losses():
    class LearningRateFinder(Callback):
        """Of its name alone: Lightning's writes a checkpoint where it runs."""

    with pytest.raises(SetupError, match="LearningRateFinder.*losses of the training"):
        fit(Net(), [LearningRateFinder()])
