"""Certificates and Gaussian mechanisms of known mu, for audits."""

import dataclasses

import numpy as np
import torch

from lightning_unlearn.certificate import (
    claims,
    gaussian_epsilon,
)
from tests.certificate.test_record import NOTHING, make

DELTA = 1e-5


def certificate(epsilon, delta=DELTA, **changes):
    """Certified, of one release: verifies, whatever the models are."""
    sensitivity = 2e-3  # of `make`
    noise_std = claims.noise_std_upper(epsilon, delta, sensitivity, None)
    mu = sensitivity / noise_std
    return make(
        **{
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
