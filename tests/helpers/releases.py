"""A step before noise, and the rest of what a release is given."""

import torch

from lightning_unlearn.certificate.words.theorems import Claim
from lightning_unlearn.guarantee.claims import Bound
from lightning_unlearn.solvers.base import Solution, Status
from lightning_unlearn.step.release import Surroundings
from lightning_unlearn.step.step import Step
from tests.helpers.certificates import convex_constants

P = 2000


def step(bound=Bound.STRONGLY_CONVEX, constants=None, weights=None):
    weights = torch.zeros(P, dtype=torch.float64) if weights is None else weights
    return Step(
        weights=weights,
        solution=Solution(
            x=weights, residual=0.123456, status=Status.CONVERGED, steps=1, matvecs=1.0
        ),
        claim=Claim(
            bound=bound,
            constants=convex_constants() if constants is None else constants,
        ),
    )


def around(**changes):
    fields = {
        "scope": ("head.weight",), "n_forget": 5, "n_retain": 50_000, "release": 1,
        "earlier_mus": (), "earlier_grades": (),
        "public_parts": (), "unscrubbed": (), "not_covered": (), "warnings": (),
        "digest": lambda w: "d" * 64, "request_id": "r", "n_parameters": P, **changes,
    }  # fmt: skip
    return Surroundings(**fields)
