"""That a row of a batch, and its loss, depend on one sample alone."""

import secrets
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten
from torch.utils.data import DataLoader

from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.mixin import hooks, unlogged
from lightning_unlearn.plugin.private.per_sample import rows_of
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.plugin.run.coins import own_coins
from lightning_unlearn.plugin.training.outside_digests import outside_digests


class Leaves:
    """The tensors of a batch as they came, to see that nobody has changed them.

    Args:
        batch: As the loader and the transfer hooks have made it.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.came = [(x, x._version) for x in rows_of(batch)[0]]

    def check(self) -> None:
        """Refuse a batch that was written to.

        Raises:
            DataError: If it was.
        """
        now = rows_of(self.batch)[0]
        if len(now) != len(self.came) or any(
            x is not y or x._version != version
            for x, (y, version) in zip(now, self.came, strict=True)
        ):
            raise DataError(
                "expected the drawn samples in the batch for PrivateTraining, got "
                "a batch that a callback, a hook or training_step has changed in "
                "place: a row could then hold more than its own sample; make new "
                "tensors in training_step, of the rows alone"
            )


class LossProbe:
    """The loss of one row, with coins of its own, before and after a training step.

    Args:
        module: In training.
        batch: Of the step.
    """

    def __init__(self, module: LightningModule, batch: Any) -> None:
        leaves, spec = rows_of(batch)
        self.module, self.seed = module, secrets.randbits(31)
        self.row, self.spec = [x[:1].clone() for x in leaves], spec
        self.before = self._loss()

    def _loss(self) -> Tensor | None:
        row = tree_unflatten([x.clone() for x in self.row], self.spec)
        with own_coins(self.seed), unlogged(self.module), torch.no_grad():
            try:
                return hooks(self.module)[0](row, 0).detach().double().mean()
            except ModelError:  # said by the step itself, in better words
                return None

    def check(self) -> None:
        """Refuse a loss that reads what the step on the other samples has left.

        Raises:
            ModelError: If it does.
        """
        after = self._loss()
        if self.before is None or after is None:
            return
        if not torch.allclose(self.before, after, rtol=1e-4, equal_nan=True):
            raise ModelError(
                "expected a loss of one sample that no training step changes but by "
                f"the weights, got {float(self.before):.6g} before a step on a batch "
                f"and {float(after):.6g} after it, with the same weights and coins: it "
                "reads a statistic, a memory or a generator that training_step moves; "
                "keep none, use torch's global generator, and trainer.global_step to "
                "count"
            )


class StateWatch:
    """What a module keeps beside its weights, which training must leave alone.

    Args:
        module: Before a step.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self.before = self._now()

    def _now(self) -> dict[str, str]:
        free = [p for p in self.module.parameters() if p.requires_grad]
        return outside_digests(self.module, free)

    def check(self) -> None:
        """Refuse statistics, also those that are reset before training ends.

        Raises:
            ModelError: If something has changed.
        """
        now = self._now()
        moved = sorted(n for n in now if self.before.get(n) != now[n])
        if moved:
            raise ModelError(
                "expected nothing but the weights to change in a private training, got "
                f"{', '.join(moved[:3])}: what is computed of samples without noise is "
                "not private, also if it is reset later; keep no statistics of them "
                "(self.log shows a loss)"
            )


def check_company(
    trainer: Trainer, loader: DataLoader, batch: Any, positions: list[int]
) -> None:
    """Refuse batches whose rows depend on more than the sample they are of.

    Some samples are put together again, with others in their company, by the loader's
    collate function and the module's transfer hooks: their rows must stay. Where
    reading is repeatable, the batch must have the very rows of the drawn samples.

    Args:
        trainer: In a training step.
        loader: Of the training.
        batch: As the step has it.
        positions: Of its samples.

    Raises:
        DataError: If a row changes with its company, or is another sample's.
    """
    dataset: Any = loader.dataset
    few = positions[:16]
    seed = secrets.randbits(31)

    def read(number: int) -> list[Any]:
        with own_coins(number):
            return [dataset[i] for i in few]

    samples = read(seed)
    half = (len(few) + 1) // 2
    others = [*samples[:half], *(samples[i % half] for i in range(half, len(few)))]
    strategy = strategies.adapter(trainer)

    def together(parts: list[Any], number: int) -> list[Any]:
        with own_coins(number):
            made = strategy.transfer(loader.collate_fn(parts))
        return rows_of(made)[0]

    def equal(one: list[Any], two: list[Any], most: int | None = None) -> bool:
        pairs = zip(one, two, strict=True)
        return all(_same(a[:most], b[:most]) for a, b in pairs)

    first = together(samples, seed)
    if not equal(first, together(others, seed), half):
        raise DataError(
            "expected batches in which each row depends on one sample for "
            "PrivateTraining, got rows that change with the others of their batch: "
            "leave mixtures of samples (mixup, cutmix, padding to the longest) out of "
            "collate_fn and of the transfer hooks"
        )
    if not equal(first, together(read(seed), seed)):
        raise DataError(
            "expected samples that are read as the global generators say (torch, "
            "numpy, random) for PrivateTraining, got others when they were read again "
            "with the same coins: a generator of the dataset's own lets a sample's "
            "augmentation tell who was read before it; draw from the global ones, "
            "which are seeded by the operating system here"
        )
    if not equal(first, together(read(seed + 1), seed + 1)):
        return  # random augmentation
    alone = [together([sample], seed + 2) for sample in samples]
    for place, rows in enumerate(alone):
        for a, b in zip(rows_of(batch)[0], rows, strict=True):
            if not _same(a[place], b[0]):
                raise DataError(
                    "expected the drawn samples in the batch for PrivateTraining, got "
                    f"another row at place {place}: something between the sampler and "
                    "the step (a callback, another sampler, a hook) has changed it"
                )


def _same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
