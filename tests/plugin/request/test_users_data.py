"""Training data and batches as people pass them."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, random_split

from lightning_unlearn import UnlearningCallback
from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.weights.opaque import Opaque, rewritten, tensors_in
from tests.helpers.lightning import CombinedLoader, L
from tests.helpers.nets import (
    MLP,
    HeadNet,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)


class Stream(IterableDataset):
    def __iter__(self):
        yield from digits(100)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: DataLoader(Stream(), 20), "map-style training dataset .* got Stream"),
        (lambda: {"a": loader(digits(60))}, "one torch DataLoader .* got dict"),
        (lambda: [loader(digits(60))] * 2, "one torch DataLoader .* got list"),
        (
            lambda: CombinedLoader([loader(digits(60))], "max_size"),
            "one torch DataLoader .* got (CombinedLoader|list)",
        ),
        (lambda: DataLoader(digits(60), None), "got batch_size=None"),
    ],
    ids=["stream", "dict", "list", "combined", "no batches"],
)
@pytest.mark.parametrize("passed", [True, False])
def test_data_without_positions_are_refused_before_training(data, message, passed):
    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return data()

    net = MLP()
    before = weights(net)
    given = {"train_dataloaders": data()} if passed else {"datamodule": Data()}
    with pytest.raises(DataError, match=message):
        trainer(UnlearningCallback(noise_std=0.0)).fit(net, **given)
    assert same(weights(net), before)


def check_stage(stage):
    assert type(stage) is str or stage.value == "fit"
    if stage not in ("fit", "validate", "test", "predict"):
        raise ValueError(stage)


class Hearing:
    """Knows Lightning's stages, counts them, and makes things once."""

    heard = None

    def setup(self, stage):
        check_stage(stage)
        self.heard = [*(self.heard or []), f"setup {stage}"]
        self.samples = digits(300)

    def teardown(self, stage):
        check_stage(stage)
        self.heard = [*self.heard, f"teardown {stage}"]
        del self.samples


class Data(Hearing, L.LightningDataModule):
    def train_dataloader(self):
        return loader(self.samples)


class Net(Hearing, HeadNet):
    pass


class Listener(L.Callback):
    def __init__(self):
        self.heard = []

    def setup(self, trainer, pl_module, stage):
        check_stage(stage)
        self.heard.append(f"setup {stage}")

    def teardown(self, trainer, pl_module, stage):
        check_stage(stage)
        self.heard.append(f"teardown {stage}")


def test_users_code_hears_of_lightnings_own_stages_only(tmp_path):
    net, data, listener = Net(), Data(), Listener()
    both = ["setup fit", "teardown fit"]
    fit_trainer = trainer(UnlearningCallback(), callbacks=[listener])
    fit_trainer.fit(net, datamodule=data)
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED
    for one in (net, data, listener):  # nothing has to be made anew
        assert [str(h).replace("TrainerFn.FITTING", "fit") for h in one.heard] == both
        assert not {"setup", "teardown"} & {*vars(one)}
    net, data, listener = Net(), Data(), Listener()
    fresh = trainer(UnlearningCallback(), callbacks=[listener])
    fresh.unlearn([1], model=net, datamodule=data, ckpt_path=tmp_path / "run.ckpt")
    assert net.heard == data.heard == listener.heard == both


def test_an_unseeded_split_is_named_with_its_cure(tmp_path):
    class Split(L.LightningDataModule):
        def setup(self, stage):
            self.samples, _ = random_split(digits(300), [250, 50])

        def train_dataloader(self):
            return loader(self.samples)

    fit_trainer = trainer(UnlearningCallback())
    fit_trainer.fit(HeadNet(), datamodule=Split())
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(DataError, match="generator=torch.Generator.*manual_seed"):
        trainer(UnlearningCallback()).unlearn(
            [1], model=HeadNet(), datamodule=Split(), ckpt_path=tmp_path / "run.ckpt"
        )


@dataclass
class Fields:
    x: torch.Tensor
    y: torch.Tensor


class Graph:
    """A batch as of PyTorch Geometric: `to`, and tensors two objects deep."""

    def __init__(self, x, y):
        self.store = Fields(x, y)
        self.store.parent = self

    @property
    def x(self):
        return self.store.x

    @property
    def y(self):
        return self.store.y

    def __call__(self):
        raise AssertionError

    def to(self, device, non_blocking=False):
        return Graph(self.x.to(device), self.y.to(device))


def collated(kind):
    def collate(samples):
        x, y = (torch.stack(part) for part in zip(*samples, strict=True))
        return {"x": x, "y": y} if kind is dict else kind(x, y)

    return collate


def parts(batch):
    return (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch.x, batch.y)


class AnyHead(HeadNet):
    def training_step(self, batch, batch_idx):
        x, y = parts(batch)
        return self.head.loss(self.backbone(x.float()), y).mean()


class AnyMLP(MLP):
    def training_step(self, batch, batch_idx):
        x, y = parts(batch)
        return F.cross_entropy(self(x), y)


def requested(net, kind, dataset=None, **options):
    data = DataLoader(dataset or digits(300), 64, True, collate_fn=collated(kind))
    fit_trainer = trainer(UnlearningCallback(**options))
    fit_trainer.fit(net, data)
    return fit_trainer.unlearn([1, 2]).certificate


@pytest.mark.parametrize("kind", [dict, Fields, Graph])
def test_batches_of_other_classes(kind):
    assert requested(AnyHead(), kind).grade is Grade.CERTIFIED


@pytest.mark.parametrize("precision", ["auto", "float64"])
def test_batches_of_other_classes_take_the_step_of_a_dict(precision):
    moved = []
    for kind in (dict, Fields, Graph):
        torch.manual_seed(0)
        net = AnyMLP()
        requested(net, kind, noise_std=0.0, solve_precision=precision)
        moved.append(weights(net))
    assert same(moved[0], moved[1])
    assert same(moved[0], moved[2])


def test_boolean_batches():
    X, y = digits(300).tensors
    data = torch.utils.data.TensorDataset(X > 0.5, y)
    assert requested(AnyHead(), dict, data).grade is Grade.CERTIFIED


class Augmented(Dataset):
    def __len__(self):
        return 300

    def __getitem__(self, i):
        x, y = digits(300)[i]
        return x + 0.1 * torch.randn_like(x), y


class InPlace(AnyMLP):
    def training_step(self, batch, batch_idx):
        batch.x.sub_(batch.x.mean(1, keepdim=True) * 0.5)
        return super().training_step(batch, batch_idx)


def test_what_is_inside_such_a_batch_is_looked_at():
    with pytest.raises(DataError, match="turn random augmentation off"):
        requested(AnyMLP(), Graph, Augmented(), noise_std=0.0)
    with pytest.raises(ModelError, match="one that changes it in place"):
        requested(InPlace(), Graph, noise_std=0.0)


class InPlaceHead(HeadNet):
    def training_step(self, batch, batch_idx):
        batch[0].sub_(batch[0].mean(1, keepdim=True) * 0.5)
        return super().training_step(batch, batch_idx)


def test_a_head_whose_loss_changes_its_batch_is_refused():
    _, own, _, _ = fitted(InPlaceHead(), digits(300))
    with pytest.raises(ModelError, match="one that changes it in place"):
        own.unlearn([3])


def test_other_tensors_in_a_copy():
    own = Graph(torch.ones(2), torch.arange(2))
    assert isinstance(own, Opaque)
    assert not isinstance(torch.ones(1), Opaque)
    assert not isinstance({"x": 1}, Opaque)
    new = rewritten(own, lambda t: t.double() if t.is_floating_point() else t)
    assert [t.dtype for t in tensors_in(new)] == [torch.float64, torch.int64]
    assert [t.dtype for t in tensors_in(own)] == [torch.float32, torch.int64]
    assert new.store.parent is new
    assert rewritten(own, lambda t: t) is own
