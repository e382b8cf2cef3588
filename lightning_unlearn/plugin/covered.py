"""A head that is served with noise before anybody is forgotten (`cover_served=`)."""

from torch.distributed.tensor import DTensor

from lightning_unlearn.certificate.ledger import Ledger
from lightning_unlearn.errors import (
    BudgetError,
    GuaranteeError,
    ModelError,
    StrategyError,
)
from lightning_unlearn.guarantee.accounting.served_head import optimum_shift_upper
from lightning_unlearn.guarantee.claims import noise_std_upper, sensitivity_upper
from lightning_unlearn.plugin.lightning import LightningModule
from lightning_unlearn.plugin.mixin import scope_of
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.which_guarantee import convex_head
from lightning_unlearn.plugin.training.public_backbones import (
    fixed_row_norm,
    private_steps,
)
from lightning_unlearn.plugin.training.training_record import TrainingRecord
from lightning_unlearn.weights.scope import Scope

#: Of logits that noise may move before it is refused: nobody pays more unasked.
_MOST = 0.1
_ANEW = "begin with a new module, a new UnlearningCallback and, if any, a new ledger="


def check_fit(
    module: LightningModule, options: Options, record: TrainingRecord
) -> None:
    """Refuse a training whose head cannot be served with noise, or was served already.

    Args:
        module: Before it is trained.
        options: Of the callback.
        record: Of what was before.

    Raises:
        GuaranteeError: If nothing bounds how far samples move its head.
        ModelError: If a head was served without noise, or this would be one more.
        StrategyError: If it is in shards.
    """
    if record.covered is not None:
        raise ModelError(
            "expected one training with cover_served=, got another of the same model: "
            "its head is served already, and every further one would be a release that "
            f"no noise was counted for; {_ANEW}, on the samples that are left"
        )
    if options.cover_served is None:
        return
    if not getattr(module, "solved_at_start", False):
        raise GuaranteeError(
            "expected a CertifiedClassifier for cover_served=, got "
            f"{type(module).__name__}: a head that an optimizer trains is in its "
            "checkpoints without noise"
        )
    if private_steps(module) is not None:
        raise GuaranteeError(
            "expected a public backbone for cover_served=, got a PrivatelyTrained one: "
            "what both prove together is not worked out; take one of them"
        )
    head = convex_head(module, Scope(module, scope_of(module)))
    if head is None or head.link.longest is None:
        loss = "no ConvexHead" if head is None else f"loss={head.loss_name!r}"
        raise GuaranteeError(
            "expected loss='cross_entropy' or 'bce' for cover_served=, got "
            f"{loss}: nothing bounds how far one sample moves another head"
        )
    if fixed_row_norm(module, head) is None:
        raise GuaranteeError(
            "expected one PublicBackbone with unit_norm=True for cover_served=, got "
            "rows whose norm only the data would tell: how far one sample moves the "
            "head must be known before it is read"
        )
    if any(isinstance(p, DTensor) for p in module.parameters()):
        raise StrategyError(
            "expected one device or ddp for cover_served=, got a module in shards "
            "(FSDP2): a head on a public backbone is small; use strategy='ddp'"
        )
    if any(bool(p.any()) for p in head.parameters()):
        raise ModelError(
            "expected a new head for cover_served=, got one with weights: if it was "
            "trained and served without noise, no later noise covers that, because "
            f"the old head and a new one tell who was forgotten; {_ANEW}"
        )


def check_request(
    options: Options, record: TrainingRecord, ledger: Ledger, gone: int, digest: str
) -> None:
    """Refuse a request that what was agreed before the training does not cover.

    Args:
        options: Of the callback.
        record: Of the training.
        ledger: Of the releases so far, the trained head the first.
        gone: Samples that would be forgotten in all.
        digest: Of the model's state.

    Raises:
        BudgetError: If they are more than was agreed.
        GuaranteeError: If nothing, or something else, was agreed, or the model is not
            the one that was released last.
    """
    agreed, asked = record.covered, options.cover_served
    if agreed is None and asked is None:
        return
    if agreed is None:
        raise GuaranteeError(
            f"expected a model that was trained with cover_served=, got one that was "
            f"not, and cover_served={asked}: its head was served without noise, which "
            "nothing covers later; leave it out, or train anew with it"
        )
    if agreed != asked:
        raise GuaranteeError(
            f"expected cover_served={agreed}, as in the training, got {asked}: every "
            "head that is served needs the noise that was agreed"
        )
    if gone > agreed:
        raise BudgetError(
            f"expected at most cover_served={agreed} samples forgotten in all, got "
            f"{gone}: the heads that were served before do not cover more; {_ANEW}, on "
            "the samples that are left"
        )
    if ledger.entries[-1].weights_after != digest:
        raise GuaranteeError(
            "expected the weights of the last release, got others: something has "
            "changed them since, or they were converted; pass ckpt_path= of its "
            "checkpoint"
        )


def refuse_retraining(record: TrainingRecord) -> None:
    """Raise `GuaranteeError` for a retraining in the middle of covered releases."""
    if record.covered is not None:
        raise GuaranteeError(
            "expected a request without how='retrain' for a model with cover_served=, "
            "got one: a retrained head is solved anew and would be one more release; "
            f"{_ANEW}"
        )


def refuse_unaffordable(plan: HeadPlan) -> None:
    """Raise where noise for the trained head costs more than a little, unasked.

    Args:
        plan: Of the training, that forgets nobody.

    Raises:
        GuaranteeError: If it moves a logit by more than a tenth, and nobody has said
            that it may.
    """
    served, terms, l2 = plan.served, plan.options.terms, plan.l2
    if served is None or plan.options.accept_noise:
        return
    claim, R = plan.claim(), served["row_norm"]
    moved = noise_std_upper(terms, sensitivity_upper(claim.bound, claim.constants)) * R
    if moved <= _MOST:
        return
    # sigma R = unit R (shift + 2 tau / l2), and the shift is that of one over n l2.
    unit, one = noise_std_upper(terms, 1.0), _shift(plan, samples=1.0) * l2
    room = _MOST - unit * R * 2 * plan.tolerance.value / l2
    needed = unit * R * one / room if room > 0 else None
    n = len(plan.retained)
    what = "a lower tolerance first"
    if needed is not None:
        what = (
            f"n l2 of at least {needed:,.0f} (at l2={l2:g} that is {needed / l2:,.0f} "
            "samples)"
        )
    raise GuaranteeError(
        f"expected {what} for cover_served={plan.options.cover_served} with releases="
        f"{terms.releases} at epsilon={terms.epsilon:g}, got n l2 = {n * l2:,.4g} "
        f"({n:,} samples): the noise of the trained head would move a logit by "
        f"{moved:.2g}. Ways out: more samples, a larger l2 or epsilon, fewer covered "
        "samples or releases; or accept_noise=True in the UnlearningCallback"
    )


def _shift(plan: HeadPlan, samples: float) -> float:
    served = plan.served
    assert served is not None
    return optimum_shift_upper(
        leaving=served["left"],
        samples=samples,
        residual_norm=served["residual_norm"],
        row_norm=served["row_norm"],
        strong_convexity=plan.l2,
    )
