import decimal
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.defenses.smoothing import (
    LEVELS,
    _count_below,
    draw_noise,
    make_noise,
    sampling_error,
    with_noise,
)


def exact_cdf(x: decimal.Decimal) -> decimal.Decimal:
    """Returns Φ(x) by the series of erf, in 60 digits."""
    with decimal.localcontext(prec=60):
        z = x / decimal.Decimal(2).sqrt()
        term = total = z
        for n in range(1, 400):
            term *= -z * z / n
            total += term / (2 * n + 1)
        pi = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
        return (1 + 2 * total / pi.sqrt()) / 2


@pytest.mark.parametrize("sigma", [0.12, 0.5])
def test_thresholds_are_the_exact_distribution_of_rounded_noise(sigma):
    noise, levels = make_noise(sigma), decimal.Decimal(sigma) * LEVELS
    total = 0.0
    for i in range(0, len(noise.high), 37):
        k = i - noise.reach
        exact = exact_cdf((decimal.Decimal(k) + decimal.Decimal("0.5")) / levels)
        ours = decimal.Decimal((int(noise.high[i]) << 32) | int(noise.low[i])) / 2**64
        assert abs(ours - exact) < decimal.Decimal(2) ** -50
        total += float(exact)
    assert total > 0  # something was compared
    assert sampling_error(noise, 64 * 64 * 3) < 1e-7


def test_thresholds_rise_and_are_symmetric():
    noise = make_noise(0.25)
    whole = [(int(h) << 32) | int(w) for h, w in zip(noise.high, noise.low, strict=True)]
    assert whole == sorted(whole)
    # The last are cut at 2⁶⁴ - 1, which no draw exceeds.
    assert all(abs(a + b - 2**64) <= 1 for a, b in zip(whole, whole[::-1], strict=True))


def test_draws_follow_the_exact_distribution():
    sigma, count = 0.02, 400_000  # 5 levels: each of the common draws is frequent
    noise = make_noise(sigma)
    drawn = np.asarray(draw_noise(noise, jax.random.key(1), (count,)))
    levels = sigma * LEVELS
    cdf = lambda k: 0.5 * math.erfc(-(k + 0.5) / (levels * math.sqrt(2)))  # noqa: E731
    statistic = freedom = 0
    for k in range(-15, 16):
        expected = count * (cdf(k) - cdf(k - 1))
        statistic += ((drawn == k).sum() - expected) ** 2 / expected
        freedom += 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_lower_bits_decide_where_the_upper_ones_cannot():
    # Three thresholds with the same upper half, which the draw shares: only the lower ones differ.
    noise = make_noise(0.25)
    bits = int(jax.random.bits(jax.random.split(jax.random.key(3))[0], (1,), jnp.uint32)[0])
    low = np.array([0, 2**31, 2**32 - 1], np.uint32)
    tied = noise._replace(reach=0, high=np.full(3, bits, np.uint32), low=low)
    rest = jax.random.bits(
        jax.random.fold_in(jax.random.split(jax.random.key(3))[1], 0), (), jnp.uint32
    )
    expected = int((low <= int(rest)).sum())
    assert int(draw_noise(tied, jax.random.key(3), (1,))[0]) == expected
    assert 1 <= expected <= 2


@pytest.mark.parametrize("sigma", [0.01, 0.12, 0.25, 1.0])
def test_table_of_buckets_counts_as_binary_search_does(sigma):
    high = make_noise(sigma).high
    near = np.concatenate([high - np.uint32(1), high, high + np.uint32(1)])  # 0 - 1 is the largest
    ends = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    anywhere = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    bits = np.concatenate([near, ends, anywhere])
    below, tied = _count_below(high, jnp.asarray(bits))
    np.testing.assert_array_equal(below, np.searchsorted(high, bits, side="left"))
    np.testing.assert_array_equal(tied, np.isin(bits, high))


def test_draws_depend_on_key_and_shape_alone():
    noise, key = make_noise(0.25), jax.random.key(5)
    alone = draw_noise(noise, key, (4, 4, 3))
    batched = jax.jit(jax.vmap(lambda k: draw_noise(noise, k, (4, 4, 3))))(
        jnp.stack([key, jax.random.key(6)])
    )
    np.testing.assert_array_equal(batched[0], alone)


def test_validation_noise_belongs_to_the_image():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    batch = {"image": images, "index": np.arange(4, dtype=np.int32), "label": np.zeros(4)}
    turned = {name: value[::-1] for name, value in batch.items()}
    (one,), (two,) = (list(with_noise([each], 0.25, 0)) for each in (batch, turned))
    np.testing.assert_array_equal(one["image"], two["image"][::-1])
    difference = one["image"].astype(int) - images
    assert difference.std() == pytest.approx(0.25 * LEVELS, rel=0.1)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_impossible_sigma_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        make_noise(sigma)
