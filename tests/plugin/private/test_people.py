"""A private training of people: drawn whole, clipped once, counted once."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_unlearn import PrivateTraining, UnlearningCallback, preflight
from lightning_unlearn.certificate.report.words import method
from lightning_unlearn.certificate.verification import verify_text
from lightning_unlearn.certificate.words.private_words import PRIVATE
from lightning_unlearn.errors import (
    BudgetError,
    CertificateError,
    DataError,
    ForgetSetError,
    GuaranteeError,
)
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.private.per_sample import _People, clipped_sum
from tests.helpers.lightning import Callback
from tests.helpers.nets import MLP, digits, trainer

pytest.importorskip("dp_accounting")
N, EACH = 300, 3  # samples, and how many each person has


class People(Dataset):
    """Person i % 100 has sample i."""

    def __init__(self, each=EACH):
        self.data = digits(N)
        self.user_id = [f"p{i % (N // each)}" for i in range(N)]

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.data[i]


class Watch(Callback):
    def __init__(self):
        self.drawn, self.grads = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        run = trainer.callbacks[0].attached.private
        self.drawn.append(run._piece.drawn)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.grads.append(torch.cat([p.grad.flatten() for p in module.parameters()]))


def fitted(data=None, callbacks=(), by="user_id", epochs=2, **own):
    settings = PrivateTraining(noise_multiplier=4.0, by=by)
    callback = UnlearningCallback(
        **{"epsilon": 3.0, "delta": 1e-4, "private": settings, **own}
    )
    made = trainer(callback, epochs, callbacks=list(callbacks))
    net, data = MLP(), People() if data is None else data
    made.fit(net, DataLoader(data, 30, shuffle=True))
    return net, made, callback


def test_people_are_drawn_whole_and_counted(tmp_path):
    watch = Watch()
    net, made, callback = fitted(callbacks=[watch], epochs=6)
    for batch in watch.drawn:
        for one in batch:
            assert one == [one[0], one[0] + 100, one[0] + 200]
    sizes = [len(batch) for batch in watch.drawn]
    assert 8 < sum(sizes) / len(sizes) < 12  # of 10 people, 30 samples
    steps = callback.record.private
    assert steps.sampling_rate == 0.1
    # By 10 people, the mean number: the noise of one of 30 samples would be a third.
    std = float(torch.stack(watch.grads).std())
    assert std == pytest.approx(4.0 / 10, rel=0.1)
    c = made.unlearn(["p3"], by="user_id", save_to=tmp_path / "clean.ckpt").certificate
    assert (c.grade, c.n_forget, c.group) == (Grade.CERTIFIED, 3, 1)
    again = made.unlearn(["p4", "p5"], by="user_id").certificate
    assert (again.n_forget, again.group) == (6, 3)
    text = " ".join(str(again).split())
    assert "and all others of the 3 people forgotten so far" in text
    assert "epsilon is that of all 3 people forgotten so far, together" in text
    assert "each person, with all their samples, by a coin" in method(again)
    findings = verify_text(again.to_json())
    assert all(found.holds is not False for found in findings), findings


def test_some_samples_of_a_person_are_no_request_for_it():
    _, made, callback = fitted()
    with pytest.raises(ForgetSetError, match="some of those of 1 of 2: their gradient"):
        made.unlearn([3, 4, 103, 203])
    assert made.unlearn([3, 103, 203]).certificate.group == 1  # whole, by position


def test_past_the_capacity_people_are_counted():
    _, made, callback = fitted()
    capacity = callback.record.private.capacity
    assert capacity >= 1
    made.unlearn(["p0"], by="user_id")
    everybody = [f"p{i}" for i in range(1, capacity + 1)]
    match = rf"all people forgotten.*of {capacity + 1}: it allows {capacity} \(1 are"
    with pytest.raises(BudgetError, match=match):
        made.unlearn(everybody, by="user_id")


def route_of(made, forget, **options):
    look = preflight(made, forget, **options)
    return next(r for r in look.routes if r.name == "private training")


def test_preflight_counts_people():
    _, made, _ = fitted()
    assert "more people could follow" in route_of(made, ["p3"], by="user_id").needs[0]
    many = [f"p{i}" for i in range(60)]
    assert "of all 60 people forgotten" in route_of(made, many, by="user_id").needs[0]
    part = route_of(made, [3])
    assert part.grade is None
    assert "all samples of a person" in part.needs[0]


def test_ids_that_changed_since_are_refused():
    data = People()
    _, made, _ = fitted(data)
    data.user_id[150] = "p3"  # of p50
    with pytest.raises(DataError, match="puts the samples together otherwise"):
        made.unlearn(["p7"], by="user_id")


def test_a_training_that_goes_on_by_other_people():
    net, made, callback = fitted()
    made.fit_loop.max_epochs = 3
    settings = PrivateTraining(noise_multiplier=4.0)
    other = UnlearningCallback(epsilon=3.0, delta=1e-4, private=settings)
    callback.options = other.options
    with pytest.raises(GuaranteeError, match="weights, by="):
        made.fit(net, DataLoader(People(), 30, shuffle=True))


def test_nothing_says_whose_the_samples_are():
    with pytest.raises(ForgetSetError, match="attribute 'user_id' of TensorDataset"):
        fitted(digits(N))


def test_whom_the_training_cannot_draw_is_not_counted():
    """Of a Subset: a person's samples outside it were never trained on."""
    _, made, _ = fitted(Subset(People(), range(150)))
    assert made.unlearn(["p3"], by="user_id").certificate.group == 1


def test_a_lone_sample_of_each_is_as_samples(monkeypatch):
    _, made, callback = fitted(People(each=1))
    _, other, samples = fitted(by=None)
    one, two = callback.record.private, samples.record.private
    assert (one.sampling_rate, one.steps, one.capacity) == (
        *(two.sampling_rate, two.steps, two.capacity),
    )
    net, batch = MLP(), digits(40)[:40]
    net.trainer = made
    names = [name for name, _ in net.named_parameters()]
    alone = clipped_sum(net, list(batch), names, 0.5)
    people = clipped_sum(net, list(batch), names, 0.5, [1] * 40)
    for name in names:
        assert torch.allclose(alone[name], people[name], atol=1e-7)
    assert made.unlearn([3]).certificate.epsilon == (
        other.unlearn([3]).certificate.epsilon
    )


@pytest.mark.parametrize("few", [1, 2, 5, 100])
def test_a_persons_gradient_is_that_of_their_mean_loss(monkeypatch, few):
    """However few rows are computed at once."""
    from lightning_unlearn.plugin.private import per_sample

    net, (x, y) = MLP(), digits(12)[:12]
    net.trainer = trainer()
    names = [name for name, _ in net.named_parameters()]
    size = sum(p.numel() * 4 for p in net.parameters())
    monkeypatch.setattr(per_sample, "_BYTES", size * few)
    sizes, clip = [3, 1, 6, 2], 0.5
    found = clipped_sum(net, [x, y], names, clip, sizes)
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for rows, labels in zip(x.split(sizes), y.split(sizes), strict=True):
        loss = F.cross_entropy(net(rows), labels)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        norm = float(torch.cat([g.flatten() for g in grads]).norm())
        factor = min(1.0, clip * (1 - 1e-3) / norm)
        expected = [e + factor * g for e, g in zip(expected, grads, strict=True)]
    for name, value in zip(names, expected, strict=True):
        assert torch.allclose(found[name].float(), value, atol=1e-5)


def test_a_part_in_which_nobody_is_complete():
    people = _People([3, 2])
    rows = torch.arange(5.0)[:, None]
    assert people.whole({"w": rows[:2]}) == {}
    assert people.whole({"w": rows[2:4]})["w"].flatten().tolist() == [1.0]
    assert people.whole({"w": rows[4:]})["w"].flatten().tolist() == [3.5]


def test_words_of_samples_and_of_people_do_not_mix():
    _, made, _ = fitted()
    c = made.unlearn(["p3"], by="user_id").certificate
    mixed = replace(c, constants=tuple(_of_samples(c)))
    with pytest.raises(CertificateError, match="all of samples, or all of people"):
        mixed.verify()
    assert "that of all 1 forgotten so far, together" in str(mixed)  # it can be printed


def _of_samples(c):
    for constant in c.constants:
        first = constant.name == "clip"
        yield replace(constant, reason=PRIVATE["clip"][0]) if first else constant
