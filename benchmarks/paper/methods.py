"""The rows of the tables: every way to a network without the forgotten samples."""

import time
from collections.abc import Callable

import torch
from means import RESET, STEP_RESET
from models import adam, loader, loss
from settings import DELTA, EPSILON, HAND_NOISE
from torch import nn
from world import TRAINED, World

import lightning_unlearn as lu
from lightning_unlearn import evaluation

Row = Callable[[World], tuple[nn.Module, dict]]


def rows() -> dict[str, Row]:
    """Name -> way, in the order of the tables."""
    ways: dict[str, Row] = {name: _trained(name) for name in TRAINED}
    ways |= {
        name: row
        for name, (function, row) in BASELINES.items()
        if hasattr(evaluation, function)
    }
    ways["Newton step"] = newton_step
    for std in HAND_NOISE:
        ways[f"step + noise {std:g} by hand"] = _noisy_step(std)
    ways["step, epsilon 1"] = certified_step
    ways[STEP_RESET] = step_and_retraining
    ways["LiSSA, the paper's"] = lissa
    return ways


def facts(result: lu.UnlearningResult) -> dict:
    """What the certificate says, in plain numbers."""
    c, solution = result.certificate, result.solution
    return {
        "grade": c.grade.value,
        "epsilon": c.epsilon,
        "noise_std": c.noise_std,
        "sensitivity": c.sensitivity,
        "constants": {k.name: k.value for k in c.constants},
        "residual_of_gradient": {k.name: k.value for k in c.constants}[
            "measured_relative_residual"
        ],
        "passes": solution.matvecs,
        "status": solution.status.name,
    }


def timed(world: World, action: Callable[[], object]):
    """(what it gave, seconds until the device was done)."""
    world.wait()
    begin = time.perf_counter()
    found = action()
    world.wait()
    return found, time.perf_counter() - begin


def _trained(name: str) -> Row:
    def row(world: World) -> tuple[nn.Module, dict]:
        net, seconds = world.trained(name)
        found = {"seconds": seconds}
        if name == "original":  # how much of a step is due to the forgotten samples
            g, g_all = (world.gradient(net, d) for d in (world.retain_set, world.train))
            found |= {"gradient_norm": float(g.norm())}
            found |= {"gradient_change": float((g - g_all).norm())}
        return net, found

    return row


def _step(**options) -> Row:
    def row(world: World) -> tuple[nn.Module, dict]:
        (net, result), seconds = timed(
            world, lambda: world.request(world.forget, **options)
        )
        return net, {"seconds": seconds, **facts(result)}

    return row


def newton_step(world: World) -> tuple[nn.Module, dict]:
    """The bare step; its weights are kept for rows that only add noise to them."""
    net, found = _step(noise_std=0.0)(world)
    torch.save(net.state_dict(), world.cache.path(world.seed, "step", "pt"))
    return net, found


def _noisy_step(noise_std: float) -> Row:
    def row(world: World) -> tuple[nn.Module, dict]:
        if not world.setting.one_solve:
            return _step(noise_std=noise_std)(world)
        file, net = world.cache.path(world.seed, "step", "pt"), world.make()
        net.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
        seconds = world.cache.read(world.seed, "Newton step")["d"]["seconds"]
        draw = torch.Generator().manual_seed(world.seed)
        with torch.no_grad():
            for p in net.parameters():
                p += noise_std * torch.randn(p.shape, generator=draw)
        return net.to(world.device).eval(), {"seconds": seconds, "grade": "none"}

    return row


def certified_step(world: World) -> tuple[nn.Module, dict]:
    """What epsilon asks for; with `one_solve` after a step that is soon solved."""
    soon = {"damping": 2000.0} if world.setting.one_solve else {}
    return _step(epsilon=EPSILON, delta=DELTA, **soon)(world)


def step_and_retraining(world: World) -> tuple[nn.Module, dict]:
    """The same, and then as many epochs as a retraining has: post-processing."""
    net, found = certified_step(world)
    batches, epochs = _loader(world.retain_set), world.setting.epochs
    torch.manual_seed(world.seed)
    done = evaluation.fine_tune(net, loss, batches, epochs=epochs, optimizer=adam)
    found |= {"seconds": found["seconds"] + done.seconds}
    return net.eval(), found


def lissa(world: World) -> tuple[nn.Module, dict]:
    """The published settings: scale 1,000, damping 0.01, whatever the residual."""
    runs, steps = world.setting.lissa
    solver = lu.LiSSA(scale=1000.0, steps=steps, runs=runs, batch_size=10, rtol=1e9)
    return _step(noise_std=0.0, damping=0.01, solver=solver)(world)


def fine_tuning(world: World) -> tuple[nn.Module, dict]:
    """A tenth of the epochs, on the retained samples."""
    return _baseline(
        world,
        lambda net: evaluation.fine_tune(
            net, loss, _loader(world.retain_set), epochs=_tenth(world), optimizer=adam
        ),
    )


def gradient_ascent(world: World) -> tuple[nn.Module, dict]:
    """A tenth of the epochs up the loss of the forgotten samples, by plain SGD."""
    return _baseline(
        world,
        lambda net: evaluation.gradient_ascent(
            net,
            loss,
            _loader(world.forget_set),
            epochs=_tenth(world),
            optimizer=lambda p: torch.optim.SGD(p, lr=1e-2),
            max_norm=world.setting.max_norm,
        ),
    )


def neg_grad_plus(world: World) -> tuple[nn.Module, dict]:
    """A tenth of the epochs, alpha 0.95 of Kurmanji et al. 2023."""
    return _baseline(
        world,
        lambda net: evaluation.neg_grad_plus(
            net,
            loss,
            _loader(world.retain_set),
            _loader(world.forget_set),
            epochs=_tenth(world),
            optimizer=adam,
            alpha=0.95,
        ),
    )


def noisy_fine_tuning(world: World) -> tuple[nn.Module, dict]:
    """Koloskova et al. 2025: passes over all retained samples, from a ball of 1."""
    batches = loader(world.retain_set, world.setting.batch_size)
    steps = 20 if world.setting.one_solve else 200
    return _noisy_fine_tuning(world, batches, 1.0, steps)


def reset_and_retraining(world: World) -> tuple[nn.Module, dict]:
    """The same, and then as many epochs without noise as a retraining has.

    From a ball so small that the noisy weights have the size of a new network's.
    """
    again = {"fine_tune_epochs": world.setting.epochs, "optimizer": adam}
    return _noisy_fine_tuning(world, _loader(world.retain_set), 3e-3, 20, **again)


def _noisy_fine_tuning(world: World, batches, radius: float, steps: int, **again):
    return _baseline(
        world,
        lambda net: evaluation.noisy_fine_tune(
            net,
            loss,
            batches,
            epsilon=EPSILON,
            delta=DELTA,
            max_norm=radius,
            gradient_norm=radius,
            l2=5e-4,
            lr=0.1,
            steps=steps,
            **again,
        ),
    )


#: Name of the row -> (function of `evaluation`, row).
BASELINES: dict[str, tuple[str, Row]] = {
    "fine-tuning": ("fine_tune", fine_tuning),
    "gradient ascent": ("gradient_ascent", gradient_ascent),
    "NegGrad+": ("neg_grad_plus", neg_grad_plus),
    "noisy fine-tuning, epsilon 1": ("noisy_fine_tune", noisy_fine_tuning),
    RESET: ("noisy_fine_tune", reset_and_retraining),
}


def _loader(dataset):
    return loader(dataset, shuffle=True)


def _tenth(world: World) -> int:
    return max(1, world.setting.epochs // 10)


def _baseline(world: World, way: Callable) -> tuple[nn.Module, dict]:
    torch.manual_seed(world.seed)
    net, _ = world.trained("original")
    found, seconds = timed(world, lambda: way(net))
    said = {name: getattr(found, name) for name in ("epsilon", "noise_std", "claim")}
    return net.eval(), {"seconds": seconds, **said}
