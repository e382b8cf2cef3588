"""The main job, end to end, on the digits bundled with scikit-learn."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, random_split

import lightning_unlearn
from lightning_unlearn import (
    CG,
    Certificate,
    ConvexHead,
    Dense,
    LiSSA,
    UnlearningCallback,
)
from lightning_unlearn.errors import DataError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.weights.digests import state_digest
from tests.helpers.lightning import L
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
from tests.helpers.oracles import (
    dense_gradient_and_hessian,
    retrain_softmax_head,
    ridge,
)


def head_vector(net):
    return torch.cat([p.detach().double().reshape(-1) for p in net.head.parameters()])


def test_convex_head_on_digits_is_certified_and_near_the_retrained_head():
    # The setting: l2 1e-3, tolerance 1e-6, epsilon 1, delta 1e-5, 50 forgotten.
    data = digits()
    X, y = (t.numpy().astype(np.float64 if i == 0 else int)
            for i, t in enumerate(data.tensors))  # fmt: skip
    test, train = (
        np.arange(0, 1797, 5),
        np.setdiff1d(np.arange(1797), range(0, 1797, 5)),
    )
    net, fit_trainer, _, dataset = fitted(
        HeadNet(backbone=False), Subset(data, train.tolist()), max_epochs=5
    )
    result = fit_trainer.unlearn(range(50))
    certificate = result.certificate
    assert certificate.grade is Grade.CERTIFIED
    assert (certificate.epsilon, certificate.delta) == (1.0, 1e-5)
    assert (result.n_forget, result.n_retain) == (50, len(train) - 50)
    certificate.verify()

    retained = train[50:]
    retrained = retrain_softmax_head(X[retained], y[retained], 10, 1e-3)
    noiseless = _without_noise(net, result, data, train)
    assert np.linalg.norm(noiseless - retrained) <= certificate.sensitivity
    noise = head_vector(net).numpy() - noiseless
    assert np.std(noise) == pytest.approx(certificate.noise_std, rel=0.15)

    def accuracy(w):
        z = X[test] @ w[:640].reshape(10, 64).T + w[640:]
        return (z.argmax(1) == y[test]).mean()

    assert abs(accuracy(head_vector(net).numpy()) - accuracy(retrained)) <= 0.01


def _without_noise(net, result, data, train):
    """The same request with noise_std=0 from another start."""
    fresh = HeadNet(backbone=False)
    callback = UnlearningCallback(noise_std=0.0)
    bare = trainer(callback).unlearn(
        range(50), model=fresh, train_dataloaders=loader(Subset(data, train.tolist()))
    )
    assert bare.certificate.grade is Grade.NONE
    return head_vector(fresh).numpy()


@pytest.mark.parametrize("solver", [CG(rtol=1e-9), Dense()], ids=["cg", "dense"])
def test_mlp_step_is_the_dense_float64_oracle(solver):
    net, fit_trainer, _, dataset = fitted(
        MLP(hidden=4), max_epochs=4, noise_std=0.0, damping=2.0, solver=solver,
        solve_precision="float64",
    )  # fmt: skip
    before = weights(net)
    result = fit_trainer.unlearn(range(20))
    x = _oracle_step(net, before, dataset, range(20, 600), damping=2.0)
    assert (result.solution.x - x).norm() <= 1e-5 * x.norm()
    moved = torch.cat(
        [(before[k].double() - v.double()).reshape(-1) for k, v in weights(net).items()]
    )
    assert (moved - x).norm() <= 1e-5 * x.norm() + 1e-6  # the cast to float32
    assert result.certificate.grade is Grade.NONE
    assert result.certificate.epsilon is None


def _oracle_step(net, before, dataset, retained, damping):
    X, y = dataset.tensors
    X, y = X[list(retained)].double(), y[list(retained)]
    names, shapes = list(before), [v.shape for v in before.values()]
    w = torch.cat([v.double().reshape(-1) for v in before.values()])
    oracle_net = MLP(hidden=4).double()

    def value(flat):
        parts = flat.split([s.numel() for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        out = torch.func.functional_call(oracle_net, named, (X,))
        return F.cross_entropy(out, y) + 1e-4 / 2 * flat @ flat

    g, H = dense_gradient_and_hessian(value, w)
    return torch.linalg.solve(H + damping * torch.eye(len(w)).double(), g)


def test_lissa_s_residual_is_what_its_filter_predicts():
    solver = LiSSA(scale=20.0, steps=100, runs=1, batch_size=0)
    net, fit_trainer, _, dataset = fitted(
        MLP(hidden=4), noise_std=0.0, damping=2.0, solver=solver,
        solve_precision="float64", max_epochs=3,
    )  # fmt: skip
    before = weights(net)
    result = fit_trainer.unlearn(range(20))
    X, y = dataset.tensors[0][20:].double(), dataset.tensors[1][20:]
    w = torch.cat([v.double().reshape(-1) for v in before.values()])
    oracle_net = MLP(hidden=4).double()
    shapes = [v.shape for v in before.values()]

    def value(flat):
        parts = flat.split([s.numel() for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(before, parts, shapes, strict=True)}
        return (
            F.cross_entropy(torch.func.functional_call(oracle_net, named, (X,)), y)
            + 1e-4 / 2 * flat @ flat
        )

    g, H = dense_gradient_and_hessian(value, w)
    h, Q = torch.linalg.eigh(H + 2.0 * torch.eye(len(w)).double())
    predicted = float(((1 - h / 20) ** 101 * (Q.T @ g)).norm())
    assert result.solution.residual == pytest.approx(predicted, rel=1e-5)


class RidgeNet(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = ConvexHead(64, 2, "mse")

    def training_step(self, batch, batch_idx):
        targets = torch.stack([batch[1], batch[1] ** 2 / 9], 1).to(batch[0].dtype)
        return self.head.loss(batch[0], targets)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3, weight_decay=1e-2)


def test_ridge_regression_through_the_trainer_is_the_retrained_model():
    net = RidgeNet().double()
    dataset = digits(300)
    callback = UnlearningCallback(
        noise_std=0.0, l2=1e-2, tolerance=1e-10, solver=CG(rtol=1e-12)
    )
    result = trainer(callback, precision="64-true").unlearn(
        [3, 7, 11], model=net, train_dataloaders=loader(dataset)
    )
    keep = [i for i in range(300) if i not in (3, 7, 11)]
    X, y = dataset.tensors[0][keep].double(), dataset.tensors[1][keep]
    Y = torch.stack([y, y**2 / 9], 1).double()
    exact = ridge(X.numpy(), Y.numpy(), 1e-2)
    assert result.solution.steps == 1
    assert np.linalg.norm(head_vector(net).numpy() - exact) < 1e-8


def test_mlp_with_a_norm_ball_is_vacuous_and_says_so():
    _, fit_trainer, callback, _ = fitted(
        MLP(nn.ReLU), max_norm=1.5, accept_noise=True, max_epochs=4
    )
    assert callback.record.projections > 0
    certificate = fit_trainer.unlearn(range(10)).certificate
    assert certificate.grade is Grade.VACUOUS
    assert certificate.sensitivity == 3.0
    text = str(certificate)
    assert text.startswith("VACUOUS")
    assert "Delta/(2C) = 1" in text
    for line in text.splitlines():
        assert "epsilon" not in line or "vacuous" in line.lower()


def test_second_request_never_brings_the_first_back():
    net, fit_trainer, callback, dataset = fitted(max_epochs=3, noise_std=0.0)
    assert fit_trainer.unlearn([1, 2, 3]).n_retain == 597
    second = fit_trainer.unlearn([10])
    assert second.n_retain == 596
    assert second.certificate.release == 2
    X, y = (t.numpy() for t in dataset.tensors)
    keep = [i for i in range(600) if i not in (1, 2, 3, 10)]
    F_ = net.backbone(torch.tensor(X)).double().numpy()
    exact = retrain_softmax_head(F_[keep], y[keep], 10, 1e-3)
    assert np.linalg.norm(head_vector(net).numpy() - exact) < 2e-3
    back = [i for i in range(600) if i != 10]
    wrong = retrain_softmax_head(F_[back], y[back], 10, 1e-3)
    assert np.linalg.norm(head_vector(net).numpy() - wrong) > 2e-3
    with pytest.raises(
        lightning_unlearn.errors.ForgetSetError, match="still in, got 2"
    ):
        fit_trainer.unlearn([2])
    assert callback.record.removed == [1, 2, 3, 10]
    with pytest.warns(UserWarning, match="already removed 2: this one is for the oth"):
        assert fit_trainer.unlearn([2, 20]).n_forget == 1
    assert callback.record.removed == [1, 2, 3, 10, 20]


def test_fresh_process_from_a_checkpoint(tmp_path):
    net, fit_trainer, _, dataset = fitted(max_epochs=3, noise_std=0.0)
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    fit_trainer.unlearn([5, 6])
    after = head_vector(net)

    fresh = HeadNet()  # another random backbone, until the checkpoint is loaded
    result = trainer(UnlearningCallback(noise_std=0.0)).unlearn(
        [5, 6],
        model=fresh,
        train_dataloaders=loader(dataset),
        ckpt_path=tmp_path / "run.ckpt",
        save_to=tmp_path / "clean.ckpt",
    )
    assert torch.equal(head_vector(fresh), after)
    assert result.checkpoint_path == tmp_path / "clean.ckpt"

    # A third process: the removed samples are remembered.
    callback = UnlearningCallback(noise_std=0.0)
    third = trainer(callback).unlearn(
        [7], model=HeadNet(), train_dataloaders=loader(dataset),
        ckpt_path=tmp_path / "clean.ckpt",
    )  # fmt: skip
    assert third.n_retain == 597
    assert callback.record.removed == [5, 6, 7]


class Named(UnlearningCallback):
    """A subclass, as a project may have one."""


@pytest.mark.parametrize(
    ("first", "second"), [(Named, UnlearningCallback), (UnlearningCallback, Named)]
)
def test_a_subclass_and_its_base_read_each_other_s_records(first, second, tmp_path):
    net, dataset = HeadNet(), digits(600)
    own = trainer(first(), max_epochs=1)
    own.fit(net, loader(dataset))
    own.unlearn([5, 6], save_to=tmp_path / "clean.ckpt")
    path = tmp_path / "clean.ckpt"
    old = tmp_path / "old.ckpt"  # as versions wrote it that named it by its class
    held = torch.load(path, weights_only=True)
    (watched,) = (c for c in own.callbacks if isinstance(c, UnlearningCallback))
    held["callbacks"] = {"Named": watched.state_dict()}
    torch.save(held, old)
    for ckpt_path in (path, old):
        callback = second()
        result = trainer(callback).unlearn(
            [7], model=HeadNet(), train_dataloaders=loader(dataset),
            ckpt_path=ckpt_path,
        )  # fmt: skip
        assert callback.record.removed == [5, 6, 7]
        assert result.certificate.grade is Grade.CERTIFIED


def test_two_records_in_one_checkpoint_are_refused(tmp_path):
    _, fit_trainer, _, dataset = fitted()
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    held = torch.load(tmp_path / "run.ckpt", weights_only=True)
    held["callbacks"]["Named"] = held["callbacks"]["UnlearningCallback"]
    torch.save(held, tmp_path / "two.ckpt")
    with pytest.raises(DataError, match="one record of unlearning .* got 2"):
        trainer(UnlearningCallback()).unlearn(
            [7], model=HeadNet(), train_dataloaders=loader(dataset),
            ckpt_path=tmp_path / "two.ckpt",
        )  # fmt: skip


def test_the_clean_checkpoint_is_accepted_everywhere_and_holds_no_optimizer(tmp_path):
    net, fit_trainer, _, dataset = fitted(max_epochs=2)
    result = fit_trainer.unlearn([5], save_to=tmp_path / "clean.ckpt")
    assert fit_trainer.optimizers == []
    content = torch.load(tmp_path / "clean.ckpt", weights_only=True)
    assert content["optimizer_states"] == []
    assert content["lr_schedulers"] == []
    assert list(content["callbacks"]) == ["UnlearningCallback"]
    assert same(content["state_dict"], weights(net))
    text = (tmp_path / "clean.certificate.json").read_text()
    assert Certificate.from_json(text) == result.certificate
    assert sorted(p.name for p in tmp_path.iterdir() if "clean" in p.name) == [
        "clean.certificate.json", "clean.ckpt", "clean.private.json",
        "clean.receipts.jsonl",
    ]  # fmt: skip
    assert same(
        weights(HeadNet.load_from_checkpoint(tmp_path / "clean.ckpt")), weights(net)
    )
    on = trainer(UnlearningCallback(), max_epochs=3)
    retained = [i for i in range(600) if i != 5]
    on.fit(
        HeadNet(), loader(Subset(dataset, retained)), ckpt_path=tmp_path / "clean.ckpt"
    )
    assert on.current_epoch == 3


def test_forgotten_samples_do_not_return_through_fit():
    net, fit_trainer, callback, dataset = fitted()
    fit_trainer.unlearn([5])
    assert len(callback.retained_indices) == 599
    fit_trainer.fit_loop.max_epochs = 3
    with pytest.raises(
        lightning_unlearn.errors.DataError, match="go on with the 599 samples"
    ):
        fit_trainer.fit(net, loader(dataset))
    fit_trainer.fit(net, loader(Subset(dataset, callback.retained_indices)))
    assert callback.record.n_train == 599
    assert fit_trainer.unlearn([0]).n_retain == 598


@pytest.mark.parametrize("kind", ["indices", "file", "subset", "loader", "tensor"])
def test_every_form_of_forget_set_gives_the_same_step(kind, tmp_path):
    net, fit_trainer, _, dataset = fitted(noise_std=0.0)
    (tmp_path / "forget.txt").write_text("4\n9 # someone\n\n30\n")
    forms = {
        "indices": [30, 4, 9],
        "file": tmp_path / "forget.txt",
        "subset": Subset(dataset, [4, 9, 30]),
        "loader": DataLoader(Subset(dataset, [9, 4, 30]), batch_size=2),
        "tensor": torch.tensor([4, 9, 30]),
    }
    expected = HeadNet()
    expected.load_state_dict(net.state_dict())
    trainer(UnlearningCallback(noise_std=0.0, l2=1e-3)).unlearn(
        [4, 9, 30], model=expected, train_dataloaders=loader(dataset)
    )
    assert fit_trainer.unlearn(forms[kind]).n_forget == 3
    assert torch.equal(head_vector(net), head_vector(expected))


def test_train_split_of_a_larger_dataset():
    data = digits(600)
    train, val = random_split(data, [500, 100], torch.Generator().manual_seed(0))
    _, fit_trainer, callback, _ = fitted(dataset=train)
    chosen = [int(train.indices[3]), int(train.indices[8])]
    fit_trainer.unlearn(Subset(data, chosen))  # positions in the larger dataset
    assert callback.record.removed == [3, 8]
    with pytest.raises(
        lightning_unlearn.errors.ForgetSetError, match="a validation split"
    ):
        fit_trainer.unlearn(Subset(data, [int(val.indices[0])]))
    with pytest.raises(
        lightning_unlearn.errors.ForgetSetError, match="a validation split"
    ):
        fit_trainer.unlearn(val)
    fit_trainer.unlearn(Subset(train, [1]))
    assert callback.record.removed == [1, 3, 8]


def test_weights_move_once_and_seeds_do_not_reproduce_the_noise():
    heads = []
    for _ in range(2):
        L.seed_everything(0, verbose=False)
        net, fit_trainer, _, _ = fitted()
        state = torch.get_rng_state()
        L.seed_everything(0, verbose=False)
        state = torch.get_rng_state()
        fit_trainer.unlearn([1])
        assert torch.equal(state, torch.get_rng_state())  # the user's stream goes on
        heads.append(head_vector(net))
    assert not torch.equal(*heads)


def test_accumulated_gradients_are_projected_after_each_step():
    _, fit_trainer, callback, _ = fitted(
        MLP(),
        max_norm=1.0,
        accept_noise=True,
        trainer_options={"accumulate_grad_batches": 3},
    )
    norm = sum(
        float(p.detach().square().sum())
        for p in fit_trainer.lightning_module.parameters()
    )
    assert norm**0.5 <= 1.0
    steps = fit_trainer.global_step
    assert 0 < callback.record.projections <= steps + 1


def test_the_training_state_is_recorded():
    net, _, callback, dataset = fitted(MLP(), noise_std=0.0, log_gradient=True)
    record = callback.record
    assert (record.n_train, record.l2, record.max_norm) == (600, 1e-4, None)
    assert record.weights_digest == state_digest(net.state_dict())
    X, y = dataset.tensors
    loss = F.cross_entropy(net(X), y)
    loss = loss + 1e-4 / 2 * sum(p.square().sum() for p in net.parameters())
    grads = torch.autograd.grad(loss, list(net.parameters()))
    norm = torch.cat([g.reshape(-1) for g in grads]).norm()
    assert record.gradient_norm == pytest.approx(float(norm), rel=1e-5)
    _, _, without, _ = fitted(MLP(), noise_std=0.0)
    assert without.record.gradient_norm is None
