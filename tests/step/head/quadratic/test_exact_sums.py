"""Sums of products against Python's fractions."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st

from lightning_unlearn.step.head.quadratic.exact_sums import (
    CUT,
    LIMBS,
    ROWS,
    carried,
    exact_sum,
    rounded,
)


def value(limbs):
    """What limbs (6, ...) say, in fractions: a nested list."""
    places = [Fraction(1, 2 ** (20 * (place + 1))) for place in range(LIMBS)]
    flat = limbs.reshape(LIMBS, -1).T.tolist()
    return [sum(c * p for c, p in zip(cell, places, strict=True)) for cell in flat]


def products(rows, width):
    """sum t t', its first columns and its diagonal, in fractions."""
    exact = [[Fraction(x) for x in row] for row in rows.tolist()]
    return [
        sum(row[i] * row[j] for row in exact)
        for i in range(rows.shape[1])
        for j in (*range(width), i)
    ]


def multiples(*shape, bits=60):
    """Numbers in [-1, 1] that three slices hold to the last bit."""
    generator = torch.Generator().manual_seed(0)
    mantissa = torch.randint(-(1 << 40), 1 << 40, shape, generator=generator)
    return mantissa.double() * 2.0**-bits


@pytest.mark.parametrize("bits", [40, 50, 60])
def test_numbers_of_60_bits_are_summed_without_any_rounding(bits):
    rows = multiples(40, 5, bits=bits)
    limbs = exact_sum(rows.split(7), 3, 5)
    assert limbs.shape == (LIMBS, 5, 4)
    assert value(limbs) == products(rows, 3)


def test_the_largest_rows_there_can_be_are_summed_exactly():
    """Products are near 2^40, and sums of a part near 2^52: float64 ends at 2^53."""
    rows = torch.ones(ROWS, 3, dtype=torch.float64)
    rows[:, 1] = -1
    rows[::3, 2] = 1 - 2.0**-20  # an odd number of units
    limbs = exact_sum([rows] * 5, 3, 3)
    assert value(limbs) == [5 * x for x in products(rows, 3)]


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_what_is_cut_off_is_as_small_as_said(numbers):
    rows = torch.tensor(numbers, dtype=torch.float64)[:, None]
    one = torch.ones_like(rows)
    *_, found, _ = value(exact_sum([torch.cat([one, rows], 1)], 1, 2))
    cut = abs(found - sum(map(Fraction, numbers)))
    assert cut <= len(numbers) * Fraction(CUT)


def test_something_is_cut_off():
    small = torch.tensor([[1.0, 2.0**-62]], dtype=torch.float64)
    assert value(exact_sum([small], 1, 2)) == [1, 1, 0, 0]


def test_order_and_parts_leave_no_trace():
    rows = torch.rand(300, 4, dtype=torch.float64) * 2 - 1
    whole = exact_sum([rows], 4, 4)
    mixed = exact_sum(rows[torch.randperm(300)].split(11), 4, 4)
    assert torch.equal(whole, mixed)
    part = exact_sum([rows[:120]], 4, 4)
    assert torch.equal(carried(whole - part), exact_sum([rows[120:]], 4, 4))
    assert not bool(carried(whole - whole).any())


@given(
    st.lists(
        st.integers(-(2**62) + 2**45, 2**62 - 2**45), min_size=LIMBS, max_size=LIMBS
    )
)
def test_carrying_changes_no_number_and_has_one_end(limbs):
    before = torch.tensor(limbs)[:, None, None]
    after = carried(before)
    assert value(after) == value(before)
    assert bool(((after[1:] >= -(1 << 19)) & (after[1:] < 1 << 19)).all())
    assert torch.equal(carried(after), after)


@given(
    st.integers(-(2**50), 2**50),
    st.lists(st.integers(-(2**19), 2**19 - 1), min_size=LIMBS - 1, max_size=LIMBS - 1),
    st.integers(0, LIMBS),
)
def test_a_rounded_number_is_near_its_own_size(first, others, zeros):
    limbs = [first, *others]
    limbs[:zeros] = [0] * zeros  # numbers that begin at every place
    limbs = torch.tensor(limbs)[:, None, None]
    (exact,) = value(limbs)
    error = abs(Fraction(float(rounded(limbs))) - exact)
    ku = Fraction(16, 2**53)
    assert error <= ku / (1 - ku) * abs(exact)


def test_no_rows_are_nothing():
    assert not bool(exact_sum([], 2, 3).any())
