"""Certificates that verify, and what they are made of."""

import dataclasses

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.fields import PublicPart, entries_digest
from lightning_unlearn.certificate.words import theorems
from lightning_unlearn.certificate.words.standing_caveats import (
    not_covered,
    warnings_of_noise,
)
from lightning_unlearn.guarantee import claims
from lightning_unlearn.guarantee.claims import Bound, Grade, NoiseSource
from lightning_unlearn.guarantee.constants import Constant, Origin
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon

UNSAID = object()


def noise_std(epsilon, delta, sensitivity, releases=None):
    terms = claims.Terms(epsilon=epsilon, delta=delta, releases=releases)
    return claims.noise_std_upper(terms, sensitivity)


def constant(bound, name, value, which=0):
    """As a bound of the package lists it."""
    known = theorems.REASONS[bound].get(name) or theorems.REPORTED[name]
    origin, reason = known[which]
    return Constant(name=name, value=value, origin=origin, reason=reason)


def convex_constants(tolerance=1e-6, l2=1e-3, origin=Origin.PROVED):
    bound = Bound.STRONGLY_CONVEX
    convex = constant(bound, "strong_convexity", l2)
    if origin is not Origin.PROVED:
        convex = dataclasses.replace(convex, origin=origin, reason="mu = l2")
    return (constant(bound, "tolerance", tolerance), convex)


def part(name="net", origin=Origin.ENFORCED, **changes):
    """A public part of one entry."""
    entries = ((f"{name}.0.weight", "ab" * 32),)
    fields = {"digest": entries_digest(entries), "entries": entries, **changes}
    return PublicPart(name=name, origin=origin, **fields)


def make(**changes):
    constants = changes.pop("constants", convex_constants())
    bound = changes.get("bound", Bound.STRONGLY_CONVEX)
    sensitivity = claims.sensitivity_upper(bound, constants)
    releases = changes.get("releases")
    std = noise_std(1.0, 1e-5, sensitivity, releases)
    mu = sensitivity / std
    fields = {
        "grade": Grade.CERTIFIED,
        "epsilon": 1.0,
        "delta": 1e-5,
        "noise_std": std,
        "noise_source": NoiseSource.OS_ENTROPY,
        "noise_by_hand": False,
        "sensitivity": sensitivity,
        "bound": bound,
        "reference": theorems.REFERENCES[bound],
        "constants": constants,
        "n_forget": 50,
        "n_retain": 1747,
        "n_parameters": 650,
        "releases": releases,
        "release": 1,
        "release_mus": (mu,),
        "composed_epsilon": gaussian_epsilon(mu, 1e-5),
        "public_parts": (part(),),
        "unscrubbed": (),
        "not_covered": (*not_covered(bound), "raw data"),
        "warnings": ("a warning",),
        "weights_digest": "00" * 32,
        "request_id": "8e1c0b2a",
        "created": "2026-11-23T06:00:00+00:00",
        "versions": (("torch", "2.13.0"),),
        "scope": ("head.weight", "head.bias"),
        **changes,
    }
    if fields.get("composed_grade", UNSAID) is UNSAID:
        together = None if fields["composed_epsilon"] is None else fields["grade"]
        fields["composed_grade"] = together
    plain = Certificate(**fields)
    if "warnings" in changes:
        return plain
    standing = warnings_of_noise(plain)
    return dataclasses.replace(plain, warnings=(*standing, *plain.warnings))


def rewarned(certificate):
    """With the standing warnings of its numbers, as whoever forged them would say."""
    standing = tuple(warnings_of_noise(certificate))
    return dataclasses.replace(certificate, warnings=standing)


BALL = (constant(Bound.NORM_BALL, "max_norm", 20.0),)
NOTHING = {
    "grade": Grade.NONE, "epsilon": None, "delta": None, "release_mus": (),
    "composed_epsilon": None,
}  # fmt: skip
