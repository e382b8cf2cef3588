"""Part g where a bound means something: a convex head on the pixels.

The certified distance of the head to the one minimiser over the retained samples,
against the true distance, at several tolerances.
"""

import torch
from common import Head
from measures import f1
from models import loader
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from world import World, flat

import lightning_unlearn as lu

L2 = 1e-3
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
EXACT = 1e-9  # just above what float64 sums can tell


class FlatHead(Head):
    """The head, on images of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))

    def training_step(self, batch, batch_idx):
        return self.head.loss(batch[0].flatten(1), batch[1]).mean()


def convex(world: World) -> list[dict]:
    """Of the trained head, then of each tolerance."""
    torch.manual_seed(world.seed)
    d = world.train.tensors[0][0].numel()
    net = FlatHead(d, 10)
    own = world.trainer(lu.UnlearningCallback(), 5 if world.setting.epochs > 5 else 1)
    own.fit(net, loader(world.train, shuffle=True))
    file = world.cache.path(world.seed, "head", "ckpt")
    own.save_checkpoint(file)
    before = flat(net.parameters())
    exact, _ = _minimiser(world, file, d, EXACT)
    found = [
        {
            "tolerance": None,
            "true_distance": float((before - exact).norm()),
            "measured_bound": _bound(world, before, d),
            "norm": float(exact.norm()),
            **f1(world, net),
        }
    ]
    for tolerance in TOLERANCES:
        reached, seconds = _minimiser(world, file, d, tolerance)
        noisy = FlatHead(d, 10)
        certificate = _request(world, noisy, file, tolerance=tolerance).certificate
        found.append(
            {
                "tolerance": tolerance,
                "true_distance": float((reached - exact).norm()),
                "measured_bound": _bound(world, reached, d),
                "certified": tolerance / L2,
                "sensitivity": certificate.sensitivity,
                "noise_std": certificate.noise_std,
                "grade": certificate.grade.value,
                "seconds": seconds,
                **f1(world, noisy),
            }
        )
    return found


def _minimiser(world: World, file, d: int, tolerance: float) -> tuple[Tensor, float]:
    """(weights before noise in float64, as the solve left them; seconds)."""
    net = FlatHead(d, 10)
    start = torch.load(file, weights_only=False, map_location="cpu")["state_dict"]
    result = _request(world, net, file, tolerance=tolerance, noise_std=0.0)
    w0 = flat([start[name] for name, _ in net.named_parameters()])
    return w0 - result.solution.x.double().cpu(), result.seconds


def _request(world: World, net, file, **options) -> lu.UnlearningResult:
    callback = lu.UnlearningCallback(accept_noise=True, **options)
    return world.trainer(callback).unlearn(
        world.forget,
        model=net,
        train_dataloaders=DataLoader(world.train, 128),
        ckpt_path=file,
    )


def _bound(world: World, w: Tensor, d: int) -> float:
    """|grad F(w)| / l2, in float64: no point is farther from the minimiser."""
    net = FlatHead(d, 10).double()
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(w, net.parameters())
    X, y = (t.cpu() for t in world.retain_set.tensors)
    double = TensorDataset(X.double(), y)
    total = torch.zeros_like(w)
    for batch in loader(double, 5000):
        value = net.training_step(batch, 0) * len(batch[0]) / len(double)
        total += flat(torch.autograd.grad(value, list(net.parameters())))
    return float((total + L2 * w).norm()) / L2
