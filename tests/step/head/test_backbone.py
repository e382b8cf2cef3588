"""A public model as features: frozen for good, and public through and through."""

import copy
import pickle
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import PublicBackbone
from lightning_unlearn.errors import (
    ArgumentError,
    DataError,
    GuaranteeError,
    ModelError,
)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 64, 5),
    )  # fmt: skip


PUBLIC = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
PRIVATE = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def backbone(**options):
    return PublicBackbone(net(), **{"public_data": PUBLIC, **options})


def plain_rows(made, x):
    """What a row is, written out for net() and its taps 2, 7 and 8."""
    m = made.model
    a = m[2](m[1](m[0](x)))
    b = m[6](m[5](m[4](m[3](a))))
    pooled = a.reshape(len(x), 4, 2, 4, 2, 4).mean((3, 5)).flatten(1)
    return torch.cat([pooled, b, m[8](b)], 1)


def test_rows_are_the_pooled_activations_of_every_depth_standardised_on_public_data():
    made = backbone(scale=3.0)
    assert made.taps == ["2", "7", "8"]
    public = plain_rows(made, PUBLIC)
    std = public.std(0, correction=0)
    std = std.clamp_min(0.01 * std.square().mean().sqrt())
    expected = (plain_rows(made, PRIVATE) - public.mean(0)) / std
    expected = 3.0 * expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(made(PRIVATE), expected, rtol=1e-4, atol=1e-5)
    assert made.n_features == 4 * 4 + 6 * 64 + 5
    assert made.n_public == 40


def test_options_leave_out_what_they_say():
    made = backbone(standardize="none", unit_norm=False, scale=1.0, pool=(2, 2))
    torch.testing.assert_close(made(PRIVATE), plain_rows(made, PRIVATE))
    assert made.n_public == 0
    one = backbone(standardize="none", public_data=PUBLIC[:1])
    torch.testing.assert_close(one(PRIVATE).norm(dim=1), torch.full((30,), 8.0))


@pytest.mark.parametrize(
    "data",
    [
        PUBLIC,
        TensorDataset(PUBLIC, torch.zeros(40)),
        DataLoader(TensorDataset(PUBLIC), 7),
    ],
)
def test_public_data_may_be_a_tensor_a_dataset_or_a_loader(data):
    made = backbone(public_data=data, batch_size=9)
    torch.testing.assert_close(made.mean, backbone().mean, rtol=1e-4, atol=1e-6)
    rows = made.features(TensorDataset(PRIVATE, torch.zeros(30)))
    torch.testing.assert_close(rows, made(PRIVATE), rtol=1e-4, atol=1e-4)


def test_a_feature_that_is_dead_on_public_data_does_not_blow_up():
    made = net()
    made[0].weight.data[0] = 0  # constant over all inputs
    made[1].running_mean.zero_()
    rows = PublicBackbone(made, public_data=PUBLIC)(1e3 * PRIVATE)
    assert torch.isfinite(rows).all()


# -- frozen ------------------------------------------------------------------


def test_it_stays_frozen_and_in_eval_mode_whatever_is_asked():
    outer = nn.ModuleDict({"b": backbone(), "head": nn.Linear(3, 2)}).train()
    outer.requires_grad_(True)
    assert not any(m.training for m in outer["b"].modules())
    outer["b"].requires_grad_(True)
    assert not any(p.requires_grad for p in outer["b"].parameters())
    outer["b"].check()


def _weight(b):
    b.model[0].weight.data.view(-1)[3] += 1e-7


def _statistic(b):
    b.std[0] *= 1.0001


def _batches_seen(b):
    b.model[1].running_var[0] += 1e-3


def _option(b):
    b.scale = 9.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_weight, "0.weight"),
        (_statistic, "std"),
        (_batches_seen, "1.running_var"),
        (_option, "options"),
    ],
)
def test_a_changed_part_is_named(change, named):
    made = backbone()
    made.check()
    before = made.digest
    change(made)
    with pytest.raises(ModelError, match=rf"as it was made, got others in {named}"):
        made.check()
    assert made.digest == before


def test_batchnorm_in_train_mode_is_refused_at_once():
    made = backbone()
    made.model[1].train()
    with pytest.raises(ModelError, match=r"got 1 \(BatchNorm2d\) in train mode"):
        made(PRIVATE)
    with pytest.raises(ModelError, match="in train mode"):
        made.check()


def test_a_weight_that_can_be_trained_is_refused():
    made = backbone()
    made.model[3].weight.requires_grad_(True)
    with pytest.raises(ModelError, match="requires_grad=True for 3.weight"):
        made.check()


# -- public --------------------------------------------------------------------


def test_training_samples_among_the_public_data_are_refused():
    mixed = torch.cat([PUBLIC, PRIVATE[4:6]])
    made = backbone(public_data=mixed)
    made(PRIVATE)  # serving may see anything
    with (
        made.reading_private(),
        pytest.raises(GuaranteeError, match="got 2 in one batch that are both"),
    ):
        made(PRIVATE)
    with backbone().reading_private() as _:
        made(PRIVATE)


def test_without_statistics_the_example_may_be_a_training_sample():
    made = backbone(standardize="none", public_data=PRIVATE[:1])
    with made.reading_private():
        made(PRIVATE)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"standardize": "private"}, ArgumentError, 'expected standardize="auto"'),
        ({"standardize": True}, ArgumentError, "a PCA or a selection"),
        ({"pool": 2}, ArgumentError, "a pair such as"),
        ({"pool": (0, 2)}, ArgumentError, "pool_rows"),
        ({"unit_norm": 8.0}, ArgumentError, "unit_norm to be True or False"),
        ({"scale": float("nan")}, ArgumentError, "scale"),
        ({"batch_size": 0}, ArgumentError, "batch_size"),
        ({"taps": ["nowhere"]}, ArgumentError, "got 'nowhere'"),
        ({"public_data": None}, DataError, "expected public_data= to be a tensor"),
        ({"public_data": PUBLIC[:0]}, DataError, "at least one sample, got none"),
        ({"public_data": PUBLIC[:1]}, DataError, "at least 2 public samples"),
        ({"public_data": PUBLIC * float("nan")}, ModelError, "finite features"),
    ],
)
def test_bad_arguments_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        backbone(**options)


def test_a_model_must_be_a_module():
    with pytest.raises(ArgumentError, match="expected model to be a torch.nn.Module"):
        PublicBackbone(torch.relu, public_data=PUBLIC)


# -- kept ----------------------------------------------------------------------


def test_digest_tells_models_and_options_apart():
    other = PublicBackbone(net(1), public_data=PUBLIC)
    digests = [
        backbone().digest,
        other.digest,
        backbone(scale=7.0).digest,
        backbone(taps=["2"]).digest,
        backbone(public_data=PUBLIC[1:]).digest,
    ]
    assert len(set(digests)) == 5
    assert backbone().digest == digests[0]


def test_state_comes_back_from_a_checkpoint(tmp_path):
    made = backbone()
    torch.save(made.state_dict(), tmp_path / "b.pt")
    state = torch.load(tmp_path / "b.pt", weights_only=True)
    again = PublicBackbone(net(1), standardize="none", public_data=PUBLIC[:1])
    again.load_state_dict(state)
    with pytest.raises(ModelError, match="options"):  # made with others
        again.check()
    same = PublicBackbone(net(1), public_data=PUBLIC[:3])
    same.load_state_dict(state)
    same.check()
    assert (same.digest, same.n_public) == (made.digest, 40)
    torch.testing.assert_close(same(PRIVATE), made(PRIVATE))


def test_a_state_of_another_form_is_refused():
    made = backbone()
    with pytest.raises(ModelError, match="expected the state of a PublicBackbone"):
        made.set_extra_state({"made": {"a": 1}, "n_public": 3})


def test_copies_and_pickles_are_the_same_backbone():
    made = backbone()
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        twin.check()
        assert twin.digest == made.digest
        torch.testing.assert_close(twin(PRIVATE), made(PRIVATE))


def test_autocast_changes_no_feature():
    made = backbone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(made(PRIVATE), made(PRIVATE).float())
        rows = made(PRIVATE)
    assert torch.equal(rows, made(PRIVATE))


def test_it_computes_in_the_dtype_of_the_model_and_gives_single_precision():
    made = PublicBackbone(net().double(), public_data=PUBLIC)
    rows = made(PRIVATE)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, backbone()(PRIVATE), rtol=1e-3, atol=1e-3)


def test_description_says_what_is_taken_as_public():
    text = backbone().description
    assert text.startswith("Sequential read at 2, 7, 8:")
    assert "40 public samples" in text
    assert "not standardised" in backbone(standardize="none").description


class Words(nn.Module):
    """Keywords in, tokens out."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Embedding(9, 6), nn.Linear(6, 6)

    def forward(self, input_ids, attention_mask):
        return self.layer(self.embed(input_ids)) * attention_mask[:, :, None]


class Encoding(UserDict):
    """A mapping that torch's trees do not know, as tokenizers return."""


def test_keywords_of_any_mapping_are_read_and_recognised():
    torch.manual_seed(0)
    ids, mask = torch.randint(9, (20, 5)), torch.ones(20, 5, dtype=torch.long)
    samples = [{"input_ids": i, "attention_mask": m, "labels": 0}
               for i, m in zip(ids, mask, strict=True)]  # fmt: skip
    made = PublicBackbone(
        Words(), ["layer"], standardize="public", public_data=DataLoader(samples, 8)
    )
    assert made.n_features == 12  # mean and max of the tokens
    private = Encoding(input_ids=ids[:3], attention_mask=mask[:3])
    assert made(private).shape == (3, 12)
    with made.reading_private(), pytest.raises(GuaranteeError, match="got 3 in one"):
        made(private)
    other = Encoding(input_ids=ids[:3].flip(1), attention_mask=mask[:3])
    with made.reading_private():
        assert made(other).shape == (3, 12)
