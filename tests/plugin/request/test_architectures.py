"""What breaks second derivatives: handled, or refused by name; transformers, LoRA."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_unlearn import CG, UnlearningCallback
from lightning_unlearn.errors import ModelError
from tests.helpers.lightning import BatchSizeFinder, L
from tests.helpers.nets import MLP, digits, fitted, same, trainer, weights

N = 120


class Attention(MLP):
    def __init__(self):
        super().__init__()
        self.net = None
        self.embed = nn.Linear(8, 8)
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 8, batch_first=True, activation="gelu"
        )
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        return self.out(self.layer(self.embed(x.view(-1, 8, 8))).mean(1))


class Recurrent(MLP):
    def __init__(self):
        super().__init__()
        self.net = None
        self.lstm = nn.LSTM(8, 4, batch_first=True)
        self.out = nn.Linear(4, 10)

    def forward(self, x):
        return self.out(self.lstm(x.view(-1, 8, 8))[0][:, -1])


class Checkpointed(MLP):
    """Activation checkpointing of a body, after a first layer or not."""

    def __init__(self, reentrant, first=True):
        super().__init__(hidden=4)
        self.reentrant = reentrant
        self.first = nn.Linear(64, 6) if first else nn.Identity()
        self.body = nn.Sequential(nn.Linear(6 if first else 64, 64), nn.Tanh())

    def forward(self, x):
        x = self.first(x)
        return self.net(checkpoint(self.body, x, use_reentrant=self.reentrant))


class Compiled(MLP):
    def __init__(self):
        super().__init__(hidden=4)
        self.net = torch.compile(self.net, backend="aot_eager")


class Tied(MLP):
    def __init__(self):
        super().__init__()
        self.net = None
        self.one, self.two = nn.Linear(64, 8), nn.Linear(8, 64)
        self.two.weight = nn.Parameter(torch.randn(64, 8) / 8)
        self.back = nn.Linear(64, 8)
        self.back.weight = self.one.weight
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        return self.out(self.back(self.two(self.one(x).tanh()).tanh()))


class InPlaceActivation(MLP):
    def forward(self, x):
        hidden = self.net[0](x)
        return self.net[2](torch.tanh_(hidden))


def dense(net, dataset, retained, damping, l2=1e-4):
    """The damped Newton step of a module, dense, by float64 forward differentiation."""
    X, y = (t[list(retained)] for t in dataset.tensors)
    net = net.double().eval()
    named = dict(net.named_parameters())
    w = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def value(flat):
        parts = flat.split([p.numel() for p in named.values()])
        given = {n: q.view(p.shape) for (n, p), q in zip(named.items(), parts)}  # noqa: B905
        out = torch.func.functional_call(net, given, (X.double(),))
        return F.cross_entropy(out, y) + l2 / 2 * flat @ flat

    g = torch.autograd.functional.jacobian(value, w)
    H = torch.autograd.functional.hessian(value, w)
    return torch.linalg.solve(H + damping * torch.eye(len(w)).double(), g)


HANDLED = {
    "attention": Attention,
    "LSTM": Recurrent,
    "checkpointed": lambda: Checkpointed(False),
    "compiled": Compiled,
    "tied": Tied,
    "in place": InPlaceActivation,
}


@pytest.mark.parametrize("name", HANDLED)
def test_handled_and_equal_to_the_dense_step(name):
    torch.manual_seed(0)
    net, own, _, dataset = fitted(
        HANDLED[name](), digits(N), noise_std=0.0, damping=2.0, solver=CG(rtol=1e-6)
    )
    copy = HANDLED[name]()
    copy.load_state_dict(weights(net))
    result = own.unlearn(range(7))
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        x = dense(copy, dataset, range(7, N), 2.0)
    assert float((result.solution.x - x).norm()) <= 1e-4 * float(x.norm())


class Once(torch.autograd.Function):
    """tanh without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


class Detached(torch.autograd.Function):
    """tanh whose second derivative is silently zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = x.tanh().detach()
        return ctx.y.clone()

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.y**2)


class Custom(MLP):
    def __init__(self, function, activation=nn.Identity):
        super().__init__(activation)
        self.function = function

    def forward(self, x):
        return self.net[2](self.function.apply(self.net[1](self.net[0](x))))


class ChangesBatch(MLP):
    def training_step(self, batch, batch_idx):
        batch[0].sub_(0.5)
        return super().training_step(batch, batch_idx)


FORWARD = {"curvature": "hessian_forward"}
REFUSED = {
    "LSTM forward": (Recurrent, FORWARD, "by curvature='hessian_forward', got NotImpl"),
    "checkpointed forward": (
        lambda: Checkpointed(False), FORWARD, "='hessian_forward', got RuntimeError",
    ),
    "reentrant": (lambda: Checkpointed(True), {}, "expected.*use_reentrant=False"),
    "reentrant, first": (
        lambda: Checkpointed(True, first=False), {},
        "got none for body.0.weight, body.0.bias.*use_reentrant=False",
    ),
    "once": (lambda: Custom(Once), {}, "the autograd function Once, most likely"),
    "detached": (
        lambda: Custom(Detached), {},
        "expected the second derivative of the loss.*the autograd function Detached",
    ),
    "detached, kinked": (
        lambda: Custom(Detached, nn.ReLU), {}, "the autograd function Detached",
    ),
    "changes its batch": (ChangesBatch, {}, "expected a loss that leaves its batch"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_nothing_is_changed(name):
    torch.manual_seed(0)
    make, options, why = REFUSED[name]
    net, own, callback, _ = fitted(make(), digits(N), noise_std=0.0, **options)
    before, record = weights(net), callback.state_dict()
    with pytest.raises(ModelError, match=re.compile(why, re.S)):
        own.unlearn(range(7))
    assert same(weights(net), before)
    assert callback.state_dict() == record


@pytest.mark.parametrize("function", [Once, Detached])
def test_central_differences_serve_smooth_networks_without_double_backward(function):
    torch.manual_seed(0)
    net, own, _, dataset = fitted(
        Custom(function), digits(N), noise_std=0.0, damping=2.0,
        solver=CG(rtol=1e-4), curvature="central_difference",
    )  # fmt: skip
    plain = MLP()
    plain.load_state_dict(weights(net))
    result = own.unlearn(range(7))
    x = dense(plain, dataset, range(7, N), 2.0)
    assert float((result.solution.x - x).norm()) <= 1e-3 * float(x.norm())


def test_a_whole_compiled_module():
    class Plain(MLP):
        def training_step(self, batch, batch_idx):  # dynamo cannot trace self.log
            return F.cross_entropy(self(batch[0]), batch[1])

    compiled = torch.compile(Plain(), backend="aot_eager")
    _, own, _, _ = fitted(compiled, digits(N), noise_std=0.0)
    assert own.unlearn(range(7)).n_retain == N - 7


def test_a_batch_size_finder_stays_out_of_the_request(tmp_path, monkeypatch):
    class Own(MLP):
        batch_size = 16

        def train_dataloader(self):
            return DataLoader(digits(N), self.batch_size)

    monkeypatch.chdir(tmp_path)
    callback = UnlearningCallback(noise_std=0.0)
    finder = BatchSizeFinder(max_trials=1)
    own = trainer(callback, callbacks=[finder], default_root_dir=str(tmp_path))
    own.fit(Own())
    assert own.unlearn(range(7)).n_retain == N - 7
    assert finder in own.callbacks


def test_a_transformers_model_with_unlearning_loss():
    transformers = pytest.importorskip("transformers")

    class Causal(L.LightningModule):
        def __init__(self):
            super().__init__()
            config = transformers.GPT2Config(
                vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2
            )
            self.model = transformers.GPT2LMHeadModel(config)

        def unlearning_loss(self, batch, batch_idx):
            return self.model(input_ids=batch[0], labels=batch[0]).loss

        training_step = unlearning_loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    rows = torch.randint(32, (40, 16), generator=torch.Generator().manual_seed(0))
    _, own, _, _ = fitted(Causal(), torch.utils.data.TensorDataset(rows), noise_std=0.0)
    assert own.unlearn(range(3)).n_retain == 37
