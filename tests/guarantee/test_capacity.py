"""How many may be forgotten: the number of the search before, with fewer looks."""

import pytest

from lightning_unlearn.guarantee.accounting import capacity as counted
from lightning_unlearn.guarantee.accounting.capacity import capacity, is_at_least
from lightning_unlearn.guarantee.accounting.private_training import (
    Mechanism,
    Privacy,
    privacy,
)

pytest.importorskip("dp_accounting")
DELTA = 1e-5


def test_capacity_is_the_largest_that_fits():
    training = Mechanism(8.0, 0.08, 240)
    most = capacity(training, 2.0, DELTA)
    assert privacy(training, most, DELTA).epsilon <= 2.0
    assert privacy(training, most + 1, DELTA).epsilon > 2.0
    assert capacity(training, 0.1, DELTA) == 0


def by_halves(training, epsilon):
    """As it was searched for before: doubled, then halved."""

    def fits(k):
        return privacy(training, k, DELTA).epsilon <= epsilon

    if not fits(1):
        return 0
    most, least = 2, 1
    while most < 4096 and fits(most):
        most, least = 2 * most, most
    while most - least > 1:
        middle = (most + least) // 2
        most, least = (most, middle) if fits(middle) else (middle, least)
    return least


@pytest.mark.parametrize(
    "training",
    [
        Mechanism(1.0, 0.01, 1000),
        Mechanism(4.0, 0.05, 40),
        Mechanism(0.6, 0.1, 40),
        Mechanism(0.3, 0.001, 50),
        Mechanism(4.0, 0.004, 100),
        Mechanism(5.0, 1.0, 10),
    ],
)
def test_capacity_is_that_of_a_search_by_halves(training):
    for epsilon in (0.01, 0.3, 1.0, 4.0, 8.0):
        assert capacity(training, epsilon, DELTA) == by_halves(training, epsilon)


def test_capacity_is_counted_to_4095(monkeypatch):
    """As before, and now it is said."""

    def little(training, k, delta):
        return Privacy(k * 1e-6, 0.0)

    monkeypatch.setattr(counted, "privacy", little)
    training = Mechanism(1.0, 1e-9, 1)
    for epsilon, expected in ((1.0, 4095), (4e-3, 4000), (4.0955e-3, 4095)):
        assert capacity(training, epsilon, DELTA) == expected
        assert is_at_least(expected, epsilon) is (expected == 4095)


@pytest.mark.parametrize("z", [1.0, 4.0])
def test_an_absurd_epsilon_is_counted_in_part(z, monkeypatch):
    """It took two minutes: of some hundred samples each look takes ten seconds."""
    asked = []

    def counting(training, k, delta):
        asked.append(k)
        return privacy(training, k, delta)

    monkeypatch.setattr(counted, "privacy", counting)
    training = Mechanism(z, 0.1, 20)
    most = capacity(training, 1000.0, DELTA)
    assert len(asked) < 8
    assert max(asked) < 80
    assert most == capacity(training, 50.0, DELTA)
    assert is_at_least(most, 1000.0)
    assert not is_at_least(most, 50.0)
