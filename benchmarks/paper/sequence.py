"""Part e: ten requests, one after another (the paper's Figure 3)."""

import torch
from measures import distance, f1
from methods import facts
from torch import nn
from torch.utils.data import DataLoader
from world import World

from lightning_unlearn.evaluation.baselines.paper_bounds import newton_step_upper_paper

#: M of the bound: there is none for ReLU, so this is as good a guess as any.
ASSUMED_LIPSCHITZ = 1.0


def sequences(world: World) -> dict[str, list[dict]]:
    """Way -> what is so before the first request and after each."""
    return {
        "no noise": sequence(world, 0.0),
        "noise 0.001 by hand": sequence(world, 0.001),
    }


def sequence(world: World, noise_std: float) -> list[dict]:
    """The network before, and after each request for a share of the forget set."""
    order = torch.Generator().manual_seed(world.seed)
    shuffled = world.forget[torch.randperm(len(world.forget), generator=order)]
    net = world.make()
    own = world.trainer(world.callback(noise_std=noise_std))
    source = {
        "model": net,
        "train_dataloaders": DataLoader(world.train, 128),
        "ckpt_path": world.checkpoint,
    }
    states = [{"request": 0, **_state(world, world.original)}]
    for number, part in enumerate(shuffled.chunk(world.setting.requests), 1):
        result = own.unlearn(part, **source)
        source = {}
        found = {**facts(result), "seconds": result.seconds}
        states.append(
            {"request": number, **found, **bound(world, found), **_state(world, net)}
        )
    return states


def bound(world: World, found: dict) -> dict:
    """Theorem 3.4 with M as assumed, and the trivial bound that caps it."""
    constants, C = found["constants"], world.setting.max_norm
    lowest, damping = constants.get("ritz_min"), constants["damping"]
    stated = None
    if lowest is not None and damping + lowest > 0:
        stated = newton_step_upper_paper(
            max_norm=C,
            hessian_lipschitz=ASSUMED_LIPSCHITZ,
            damping=damping,
            lambda_min=lowest,
        )
    return {"theorem_3_4": stated, "trivial": 2 * C, "lambda_min": lowest}


def _state(world: World, net: nn.Module) -> dict:
    return {**f1(world, net), **distance(world, net)}
