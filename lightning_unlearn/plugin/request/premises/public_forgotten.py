"""Are the samples to be forgotten among those a public backbone's statistics are of?"""

from dataclasses import replace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn._base.text import positions_text
from lightning_unlearn.certificate.fields import PublicPart
from lightning_unlearn.guarantee.constants import Origin
from lightning_unlearn.plugin.plan.plan import Plan
from lightning_unlearn.plugin.training import public_backbones
from lightning_unlearn.plugin.training.outside import Outside
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Shards

_COMPANY = 8  # retained samples read beside them: some losses need more than one


def compared(plan: Plan, certificate: str | None) -> Plan:
    """The plan, once its forgotten samples were compared with public ones.

    A request reads retained samples only, and a training may have had no callback. A
    near copy is no proof, so the claim then rests on the user's word: conditional. Its
    position is told to the user, and does not stand in the certificate.

    Args:
        plan: Inside the Trainer's run; random generators and logs are the caller's.
        certificate: JSON of the last one of this model, or None. What earlier requests
            forgot was compared then with the public parts that it lists.

    Raises:
        GuaranteeError: If one of them is a public sample; its position is named.
    """
    known = {
        name: backbone
        for name, backbone in public_backbones.backbones(plan.module).items()
        if len(backbone.known)
    }
    earlier = sorted(set(plan.removed) - set(plan.chosen))
    if all(backbone.digest in (certificate or "") for backbone in known.values()):
        earlier = []
    positions = [*plan.chosen, *_readable(plan.loader.dataset, earlier)]
    if not known or not positions or isinstance(plan.scope, Shards):
        return plan
    _read(plan, positions)
    near = {
        name: [p for p in positions if backbone.alike.pop(p, None) == "near"]
        for name, backbone in known.items()
    }
    found = sorted({p for some in near.values() for p in some})
    if not found:
        return plan
    rank_zero_warn(
        "near copies of public_data, by their features, are to be forgotten: at "
        f"{positions_text(found)} of the training data; if they are the same samples, "
        "the statistics of the PublicBackbone remember them. Look at them: the "
        "certificate is conditional on their being others"
    )
    return replace(plan, outside=_on_your_word(plan.outside, near))


def _readable(dataset: Any, positions: list[int]) -> list[int]:
    """Those that can still be read: what was forgotten may be deleted by now."""
    found = []
    for position in positions:
        try:
            dataset[position]
        except Exception:  # whatever the user's code does without the file
            continue
        found.append(position)
    return found


def _read(plan: Plan, positions: list[int]) -> None:
    """Show these samples to the backbones, a batch at a time."""
    company = plan.retained[:_COMPANY]
    batches = plan.batches(plan.loader, [*positions, *company], alone=True)
    beside = list(range(len(positions), batches.n))
    size = plan.batch_size()
    reading = public_backbones.reading_private(plan.module, batches.now)
    with (
        plan.processes.together(),
        passes(plan.module, plan.scope, plan.dtype),
        reading,
    ):
        for start in range(0, len(positions), size):
            part = list(range(start, min(start + size, len(positions))))
            _, batch = batches.take([*part, *beside])
            plan.loss(batch, 0)


def _on_your_word(outside: Outside, near: dict[str, list[int]]) -> Outside:
    def said(part: PublicPart) -> PublicPart:
        if not near.get(part.name):
            return part
        note = f"{part.note}; some forgotten samples are near copies of public ones: "
        note += "that they are others is not checked"
        return replace(part, origin=Origin.ASSUMED, note=note)

    return replace(outside, public_parts=tuple(map(said, outside.public_parts)))
