"""Certificates and Gaussian mechanisms of known mu, for audits."""

import dataclasses

import numpy as np
import torch

from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.guarantee.gaussian import gaussian_epsilon
from tests.helpers.certificates import NOTHING, make, noise_std as noise_of

DELTA = 1e-5


def certificate(epsilon, delta=DELTA, **changes):
    """Of one release: verifies, whatever the models are.

    Certified, or vacuous where a test with 1% false alarms may find more than half.
    """
    sensitivity = 2e-3  # of `make`
    noise_std = noise_of(epsilon, delta, sensitivity)
    mu = sensitivity / noise_std
    return make(
        **{
            "grade": Grade.CERTIFIED if mu < 2.3263 else Grade.VACUOUS,
            "epsilon": epsilon,
            "delta": delta,
            "noise_std": noise_std,
            "release_mus": (mu,),
            "composed_epsilon": gaussian_epsilon(mu, delta),
            **changes,
        }
    )


def worlds(mu, n, seed, std=1.0):
    """Scores of a Gaussian mechanism of mu / std."""
    rng = np.random.default_rng(seed)
    u, r = rng.normal(size=(2, n)) * std
    return torch.tensor(u + mu), torch.tensor(r)


def none_certificate(noise_std=0.1):
    return dataclasses.replace(make(**NOTHING), noise_std=noise_std, noise_by_hand=True)
