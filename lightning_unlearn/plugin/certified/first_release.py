"""The trained head as a release of its own: with noise, and a line in the ledger."""

import secrets
import uuid
from datetime import datetime, timezone

from lightning_unlearn.certificate import ledger as ledgers
from lightning_unlearn.certificate.ledger import Ledger
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.claims import Decision, decide
from lightning_unlearn.plugin.files.journal import locked_for_all
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.request.resolution import ledger_so_far
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.noise import add_noise
from lightning_unlearn.weights.scope import Vector


def first_release(context: StageContext, plan: HeadPlan, state: PreparedHead) -> Vector:
    """The head's optimum with noise for all samples that may be forgotten.

    Once it returns the ledger and the record count it. Nothing that is served may hold
    the optimum itself: that stays in what is prepared.

    Args:
        context: The Trainer's run.
        plan: Of the training, that forgets nobody.
        state: Its rows and the optimum on them.

    Returns:
        The weights (p,), float64.

    Raises:
        GuaranteeError: If nothing can be claimed of it.
        LedgerError: If the ledger is of another model.
    """
    processes, record = plan.processes, context.callback.record
    file = plan.options.ledger_path
    step, _ = plan.step_from(state)  # which proves where it ends, and that rows hold
    decision = decide(plan.options.terms, plan.basis(step.constants))
    if not decision.release_mus:
        raise GuaranteeError(
            "expected a head of which something can be claimed for cover_served=, got "
            f"grade {decision.grade.value}: "
            f"{', '.join(plan.outside.unscrubbed) or 'no bound'} changed in training"
        )
    with locked_for_all(file, processes):
        text, weights = processes.first(
            lambda: _released(context, plan, step.weights, decision)
        )
    record.ledger, record.covered = text, plan.options.cover_served
    return weights.to(step.weights.device)


def _released(
    context: StageContext, plan: HeadPlan, optimum: Vector, decision: Decision
) -> tuple[str, Vector]:
    """The ledger with its line, written, and the weights."""
    record, file = context.callback.record, plan.options.ledger_path
    weights = add_noise(optimum.clone(), decision.noise_std).cpu()
    line = ledgers.Entry(
        ledger_id=secrets.token_hex(16),
        index=0,
        previous=ledgers.GENESIS,
        request_id=uuid.uuid4().hex,
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        n_forget=0,
        n_retain=len(plan.retained),
        forget_digest=ledgers.forget_digest(record.ledger_key, []),
        forget_indices=None,
        weights_before="not recorded",
        weights_after=plan.scope.state_digest(weights, {}),
        certificate_digest="none: nobody was forgotten",
        grade=decision.grade.value,
        mu=decision.release_mus[-1],
        releases=plan.options.releases,
        covered=plan.options.cover_served,
    )
    longer: Ledger = ledger_so_far(context).append(line)
    if file is not None:
        ledgers.write(file, longer)
    return longer.to_text(), weights
