"""What is measured of one network: the parts a, b, c and g of a row."""

import torch
from models import adam, loss
from torch import nn
from torchmetrics.functional.classification import multiclass_f1_score
from world import World

from lightning_unlearn.evaluation import (
    MembershipInference,
    OutputDivergence,
    membership_score,
    relearn_time,
    weight_distance,
)

#: A model is back when its loss on the forgotten is the original's, or this above it.
MARGIN = 0.05


def measured(world: World, net: nn.Module, parts) -> dict[str, dict]:
    """The chosen parts of one network; a part that cannot be had says why."""
    found = {}
    for part, measure in MEASURES.items():
        if part in parts:
            try:
                found[part] = measure(world, net)
            except (ValueError, RuntimeError) as error:  # logits or weights not finite
                found[part] = {"error": f"{type(error).__name__}: {error}"}
    return found


def f1(world: World, net: nn.Module) -> dict:
    """Macro F1 on the forgotten, the retained and the test samples, and accuracy."""
    sets = {"forget": world.forget_set, "retain": world.retain_set, "test": world.test}
    found = {}
    for name, dataset in sets.items():
        guess, y = world.logits(net, dataset).argmax(1), dataset.tensors[1].cpu()
        found[name] = float(multiclass_f1_score(guess, y, 10, average="macro"))
        found[f"{name}_accuracy"] = float((guess == y).double().mean())
    return found


def membership(world: World, net: nn.Module) -> dict:
    """A threshold on the loss: forgotten against test samples, beside the retrained."""
    metric = MembershipInference(fprs=(0.01,))
    divergence = OutputDivergence("kl")
    for dataset in (world.forget_set, world.test):
        y = dataset.tensors[1].cpu()
        ours, theirs = (world.logits(m, dataset) for m in (net, world.retrained))
        metric.update(
            membership_score("loss", ours, y),
            torch.full((len(y),), dataset is world.forget_set),
            membership_score("loss", theirs, y),
        )
        if dataset is world.forget_set:
            divergence.update(ours, theirs)
    result = metric.compute()
    return {
        "auc": float(result.unlearned.auc),
        "auc_gap": float(result.auc_gap.value),
        "auc_gap_low": float(result.auc_gap.low),
        "auc_gap_high": float(result.auc_gap.high),
        "tpr_at_1_percent": float(result.unlearned.rates[0].tpr.value),
        "kl_to_retrained": float(divergence.compute()),
    }


def relearning(world: World, net: nn.Module) -> dict:
    """Steps of Adam on the forgotten until their loss is the original's again."""
    X, y = world.forget_set.tensors

    def training(model):
        optimizer = adam(model.parameters())
        order = torch.Generator().manual_seed(0)

        def step():
            model.train()
            rows = torch.randint(len(X), (128,), generator=order).to(X.device)
            optimizer.zero_grad()
            loss(model, (X[rows], y[rows])).backward()
            optimizer.step()

        return step

    def on_forgotten(model):
        logits = world.logits(model, world.forget_set)
        return float(nn.functional.cross_entropy(logits, y.cpu()))

    found = relearn_time(
        unlearned=net.to(world.device),
        retrained=world.retrained,
        original=on_forgotten(world.original),
        training=training,
        measure=on_forgotten,
        margin=MARGIN,
        max_steps=world.setting.relearn_steps,
    )
    return {
        "steps": found.unlearned.steps,
        "reached": found.unlearned.reached,
        "loss_before": found.unlearned.values[0],
        "steps_retrained": found.retrained.steps,
        "anamnesis_index": found.anamnesis_index,
    }


def distance(world: World, net: nn.Module) -> dict:
    """To the retrained weights, and the gradient norm of F over the retained."""
    net = net.to(world.device)
    found = weight_distance(net, world.retrained, world.original)
    moved = weight_distance(net, world.original)
    norm = sum(float(p.double().square().sum()) for p in net.parameters()) ** 0.5
    return {
        "to_retrained": found.absolute,
        "of_original": found.of_original,
        "to_original": moved.absolute,
        "norm": norm,
        "gradient_norm": float(world.gradient(net, world.retain_set).norm()),
    }


MEASURES = {"a": f1, "b": membership, "c": relearning, "g": distance}
