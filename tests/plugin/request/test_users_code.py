"""Users' own modules and callbacks in our passes: as in training, or refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unlearn import UnlearningCallback, preflight, prepare
from lightning_unlearn.errors import ModelError, SetupError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.lightning import (
    BackboneFinetuning,
    CSVLogger,
    L,
    ModelCheckpoint,
    ModelPruning,
    ThroughputMonitor,
)
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
from tests.plugin.request.test_refusals import refused


class Float32Inside(MLP):
    def forward(self, x):
        return self.net(x @ torch.eye(64))


def test_tensors_of_one_dtype_inside_a_model():
    torch.manual_seed(0)
    net, fit_trainer, _, _ = fitted(Float32Inside(), noise_std=0.0)
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.NONE
    torch.manual_seed(0)
    plain, fit_trainer, _, _ = fitted(MLP(), noise_std=0.0)
    fit_trainer.unlearn([1])  # the same step as without them
    for one, two in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    net, fit_trainer, callback, _ = fitted(
        Float32Inside(), noise_std=0.0, solve_precision="float64"
    )
    refused(
        ModelError, "same dtype.*in the dtype and on the device of the input", net,
        fit_trainer, callback, [1],
    )  # fmt: skip


def uses(look, base):
    class Uses(base):
        def on_train_start(self):
            self.made_for_fit = [1.0]

        def training_step(self, batch, batch_idx):
            look(self)
            return super().training_step(batch, batch_idx)

    return Uses()


HAS = {
    "current_epoch": lambda net: net.current_epoch,
    "global_step": lambda net: net.global_step,
    "num_training_batches": lambda net: net.trainer.num_training_batches,
    "train_dataloader": lambda net: len(net.trainer.train_dataloader.dataset),
    "estimated_stepping_batches": lambda net: net.trainer.estimated_stepping_batches,
}
LACKS = {
    "optimizers": lambda net: net.optimizers().param_groups[0]["lr"],
    "lr_schedulers": lambda net: net.lr_schedulers().get_last_lr(),
    "made in on_train_start": lambda net: net.made_for_fit[0],
}


@pytest.mark.parametrize("name", HAS)
@pytest.mark.filterwarnings("ignore:.*weights_only. was not set")
def test_what_a_fit_has_is_there_as_after_it(name, tmp_path):
    """The loss may use it: here it is looked at, after a fit and in a fresh process."""
    told = tmp_path / "told"  # a list would be put back after the passes
    told.touch()

    def looked():
        return {int(line) for line in told.read_text().split()}

    class Looks(MLP):
        def training_step(self, batch, batch_idx):
            if not self.training:
                with told.open("a") as file:
                    file.write(f"{HAS[name](self)}\n")
            return super().training_step(batch, batch_idx)

    net, fit_trainer, _, dataset = fitted(Looks(), noise_std=0.0)
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    expected = HAS[name](net)
    fit_trainer.unlearn([1])
    assert looked() == {expected}
    told.write_text("")
    fresh = trainer(UnlearningCallback(noise_std=0.0))
    fresh.unlearn(
        [1], model=Looks(), train_dataloaders=loader(dataset),
        ckpt_path=tmp_path / "run.ckpt",
    )  # fmt: skip
    assert looked() == {expected}
    assert fresh.global_step == fresh.current_epoch == 0  # a later fit begins anew


class Scheduled(MLP):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize("name", LACKS)
@pytest.mark.filterwarnings("ignore:.*weights_only. was not set")
def test_what_only_a_fit_has_is_named(name, tmp_path):
    _, fit_trainer, _, dataset = fitted(uses(LACKS[name], Scheduled), noise_std=0.0)
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    fresh, callback = uses(LACKS[name], Scheduled), UnlearningCallback(noise_std=0.0)
    refused(
        ModelError, "outside of fit, in eval mode.* override unlearning_loss", fresh,
        trainer(callback), callback, [1], model=fresh,
        train_dataloaders=loader(dataset), ckpt_path=tmp_path / "run.ckpt",
    )  # fmt: skip
    assert fit_trainer.unlearn([1]).n_forget == 1  # after the fit it is there


class Meter:
    def __init__(self):
        self.count, self.values = 0, {"all": []}


class Keeps(MLP):
    def __init__(self):
        super().__init__()
        self.losses, self.meter, self.centre = [], Meter(), torch.zeros(3)
        self.generator = torch.Generator()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss)
        self.meter.count += 1
        self.meter.values["all"].append(float(loss.detach()))
        self.centre += 1
        self.cache = loss
        torch.rand(1, generator=self.generator)
        return loss

    def kept(self):
        return (
            [id(loss) for loss in self.losses], self.meter.count,
            [*self.meter.values["all"]], self.centre.tolist(),
            id(getattr(self, "cache", None)), self.generator.get_state().tolist(),
        )  # fmt: skip


@pytest.mark.parametrize("verb", ["preflight", "prepare", "unlearn", "refused"])
def test_what_a_module_keeps_is_put_back(verb):
    net, fit_trainer, callback, _ = fitted(Keeps(), noise_std=0.0)
    before = net.kept()
    if verb == "preflight":
        preflight(fit_trainer, [1])
    elif verb == "prepare":
        prepare(fit_trainer)
    elif verb == "unlearn":
        fit_trainer.unlearn([1])
    else:
        callback.options.__dict__["damping"] = 1e-30
        with pytest.raises(Exception, match="damping"):
            fit_trainer.unlearn([1])
    assert net.kept() == before


def test_losses_log_nothing_from_our_passes(tmp_path):
    class Logs(MLP):
        def training_step(self, batch, batch_idx):
            if not self.training:
                self.logger.log_metrics({"from_a_pass": 1.0})
                self.logger.experiment.log_metrics({"from_a_pass": 1.0})
            return super().training_step(batch, batch_idx)

    logger = CSVLogger(tmp_path)
    _, fit_trainer, _, _ = fitted(
        Logs(), noise_std=0.0, trainer_options={"logger": logger}
    )
    fit_trainer.unlearn([1])
    assert fit_trainer.logger is logger
    with open(logger.experiment.metrics_file_path) as file:
        told = file.read()
    assert "from_a_pass" not in told
    assert "unlearn/residual" in told


def step_of(hook=None):
    torch.manual_seed(0)
    net, fit_trainer, _, _ = fitted(MLP(), noise_std=0.0)
    if hook is not None:
        hook(net)
    before = weights(net)
    fit_trainer.unlearn([1])
    return net, {k: v - before[k] for k, v in weights(net).items()}


@pytest.mark.parametrize("kind", ["tensor", "backward", "pre"])
@pytest.mark.filterwarnings("default:hooks on the gradients")
def test_hooks_on_gradients_do_not_change_the_step(kind):
    def hook(net):
        if kind == "tensor":
            net.net[0].weight.register_hook(lambda g: 0.1 * g)
        elif kind == "backward":
            net.net[2].register_full_backward_hook(lambda m, gi, go: (0.1 * gi[0],))
        else:
            net.net[2].register_full_backward_pre_hook(lambda m, go: (0.1 * go[0],))

    net, step = step_of(hook)
    _, plain = step_of()
    assert same(step, plain)
    x, y = digits(4).tensors
    F.cross_entropy(net(x), y).backward()
    hooked = net.net[0].weight.grad.clone()
    fresh = MLP()
    fresh.load_state_dict(net.state_dict())
    F.cross_entropy(fresh(x), y).backward()
    assert torch.allclose(hooked, 0.1 * fresh.net[0].weight.grad)  # it is back


def test_hooks_on_weights_in_scope_are_told():
    net, fit_trainer, _, _ = fitted()
    net.head.weight.register_hook(lambda g: 0.1 * g)
    with pytest.warns(UserWarning, match=r"hooks on the gradients.*head\.weight"):
        assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["simple", "pytorch"])
def test_profilers_of_a_fit_end_with_it(name, capsys):
    options = {"profiler": name}
    _, fit_trainer, _, _ = fitted(trainer_options=options)
    capsys.readouterr()
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED
    assert fit_trainer.profiler is not None
    assert "UNLEARN" not in capsys.readouterr().out


class Words(L.LightningModule):
    def __init__(self, sparse):
        super().__init__()
        self.table = nn.Embedding(17, 3, sparse=sparse)
        self.out = nn.Linear(3 * 64, 10)

    def training_step(self, batch, batch_idx):
        words = self.table((batch[0] * 16).long())
        return F.cross_entropy(self.out(words.flatten(1)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_sparse_embeddings_take_the_step_of_dense_ones():
    moved = []
    for sparse in (True, False):
        torch.manual_seed(0)
        net, fit_trainer, _, _ = fitted(Words(sparse), noise_std=0.0)
        fit_trainer.unlearn([1])
        assert net.table.sparse is sparse
        moved.append(weights(net))
    assert all(torch.allclose(moved[0][k], moved[1][k], atol=1e-5) for k in moved[0])


def test_weights_that_no_gradient_can_be_taken_of_are_named():
    with torch.inference_mode():
        net = HeadNet()
    data = loader(digits(60))
    for action in ("fit", "unlearn"):
        own = trainer(UnlearningCallback())
        with pytest.raises(ModelError, match="'backbone.0.weight', made under torch"):
            own.fit(net, data) if action == "fit" else own.unlearn(
                [1], model=net, train_dataloaders=data
            )


class Lazy(MLP):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(10))


def test_lazy_layers_are_named_and_work_once_called():
    data = loader(digits(100))
    for action in ("fit", "unlearn"):
        own, net = trainer(UnlearningCallback(noise_std=0.0)), Lazy()
        with pytest.raises(ModelError, match=r"'net.0.weight' of a lazy layer"):
            own.fit(net, data) if action == "fit" else own.unlearn(
                [1], model=net, train_dataloaders=data
            )
    net = Lazy()
    net(torch.zeros(2, 64))
    _, fit_trainer, _, _ = fitted(net, noise_std=0.0)
    assert fit_trainer.unlearn([1]).n_forget == 1


class Detects(MLP):
    """As torchvision's detectors: losses in train mode, boxes in eval mode."""

    def forward(self, x, targets=None):
        logits = self.net(x)
        if self.training:
            return {"classes": F.cross_entropy(logits, targets)}
        return [{"labels": z.argmax()} for z in logits]

    def training_step(self, batch, batch_idx):
        return sum(loss for loss in self(*batch).values())


class DetectsToo(Detects):
    def unlearning_loss(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")


def test_losses_that_exist_in_train_mode_only_are_named():
    net, fit_trainer, callback, _ = fitted(Detects(), noise_std=0.0)
    refused(
        ModelError, "losses that exist in train mode. is not there: override unl",
        net, fit_trainer, callback, [1],
    )  # fmt: skip
    _, fit_trainer, _, _ = fitted(DetectsToo(), noise_std=0.0)
    assert fit_trainer.unlearn([1]).n_forget == 1


@pytest.mark.parametrize("passed", [True, False])
def test_a_compiled_module(passed):
    class Quiet(HeadNet):
        def training_step(self, batch, batch_idx):
            return self.head.loss(self.backbone(batch[0]), batch[1]).mean()

    net = Quiet()
    compiled = torch.compile(net, backend="eager")
    fit_trainer = trainer(UnlearningCallback())
    fit_trainer.fit(compiled, loader(digits(300)))
    given = {"model": compiled} if passed else {}
    look = preflight(fit_trainer, [1], **given)
    assert look.grade is Grade.CERTIFIED
    assert fit_trainer.unlearn([1], **given).certificate.grade is Grade.CERTIFIED
    assert fit_trainer.lightning_module is net


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_end", "on_fit_end"])
def test_a_request_from_inside_a_fit_is_refused(hook):
    class Impatient(HeadNet):
        pass

    setattr(Impatient, hook, lambda self: self.trainer.unlearn([1]))
    callback = UnlearningCallback()
    fit_trainer = trainer(callback)
    with pytest.raises(SetupError, match="in the middle of fit: .* after trainer.fit"):
        fit_trainer.fit(Impatient(), loader(digits(100)))
    assert callback.requests == 0


class Unfreezes(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 4), nn.Tanh())
        self.head = nn.Linear(4, 10)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.1)


@pytest.mark.parametrize("epoch", [1, 9])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.filterwarnings("ignore:.*weights_only. was not set")
@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_what_a_callback_has_unfrozen_stays_in_scope(epoch, fresh, tmp_path):
    def made():
        callback = UnlearningCallback(noise_std=0.0)
        return trainer(callback, 3, callbacks=[BackboneFinetuning(epoch)])

    net, own, given = Unfreezes(), made(), {}
    own.fit(net, loader(digits(300)))
    own.save_checkpoint(tmp_path / "run.ckpt")
    if fresh:
        net, own = Unfreezes(), made()
        given = {"model": net, "ckpt_path": tmp_path / "run.ckpt",
                 "train_dataloaders": loader(digits(300))}  # fmt: skip
        flags = [p.requires_grad for p in net.parameters()]
        preflight(own, [1], **given)
        assert [p.requires_grad for p in net.parameters()] == flags
    scope = own.unlearn([1], **given).certificate.scope
    every = ["backbone.0.bias", "backbone.0.weight", "head.bias", "head.weight"]
    assert list(scope) == (every if epoch == 1 else every[2:])


def test_other_callbacks_are_left_alone(tmp_path):
    monitor = ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]))
    saves = ModelCheckpoint()
    fit_trainer = trainer(
        UnlearningCallback(), callbacks=[monitor, saves],
        enable_checkpointing=True, logger=CSVLogger(tmp_path),
    )  # fmt: skip
    net, data = HeadNet(), DataLoader(digits(256), 64)
    net.flops_per_batch = 1
    preflight(fit_trainer, [1], model=net, train_dataloaders=data)
    assert saves.dirpath is None  # the fit finds its own
    fit_trainer.fit(net, data)
    folder = saves.dirpath
    assert folder.startswith(str(tmp_path))
    assert fit_trainer.unlearn([1]).certificate.grade is Grade.CERTIFIED
    assert saves.dirpath == folder
    net, fit_trainer, callback, _ = fitted()
    pruning = ModelPruning("l1_unstructured", amount=0.5)
    fit_trainer.callbacks.append(pruning)
    refused(ModelError, "got ModelPruning", net, fit_trainer, callback, [1])


class Average(L.Callback):
    """A user's own: made in setup, loaded from a checkpoint, moved in training."""

    def setup(self, trainer, pl_module, stage):
        self.copy = copy.deepcopy(pl_module)

    def state_dict(self):
        return {"copy": self.copy.state_dict()}

    def load_state_dict(self, state):
        self.copy.load_state_dict(state["copy"])


@pytest.mark.filterwarnings("ignore:.*weights_only. was not set")
def test_a_users_own_average_is_named(tmp_path):
    fit_trainer = trainer(UnlearningCallback(), callbacks=[Average()])
    fit_trainer.fit(HeadNet(), loader(digits(300)))
    fit_trainer.save_checkpoint(tmp_path / "run.ckpt")
    fresh = trainer(UnlearningCallback(), callbacks=[Average()])
    given = {"model": HeadNet(), "ckpt_path": tmp_path / "run.ckpt",
             "train_dataloaders": loader(digits(300))}  # fmt: skip
    for done in (fit_trainer.unlearn([1]), fresh.unlearn([1], **given)):
        assert "the state kept by Average" in done.certificate.not_covered
