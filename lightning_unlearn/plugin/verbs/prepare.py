"""``prepare``: what makes the next requests cheap, computed before they arrive."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch.utils.data import DataLoader

from lightning_unlearn.errors import StrategyError
from lightning_unlearn.plugin.files import prepared_file
from lightning_unlearn.plugin.lightning import (
    LightningDataModule,
    LightningModule,
    isolate_rng,
    pl,
)
from lightning_unlearn.plugin.mixin import quiet
from lightning_unlearn.plugin.request import known_rows
from lightning_unlearn.plugin.request.resolution import resolve, share_record
from lightning_unlearn.plugin.request.stage import StageContext, run_in_trainer
from lightning_unlearn.plugin.run import compat, progress, strategies
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.network.prepared_network import PreparedNetwork

_log = logging.getLogger(f"{pl.__name__}.unlearn")  # shown as Lightning's own are


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What `prepare` has stored, and what it cost.

    Args:
        what: In words.
        n: Samples it covers.
        passes: How often the data was passed over.
        seconds: Wall time.
        nbytes: Size of what is stored.
        path: The file it was written to, or None if it is in memory only.
        stays: Whether the retained samples' part of it lives on after a request.
    """

    what: str
    n: int
    passes: float
    seconds: float
    nbytes: int
    path: Path | None
    stays: bool = False

    def __str__(self) -> str:
        where = "in memory" if self.path is None else f"in {self.path}"
        kept = "the retained samples' part of it stays after a request"
        if not self.stays:
            kept = "it is dropped once a request is done"
        return (
            f"PREPARED for requests over {self.n:,} samples: {self.what}. It took "
            f"{self.seconds:.2g} s ({self.passes:.0f} passes) and "
            f"{self.nbytes / 2**20:,.1f} MiB {where}. It is as secret as the samples; "
            f"{kept}"
        )


def prepare(
    trainer: pl.Trainer,
    model: LightningModule | None = None,
    train_dataloaders: DataLoader | None = None,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | Path | None = None,
    weights_only: bool | None = None,
    afresh: bool = False,
) -> Preparation:
    """Store what makes the next requests on a trained model cheap.

    For a `ConvexHead`: the features of every sample, the optimum on all of them and,
    where that costs less than it saves, a Cholesky factor of the Hessian there.
    For a squared error: the Gram matrix of the rows instead of the factor. This and
    later requests subtract the forgotten rows from it and solve.
    For an ordinary network: the gradient over all samples, how much each sample curves
    the objective, and the ends of the spectrum; this saves a request one pass and the
    computation of the spectrum. It changes no weights and no certificate.

    What is stored depends on every sample, also on those to be forgotten. The callback
    keeps it in memory, and in the file of its option ``prepared`` if that is set; never
    in a checkpoint. For a head, a request keeps only the features of the retained
    samples (their Gram matrix) and the optimum on them, to the tolerance, so a head
    needs no `prepare` after the first request. For a network a request drops it all.
    Once the model, ``l2`` or the scope has changed it is not used, with a warning.

    Rows that are known already are not read again (fitting a certified module prepares
    all, and a request keeps them), unless they are found to be of other samples. All
    samples are compared if they are plain tensors, else 32 and some blocks. If other
    retained samples have changed, the next request sees it only after ``afresh=True``.
    New samples are read, together with the others of their blocks.

    Args:
        trainer: With an `UnlearningCallback`.
        model: As for `unlearn`.
        train_dataloaders: As for `unlearn`.
        datamodule: As for `unlearn`.
        ckpt_path: As for `unlearn`.
        weights_only: As for `unlearn`.
        afresh: Read every sample again, whatever is known.

    Returns:
        What was stored and what it cost, which is logged too.

    Raises:
        StrategyError: If the Trainer has several processes, for an ordinary network; if
            they are launched for this call alone.
        UnlearningError: If a request would be refused, or does not reach its tolerance.
    """
    given = trainer.lightning_module if model is None else model
    heads = given is not None and any(
        isinstance(m, ConvexHead) for m in given.modules()
    )
    if not heads:
        strategies.check_alone(trainer, "prepare")
    elif compat.is_spawning(trainer):
        raise StrategyError(
            "expected processes that stay after prepare, got "
            f"{type(trainer.strategy).__name__}, whose processes end with it: use "
            'strategy="ddp", or one device; or let the first request fill prepared='
        )

    def stage(context: StageContext) -> Preparation:
        with isolate_rng(), quiet(context.module, restore=True):
            return _prepare(context, afresh)

    return run_in_trainer(
        trainer,
        stage,
        model=model,
        train_dataloaders=train_dataloaders,
        datamodule=datamodule,
        ckpt_path=ckpt_path,
        weights_only=weights_only,
    )


def _prepare(context: StageContext, afresh: bool) -> Preparation:
    begin = time.perf_counter()
    callback, path = context.callback, context.callback.options.prepared_path
    share_record(context)
    run = context.trainer, context.module, context.processes
    with progress.shown(*run, what="Preparing", logs=False) as display:
        plan = replace(resolve(context, None), display=display)
        bound, passes = known_rows.prepared(context, plan, afresh)
        display.end()
    if path is not None:
        prepared_file.keep(path, plan, bound)
    callback.adopt(context.module, context.loader, bound)
    done = Preparation(
        what=_what(bound.state),
        n=len(plan.retained),
        passes=passes,
        seconds=time.perf_counter() - begin,
        nbytes=bound.nbytes,
        path=path,
        stays=isinstance(bound.state, PreparedHead),
    )
    if context.trainer.is_global_zero:
        _log.info(str(done))
    return done


def _what(state: PreparedHead | PreparedNetwork) -> str:
    if isinstance(state, PreparedNetwork):
        return "the gradient, how much samples curve it, the ends of the spectrum"
    factor = "a factor of the Hessian there"
    if state.gram is not None:
        factor = "their Gram matrix"
    elif state.factor is None:
        factor = "no factor of the Hessian, which would cost more than it saves"
    return f"the features, the optimum on them, {factor}"
