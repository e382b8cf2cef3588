import math

import pytest
import torch
from scipy.stats import chi2, kstest, norm

from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.step.noise import gaussian_noise


def test_std_is_as_stated_and_three_percent_more_is_caught():
    # Fails by chance once in 1e9 runs.
    n, std = 200_000, 0.3
    noise = gaussian_noise(n, std)
    low, high = chi2.interval(1 - 1e-9, df=n)
    statistic = noise.square().sum().item() / std**2
    assert low <= statistic <= high
    assert not low <= 1.03**2 * statistic <= high
    assert abs(noise.mean().item()) < 6.2 * std / math.sqrt(n)


def test_shape_is_gaussian_and_another_is_caught():
    noise = gaussian_noise(100_000, 2.0)
    assert kstest(noise.numpy() / 2, norm.cdf).pvalue > 1e-9
    uniform = (torch.rand(100_000) - 0.5) * math.sqrt(12)  # same mean and std
    assert kstest(uniform.numpy(), norm.cdf).pvalue < 1e-9


def test_tails_and_independence():
    noise = gaussian_noise(1_000_000, 1.0)
    beyond_4 = int((noise.abs() > 4).sum())
    assert 20 <= beyond_4 <= 130  # 63 expected
    lag = float((noise[1:] * noise[:-1]).mean())
    halves = (
        float((noise[: 1 << 19] * noise[1 << 19 : 1 << 20][: 1 << 19]).mean())
        if (len(noise) >= 1 << 20)
        else 0.0
    )
    assert max(abs(lag), abs(halves)) < 7e-3


def test_seeding_never_reproduces_it():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        draws.append(gaussian_noise(50, 1.0))
        assert torch.equal(state, torch.get_rng_state())  # nothing global was used
    assert not torch.equal(*draws)


def test_a_generator_makes_it_reproducible():
    one, two = (
        gaussian_noise(9, 1.0, torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(one, two)
    assert one.dtype == torch.float64


def test_a_torch_generator_keeps_only_32_bits_of_its_seed():
    # Why the noise does not come from one (see the module's docstring).
    a, b = (torch.Generator().manual_seed(s) for s in (7, 7 + 2**32))
    assert torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))


def test_zero_and_bad_std():
    assert not gaussian_noise(5, 0.0).any()
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="expected std to be a finite number"):
            gaussian_noise(5, bad)
    with pytest.raises(ArgumentError, match="expected size to be an integer >= 1"):
        gaussian_noise(0, 1.0)
