"""Which guarantee a module and its options allow."""

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from lightning_unlearn._base.problems import Problems
from lightning_unlearn._base.text import some
from lightning_unlearn.errors import DataError, GuaranteeError, ModelError
from lightning_unlearn.guarantee.claims import NO_SENSITIVITY
from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall, StronglyConvex
from lightning_unlearn.plugin.lightning import LightningModule, Trainer
from lightning_unlearn.plugin.mixin import hooks
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.size_of_noise import loud_noise_early
from lightning_unlearn.plugin.training import batch_norm
from lightning_unlearn.plugin.training.other_callbacks import check_others
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.plugin.training.weight_decay import known_l2
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.weights.scope import Scope


def convex_head(module: nn.Module, scope: Scope) -> ConvexHead | None:
    """The ConvexHead whose weights are exactly those in scope, if there is one."""
    wanted = {id(p) for p in scope.parameters}
    for layer in module.modules():
        if isinstance(layer, ConvexHead) and wanted == {
            id(p) for p in layer.parameters()
        }:
            return layer
    return None


def _beside(scope: Scope) -> str:
    """The weights in scope beside those of a ConvexHead, in words; "" without one."""
    for layer in scope.module.modules():
        own = {id(p) for p in layer.parameters()}
        if isinstance(layer, ConvexHead) and own <= {id(p) for p in scope.parameters}:
            pairs = zip(scope.names, scope.parameters, strict=True)
            rest = [name for name, p in pairs if id(p) not in own]
            return f"{some(rest, most=3)} beside a ConvexHead"
    return ""


def chosen_guarantee(
    options: Options, head: ConvexHead | None, l2: float | None, scope: Scope
) -> StronglyConvex | NormBall | NewtonStep | None:
    """What the request will claim; None when the noise is chosen by hand.

    Args:
        options: Of the callback.
        head: The ConvexHead in scope, if its weights are exactly those.
        l2: Of the objective; None if it is not known, which is refused elsewhere.
        scope: The weights in scope.

    Raises:
        GuaranteeError: If what is asked for cannot be had.
    """
    guarantee = options.guarantee
    if guarantee == "auto" and head is not None:
        guarantee = StronglyConvex()
    if isinstance(guarantee, StronglyConvex):
        if head is None:
            raise GuaranteeError(
                "expected the weights in scope to be exactly those of one ConvexHead "
                f"for guarantee=StronglyConvex, got {_beside(scope) or 'others'}: "
                "freeze the rest of the model with requires_grad_(False), if it never "
                "saw this data, or return head.parameters() from unlearning_parameters"
            )
        if l2 is not None and not l2 > 0:
            raise GuaranteeError(
                f"expected l2 > 0 for a strongly convex objective, got l2={l2}: pass "
                "l2=1e-3 to the UnlearningCallback and train with the same weight "
                "decay on every weight of the head, bias included"
            )
        return guarantee
    if isinstance(guarantee, NewtonStep) and not options.curvature.startswith("hess"):
        raise GuaranteeError(
            "expected curvature='hessian' for guarantee=NewtonStep, got "
            f"{options.curvature!r}: Theorem A speaks of the Hessian"
        )
    if isinstance(guarantee, (NormBall, NewtonStep)):
        return guarantee
    if options.max_norm is not None:
        return NormBall()
    if options.noise_std is None:
        extra = _beside(scope)
        if extra:
            raise GuaranteeError(
                f"{NO_SENSITIVITY}. In scope: {extra}; freeze them "
                "before any training on this data"
            )
        raise GuaranteeError(NO_SENSITIVITY)
    return None


def takes_statistics_anew(
    options: Options,
    head: ConvexHead | None,
    chosen: StronglyConvex | NormBall | NewtonStep | None,
) -> bool:
    """Whether a request may take statistics of batch normalisation anew.

    Args:
        options: Of the callback.
        head: The ConvexHead in scope, or None.
        chosen: The guarantee; None without one, or where there is none yet.
    """
    if chosen is None:
        by_hand = options.noise_std is not None and options.guarantee == "auto"
        return by_hand or (head is None and options.guarantee == "auto")
    return isinstance(chosen, NormBall)


def _ahead(
    trainer: Trainer,
    pl_module: LightningModule,
    options: Options,
    record: TrainingRecord,
) -> Problems:
    """All that a request would refuse, as far as it shows before the training."""
    problems = Problems()
    with problems.noted():
        if record.drawn_problem is not None:
            raise DataError(record.drawn_problem)
    with problems.noted():
        check_others(trainer)
    with problems.noted():
        _, in_scope, own_l2 = hooks(pl_module)
        scope = Scope(pl_module, in_scope)
        head, chosen = convex_head(pl_module, scope), None
        l2 = known_l2(options.l2, own_l2, record.l2)
        with problems.noted():
            if l2 is None:
                raise ModelError(record.l2_problem)
        with problems.noted():
            chosen = chosen_guarantee(options, head, l2, scope)
        with problems.noted():
            anew = takes_statistics_anew(options, head, chosen)
            batch_norm.check_before_training(pl_module, anew)
        with problems.noted():
            loud = loud_noise_early(options, chosen, pl_module, head, l2, scope.size)
            if l2 is not None and loud is not None:
                raise GuaranteeError(loud)
    return problems


def warn_early(
    trainer: Trainer,
    pl_module: LightningModule,
    options: Options,
    record: TrainingRecord,
) -> None:
    """Say before the training, not after it, what a request would refuse."""
    ledger = options.ledger_path
    if ledger is not None and not record.ledger and ledger.exists():
        rank_zero_warn(
            f"the ledger {ledger} is there already, and this training is not "
            "the one it is of: its requests would be refused; name a new file in "
            "ledger="
        )
    n = record.n_train or 0
    if options.noise_std is None and not options.delta * n < 1:
        rank_zero_warn(
            f"delta = {options.delta:g} is not below 1/n = {1 / n:.2g} of the training "
            "samples: a certificate would be graded vacuous; lower delta in the "
            "UnlearningCallback"
        )
    if options.private is not None:  # which has checked what it needs
        return
    if record.retrains is not None:  # said of the training that it answers for
        return
    problems = _ahead(trainer, pl_module, options, record)
    other = "" if options.retrain is None else ", except with how='retrain'"
    if problems.found:
        rank_zero_warn(
            f"trainer.unlearn would be refused after this training{other}: "
            f"{problems.text}"
        )
