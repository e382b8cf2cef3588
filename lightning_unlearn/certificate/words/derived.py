"""What in a certificate follows from the rest of it, and is never taken on its word."""

import math
from collections import Counter

from lightning_unlearn.certificate.fields import CertificateFields, entries_digest
from lightning_unlearn.certificate.words import theorems
from lightning_unlearn.certificate.words.backbone_words import is_private
from lightning_unlearn.certificate.words.private_words import counts_people
from lightning_unlearn.certificate.words.standing_caveats import (
    not_covered,
    warnings_of_noise,
)
from lightning_unlearn.errors import CertificateError
from lightning_unlearn.guarantee.claims import REQUIRED, Bound, Terms
from lightning_unlearn.guarantee.terms import CONVEX
from lightning_unlearn.guarantee.tolerance import How, usual_tolerance

_CHANGED = "it was changed or made by another program"


def check_derived(c: CertificateFields) -> None:
    """Refuse words that are not those of the bound, and lists that contradict others.

    Args:
        c: Of schema 2 or later.

    Raises:
        CertificateError: If what it compares with, a reason, a standing limit or a
            standing warning is another, or the entries of the model do not add up.
    """
    theorems.check(c.bound, c.reference, c.constants)
    _check_tolerance(c)
    _check_forgotten(c)
    _check_private_part(c)
    _check_begins("not_covered", c.not_covered, not_covered(c.bound))
    _check_begins("warnings", c.warnings, tuple(warnings_of_noise(c)))
    _check_entries(c)


def _check_begins(
    name: str, stated: tuple[str, ...], standing: tuple[str, ...]
) -> None:
    """The standing texts come first; those of the run may follow."""
    for i, text in enumerate(standing):
        if stated[i : i + 1] != (text,):
            raise CertificateError(
                f"expected {name} to say {text!r}, got "
                f"{stated[i] if i < len(stated) else 'nothing'!r}: {_CHANGED}"
            )


def _check_tolerance(c: CertificateFields) -> None:
    """A tolerance that is said to follow from fixed numbers does."""
    values = {constant.name: constant.value for constant in c.constants}
    if c.bound not in CONVEX:
        return
    how, R = theorems.how_set(c.constants), values.get("row_norm")
    if how is How.GIVEN or (c.epsilon is None and R is not None):
        return  # of a release that claims nothing, epsilon is not written down
    epsilon = values.get("head_epsilon", c.epsilon)  # a head's own part of it
    terms = Terms(epsilon=epsilon, delta=c.delta, releases=c.releases)
    found, stated = usual_tolerance(terms, values["strong_convexity"], R), values
    if found.how is not how or not math.isclose(found.value, stated["tolerance"]):
        raise CertificateError(
            f"expected tolerance={found.value:.6g} ({found.how.value}) from epsilon, "
            f"delta, releases, strong_convexity and row_norm, got "
            f"{stated['tolerance']:.6g} ({how.value}): {_CHANGED}"
        )


def _check_forgotten(c: CertificateFields) -> None:
    """Who was forgotten before counts too."""
    values = {constant.name: constant.value for constant in c.constants}
    if "forgotten" not in REQUIRED[c.bound] or counts_people(c.constants):
        return  # people have any number of samples
    if values["forgotten"] < c.n_forget:
        raise CertificateError(
            f"expected forgotten to count the {c.n_forget} samples of this request "
            f"too, got {values['forgotten']:g}: {_CHANGED}"
        )
    if c.bound is Bound.SERVED_HEAD:
        _check_served(c, values)


def _check_private_part(c: CertificateFields) -> None:
    """A claim about a privately trained backbone is about one, and it is named."""
    private = [p.name for p in c.public_parts if is_private(c.bound, p)]
    if c.bound is Bound.PRIVATE_BACKBONE and len(private) != 1:
        raise CertificateError(
            "expected one part of the model that was trained privately, got "
            f"{', '.join(private) or 'none'}: {_CHANGED}"
        )


def _check_served(c: CertificateFields, values: dict[str, float]) -> None:
    """Every head that was served had noise for all that were forgotten since."""
    may, gone = values["covered"], values["forgotten"]
    last = c.release == c.releases
    expected = {
        "samples": float(c.n_retain),
        "left": 0.0 if last else may - gone,
        "covered": max(may, gone),
    }
    for name, value in expected.items():
        if values[name] != value:
            raise CertificateError(
                f"expected {name}={value:g} from the rest of the certificate, got "
                f"{values[name]:g}: {_CHANGED}"
            )
    if c.releases is None or c.release < 2 or len(c.release_mus) not in (0, c.release):
        raise CertificateError(
            "expected announced releases, of which the trained head is the first, got "
            f"release {c.release} of {c.releases} with {len(c.release_mus)} that are "
            f"listed: {_CHANGED}"
        )


def _check_entries(c: CertificateFields) -> None:
    """Every entry of the model stands in one place, and makes up its part's digest."""
    if not c.scope:
        raise CertificateError(
            "expected scope to name the entries of the weights in scope, got none: "
            f"{_CHANGED}"
        )
    stays = {*CONVEX, Bound.NEWTON_STEP, Bound.PRIVATE_TRAINING}
    if c.rebuilt and c.bound in stays:
        raise CertificateError(
            f"expected nothing rebuilt under the bound {c.bound.value}, got "
            f"{', '.join(c.rebuilt[:3])}: only a claim that rests on nothing but the "
            "noise allows it"
        )
    listed = [name for part in c.public_parts for name, _ in part.entries]
    twice = [n for n, k in Counter([*c.scope, *c.rebuilt, *listed]).items() if k > 1]
    if twice:
        raise CertificateError(
            f"expected every entry of the model in one place, got {twice[0]} in "
            f"several: {_CHANGED}"
        )
    for part in c.public_parts:
        beside = [
            name
            for name, _ in part.entries
            if name != part.name and not name.startswith(f"{part.name}.")
        ]
        if beside:
            raise CertificateError(
                f"expected the public part {part.name} to be named as its entries "
                f"are, got {beside[0]} among them: {_CHANGED}"
            )
        if part.entries and part.digest != entries_digest(part.entries):
            raise CertificateError(
                f"expected the digest of the public part {part.name} to be that of "
                f"its entries, got {part.digest[:16]}: {_CHANGED}"
            )
