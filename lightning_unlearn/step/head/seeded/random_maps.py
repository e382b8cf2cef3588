"""Random maps of scaled rows and images: inner products near those of a kernel."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unlearn.step.head.seeded.draws import normals

_THRESHOLD = 1.0  # of a filter: it speaks for patches that are like it
_CONTRAST = 0.05  # added to the variance of a patch: flat ones are not blown up


class Fourier(nn.Module):
    """Random Fourier features of a Gaussian kernel: rows (n, D) of norm 1.

    ``z(x).z(y)`` is near ``exp(-|x - y|^2 / (2 length_scale^2))``, off by about
    ``1/sqrt(D)`` (Rahimi & Recht, Random Features for Large-Scale Kernel Machines, NIPS
    2007; cosines and sines in pairs: Sutherland & Schneider, UAI 2015).

    Args:
        width: d, of the rows.
        n_features: D, even.
        length_scale: Of the kernel.
        seed: Of the draws.
    """

    frequencies: Tensor

    def __init__(
        self, width: int, n_features: int, length_scale: float, seed: int
    ) -> None:
        super().__init__()
        drawn = normals(seed, "fourier", n_features // 2, width)
        self.register_buffer("frequencies", drawn)
        self.length_scale = length_scale

    def forward(self, rows: Tensor) -> Tensor:
        """Cosines, then sines."""
        angles = F.linear(rows / self.length_scale, self.frequencies)
        both = torch.cat([angles.cos(), angles.sin()], dim=1)
        return both / math.sqrt(len(self.frequencies))


class Relu(nn.Module):
    """Random rectified features of the arc-cosine kernel of degree 1: rows (n, D).

    With ``u = (x / length_scale, 1)`` and the angle t between u and v, ``z(x).z(y)`` is
    near ``|u| |v| (sin t + (pi - t) cos t) / pi`` (Cho & Saul, Kernel Methods for Deep
    Learning, NIPS 2009): a network with one wide hidden layer that is not trained.

    Args:
        width: d, of the rows.
        n_features: D.
        length_scale: What rows are divided by, beside the 1 of the bias.
        seed: Of the draws.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, width: int, n_features: int, length_scale: float, seed: int
    ) -> None:
        super().__init__()
        drawn = normals(seed, "relu", n_features, width + 1)
        self.register_buffer("weight", drawn[:, :-1].clone())
        self.register_buffer("bias", drawn[:, -1].clone())
        self.length_scale = length_scale

    def forward(self, rows: Tensor) -> Tensor:
        """Rectified random sums."""
        sums = F.linear(rows / self.length_scale, self.weight, self.bias)
        return F.relu(sums) * math.sqrt(2 / len(self.weight))


class Patches(nn.Module):
    """How much each place of an image is like random patches: maps (n, filters, h, w).

    Each patch less its mean, over its deviation, times random filters of about unit
    length, less 1, rectified (Coates, Lee & Ng, An Analysis of Single-Layer Networks in
    Unsupervised Feature Learning, AISTATS 2011, with random filters).

    Args:
        channels: Of the images.
        filters: Random patches.
        size: Rows and columns of a patch.
        seed: Of the draws.
    """

    filters: Tensor

    def __init__(self, channels: int, filters: int, size: int, seed: int) -> None:
        super().__init__()
        drawn = normals(seed, "patches", filters, channels, size, size).double()
        drawn = drawn - drawn.mean(dim=(1, 2, 3), keepdim=True)
        drawn = (drawn / math.sqrt(channels * size * size)).float()
        self.register_buffer("filters", drawn)

    def forward(self, images: Tensor) -> Tensor:
        """Maps of images (n, c, h, w); they are averaged over a grid afterwards."""
        ones = torch.ones_like(self.filters[:1])
        count = ones.numel()
        mean = F.conv2d(images, ones) / count
        square = F.conv2d(images.square(), ones) / count
        deviation = ((square - mean.square()).clamp_min(0) + _CONTRAST).sqrt()
        return F.relu(F.conv2d(images, self.filters) / deviation - _THRESHOLD)
