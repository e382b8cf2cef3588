"""Random numbers of a training that nothing before it has a part in."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lightning_unlearn.plugin.lightning import isolate_rng


@contextmanager
def own_coins(seed: int) -> Iterator[None]:
    """A block whose random numbers no training before it has a part in.

    With a seed that is known, a model would else tell how many numbers were drawn
    before it, and so how many samples those trainings had.

    Args:
        seed: Drawn before any of them, or from the system.
    """
    with isolate_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
