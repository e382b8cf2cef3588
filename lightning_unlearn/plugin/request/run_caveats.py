"""What a certificate says besides the step: the run it came from, and its limits."""

from torch.utils.data import WeightedRandomSampler

from lightning_unlearn.guarantee.claims import EXACT, Bound
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.files.stale_checkpoints import Stale
from lightning_unlearn.plugin.plan.head_plan import HeadPlan
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.request import trainer_state
from lightning_unlearn.plugin.request.stage import StageContext
from lightning_unlearn.plugin.training import public_backbones
from lightning_unlearn.solvers.observer import NOBODY

#: Bounds that speak of the models that were served before a request, too.
_COVERING = (Bound.PRIVATE_TRAINING, Bound.SERVED_HEAD)


def not_covered(
    context: StageContext, plan: Plan, stale: Stale, deletes: bool
) -> tuple[str, ...]:
    """What this request's guarantee does not reach, besides the standing list.

    Args:
        context: The Trainer's run.
        plan: The request.
        stale: Known files from before it.
        deletes: Whether the old checkpoints will be deleted after it.
    """
    callback = context.callback
    # Neither names nor numbers of files: a checkpoint for every epoch tells how long
    # the training was. The user has them in the result and in the private file.
    what = "delete them (the result and the private file name those that are known)"
    if deletes:
        what = (
            "to be deleted once this request is done (delete_stale): see that they are"
        )
    known = ()
    if stale.checkpoints and plan.claim().bound in _COVERING:
        known = (
            "older checkpoints of this training: their weights are covered, the record "
            f"of the training in them is not; {what}",
        )
    elif stale.checkpoints:
        known = (f"older checkpoints of this training: {what}",)
    if stale.unsure:
        known += (
            "files that may hold the forgotten samples and could not be read from here "
            "(of another form, or on another machine; the result names them): look at "
            "them",
        )
    if stale.logs:
        known += ("whatever the Trainer's loggers have written",)
    states = trainer_state.kept_states(context.trainer)
    known += tuple(f"the state kept by {name}" for name in states)
    known += _prepared(callback, isinstance(plan, HeadPlan))
    if plan.solve_file is not NOBODY:
        known += (
            "where the solve stood on the way (state_file): it is deleted after this "
            "request; copies of it are as secret as the samples",
        )
    if plan.ways_checked:
        known += (
            "what dataset_without() keeps from before: that it builds the retained "
            "data from these samples alone rests on the word of whoever wrote it",
        )
    if callback.options.ledger_path is None:
        known += (
            "releases made from other copies of this model: without ledger= this "
            "checkpoint does not know of them",
        )
    return known


def _prepared(callback: UnlearningCallback, head: bool) -> tuple[str, ...]:
    """What is said of prepared state, if there is any or the row store is used."""
    file = callback.options.prepared_path
    if callback.bound_state is None and (file is None or not (head or file.exists())):
        return ()
    dropped = (
        "what was prepared from these samples (features, gradient, curvature): it is "
        "dropped with this request; other copies of it are as secret as the samples"
    )
    kept = (
        "what is kept for the next request (the retained samples' features, and the "
        "head on them before the noise): it is as secret as these samples, and older "
        "copies of it hold the forgotten ones"
    )
    changes = (
        "changes made to retained samples after they were prepared, unless they are "
        "plain tensors, which are compared; and changes to the code and settings that "
        "read them, if they affect none of those compared"
    )
    return kept if head else dropped, changes


_NO_FINGERPRINT = (
    "the training samples have no fingerprint (random, or of types that cannot be "
    "hashed): that the indices mean the same samples as in training is not checked"
)


def warnings(context: StageContext, plan: Plan, now: str) -> tuple[str, ...]:
    """What the reader of the certificate must know of the training.

    Args:
        context: The Trainer's run.
        plan: The request.
        now: Digest of the weights the request begins with.
    """
    record, loader = context.callback.record, context.loader
    if plan.claim().bound in (*EXACT, Bound.PRIVATE_TRAINING):  # whatever was before
        return () if record.fingerprint is not None else (_NO_FINGERPRINT,)
    found, l2 = [], plan.l2
    if plan.outside.rebuilt:
        found.append(
            f"the statistics of {', '.join(plan.outside.rebuilt)} were computed anew "
            "over the retained samples, with the released weights; the step itself "
            "used the old ones"
        )
    if record.fingerprint is None and record.n_train is not None:
        found.append(_NO_FINGERPRINT)
    if record.n_train is None:
        found.append(
            "no record of a training run: either it was made without this callback "
            "(train with it once), or this is not the trained model (pass ckpt_path= "
            "of one that was)"
        )
    elif record.l2 is not None and l2 != record.l2:
        found.append(
            f"the objective has l2 = {l2:g}, the model was trained with "
            f"{record.l2:g}: the request moves it to another optimum"
        )
    if record.others_before:
        found.append(
            "an earlier training of this model was on other samples: what they taught "
            "is not kept, and the retrained model it is compared with never saw them"
        )
    if record.weights_digest not in (None, now):
        found.append(
            "the weights are not those the last training or request ended with: if "
            "they are older, what was removed since is back in them until this "
            "request"
        )
    retained, module = set(plan.retained), context.module
    near = retained.intersection(public_backbones.alike(module, "near"))
    blank = retained.intersection(public_backbones.alike(module, "blank"))
    if near:
        found.append(
            f"{len(near)} retained samples are near copies of the public_data of a "
            "backbone, by their features: were these data made from private ones?"
        )
    if blank:
        found.append(
            f"{len(blank)} retained samples are blank, as one of the public_data is: "
            "taken to be other samples"
        )
    if isinstance(loader.sampler, WeightedRandomSampler):
        found.append(
            "the training loader draws samples with weights; the objective, and "
            "the retrained model it is compared with, count every sample once"
        )
    return tuple(found)
