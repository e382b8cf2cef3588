"""A user's own training as an experiment that `evaluation.audit` repeats."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_unlearn._base import validate
from lightning_unlearn._base.modes import modes_put_back
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import ArgumentError, SetupError
from lightning_unlearn.evaluation.audits.experiment import Outcome
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.lightning import (
    LightningDataModule,
    LightningModule,
    check_package,
    isolate_rng,
    pl,
)
from lightning_unlearn.plugin.mixin import hooks, quiet, scope_of
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.which_guarantee import convex_head
from lightning_unlearn.plugin.request.request import Request
from lightning_unlearn.plugin.request.resolution import resolve
from lightning_unlearn.plugin.request.stage import (
    StageContext,
    callback_of,
    run_in_trainer,
)
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.plugin.verbs.function_identity import named
from lightning_unlearn.plugin.verbs.unlearn import HOW, unlearn
from lightning_unlearn.weights.scope import Scope

_EXACT = 1e-3  # of the tolerance: where the minimiser is taken to be
_LEAST = 1e-10  # and no nearer: float64 sums are rounded


class TrainerExperiment:
    """Train with some canaries, ``trainer.unlearn`` them, score all of them.

    After a private training (``UnlearningCallback(private=...)``) the request forgets
    one canary that is in the data: this changes no weight, and the certificate says
    what any model of that training tells about one sample.

    Canaries are samples of your own data, or better, samples made to be remembered,
    such as rare inputs with a wrong label. An attack on ordinary samples finds little.

    Args:
        train: A function of the samples to train on (a ``Subset`` of `dataset`). It
            trains a new model and returns the Trainer, with an `UnlearningCallback` and
            without a ledger file; with ddp_spawn the Trainer and the DataLoader, which
            the processes take along. Or it returns (Trainer, module, DataLoader or
            DataModule) as for ``UnlearningCallback(retrain=...)``, trained here.
            Make everything in it anew: two runs must share nothing.
        dataset: Map-style, as for training.
        canaries: Positions of the canaries.
        others: Positions that are always trained on; by default all the rest.
        score: Given the released model and the canaries, in the order of their
            positions, one number each, (canaries,): higher, more likely in. By default
            minus the loss of each.
        white_box: Compute the points before the noise as well, for the true mu and
            for ``draws``; for a `ConvexHead` only. The step is taken twice more, once
            to a thousandth of the tolerance.
        how: As for `unlearn`. "retrain" needs ``retrain=`` in the callback that `train`
            makes, and a run then takes two trainings: its release is held to
            epsilon = 0.

    Attributes:
        n_canaries: How many canaries there are.
        identity: Identifies `train` (its code and plain arguments), the number of
            samples and their positions. It does not see what `train` calls, nor the
            samples: remove kept runs when you change those.

    Raises:
        ArgumentError: If positions are not in the dataset, repeat, or overlap, or there
            are no points before the noise to be computed.
    """

    def __init__(
        self,
        train: Callable[[Dataset], pl.Trainer | tuple[Any, ...]],
        dataset: Dataset,
        canaries: Iterable[int],
        *,
        others: Iterable[int] | None = None,
        score: Callable[[LightningModule, Dataset], Tensor] | None = None,
        white_box: bool = False,
        how: Literal["auto", "newton", "retrain"] = "auto",
    ) -> None:
        validate.one_of(HOW, how=how)
        if white_box and how == "retrain":
            raise ArgumentError(
                "expected white_box=False for how='retrain', got True: a retraining "
                "adds no noise, so there are no points before it"
            )
        if not callable(train) or isinstance(dataset, DataLoader):
            raise ArgumentError(
                "expected train, a function of the samples to train on, and a dataset, "
                f"got {type(train).__name__} and {type(dataset).__name__}"
            )
        n = len(dataset)  # type: ignore[arg-type]
        self.train, self.dataset, self.score = train, dataset, score
        self.white_box = white_box
        self.how: Literal["auto", "newton", "retrain"] = how
        self.canaries = _positions("canaries", canaries, n)
        rest = set(range(n)) - set(self.canaries) if others is None else others
        self.others = _positions("others", rest, n)
        both = set(self.canaries) & set(self.others)
        if both:
            raise ArgumentError(
                "expected canaries that are not always trained on, got positions in "
                f"canaries and in others: {sorted(both)[:5]}"
            )
        self.n_canaries = len(self.canaries)
        text = f"{n} {self.canaries} {self.others} {white_box} {how} {named(score)}"
        places = hashlib.sha256(text.encode()).hexdigest()
        self.identity = f"{named(train)} {places}"

    def __call__(self, included: Tensor) -> Outcome:
        """One training and one request; see `evaluation.Experiment`."""
        inside = [c for c, x in zip(self.canaries, included.tolist(), strict=True) if x]
        kept = sorted([*self.others, *inside])
        given = Subset(self.dataset, kept)
        trainer, loader = _fitted(self.train(given), self.white_box)
        read = training_data.training_loader(
            loader
            or trainer.train_dataloader
            or callback_of(trainer, None).attached.loader
        )
        if read.dataset is not given:
            raise ArgumentError(
                f"expected train to give its DataLoader the very {len(kept)} samples "
                f"that it is given, got {_told(read.dataset)}: positions would be of "
                "other samples; put transforms into dataset="
            )
        certificate: Certificate | None = None
        unlearned = retrained = None
        if inside:
            gone = set(inside)
            forgets = [i for i, place in enumerate(kept) if place in gone]
            private = callback_of(trainer, None).record.private is not None
            if private and self.how != "retrain":
                forgets = forgets[:1]
            if self.white_box:
                unlearned, retrained = _before_noise(trainer, forgets)
            certificate = unlearn(
                trainer, forgets, train_dataloaders=loader, how=self.how
            ).certificate
        canaries = Subset(self.dataset, self.canaries)
        model = trainer.lightning_module
        with modes_put_back(model), torch.no_grad():
            model.eval()
            scores = (
                _minus_losses(trainer, read, model, canaries)
                if self.score is None
                else self.score(model, canaries)
            )
        released = None if unlearned is None else _weights(model)
        return Outcome(
            certificate=certificate,
            scores=scores,
            unlearned=unlearned,
            retrained=retrained,
            released=released,
        )


def _trained(made: object) -> tuple[object, DataLoader | None]:
    """The Trainer, fitted here if it came with its module and data; and its loader."""
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        return made, None
    if len(made) == 2:
        return made
    trainer, module, data = made
    check_package(trainer, module, data)
    if not isinstance(trainer, pl.Trainer):
        return trainer, None
    if isinstance(data, LightningDataModule):
        trainer.fit(module, datamodule=data)
        return trainer, None
    trainer.fit(module, data)
    return trainer, data


def _fitted(made: object, white_box: bool) -> tuple[pl.Trainer, DataLoader | None]:
    """What ``train`` returned, if its training can be one of many runs."""
    trainer, loader = _trained(made)
    check_package(trainer)
    if not isinstance(trainer, pl.Trainer):
        raise ArgumentError(
            "expected train to return the Trainer that was fit, got "
            f"{type(trainer).__name__}"
        )
    if trainer.world_size > 1 and not compat.is_spawning(trainer):
        raise SetupError(
            f"expected one process, or ddp_spawn, got {trainer.world_size} that each "
            "run this script: each would toss coins of its own; train on one device or "
            "with ddp_spawn"
        )
    if white_box and compat.is_spawning(trainer):
        raise SetupError(
            "expected one device for white_box=True, got a strategy that spawns "
            "processes: train on one device, or use white_box=False"
        )
    callback = callback_of(trainer, None)
    if callback.requests or callback.options.ledger_path is not None:
        what = "one with ledger=" if callback.options.ledger_path else "one used before"
        raise SetupError(
            f"expected train to make a Trainer and an UnlearningCallback anew, without "
            f"a ledger file, got {what}: runs must share nothing"
        )
    if trainer.interrupted:  # Lightning 2.4 returns from fit as if it were done
        raise KeyboardInterrupt
    return trainer, loader


def _told(dataset: Any) -> str:
    return f"{len(dataset):,} samples in a {type(dataset).__name__} of another origin"


def _weights(model: LightningModule) -> Tensor:
    """Those in scope as they were released, (p,), in the head's own order."""
    head = convex_head(model, Scope(model, scope_of(model)))
    assert head is not None  # the points before noise were computed
    return Scope(model, head.parameters()).flatten(head.weight.dtype).cpu()


def _positions(name: str, values: Any, n: int) -> list[int]:
    try:
        given = [*values]
        found = sorted(v.__index__() for v in given)
    except (TypeError, AttributeError) as problem:
        raise ArgumentError(
            f"expected {name} as positions, whole numbers from 0 to {n - 1}, got "
            f"{type(values).__name__} ({problem})"
        ) from None
    if any(isinstance(v, bool) or getattr(v, "dtype", 0) == torch.bool for v in given):
        raise ArgumentError(
            f"expected {name} as positions, got True and False: of a mask take "
            "mask.nonzero().flatten().tolist()"
        )
    bad = [v for v in found if not 0 <= v < n]
    twice = [v for v, after in pairwise(found) if v == after]
    if bad or twice:
        got = f"{bad[0]}" if bad else f"{twice[0]} twice"
        raise ArgumentError(
            f"expected {name} as different positions from 0 to {n - 1}, got {got}"
        )
    return found


def _minus_losses(
    trainer: pl.Trainer, loader: DataLoader, model: LightningModule, canaries: Any
) -> Tensor:
    """Of each canary on its own."""
    loss, *_ = hooks(model)

    def of(place: int) -> Tensor:
        batch = trainer.strategy.batch_to_device(
            loader.collate_fn([canaries[place]]), model.device, dataloader_idx=0
        )
        return loss(batch, place).double().mean()

    with isolate_rng(), quiet(model, restore=True):
        return -torch.stack([of(place) for place in range(len(canaries))])


def _before_noise(trainer: pl.Trainer, forgets: list[int]) -> tuple[Tensor, Tensor]:
    """Where the request ends, and the exact minimiser: before noise, float64."""
    return run_in_trainer(
        trainer,
        _Points(forgets),
        model=None,
        train_dataloaders=None,
        datamodule=None,
        ckpt_path=None,
        weights_only=None,
        changes_nothing=True,
    )


# An object, for the same reasons as `stage._InEachProcess`.
class _Points:
    """The stage that takes the step, and a finer one, and changes nothing."""

    def __init__(self, forgets: list[int]) -> None:
        self.forgets = forgets

    def __call__(self, context: StageContext) -> tuple[Tensor, Tensor]:
        with context.strategy.gathered(context.module):
            plan = resolve(context, Request(forget=self.forgets))
            if not isinstance(plan, HeadPlan):
                raise SetupError(
                    "expected a ConvexHead for white_box=True, got a model whose "
                    "retrained minimiser cannot be computed: use white_box=False"
                )
            tolerance = plan.tolerance.value
            finest = min(tolerance, max(tolerance * _EXACT, _LEAST))
            finer = replace(plan.options, tolerance=finest)
            with isolate_rng(), quiet(context.module, restore=True):
                ends = plan.step(plan.retained).weights
                exact = replace(plan, options=finer).step(plan.retained).weights
        return ends.cpu(), exact.cpu()
