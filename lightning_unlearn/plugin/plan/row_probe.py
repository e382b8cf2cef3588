"""What reaches a head before, after and since a training: has anything changed it?

No list of attributes says what a module remembers of its data: a vocabulary in a
dictionary, a counter, a fitted object, a closure. So the rows themselves are compared.
"""

import random
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn._base.modes import borrowed
from lightning_unlearn.plugin.lightning import LightningModule, Trainer, isolate_rng
from lightning_unlearn.plugin.mixin import hooks, quiet
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.made_at_start import AtSetup, reaching
from lightning_unlearn.plugin.plan.plan import PassContext
from lightning_unlearn.plugin.plan.which_guarantee import convex_head
from lightning_unlearn.plugin.run import strategies
from lightning_unlearn.plugin.training.outside_digests import plain_attributes
from lightning_unlearn.plugin.training.public_backbones import reading_private
from lightning_unlearn.plugin.training.shifted import TRIED, shifted
from lightning_unlearn.step.batch_checks import spread_places
from lightning_unlearn.step.head.capture import rows_at_fixed_weights
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Shards

Rows = list[tuple[Tensor, ...]]  # features, target and weight of each sample
_SAMPLES, _BATCH = 16, 8
_MOST, _SECONDS = 512, 0.1  # samples where a look at them takes no longer
_ONE_BY_ONE = 8  # attributes that are tried one by one, if together they matter


@dataclass(frozen=True)
class RowProbe:
    """Some samples' rows as they were at the start of a training; kept in memory only.

    Args:
        loader: The training loader.
        positions: Of the samples.
        rows: What reached the head; None if it could not be computed.
        differs: Whether they differed between two reads.
        by_order: What remembers which samples were read first, and shows in their rows.
        made: Names of what hooks of this run made and what reaches the head.
        attributes: Digests of the module's plain attributes, to name what changed.
        l2: What ``unlearning_l2`` said, or None.
    """

    loader: DataLoader
    positions: list[int]
    rows: Rows | None = field(repr=False)
    differs: bool = False
    by_order: str | None = None
    made: list[str] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict, repr=False)
    l2: float | None = None

    @property
    def known(self) -> bool:
        """Whether a comparison would say anything."""
        return self.rows is not None and not self.differs

    def changed(
        self, trainer: Trainer, module: LightningModule, options: Options
    ) -> str | None:
        """What has changed since, in words; None if nothing has, or nobody can tell."""
        if self.differs:
            return None
        if self.by_order is not None:
            return (
                "what reaches the head (it depends on which samples were read "
                f"first{self.by_order})"
            )
        if hooks(module)[2] != self.l2:
            return "unlearning_l2() (it changed in training)"
        now = _read(trainer, module, options, self.loader, self.positions).rows
        if _same_or_none(now, self.rows):
            return None
        before, after = self.attributes, plain_attributes(module)
        names = [n for n in sorted({*before, *after}) if before.get(n) != after.get(n)]
        return f"what reaches the head (it changed in training{_listed(names)})"

    def reached(
        self,
        trainer: Trainer,
        module: LightningModule,
        options: Options,
        attributes: list[str],
    ) -> list[str]:
        """Those plain attributes whose numbers the rows or l2 depend on.

        Args:
            trainer: In the training's run.
            module: That was trained.
            options: Of the callback.
            attributes: Whose numbers it has changed.
        """
        if not self.known:
            return attributes

        def objective() -> tuple[Rows | None, float | None]:
            rows = _read(trainer, module, options, self.loader, self.positions).rows
            return rows, hooks(module)[2]

        before = objective()

        def depends(some: list[str]) -> bool:
            for new in TRIED:
                with shifted(module, some, new):
                    now = objective()
                if not _same_or_none(now[0], before[0]) or now[1] != before[1]:
                    return True
            return False

        try:
            if before[0] is not None and not depends(attributes):
                return []
            if before[0] is not None and 1 < len(attributes) <= _ONE_BY_ONE:
                return [name for name in attributes if depends([name])] or attributes
        except Exception:  # of the user's code, or a number that nothing can replace
            return attributes
        return attributes


def probe(
    trainer: Trainer,
    module: LightningModule,
    options: Options,
    loader: DataLoader,
    positions: list[int],
    at_setup: AtSetup | None = None,
) -> RowProbe | None:
    """Take the rows of some of these samples; None if no head is in scope.

    Args:
        trainer: In the training's run.
        module: About to be trained.
        options: Of the callback.
        loader: The training loader.
        positions: Samples that the training can draw.
        at_setup: The module's plain attributes when this run began, or None.
    """
    _, in_scope, l2 = hooks(module)
    strategy = strategies.adapter(trainer, options.curvature)
    scope = strategy.scope(module, in_scope)
    if isinstance(scope, Shards) or convex_head(module, scope) is None:
        return None
    some = [positions[place] for place in spread_places(len(positions), _SAMPLES)]

    def read(places: list[int], seed: int = 0) -> _Read:
        return _read(trainer, module, options, loader, places, seed)

    began = time.perf_counter()
    first = read(some)
    if strategies.processes_of(trainer).world == 1:  # or each would take others
        pace = _SAMPLES * _SECONDS / (time.perf_counter() - began)
        more = min(_MOST, int(pace))
        if more > _SAMPLES:
            places = spread_places(len(positions), more)
            some = [positions[place] for place in places]
            first = read(some)
    again, backwards = read(some, seed=1), read(some[::-1])
    differs = bool(first.left) or not _same_or_none(first.rows, again.rows)
    by_order = None
    turned = None if backwards.rows is None else backwards.rows[::-1]
    if first.touched and not (differs or _same_or_none(first.rows, turned, 100.0)):
        by_order = _listed(first.touched)
    made = list[str]()
    if at_setup is not None and first.rows is not None and not differs:
        rows = first.rows

        def same() -> bool | None:
            now = read(some).rows
            return None if now is None else _same(now, rows)

        made = reaching(at_setup.made(module), same)
    attributes = plain_attributes(module)
    return RowProbe(loader, some, first.rows, differs, by_order, made, attributes, l2)


class _Read(NamedTuple):
    """Rows; what reading them touched, and what of that nobody could put back."""

    rows: Rows | None
    touched: list[str]
    left: list[str]


def _read(
    trainer: Trainer,
    module: LightningModule,
    options: Options,
    loader: DataLoader,
    positions: list[int],
    seed: int = 0,
) -> _Read:
    """What reaches the head of samples, a few at a time; nothing if that fails.

    All that the user's code changed by it is put back.
    """
    data = {"dataset": loader.dataset, "collate_fn": loader.collate_fn}
    try:
        strategy = strategies.adapter(trainer, options.curvature)
        with (
            strategy.gathered(module),
            isolate_rng(),
            borrowed(trainer.state, stage=None),  # no training, as in a request
            quiet(module, restore=True, **data) as state,
        ):
            for start in (random.seed, np.random.seed, torch.manual_seed):
                start(seed)
            context = PassContext.of(trainer, module, options, loader)
            scope = context.scope
            head = convex_head(module, scope)
            if head is None:
                return _Read(None, [], [])
            batches = context.batches(loader, positions, _BATCH, alone=True)
            groups = [
                list(range(i, min(i + _BATCH, len(positions))))
                for i in range(0, len(positions), _BATCH)
            ]
            with passes(module, scope, context.own_dtype), reading_private(module):
                rows = rows_at_fixed_weights(context.loss, head, batches, groups)
    except Exception:  # the user's own code, at a time it was not written for
        return _Read(None, [], [])
    return _Read(rows, state.touched, state.left)


def _listed(names: list[str]) -> str:
    return f": {', '.join(sorted(set(names))[:5])}" if names else ""


def _same_or_none(now: Rows | None, before: Rows | None, loose: float = 1.0) -> bool:
    if now is None or before is None:
        return now is before
    return _same(now, before, loose)


def _same(now: Rows, before: Rows, loose: float = 1.0) -> bool:
    """Equal up to rounding: the same samples in the same company on one machine."""
    pairs = [x for row in zip(now, before, strict=True) for x in zip(*row, strict=True)]
    return all(
        one.shape == two.shape
        and torch.allclose(
            one.double(),
            two.double(),
            rtol=1e-5 * loose,
            atol=1e-6 * loose * _size(two),
        )
        for one, two in pairs
    )


def _size(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0
