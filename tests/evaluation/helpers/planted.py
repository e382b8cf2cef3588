"""A convex head and 200 canaries of which a request leaves what it may leave."""

import torch
from sklearn.datasets import load_digits

from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.head.minimise import minimise
from lightning_unlearn.step.head.rows.feature_data import FeatureData

# Counting 200 guesses shows a thirtieth of the noise at epsilon = 8; at epsilon = 1 it
# takes many draws (test_two_sample) or the points before noise (white_box_mu).
R, L2, EPSILON, TOLERANCE, SHARE = 200, 1e-2, 8.0, 1.15e-2, 1 / 30


def samples():
    """Digits, told odd from even, and canaries with a feature of their own each.

    A canary's weight is what the head knows of it. Nothing else curves F along it, so
    a training that ends within the tolerance ends a request too, and what the request
    leaves of the canaries comes near what is proved it may leave.
    """
    found = load_digits()
    X = torch.zeros(len(found.data) + R, 64 + R, dtype=torch.float64)
    X[:-R, :64] = torch.tensor(found.data) / 16
    X[-R:, 64:] = 30 * torch.eye(R, dtype=torch.float64)
    y = torch.cat((torch.tensor(found.target) % 2, torch.ones(R))).double()
    return X, y


def head():
    return ConvexHead(64 + R, 1, loss="bce")


def objective(data, coins):
    """Of the digits and the canaries that are in."""
    X, y = data
    rows = torch.cat((torch.ones(len(X) - R, dtype=torch.bool), coins))
    return ConvexObjective(head(), FeatureData(X[rows], y[rows, None]), L2)


def minimiser(data, coins):
    nothing = torch.zeros(64 + R + 1, dtype=torch.float64)
    return minimise(objective(data, coins), nothing, tolerance=1e-7).weights
