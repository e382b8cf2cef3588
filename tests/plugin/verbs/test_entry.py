"""How a request is reached: the method, the subclass, callbacks and data modules."""

import pytest

import lightning_unlearn
from lightning_unlearn import UnlearningCallback
from lightning_unlearn.errors import SetupError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import L
from tests.helpers.nets import (
    HeadNet,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)


def test_function_subclass_and_method_are_one():
    assert L.Trainer.unlearn is lightning_unlearn.unlearn
    typed = lightning_unlearn.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, barebones=True,
        callbacks=[UnlearningCallback(l2=1e-3)],
    )  # fmt: skip
    result = typed.unlearn([1], model=HeadNet(), train_dataloaders=loader(digits(100)))
    assert (
        result.certificate.grade is Grade.CONDITIONAL
    )  # nothing shows the backbone's past
    again = lightning_unlearn.unlearn(typed, [2])
    assert again.n_retain == 98


def test_the_model_s_own_callbacks_are_found():
    own = UnlearningCallback(l2=1e-3)

    class Net(HeadNet):
        def configure_callbacks(self):
            return [own]

    result = trainer().unlearn([1], model=Net(), train_dataloaders=loader(digits(100)))
    assert result.n_retain == 99


@pytest.mark.parametrize("in_trainer", [True, False])
def test_a_callback_made_anew_for_every_run_is_refused(in_trainer, tmp_path):
    """Lightning would restore the record into another one: samples would come back."""

    class Net(HeadNet):
        def configure_callbacks(self):
            return [UnlearningCallback(l2=1e-3)]

    net, first, _, data = fitted()
    first.unlearn([3], save_to=tmp_path / "clean.ckpt")
    again = trainer(UnlearningCallback() if in_trainer else None)
    fresh = Net()
    before = weights(fresh)
    with pytest.raises(SetupError, match="that configure_callbacks makes anew"):
        again.unlearn([4], model=fresh, train_dataloaders=loader(data),
                      ckpt_path=tmp_path / "clean.ckpt")  # fmt: skip
    assert same(weights(fresh), before)


class Digits(L.LightningDataModule):
    def setup(self, stage):
        if stage == "fit":
            self.train = digits(300)

    def train_dataloader(self):
        return loader(self.train)


def test_datamodules_after_fit_and_in_a_fresh_process(tmp_path):
    net, callback = HeadNet(), UnlearningCallback(noise_std=0.0)
    fit_trainer = trainer(callback)
    fit_trainer.fit(net, datamodule=Digits())
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert fit_trainer.unlearn([1]).n_retain == 299
    fresh = HeadNet()
    trainer(UnlearningCallback(noise_std=0.0)).unlearn(
        [1], model=fresh, datamodule=Digits(), ckpt_path=tmp_path / "run.ckpt"
    )
    assert same(weights(fresh), weights(net))
