"""A certified classifier of texts, of batches as Hugging Face's packages make them."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn import (
    CertifiedClassifier,
    CertifiedRegressor,
    PublicBackbone,
    UnlearningCallback,
    preflight,
)
from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.lightning import RichProgressBar, TQDMProgressBar
from tests.helpers.nets import same, trainer, weights
from tests.helpers.texts import Encoder, padded, texts


class Texts(Dataset):
    def __init__(self, n=120):
        self.samples = texts(n)
        self.user_id = [s["user_id"] for s in self.samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


def encoder():
    torch.manual_seed(3)
    return Encoder()


def loader(dataset, shuffle=True):
    return DataLoader(dataset, 16, shuffle=shuffle, collate_fn=padded)


def fitted(net=None, dataset=None, options=None, **trainer_options):
    net = net or CertifiedClassifier(PublicBackbone(encoder()), 3)
    dataset = dataset or Texts()
    callback = UnlearningCallback(**(options or {}))
    own = trainer(callback, max_epochs=-1, **trainer_options)
    own.fit(net, loader(dataset), loader(Texts(40), False))
    return net, own, callback, dataset


def test_tokenised_texts_are_solved_certified_and_forgotten_by_a_column():
    net, own, callback, dataset = fitted()
    assert net.l2 == 3e-4
    assert own.callback_metrics["val_acc"] > 0.6  # chance is a third
    result = own.unlearn([3, 17], by="user_id")
    assert result.certificate.grade is Grade.CERTIFIED
    assert result.certificate.n_forget == 8
    kept = [i for i in range(120) if dataset.user_id[i] not in (3, 17)]
    assert callback.retained_indices == kept


def test_it_is_near_the_head_that_is_solved_without_the_forgotten_texts():
    options = {"noise_std": 0.0, "tolerance": 1e-8}
    net, own, _, dataset = fitted(options=options)
    own.unlearn(range(5, 25))
    rest = copy.copy(dataset)
    rest.samples = [s for i, s in enumerate(dataset.samples) if not 5 <= i < 25]
    other, *_ = fitted(dataset=rest, options=options)
    for name, p in net.head.named_parameters():
        expected = other.head.get_parameter(name)
        torch.testing.assert_close(p, expected, rtol=1e-3, atol=1e-3)


def test_preflight_and_evaluation_tell_the_accuracy_of_mappings():
    net, own, _, dataset = fitted()
    right = sum(
        int((net(b).argmax(1) == b["labels"]).sum()) for b in loader(dataset, False)
    )
    look = preflight(own, range(10), val_dataloaders=loader(dataset, False))
    assert look.metric == "accuracy"
    assert look.metric_before == pytest.approx(right / 120, abs=1e-6)
    result = own.unlearn(range(10), evaluate=True)
    assert result.metric == "accuracy"


def test_no_warning_frightens(recwarn):
    _, own, _, _ = fitted()
    own.unlearn([1])
    assert not [w for w in recwarn if "eval mode" in str(w.message)]


def test_l2_follows_the_backbone_and_is_a_number_in_the_hyperparameters():
    assert CertifiedClassifier(PublicBackbone(encoder()), 3).hparams["l2"] == 3e-4
    assert CertifiedRegressor(PublicBackbone(encoder())).hparams["l2"] == 3e-4
    plain = PublicBackbone(torch.nn.Linear(3, 2), public_data=torch.randn(9, 3))
    assert CertifiedClassifier(plain, 3).l2 == 1e-3
    assert CertifiedClassifier(plain, 3, l2=0.5).l2 == 0.5


# -- checkpoints -------------------------------------------------------------


def test_the_state_of_a_module_is_tensors_that_safetensors_keeps(tmp_path):
    net, *_ = fitted()
    state = net.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    save_file(state, tmp_path / "net.safetensors")
    other = CertifiedClassifier(PublicBackbone(encoder()), 3)
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    other.backbone.check()
    assert other.backbone.digest == net.backbone.digest
    assert same(weights(other), weights(net))


def test_extra_state_as_it_was_before_still_loads_and_counts_as_the_same():
    from lightning_unlearn.weights.digests import entry_digest

    made = PublicBackbone(encoder())
    old = {"made": dict(made._made), "n_public": 0}
    assert entry_digest("_extra_state", old) == entry_digest(
        "_extra_state", made.get_extra_state()
    )
    other = PublicBackbone(encoder())
    other.set_extra_state(old)
    other.check()
    with pytest.raises(ModelError, match="expected the state of a PublicBackbone"):
        other.set_extra_state(torch.zeros(3, dtype=torch.uint8))


def small(seed=3, **options):
    torch.manual_seed(seed)
    return CertifiedClassifier(
        PublicBackbone(Encoder(), **options), 3, save_backbone=False
    )


def test_a_checkpoint_without_the_backbone_loads_beside_the_same_one(tmp_path):
    net, own, callback, dataset = fitted(small())
    own.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    held = torch.load(tmp_path / "clean.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in held["state_dict"]} == {"head"}
    again = CertifiedClassifier.load_from_checkpoint(
        tmp_path / "clean.ckpt", backbone=PublicBackbone(encoder())
    )
    assert same(weights(again), weights(net))
    # A later request begins with it, in a fresh process, and is certified.
    fresh = trainer(UnlearningCallback(), max_epochs=-1)
    result = fresh.unlearn(
        [5], model=small(), train_dataloaders=loader(dataset),
        ckpt_path=tmp_path / "clean.ckpt",
    )  # fmt: skip
    assert result.certificate.grade is Grade.CERTIFIED
    assert result.certificate.n_retain == 117


@pytest.mark.parametrize("other", [{"seed": 4}, {"tokens": ["mean"]}])
def test_it_does_not_load_beside_another_backbone(tmp_path, other):
    net, own, _, dataset = fitted(small())
    own.save_checkpoint(tmp_path / "run.ckpt")
    wrong = small(**other)
    with pytest.raises(ModelError, match="saved without, with digest"):
        CertifiedClassifier.load_from_checkpoint(
            tmp_path / "run.ckpt", backbone=wrong.backbone
        )
    with torch.no_grad():
        changed = small()
        changed.backbone.model.embed.weight[0, 0] += 1
    with pytest.raises(ModelError, match="as it was made"):
        CertifiedClassifier.load_from_checkpoint(
            tmp_path / "run.ckpt", backbone=changed.backbone
        )


def test_a_backbone_that_was_changed_is_not_left_out(tmp_path):
    net, own, *_ = fitted(small())
    with torch.no_grad():
        net.backbone.model.embed.weight[0, 0] += 1
    with pytest.raises(ModelError, match="as it was made"):
        own.save_checkpoint(tmp_path / "run.ckpt")


def test_save_backbone_is_yes_or_no():
    with pytest.raises(ArgumentError, match="save_backbone=True or False"):
        CertifiedClassifier(PublicBackbone(encoder()), 3, save_backbone="no")


# -- what is shown -----------------------------------------------------------


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_a_fit_shows_how_fast_it_reads_and_what_is_left(bar, monkeypatch):
    told = []
    from lightning_unlearn.plugin.run import progress

    drawing = progress._drawing

    def watched(shown):
        draw = drawing(shown)

        def both(done, text):
            told.append(text)
            draw(done, text)

        return both

    monkeypatch.setattr(progress, "_drawing", watched)
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    fitted(callbacks=[bar()], enable_progress_bar=True)
    reading = [text for text in told if "reading, " in text]
    assert reading[0].startswith("Solving: reading, 16 of 120 samples, ")
    assert reading[-1].endswith(" a second, 0 s left")
    assert "Solving: solving" in told
