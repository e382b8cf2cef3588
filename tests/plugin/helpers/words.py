"""Samples of six words each, numbers below 40."""

import torch
from torch.utils.data import TensorDataset

from tests.helpers.nets import digits


def worded():
    """300 of them, with the labels of digits."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 40, (300, 6), generator=generator)
    return TensorDataset(words, digits(300).tensors[1])
