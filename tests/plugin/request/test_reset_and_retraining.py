"""The recipe of docs/which-guarantee.md: train on after a release that left nothing."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from lightning_unlearn import NormBall, UnlearningCallback
from lightning_unlearn.certificate.verification import verify_text
from lightning_unlearn.errors import DataError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.weights.digests import state_digest
from tests.helpers.nets import MLP, digits, loader, same, trainer, weights

FORGET = range(40)
TEST = [tensor[800:] for tensor in digits().tensors]


class Watched(Dataset):
    """Digits that note when they are read."""

    def __init__(self):
        self.data, self.read = digits(800), set()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        self.read.add(int(i))
        return self.data[i]


def network():
    return MLP(nn.ReLU, hidden=32)


def accuracy(net):
    with torch.no_grad():
        return float((net(TEST[0]).argmax(1) == TEST[1]).double().mean())


@pytest.fixture
def released():
    """(net, callback, dataset, result) after a request with nothing but the ball."""
    torch.manual_seed(0)
    net, dataset = network(), Watched()
    callback = UnlearningCallback(
        guarantee=NormBall(), epsilon=1.0, max_norm=10.0, accept_noise=True
    )
    own = trainer(callback, 10)
    own.fit(net, loader(dataset))
    result = own.unlearn(FORGET)
    return net, callback, dataset, result


def test_a_certified_reset_then_retraining(released):
    net, callback, dataset, result = released
    before, given = result.certificate.to_json(), weights(net)
    assert accuracy(net) < 0.5
    dataset.read.clear()
    retained = Subset(dataset, callback.retained_indices)
    trainer(callback, 40).fit(net, loader(retained))
    fresh = network()
    trainer(max_epochs=40).fit(fresh, loader(retained))
    assert abs(accuracy(net) - accuracy(fresh)) < 0.06
    assert dataset.read == set(range(40, 800))
    # The certificate speaks of what was released, and of nothing made of it.
    assert not same(given, weights(net))
    assert result.certificate.to_json() == before
    assert result.certificate.grade is Grade.VACUOUS
    assert result.certificate.epsilon == 1.0
    assert all(
        f.holds is not False for f in verify_text(before, None, state_digest(given))
    )
    found = verify_text(before, None, state_digest(weights(net)))
    assert [f.text.split(":")[0] for f in found if f.holds is False] == ["checkpoint"]


def test_the_callback_refuses_all_the_data(released):
    net, callback, dataset, _ = released
    with pytest.raises(DataError, match="go on with the 760 samples that were not"):
        trainer(callback, 1).fit(net, loader(dataset))


def test_the_next_request_is_the_second_release_of_a_new_record(released):
    net, callback, dataset, first = released
    lineage = callback.record.lineage
    retained = Subset(dataset, callback.retained_indices)
    own = trainer(callback, 2)
    own.fit(net, loader(retained))
    assert callback.record.lineage != lineage
    assert callback.record.n_train == 760
    second = own.unlearn(range(5)).certificate
    assert (first.certificate.release, second.release) == (1, 2)
    assert (second.n_forget, second.n_retain) == (5, 755)
    assert second.composed_epsilon > 1.0
