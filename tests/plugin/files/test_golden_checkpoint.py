"""A clean checkpoint of before the rooms: it loads, and requests go on from it."""

from pathlib import Path

import pytest
import torch

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.errors import ForgetSetError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer

GOLDEN = Path(__file__).parent / "golden/before_the_rooms.ckpt"
FORGOTTEN = [1, 2, 3]


def test_a_request_goes_on_from_an_old_checkpoint():
    own = UnlearningCallback(releases=5)
    request = {"model": HeadNet(), "train_dataloaders": loader(digits(200))}
    result = trainer(own).unlearn([7], ckpt_path=GOLDEN, **request)
    certificate = result.certificate
    # Whether training changed the rows was not looked at then: nobody can tell.
    assert certificate.grade is Grade.CONDITIONAL
    assert (certificate.release, certificate.releases) == (2, 5)
    assert certificate.n_retain == 200 - 4
    assert own.record.removed == [*FORGOTTEN, 7]
    with pytest.raises(ForgetSetError, match="forgotten|removed|unlearned"):
        trainer(own).unlearn(FORGOTTEN, **request)


def test_the_certificate_in_an_old_checkpoint_verifies():
    state = torch.load(GOLDEN, weights_only=True)["callbacks"]["UnlearningCallback"]
    Certificate.from_json(state["certificate"]).verify()
