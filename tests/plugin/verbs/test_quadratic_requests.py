"""Requests on a head with squared error: from a Gram matrix, once one is prepared."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from lightning_unlearn import ConvexHead, UnlearningCallback, prepare
from lightning_unlearn.errors import DataError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.files import prepared_file
from lightning_unlearn.step.head import prepared_head
from lightning_unlearn.step.head.quadratic.gram import Gram
from tests.helpers.nets import HeadNet, digits, fitted, loader, trainer, weights
from tests.plugin.files.test_hostile_prepared_file import forged, opened

FORGET = [0, 5, 77]
BY_GRAM = "the Gram matrix, by Cholesky"


class SquaresNet(HeadNet):
    """The classes of digits, by squared error."""

    def __init__(self):
        super().__init__()
        self.head = ConvexHead(32, 10, "mse")

    def training_step(self, batch, batch_idx):
        targets = F.one_hot(batch[1], 10).to(batch[0].dtype)
        return self.head.loss(self.backbone(batch[0]), targets).mean()


def equal(one, other):
    return torch.equal(one.limbs, other.limbs) and torch.equal(one.counts, other.counts)


def head_of(net):
    return torch.cat([p.detach().double().reshape(-1) for p in net.head.parameters()])


@pytest.fixture
def trained():
    """A checkpoint that requests begin from."""
    torch.manual_seed(0)
    _, fit_trainer, _, dataset = fitted(SquaresNet())
    fit_trainer.save_checkpoint("trained.ckpt")
    return dataset


def asked(dataset, forget=FORGET, **options):
    """The result of a request on what was trained, and the module after it."""
    net, fresh = SquaresNet(), trainer(UnlearningCallback(**options))
    prepare(
        fresh, model=net, train_dataloaders=loader(dataset), ckpt_path="trained.ckpt"
    )
    return fresh.unlearn(forget), net, fresh


def test_with_a_gram_matrix_and_without_it_is_the_same_claim(trained, monkeypatch):
    options = {"noise_std": 0.0, "tolerance": 1e-7, "l2": 1e-3}
    fast, w_fast, fresh = asked(trained, **options)
    assert fast.solution.method == BY_GRAM
    assert fresh.callbacks[0].bound_state.state.gram.n == 597
    monkeypatch.setattr(prepared_head, "gram_of", lambda *_: None)
    slow, w_slow, fresh = asked(trained, **options)
    assert slow.solution.method == "Newton by a stored factor"
    assert fresh.callbacks[0].bound_state.state.gram is None
    # All of the certificate, but for what is drawn and digests of what follows.
    texts = [json.loads(result.certificate.to_json()) for result in (fast, slow)]
    assert {k for k in texts[0] if texts[0][k] != texts[1].get(k)} <= {
        "weights_digest", "request_id", "commitment", "digest", "created",
    }  # fmt: skip
    assert texts[0].keys() == texts[1].keys()
    distance = float((head_of(w_fast) - head_of(w_slow)).norm())
    assert distance <= 2 * 1e-7 / 1e-3 + 1e-5  # and one cast to float32


def test_it_is_certified_and_says_no_more_than_without(trained, monkeypatch):
    fast, *_ = asked(trained)
    assert fast.certificate.grade is Grade.CERTIFIED
    monkeypatch.setattr(prepared_head, "gram_of", lambda *_: None)
    slow, *_ = asked(trained)
    told = [{c.name for c in result.certificate.constants} for result in (fast, slow)]
    assert told[0] == told[1] == {"tolerance", "strong_convexity", "feature_norm"}
    assert fast.certificate.constants == slow.certificate.constants


def test_forgotten_samples_leave_nothing_whatever_they_were():
    """Two worlds, one with samples 1,000 times as large: they end alike to a bit."""
    ends = []
    for factor in (1.0, 1000.0):
        torch.manual_seed(0)
        data = digits(600)
        data.tensors[0][FORGET] *= factor
        _, fit_trainer, _, dataset = fitted(SquaresNet(), data)
        fit_trainer.save_checkpoint("trained.ckpt")
        before = torch.load("trained.ckpt", weights_only=True)["state_dict"]
        result, net, fresh = asked(dataset, noise_std=0.0)
        state = fresh.callbacks[0].bound_state.state
        assert equal(state.gram, Gram.of(state.rows, True))
        ends.append((result, weights(net), state, before["head.weight"]))
    (one, w_one, kept, start), (two, w_two, other, elsewhere) = ends
    assert not torch.equal(start, elsewhere)  # training did remember them
    assert one.solution.method == two.solution.method == BY_GRAM
    assert equal(kept.gram, other.gram)
    assert all(torch.equal(w_one[name], w_two[name]) for name in w_one)
    assert one.certificate.constants == two.certificate.constants


def test_the_next_requests_need_no_further_preparation(trained, monkeypatch):
    _, net, fresh = asked(trained)
    made = []
    monkeypatch.setattr(Gram, "of", lambda *_: made.append(1))
    for gone in ([9, 10], [300], [64, 65, 66]):
        result = fresh.unlearn(gone)
        assert result.solution.method == BY_GRAM
        assert result.certificate.grade is Grade.CERTIFIED
    assert bool(torch.isfinite(head_of(net)).all())
    assert not made
    monkeypatch.undo()
    state = fresh.callbacks[0].bound_state.state
    assert state.rows.n == 591
    assert equal(state.gram, Gram.of(state.rows, True))


def test_a_file_carries_it_to_another_process(trained):
    options = {"prepared": "secret.pt"}
    first, model = trainer(UnlearningCallback(**options)), SquaresNet()
    sources = {"train_dataloaders": loader(trained), "ckpt_path": "trained.ckpt"}
    done = prepare(first, model=model, **sources)
    assert "their Gram matrix" in str(done)
    again = prepared_file.read(done.path).state
    assert equal(again.gram, Gram.of(again.rows, True))
    assert again.gram.bias
    result = trainer(UnlearningCallback(**options)).unlearn(
        FORGET, model=SquaresNet(), **sources
    )
    assert result.solution.method == BY_GRAM


def test_a_file_with_another_gram_matrix_is_refused(trained):
    first = trainer(UnlearningCallback(prepared="secret.pt"))
    path = prepare(
        first, model=SquaresNet(), train_dataloaders=loader(trained),
        ckpt_path="trained.ckpt",
    ).path  # fmt: skip
    head, tensors = opened(path)
    head.pop("digest")
    counts = tensors["gram_counts"]
    for name, wrong, what in (
        ("gram", tensors["gram"][:, :, 1:], "its Gram matrix is torch.int64 of shape"),
        ("gram", tensors["gram"].double(), "its Gram matrix is torch.float64"),
        ("gram", torch.tensor(3), "its Gram matrix is torch.int64 of shape"),
        ("gram_counts", counts.float(), "its counts are torch.float32"),
        ("gram_counts", counts[:1], "its counts are torch.int64 of shape"),
        ("gram_counts", counts + 1, "its Gram matrix is not of 600 rows"),
        ("gram_counts", counts - counts.roll(1, 1), "its Gram matrix is not of 600"),
        ("gram_counts", None, "gram_counts"),
    ):
        changed = {k: v for k, v in {**tensors, name: wrong}.items() if v is not None}
        changed = {k: v.contiguous() for k, v in changed.items()}
        with pytest.raises(DataError, match=f"expected prepared state in.*{what}"):
            prepared_file.read(forged(path, head, changed))
    head, tensors = opened(path)
    tensors["gram"][0, 0, 0] += 1  # the digest of the file is of before
    save_file(tensors, path.with_name("damaged.pt"), head)
    with pytest.raises(DataError, match="expected prepared state in"):
        prepared_file.read(path.with_name("damaged.pt"))
