"""Heads that are served before a request: fit ends with noise, and all are counted."""

import json
import math
import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn import (
    CertifiedClassifier,
    CertifiedRegressor,
    ConvexHead,
    UnlearningCallback,
    preflight,
)
from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.verification import verify_ledger, verify_text
from lightning_unlearn.errors import (
    ArgumentError,
    BudgetError,
    DataError,
    GuaranteeError,
    LedgerError,
    ModelError,
    SetupError,
)
from lightning_unlearn.guarantee.claims import Bound, Grade
from lightning_unlearn.weights.digests import state_digest
from tests.helpers.lightning import L, ModelCheckpoint
from tests.helpers.nets import trainer
from tests.plugin.helpers import covered_job, forked
from tests.plugin.helpers.publics import backbone, loader, private, solved

L2, K = 1e-1, 6
COVER = {"cover_served": K, "releases": 3, "accept_noise": True}


def net(**options):
    made = backbone(**{"scale": 0.5, "taps": ["10"], **options.pop("backbone", {})})
    return CertifiedClassifier(made, 5, **{"l2": L2, **options})


def served(model=None, **options):
    return solved(model or net(), **{**COVER, **options})


def head(module):
    return torch.cat([p.detach().flatten() for p in module.head.parameters()])


def numbers(c):
    return {k.name: k.value for k in c.constants}


def train(own, model, dataset, **options):
    watched = [DataLoader(dataset, 256)] if hasattr(model, "backbone") else []
    own.fit(model, loader(dataset), *watched, **options)


def refused(error, match, model=None, data=None, **options):
    model = net() if model is None else model
    own = trainer(UnlearningCallback(**{**COVER, **options}), -1)
    before = head(model) if hasattr(model, "head") else None
    with pytest.raises(error, match=match):
        train(own, model, private() if data is None else data)
    assert before is None or torch.equal(head(model), before)


def test_from_the_training_to_the_last_request(tmp_path):
    file = tmp_path / "ledger.jsonl"
    model, own, callback, _ = served(ledger=file)
    first = callback.bound_state.state.start.clone()
    noise = (head(model) - first).double()
    (line,) = ledgers.read(file).entries
    assert (line.n_forget, line.covered, line.grade) == (0, K, "certified")
    sigma = 2 * K * 1.44 * 1.001 * math.hypot(0.5, 1) / (600 * L2) + 2e-6 / L2
    sigma /= line.mu
    assert float(noise.std()) == pytest.approx(sigma, rel=0.35)  # 165 weights
    assert callback.record.covered == K

    one = own.unlearn([1, 2], save_to=tmp_path / "one.ckpt")
    c = one.certificate
    assert (c.bound, c.grade, c.release) == (Bound.SERVED_HEAD, Grade.CERTIFIED, 2)
    assert (numbers(c)["left"], numbers(c)["samples"]) == (4, 598)
    assert c.composed_epsilon < 1.0
    two = own.unlearn([3, 4, 5, 9], save_to=tmp_path / "two.ckpt").certificate
    assert (numbers(two)["left"], numbers(two)["forgotten"]) == (0, 6)
    assert two.noise_std < 0.01 * c.noise_std
    assert two.composed_epsilon == pytest.approx(1.0, rel=1e-3)
    assert "older checkpoints of this training: their weights are covered" in " ".join(
        two.not_covered
    )
    for certificate in (c, two):
        findings = verify_text(certificate.to_json(), ledger_text=file.read_text())
        assert all(f.holds is not False for f in findings), findings
    assert all(f.holds is not False for f in verify_ledger(file.read_text()))
    with pytest.raises(BudgetError, match="0 are left: train a new model"):
        own.unlearn([17])


def test_no_file_of_the_training_holds_the_optimum(tmp_path):
    saves = ModelCheckpoint(tmp_path, save_last=True)
    store = tmp_path / "rows.store"
    model, own, callback, _ = served(
        trainer_options={"callbacks": [saves], "enable_checkpointing": True},
        prepared=store,
    )
    optimum = callback.bound_state.state.start.float()
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p != store]
    assert files
    pieces = [optimum[i : i + 4].numpy().tobytes() for i in range(0, 160, 8)]
    for file in files:
        assert not any(piece in file.read_bytes() for piece in pieces), file
    held = torch.load(saves.last_model_path, weights_only=True)["state_dict"]
    assert torch.equal(held["head.weight"], model.head.weight)
    assert not torch.allclose(held["head.weight"].flatten(), optimum[:160], atol=1e-3)


def test_a_fresh_process_goes_on_from_the_checkpoint(tmp_path):
    file = tmp_path / "ledger.jsonl"
    model, own, *_ = served(ledger=file)
    own.save_checkpoint(tmp_path / "fit.ckpt")
    again = trainer(UnlearningCallback(**COVER, ledger=file), -1)
    clean = tmp_path / "clean.ckpt"
    found = again.unlearn(
        [3], net(), loader(private()), ckpt_path=tmp_path / "fit.ckpt", save_to=clean
    ).certificate
    assert (found.bound, found.release) == (Bound.SERVED_HEAD, 2)
    third = trainer(UnlearningCallback(**COVER, ledger=file), -1)
    more = third.unlearn([8], net(), loader(private()), ckpt_path=clean).certificate
    assert (more.release, numbers(more)["forgotten"]) == (3, 2)


@pytest.mark.parametrize("saved", [True, False])
def test_a_release_that_is_known_counts_though_the_checkpoint_is_older(tmp_path, saved):
    _, own, *_ = served()
    own.save_checkpoint(tmp_path / "fit.ckpt")
    own.unlearn([1, 2], **({"save_to": tmp_path / "clean.ckpt"} if saved else {}))
    other = trainer(UnlearningCallback(**COVER), -1) if saved else own
    with (
        nullcontext() if saved else pytest.warns(UserWarning, match="from before 2"),
        pytest.raises(SetupError, match="all releases of this model in its ledger"),
    ):
        other.unlearn(
            [1, 2, 3], net(), loader(private()), ckpt_path=tmp_path / "fit.ckpt"
        )
    if saved:
        clean = {"ckpt_path": tmp_path / "clean.ckpt"}
        c = other.unlearn([3], net(), loader(private()), **clean).certificate
        assert c.release == 3


def test_noise_is_refused_where_it_costs_and_the_number_is_right():
    match = r"expected n l2 of at least 1,\d+ .*got n l2 = 60 \(600 samples\).*accept_"
    refused(GuaranteeError, match, accept_noise=False)
    own = trainer(UnlearningCallback(**{**COVER, "accept_noise": False}), -1)
    with pytest.raises(GuaranteeError) as problem:
        train(own, net(), private())
    samples = int(
        re.search(r"that is ([\d,]+)", str(problem.value))[1].replace(",", "")
    )
    # At that number it is a tenth of a logit: what is stated there, by hand.
    R = math.hypot(0.5, 1)
    share = 0.26805 / math.sqrt(3)  # mu of (1, 1e-5)
    moved = R * (2 * K * 1.44 * 1.001 * R / (samples * L2) + 2e-6 / L2) / share
    assert moved == pytest.approx(0.1, rel=1e-3)


def test_what_is_affordable_needs_no_word():
    data = private()
    many = TensorDataset(*(t.repeat(40, *[1] * (t.dim() - 1)) for t in data.tensors))
    model, *_ = served(dataset=many, cover_served=1, releases=2, accept_noise=False)
    x, y = data.tensors
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.6


def test_more_than_was_agreed_is_refused_by_name():
    model, own, *_ = served()
    before = head(model)
    with pytest.raises(BudgetError, match="at most cover_served=6 samples.*got 7"):
        own.unlearn(list(range(7)))
    own.unlearn([1, 2, 3, 4])
    with pytest.raises(BudgetError, match="at most cover_served=6 samples.*got 8"):
        own.unlearn([10, 11, 12, 13])
    assert not torch.equal(head(model), before)


def test_a_head_that_was_served_without_noise_is_not_covered_later(tmp_path):
    model, own, *_ = solved(net())
    own.save_checkpoint(tmp_path / "plain.ckpt")
    later = trainer(UnlearningCallback(**COVER), -1)
    with pytest.raises(GuaranteeError, match="served without noise, which nothing"):
        later.unlearn([3], net(), loader(private()), ckpt_path=tmp_path / "plain.ckpt")
    refused(ModelError, "no later noise covers that", model)


def test_a_covered_head_needs_what_was_agreed():
    model, own, callback, _ = served()
    state = callback.record.to_dict()
    for options, match in (
        ({}, "expected cover_served=6, as in the training, got None"),
        ({**COVER, "cover_served": 9}, "expected cover_served=6, as in the training"),
    ):
        other = UnlearningCallback(**options)
        other.load_state_dict(state)
        with pytest.raises((GuaranteeError, BudgetError), match=match + "|announced"):
            trainer(other, -1).unlearn([3], model, loader(private()))


def test_another_loss_on_the_same_weights_is_refused(tmp_path):
    _, own, *_ = served()
    own.save_checkpoint(tmp_path / "fit.ckpt")
    again, other = trainer(UnlearningCallback(**COVER), -1), net(loss="mse")
    with pytest.raises(GuaranteeError, match="expected the loss and backbone of the"):
        again.unlearn([3], other, loader(private()), ckpt_path=tmp_path / "fit.ckpt")


def test_another_fit_is_another_release_and_refused():
    model, own, callback, dataset = served()
    before = head(model)
    fresh = trainer(callback, -1)
    with pytest.raises(ModelError, match="expected one training with cover_served="):
        train(fresh, model, dataset)
    own.unlearn([1])
    rest = Subset(dataset, callback.retained_indices)
    with pytest.raises(ModelError, match="expected one training with cover_served="):
        train(trainer(callback, -1), model, rest)
    assert not torch.equal(head(model), before)


def test_a_fit_that_goes_on_from_its_checkpoint_is_refused(tmp_path):
    _, own, *_ = served()
    own.save_checkpoint(tmp_path / "fit.ckpt")
    later = trainer(UnlearningCallback(**COVER), -1)
    with pytest.raises(ModelError, match="expected one training with cover_served="):
        train(later, net(), private(), ckpt_path=tmp_path / "fit.ckpt")


def test_weights_that_something_has_moved_are_refused():
    model, own, *_ = served()
    with torch.no_grad():
        model.head.bias.add_(1.0)
    with pytest.raises(
        GuaranteeError, match="expected the weights of the last release"
    ):
        own.unlearn([3])


def test_a_ledger_of_another_training_is_refused(tmp_path):
    file = tmp_path / "ledger.jsonl"
    served(ledger=file)
    text = file.read_text()
    with pytest.warns(UserWarning, match="is there already"):
        refused(LedgerError, "the ledger of another one", ledger=file)
    assert file.read_text() == text


def test_retraining_in_between_is_refused_and_preflight_says_so():
    def make(data):
        raise AssertionError("nothing is trained")

    _, own, *_ = served(retrain=make)
    with pytest.raises(GuaranteeError, match="without how='retrain'.*cover_served="):
        own.unlearn([3], how="retrain")
    look = preflight(own, [3])
    step, again = look.routes[:2]
    assert (step.grade, again.grade) == (Grade.CERTIFIED, None)
    assert step.recommended
    assert "for samples that the first of them forgot" not in str(look)


class Trained(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = ConvexHead(64, 5)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.head.loss(x.flatten(1), y).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, weight_decay=L2)


class Longer(CertifiedClassifier):
    def unlearning_loss(self, batch, batch_idx):
        x, y = batch
        return self.head.loss(30 * self.backbone(x), y)


def test_heads_whose_movement_nothing_bounds_are_refused():
    refused(GuaranteeError, "expected a CertifiedClassifier .*Trained", Trained())
    squared = CertifiedClassifier(backbone(), 5, "mse", L2)
    refused(GuaranteeError, "got loss='mse'", squared)
    counts = CertifiedRegressor(backbone(), 1, "poisson", L2)
    refused(GuaranteeError, "got loss='poisson'", counts)
    own_norms = net(backbone={"unit_norm": False})
    refused(GuaranteeError, "unit_norm=True .*only the data would tell", own_norms)
    longer = Longer(backbone(scale=0.5, taps=["10"]), 5, l2=L2)
    refused(GuaranteeError, "rows of norm at most 1.119.*as it is", longer)


def test_weights_count(tmp_path):
    x, y = private().tensors
    heavy = TensorDataset(x, y, torch.full((len(y),), 5.0))
    model = net(sample_weights=True)
    refused(GuaranteeError, "weights of samples of at most 1", model, heavy)
    light = TensorDataset(x, y, torch.full((len(y),), 0.5))
    *_, callback, _ = served(net(sample_weights=True), dataset=light)
    assert callback.record.covered == K
    _, own, *_ = served(net(class_weights=[1.0, 2.0, 1.0, 3.0, 1.0]))
    assert numbers(own.unlearn([1]).certificate)["residual_norm"] == pytest.approx(4.32)


def test_yes_or_no():
    x, y = private().tensors
    several = TensorDataset(x, nn.functional.one_hot(y, 5).float())
    _, own, *_ = served(net(loss="bce"), dataset=several)
    found = numbers(own.unlearn([1]).certificate)["residual_norm"]
    assert found == pytest.approx(1.01 / math.sqrt(5))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"releases": None}, "releases= of at least 2 .*got None"),
        ({"releases": 1}, "releases= of at least 2 .*got 1"),
        ({"cover_served": 0}, "cover_served to be an integer >= 1"),
        ({"noise_std": 0.1}, "without noise_std="),
        ({"noise_seed": 1}, "without noise_seed="),
        ({"max_norm": 1.0}, "without max_norm="),
    ],
)
def test_options_that_contradict_it(options, match):
    with pytest.raises(ArgumentError, match=match):
        UnlearningCallback(**{**COVER, **options})


def test_the_noise_is_of_no_seed_and_of_each_training_its_own():
    found = []
    for _ in range(2):
        L.seed_everything(0, verbose=False)
        model, _, callback, _ = served()
        found.append(head(model))
    optimum = callback.bound_state.state.start
    assert float((found[0] - found[1]).norm()) > 0.5 * float(
        (found[0] - optimum).norm()
    )


def test_a_loader_that_takes_few_batches_is_refused_before_anything_is_served():
    model = net()
    before = head(model)
    with pytest.raises(DataError, match="expected epochs of all samples"):
        served(model, trainer_options={"limit_train_batches": 2})
    assert torch.equal(head(model), before)


def test_every_sample_that_stays_is_counted():
    dataset = private(200)
    _, own, *_ = served(dataset=dataset)
    again = own.unlearn([5], train_dataloaders=DataLoader(dataset, 64)).certificate
    assert numbers(again)["samples"] == 199


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "fsdp2"])
def test_two_processes_serve_one_head(strategy, tmp_path):
    ended = forked.run(covered_job.main, tmp_path, strategy, strategy=strategy)
    if strategy == "fsdp2":
        assert "expected one device or ddp for cover_served=" in ended.stderr
        return
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == ["served_head", "certified", 2, 4.0, 598]
    first, second = ledgers.read(tmp_path / "ledger.jsonl").entries
    for name, line in (("served", first), ("clean", second)):
        held = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"]
        assert state_digest(held) == line.weights_after
