"""Part f: damping, epsilon, delta and noise by hand (the paper's Figure 4)."""

from measures import distance, f1
from methods import facts
from world import World

from lightning_unlearn.errors import UnlearningError
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon

DAMPINGS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 2000.0)
EPSILONS = (0.1, 1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
DELTAS = (1e-9, 1e-7, 1e-5, 1e-3, 1e-1)
NOISES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
#: Of the sweeps over noise: the step is as good as none, and soon solved.
FIXED = 100.0


def sweeps(world: World) -> dict[str, list[dict]]:
    """What is swept -> one entry a value."""
    found = {
        "damping": [_one(world, "damping", x, noise_std=0.0) for x in DAMPINGS],
        "epsilon": [_one(world, "epsilon", x, damping=FIXED) for x in EPSILONS],
        "delta": [_one(world, "delta", x, damping=FIXED) for x in DELTAS],
        "noise_std": [_one(world, "noise_std", x, damping=FIXED) for x in NOISES],
    }
    for entry in found["noise_std"]:
        mu = 2 * world.setting.max_norm / entry["value"]
        entry["epsilon_at_2C"] = gaussian_epsilon(mu, 1e-5)
    return found


def _one(world: World, name: str, value: float, **options) -> dict:
    try:
        net, result = world.request(world.forget, **{name: value, **options})
    except UnlearningError as error:
        return {"value": value, "refused": f"{type(error).__name__}: {error}"}
    return {"value": value, **facts(result), **f1(world, net), **distance(world, net)}
