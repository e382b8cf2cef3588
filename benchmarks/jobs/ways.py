"""The ways that every job is done, each measured alike."""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import machine, trainer

from lightning_unlearn import (
    CertifiedClassifier,
    PrivateTraining,
    PublicBackbone,
    TrainerExperiment,
    UnlearningCallback,
    compare_heads,
)
from lightning_unlearn.evaluation import audit, one_run_audit

EPSILON, DELTA, CANARIES = 1.0, 1e-5, 100
Cell = dict[str, object]
Make = Callable[[Dataset], tuple[L.Trainer, L.LightningModule, DataLoader]]


@dataclass(frozen=True)
class Rows:
    """Features in memory.

    Args:
        x: Of the training samples (n, d).
        y: Their classes.
        x_test: Of the test samples.
        y_test: Their classes.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1

    def split(self, fraction: float = 0.2, seed: int = 0, group: int = 1) -> "Rows":
        """Training rows alone: some of them stand in for the test rows.

        Samples that came as `group` rows in a row stay together, and the first of them
        is what is scored.
        """
        order = torch.randperm(
            len(self.x) // group, generator=torch.Generator().manual_seed(seed)
        )
        cut = int(fraction * len(order))
        own = (order[cut:, None] * group + torch.arange(group)).flatten()
        val = order[:cut] * group
        return Rows(self.x[own], self.y[own], self.x[val], self.y[val])


def cpu(action: Callable[[], object]) -> tuple[object, float]:
    """(result, CPU seconds of this process): others are at work on the machine."""
    begin = time.process_time()
    return action(), time.process_time() - begin


@torch.no_grad()
def percent(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Accuracy; of one output, yes where it is above 0."""
    outputs = torch.cat([net(part) for part in x.split(256)])
    one = outputs.shape[1] == 1
    found = (outputs[:, 0] > 0).long() if one else outputs.argmax(1)
    return 100 * (found == y).float().mean().item()


def keep(n: int, gone: Sequence[int]) -> Tensor:
    """True of the positions that stay."""
    kept = torch.ones(n, dtype=torch.bool)
    kept[list(gone)] = False
    return kept


def told(**measured: object) -> Cell:
    return {**measured, "machine": machine()}


# -- a certified head --------------------------------------------------------


def as_they_are(rows: Tensor) -> PublicBackbone:
    """A backbone for rows that were read already: it changes nothing."""
    return PublicBackbone(
        nn.Identity(), [""], standardize="none", unit_norm=False, scale=1.0,
        public_data=torch.zeros_like(rows[:1]),
    )  # fmt: skip


def choose(named: dict[str, Rows], strengths: Sequence[float]) -> dict[str, object]:
    """Features and l2 with the best score under noise, on rows that stand in.

    Args:
        named: By name of the features, each as `Rows.split` gave it.
        strengths: l2 that are tried.
    """
    tried = []
    for name, r in named.items():
        found = compare_heads(
            {name: as_they_are(r.x)}, TensorDataset(r.x, r.y),
            TensorDataset(r.x_test, r.y_test), l2=strengths, epsilon=EPSILON,
            delta=DELTA,
        )  # fmt: skip
        print(found, flush=True)
        tried += [
            (c.score_with_noise, c.backbone, c.l2) for c in found.choices
            if not c.problem
        ]  # fmt: skip
    score, name, l2 = max(tried)
    return {"features": name, "l2": l2, "validation": 100 * score,
            "tried": [[n, s, 100 * v] for v, n, s in tried]}  # fmt: skip


def certified(
    backbone: PublicBackbone,
    classes: int,
    l2: float,
    loader: DataLoader,
    gone: Sequence[int],
    rate: Callable[[L.LightningModule], float],
    store: Path | None = None,
) -> Cell:
    """Fit, then one request that forgets a person, with the rows kept in a store."""
    with tempfile.TemporaryDirectory() as folder:
        path = store or Path(folder) / "rows.store"
        callback = UnlearningCallback(EPSILON, DELTA, prepared=str(path))
        net, own = CertifiedClassifier(backbone, classes, l2=l2), trainer(callback, -1)
        _, fit = cpu(lambda: own.fit(net, loader))
        before = rate(net)
        result, seconds = cpu(lambda: own.unlearn(list(gone)))
    c = result.certificate
    return told(
        accuracy=rate(net), before=before, fit=fit, seconds=seconds,
        wall=result.seconds, epsilon=c.epsilon, delta=c.delta, grade=c.grade.value,
        weights=c.n_parameters, noise_std=c.noise_std,
    )  # fmt: skip


def refit(rows: Rows, gone: Sequence[int], l2: float) -> Cell:
    """scikit-learn on the same features, without the person: its solve alone."""
    kept = keep(len(rows.x), gone)
    x, y = rows.x[kept].numpy(), rows.y[kept].numpy()
    model = LogisticRegression(C=1 / (len(y) * l2), max_iter=5000)
    _, seconds = cpu(lambda: model.fit(x, y))
    right = model.score(rows.x_test.numpy(), rows.y_test.numpy())
    return told(accuracy=100 * right, seconds=seconds)


# -- networks ----------------------------------------------------------------


class Tuned(L.LightningModule):
    """A network trained as a whole.

    Args:
        net: From its inputs to the classes.
        optimizer: (module, steps) -> an optimizer, and a schedule or None.
        inputs: From a batch to (inputs, classes), while it trains.
    """

    def __init__(self, net, optimizer, inputs=None):
        super().__init__()
        self.net, self.made, self.inputs = net, optimizer, inputs

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch if self.inputs is None else self.inputs(batch)
        return F.cross_entropy(self(x).float(), y)

    def configure_optimizers(self):
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.made(self, steps)
        if schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def network_trainer(make: Make, epochs: int, precision: str = "32-true") -> L.Trainer:
    """Of a training that can be made anew."""
    return L.Trainer(
        max_epochs=epochs, callbacks=[UnlearningCallback(retrain=make)],
        accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, precision=precision,
    )  # fmt: skip


def retrained(
    make: Make,
    data: Dataset,
    gone: Sequence[int],
    rate: Callable[[L.LightningModule], float],
    seed: int,
) -> Cell:
    """A whole network, retrained exactly without the person.

    What it was before does not matter to that: only a step of the first training is
    taken here, so its accuracy is that of the retrained one.
    """
    torch.manual_seed(seed)
    own, net, loader = make(data)
    own.fit_loop.epoch_loop.max_steps = 1
    own.fit(net, loader)
    result, seconds = cpu(lambda: own.unlearn(list(gone), how="retrain"))
    c = result.certificate
    return told(
        accuracy=rate(own.lightning_module), seconds=seconds, wall=result.seconds,
        epsilon=c.epsilon, delta=c.delta, grade=c.grade.value,
    )  # fmt: skip


# -- private training --------------------------------------------------------


@dataclass(frozen=True)
class Private:
    """Settings of a private training of a linear layer on features."""

    lr: float
    epochs: int
    batch: int
    clip: float = 1.0


def _linear(rows: Rows, s: Private, dataset: Dataset, **options):
    def sgd(module, steps):
        return torch.optim.SGD(module.parameters(), s.lr, momentum=0.9), None

    layer = nn.Linear(rows.x.shape[1], rows.classes)
    for weights in layer.parameters():
        nn.init.zeros_(weights)
    own = trainer(UnlearningCallback(**options), s.epochs)
    loader = DataLoader(dataset, min(s.batch, len(dataset)), shuffle=True)  # type: ignore[arg-type]
    net = Tuned(layer, sgd)
    own.fit(net, loader)
    return net, own


def private(rows: Rows, gone: Sequence[int], s: Private) -> Cell:
    """A private training, epsilon of one sample as elsewhere; no request moves it."""
    settings = PrivateTraining(epsilon=EPSILON, max_grad_norm=s.clip)
    data = TensorDataset(rows.x, rows.y)
    options = {"epsilon": EPSILON, "delta": DELTA, "private": settings}
    (net, own), fit = cpu(lambda: _linear(rows, s, data, **options))
    result, seconds = cpu(lambda: own.unlearn(list(gone)))
    c = result.certificate
    steps = own.callbacks[0].record.private
    return told(
        accuracy=percent(net, rows.x_test, rows.y_test), fit=fit, seconds=seconds,
        epsilon=c.epsilon, delta=c.delta, grade=c.grade.value,
        noise_multiplier=steps.noise_multiplier, steps=steps.steps,
        capacity=steps.capacity,
    )  # fmt: skip


def choose_private(
    named: dict[str, Rows], settings: Sequence[Private]
) -> dict[str, object]:
    """Features and settings with the best accuracy on rows that stand in.

    What is chosen so is not covered by epsilon.
    """
    tried = []
    for name, r in named.items():
        for s in settings:
            right = private(r, [0], s)["accuracy"]
            tried.append((right, name, [s.lr, s.epochs, s.batch, s.clip]))
            print("private", *tried[-1], flush=True)
    right, name, values = max(tried)
    return {"features": name, "private": values, "validation": right, "tried": tried}


# -- audits ------------------------------------------------------------------


def with_wrong_labels(y: Tensor, canaries: Sequence[int], classes: int) -> Tensor:
    """Canaries have labels that a model has to learn by heart."""
    y, places = y.clone(), list(canaries)
    y[places] = (y[places] + torch.randint(1, classes, (len(places),))) % classes
    return y


def audited_head(rows: Rows, l2: float, canaries: int = CANARIES) -> Cell:
    """The library's audit of certified requests on these rows."""
    torch.manual_seed(0)
    y = with_wrong_labels(rows.y, range(canaries), rows.classes)
    data = TensorDataset(rows.x, y)

    def train(given):
        net = CertifiedClassifier(as_they_are(rows.x), rows.classes, l2=l2)
        own = trainer(UnlearningCallback(EPSILON, DELTA), -1)
        own.fit(net, DataLoader(given, 250, shuffle=True))
        return own

    experiment = TrainerExperiment(train, data, range(canaries), white_box=True)
    report, seconds = cpu(lambda: audit(experiment, runs=1, draws=1000))
    print(report, flush=True)
    return told(
        one_run=report.one_run.epsilon_lower,
        two_sample=report.two_sample.epsilon_lower,
        ceiling=report.one_run.ceiling, true_mu=report.white_box.mu_true,
        certified_mu=report.white_box.mu_certified, audit_seconds=seconds,
    )  # fmt: skip


def audited_private(
    rows: Rows, s: Private, noise_multiplier: float, canaries: int = CANARIES
) -> Cell:
    """The same noise; a request forgets all canaries: epsilon is of a group."""
    torch.manual_seed(0)
    y = with_wrong_labels(rows.y, range(canaries), rows.classes)
    settings = PrivateTraining(noise_multiplier, max_grad_norm=s.clip)

    def train(given):
        options = {"delta": DELTA, "private": settings}
        options["epsilon"] = 3.0 * canaries  # enough for all that are in
        return _linear(rows, s, given, **options)[1]

    experiment = TrainerExperiment(train, TensorDataset(rows.x, y), range(canaries))
    found = audit(experiment, runs=1).one_run
    print(found, flush=True)
    return told(one_run=found.epsilon_lower, ceiling=found.ceiling)


def not_unlearned(
    losses: Callable[[Dataset], Tensor], data: TensorDataset, canaries: int
) -> Cell:
    """What an audit finds of a model that is released as it was trained.

    Args:
        losses: Trains on a dataset, and gives the loss of each canary of `data`.
        data: Canaries first, with wrong labels.
        canaries: How many.
    """
    coins = torch.rand(canaries) < 0.5
    inside, others = coins.nonzero()[:, 0].tolist(), range(canaries, len(data))
    scores = losses(Subset(data, others)) - losses(Subset(data, [*inside, *others]))
    # One needs a certificate to know how many were to be forgotten: it claims nothing.
    rows = torch.randn(len(inside) + 8, 2)
    own = trainer(UnlearningCallback(noise_std=0.0), -1)
    blank = CertifiedClassifier(as_they_are(rows), 2)
    targets = torch.arange(len(rows)) % 2
    own.fit(blank, DataLoader(TensorDataset(rows, targets), 50))
    none = own.unlearn(range(len(inside))).certificate
    assert none.grade.value == "none"
    found = one_run_audit(none, coins, scores.double(), delta=DELTA)
    print(found, flush=True)
    return told(one_run=found.epsilon_lower, ceiling=found.ceiling)
