"""The layers have flax's parameters and flax's values, for every conv_impl."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from medadv_jax.errors import UserError
from medadv_jax.models.layers import BatchNorm, Conv, check_images, scale_channels


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def shapes(variables):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), variables)


@pytest.mark.parametrize("conv_impl", ["cpu", "plain"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_conv_has_flax_parameters_and_values(conv_impl, use_bias):
    images = normal(2, 7, 6, 3)
    ours = Conv(5, (3, 3), (2, 2), padding=1, use_bias=use_bias, conv_impl=conv_impl)
    theirs = nn.Conv(5, (3, 3), (2, 2), padding=1, use_bias=use_bias)
    variables = theirs.init(jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    assert shapes(ours.init(jax.random.key(0), images)) == shapes(variables)
    actual: Any = ours.apply(variables, images)
    expected: Any = theirs.apply(variables, images)
    assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_flax_in_value_gradient_and_statistics(train, use_scale):
    inputs, weights = 2.0 + 3.0 * normal(4, 3, 5, 6), normal(4, 3, 5, 6, seed=1)
    ours = BatchNorm(train=train, use_scale=use_scale)
    theirs = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, use_scale=use_scale)
    variables = theirs.init(jax.random.key(0), inputs)
    assert shapes(ours.init(jax.random.key(0), inputs)) == shapes(variables)
    variables = jax.tree.map(lambda leaf: leaf + 0.3, variables)

    def loss(layer, params, inputs):
        stats = variables["batch_stats"]
        result, updated = layer.apply(
            {"params": params, "batch_stats": stats}, inputs, mutable=["batch_stats"]
        )
        return jnp.sum(weights * nn.relu(result)), updated

    def run(layer):
        gradient = jax.value_and_grad(functools.partial(loss, layer), (0, 1), has_aux=True)
        return jax.jit(gradient)(variables["params"], inputs)

    for mine, reference in zip(*map(jax.tree.leaves, (run(ours), run(theirs))), strict=True):
        assert_allclose(mine, reference, rtol=1e-4, atol=1e-4)


def test_batch_norm_of_bfloat16_takes_its_statistics_in_float32():
    inputs = (normal(64, 4, 4, 3) + 8.0).astype(jnp.bfloat16)
    layer = BatchNorm(train=True, dtype=jnp.bfloat16)
    updated: Any
    variables = layer.init(jax.random.key(0), inputs)
    result, updated = layer.apply(variables, inputs, mutable=["batch_stats"])
    assert result.dtype == jnp.bfloat16
    exact = np.asarray(inputs, np.float64)
    mean, var = updated["batch_stats"]["mean"], updated["batch_stats"]["var"]
    assert mean.dtype == var.dtype == jnp.float32
    assert_allclose(mean, 0.1 * exact.mean((0, 1, 2)), rtol=1e-5)
    assert_allclose(var, 0.9 + 0.1 * exact.var((0, 1, 2)), rtol=1e-4)


def test_channels_are_multiples_of_eight():
    assert [scale_channels(64, width) for width in (1.0, 0.5, 0.3, 0.01)] == [64, 32, 16, 8]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"\(8, 8, 3\).*\(B, H, W, 3\)"),
        (np.zeros((2, 8, 8, 1), np.float32), r"\(2, 8, 8, 1\).*\(B, H, W, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "uint8.*normalise"),
    ],
)
def test_wrong_images_are_told(images, message):
    with pytest.raises(UserError, match=message):
        check_images(images)
