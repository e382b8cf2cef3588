"""Tensors of batches of any form."""

from collections import UserDict

import pytest
import torch

from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.step.batch_checks import check_in_place, check_repeatable
from lightning_unlearn.weights.batch_tensors import tensors_in


class Encoding(UserDict):
    """A mapping that torch's trees do not know."""


def test_tensors_are_found_in_every_mapping():
    a, b, c = torch.ones(1), torch.zeros(2), torch.ones(3)
    batch = (Encoding(x=a, more=Encoding(y=[b, "text"])), {"z": c}, 3)
    assert [id(t) for t in tensors_in(batch)] == [id(t) for t in (a, b, c)]
    assert tensors_in("text") == []


class OfOne:
    """Batches (n = 4) that hold whatever `make` returns."""

    n = 4

    def __init__(self, make):
        self.make = make

    def take(self, places):
        return len(places), self.make()


def test_checks_see_what_an_encoding_holds():

    with pytest.raises(DataError, match="same samples at every read"):
        check_repeatable(OfOne(lambda: Encoding(x=torch.rand(4))))
    with pytest.raises(ModelError, match="leaves its batch as it is"):
        check_in_place(
            lambda batch, _: batch["x"].add_(1),
            OfOne(lambda: Encoding(x=torch.ones(4))),
        )
