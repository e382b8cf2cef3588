"""Random numbers of a training that nothing before it has a part in."""

import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


def fresh_coins() -> None:
    """Seed the global generators by the operating system's entropy, for good."""
    torch.manual_seed(secrets.randbits(63))
    np.random.seed([secrets.randbits(32) for _ in range(8)])
    random.seed(secrets.randbits(256))


@dataclass(frozen=True)
class FreshWorker:
    """A loader's ``worker_init_fn`` after which a worker's coins are fresh.

    Args:
        own: That of the user, or None.
    """

    own: Callable[[int], Any] | None

    def __call__(self, worker: int) -> None:
        """Begin a worker."""
        if self.own is not None:
            self.own(worker)
        fresh_coins()
