"""A released model that is loaded without its record is not unlearned or trained."""

import pytest
import torch

from lightning_unlearn.errors import SetupError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer

DATA = digits(300)


class Own(HeadNet):
    """A hook of its own, in place of the mixin's."""

    def on_load_checkpoint(self, checkpoint):
        pass


def by_hand(kind, path):
    net = kind()
    net.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return net


LOADED = {
    "mixin": lambda path: HeadNet.load_from_checkpoint(path),
    "own hook": lambda path: Own.load_from_checkpoint(path),
    "weights": lambda path: by_hand(HeadNet, path),
}


@pytest.fixture
def clean(tmp_path):
    own = trainer(UnlearningCallback())
    own.fit(HeadNet(), loader(DATA))
    own.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    return tmp_path / "clean.ckpt"


@pytest.mark.parametrize("way", LOADED)
def test_a_request_on_a_released_model_without_its_record_is_refused(way, clean):
    net = LOADED[way](clean)
    with pytest.raises(SetupError, match=r"without it: .* pass ckpt_path= of that"):
        trainer(UnlearningCallback()).unlearn(
            [0], model=net, train_dataloaders=loader(DATA),
            save_to=clean.parent / "next.ckpt",
        )  # fmt: skip
    assert not (clean.parent / "next.ckpt").exists()


@pytest.mark.parametrize("way", LOADED)
def test_so_is_a_training_on_all(way, clean, monkeypatch):
    monkeypatch.chdir(clean.parent)
    net = LOADED[way](clean)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(SetupError, match="got the weights of"):
        trainer(UnlearningCallback()).fit(net, loader(DATA))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_module_with_the_mixin_is_known_wherever_the_file_is(clean):
    net = HeadNet.load_from_checkpoint(clean)
    (clean.parent / "away").mkdir()
    clean.rename(clean.parent / "away" / "clean.ckpt")
    with pytest.raises(SetupError, match="got the weights of the clean checkpoint"):
        trainer(UnlearningCallback()).unlearn(
            [0], model=net, train_dataloaders=loader(DATA)
        )


def test_with_its_checkpoint_it_goes_on(clean):
    """Also from a module that was loaded from the same file, or an older one."""
    for net in (HeadNet(), HeadNet.load_from_checkpoint(clean)):
        own = trainer(UnlearningCallback())
        result = own.unlearn(
            [0], model=net, train_dataloaders=loader(DATA), ckpt_path=clean
        )
        assert result.certificate.release == 2
        assert result.n_retain == 297
        assert own.unlearn([3]).certificate.grade is Grade.CERTIFIED


def test_a_raw_checkpoint_is_loaded_as_ever(tmp_path):
    own = trainer(UnlearningCallback())
    own.fit(HeadNet(), loader(DATA))
    own.save_checkpoint(tmp_path / "raw.ckpt")
    net = HeadNet.load_from_checkpoint(tmp_path / "raw.ckpt")
    trainer(UnlearningCallback()).fit(net, loader(DATA))
