"""Which guarantee a module and its options allow."""

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from lightning_unlearn.errors import (
    DataError,
    GuaranteeError,
    ModelError,
    UnlearningError,
)
from lightning_unlearn.guarantee.claims import NO_SENSITIVITY
from lightning_unlearn.guarantee.kinds import NewtonStep, NormBall, StronglyConvex
from lightning_unlearn.plugin.lightning import LightningModule
from lightning_unlearn.plugin.mixin import hooks
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.size_of_noise import loud_noise_early
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
            more = f" and {len(rest) - 3} more" if len(rest) > 3 else ""
            return f"{', '.join(rest[:3])}{more} beside a ConvexHead"
    return ""


def chosen_guarantee(
    options: Options, head: ConvexHead | None, l2: float, scope: Scope
) -> StronglyConvex | NormBall | NewtonStep | None:
    """What the request will claim; None when the noise is chosen by hand.

    Args:
        options: Of the callback.
        head: The ConvexHead in scope, if its weights are exactly those.
        l2: Of the objective.
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
        if not l2 > 0:
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


def warn_early(
    pl_module: LightningModule, options: Options, record: TrainingRecord
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
    try:
        if record.drawn_problem is not None:
            raise DataError(record.drawn_problem)
        _, in_scope, own_l2 = hooks(pl_module)
        l2 = known_l2(options.l2, own_l2, record.l2)
        if l2 is None:
            raise ModelError(record.l2_problem)
        scope = Scope(pl_module, in_scope)
        head = convex_head(pl_module, scope)
        chosen = chosen_guarantee(options, head, l2, scope)
        problem = loud_noise_early(options, chosen, pl_module, head, l2, scope.size)
        if problem is not None:
            raise GuaranteeError(problem)
    except UnlearningError as error:
        rank_zero_warn(f"trainer.unlearn would be refused after this training: {error}")
