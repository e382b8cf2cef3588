"""Certificates that verify, and what they are made of."""

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.fields import PublicPart
from lightning_unlearn.guarantee import claims
from lightning_unlearn.guarantee.claims import Bound, Grade, NoiseSource
from lightning_unlearn.guarantee.constants import Constant, Origin
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon


def noise_std(epsilon, delta, sensitivity, releases=None):
    terms = claims.Terms(epsilon=epsilon, delta=delta, releases=releases)
    return claims.noise_std_upper(terms, sensitivity)


def convex_constants(tolerance=1e-6, l2=1e-3, origin=Origin.PROVED):
    return (
        Constant(name="tolerance", value=tolerance, origin=Origin.ENFORCED, reason="t"),
        Constant(name="strong_convexity", value=l2, origin=origin, reason="mu = l2"),
    )


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
        "reference": "the retrained head",
        "constants": constants,
        "n_forget": 50,
        "n_retain": 1747,
        "n_parameters": 650,
        "releases": releases,
        "release": 1,
        "release_mus": (mu,),
        "composed_epsilon": gaussian_epsilon(mu, 1e-5),
        "public_parts": (PublicPart(name="net", digest="ab", origin=Origin.ENFORCED),),
        "unscrubbed": (),
        "not_covered": ("raw data",),
        "warnings": ("a warning",),
        "weights_digest": "00" * 32,
        "request_id": "8e1c0b2a",
        "created": "2026-11-23T06:00:00+00:00",
        "versions": (("torch", "2.13.0"),),
        **changes,
    }
    return Certificate(**fields)


BALL = (
    Constant(name="max_norm", value=20.0, origin=Origin.ENFORCED, reason="projected"),
)
NOTHING = {
    "grade": Grade.NONE, "epsilon": None, "delta": None, "release_mus": (),
    "composed_epsilon": None,
}  # fmt: skip
