"""The purifiers: range, sizes, gradients, and what each one's bottleneck lets through."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from medadv_jax.errors import UserError
from medadv_jax.models import purifiers
from medadv_jax.models.purifiers import PURIFIERS, clip_pixels, create_purifier

every_purifier = pytest.mark.parametrize("name", sorted(PURIFIERS))


def random_pixels(*shape, low=0.0, high=1.0, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32))


@functools.cache
def purifier(name, size, **options):
    """Returns a purifier as a compiled function of variables and pixels, with variables as after
    training: none of them zero, so that the U-Net does something too."""
    module = create_purifier(name, width=0.25, **{"bottleneck": 16, **options})
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    rng = np.random.default_rng(3)

    def draw(leaf):
        fan_in = math.prod(leaf.shape[:-1])
        return rng.normal(scale=math.sqrt(2 / fan_in), size=leaf.shape).astype(np.float32)

    def shrink(path, leaf):
        return 0.1 * leaf if path[-1].key == "bias" else leaf

    variables = jax.tree_util.tree_map_with_path(shrink, jax.tree.map(draw, shapes))
    return jax.jit(module.apply), variables


def count_parameters(name, size=64, **options):
    module = create_purifier(name, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@every_purifier
def test_gradient_agrees_with_finite_differences(name):
    apply, variables = purifier(name, 16)
    # Away from 0 and 1, where clipping has a kink.
    pixels = random_pixels(2, 16, 16, 3, low=0.3, high=0.7)
    weights = random_pixels(2, 16, 16, 3, low=-1.0, seed=1)
    slope = jax.jit(jax.grad(lambda x: jnp.vdot(weights, apply(variables, x))))
    gradient = np.asarray(slope(pixels))

    def along(direction):
        ends = (apply(variables, pixels + sign * direction) for sign in (1, -1))
        first, last = (np.asarray(end, np.float64) for end in ends)
        return np.sum(weights * (first - last)) / 2

    steepest = 0.02 * gradient / np.linalg.norm(gradient)
    assert_allclose(along(steepest), np.vdot(gradient, steepest), rtol=0.02)
    slanted = 0.5 * steepest + 0.02 * random_pixels(*pixels.shape, seed=2) / math.sqrt(pixels.size)
    assert_allclose(along(slanted), np.vdot(gradient, slanted), rtol=0.02)


def test_unet_starts_as_the_identity_for_value_and_gradient():
    pixels = random_pixels(2, 21, 18, 3).at[:, :4].set(0.0).at[:, 9:12].set(1.0)
    module = create_purifier("unet", width=0.25)

    @jax.jit
    def run(key):
        variables = module.init(key, pixels)
        purified, pull_back = jax.vjp(functools.partial(module.apply, variables), pixels)
        return purified, pull_back(jnp.ones_like(pixels))[0]

    purified, gradient = run(jax.random.key(0))
    assert_array_equal(purified, pixels)
    # 1 at the black border too: the attack on an untrained purifier is that without one.
    assert_array_equal(gradient, jnp.ones_like(pixels))


def test_clipping_has_the_gradient_of_what_it_leaves_alone():
    values = jnp.array([-0.5, 0.0, 0.25, 1.0, 1.5])
    assert_array_equal(clip_pixels(values), [0.0, 0.0, 0.25, 1.0, 1.0])
    assert_array_equal(jax.vmap(jax.grad(clip_pixels))(values), [0.0, 1.0, 1.0, 1.0, 0.0])


@every_purifier
def test_output_is_float32_in_the_range_of_pixels(name):
    apply, variables = purifier(name, 16)
    variables = jax.tree.map(lambda leaf: 2 * leaf, variables)
    purified = apply(variables, random_pixels(2, 16, 16, 3))
    assert purified.dtype == jnp.float32
    assert 0 <= purified.min() < 0.1 < 0.9 < purified.max() <= 1


@pytest.mark.parametrize("size", [32, 48, 64, 75, 224, 299])
@every_purifier
def test_size_is_kept(name, size):
    module = create_purifier(name)
    image = jnp.zeros((2, size, size, 3))
    purified, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    assert purified.shape == image.shape
    assert set(variables) == {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "size", "whole"), [("dense", 15, 16), ("spatial", 9, 12), ("unet", 9, 16)]
)
def test_odd_sizes_continue_their_border(name, size, whole):
    """As if the last row and column went on, and nothing but the image came back."""
    apply, variables = purifier(name, 16)
    pixels = random_pixels(1, size, size, 3)
    more = (0, whole - size)
    continued = np.pad(pixels, ((0, 0), more, more, (0, 0)), mode="edge")
    expected = apply(variables, continued)[:, :size, :size]
    assert_allclose(apply(variables, pixels), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 16), (9, 8), (13, 15)])
def test_the_border_is_that_of_numpy_to_the_bit(size):
    """In value and gradient; it is written in another way, for exporters."""
    pixels = random_pixels(2, *size, 3)
    more = [(0, 0), *((0, -side % 8) for side in size), (0, 0)]
    expected, pull = jax.vjp(lambda x: jnp.pad(x, more, mode="edge"), pixels)
    actual, our_pull = jax.vjp(lambda x: purifiers._pad_to_multiple(x, 8), pixels)
    cotangent = jnp.asarray(random_pixels(*expected.shape))
    assert_array_equal(actual, expected)
    assert_array_equal(our_pull(cotangent)[0], pull(cotangent)[0])


def test_blocks_of_pixels_go_in_and_come_out_in_place():
    images = random_pixels(2, 6, 4, 3)
    blocks = purifiers._space_to_depth(images)
    for row in range(2):
        for column in range(2):
            first = 3 * (2 * row + column)
            assert_array_equal(blocks[..., first : first + 3], images[:, row::2, column::2])
    assert_array_equal(purifiers._depth_to_space(blocks), images)


def influence(name, size):
    """Returns how much the output pixel in the upper left corner follows each pixel, (H, W)."""
    apply, variables = purifier(name, size)
    pixels = random_pixels(1, size, size, 3, low=0.3, high=0.7)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(apply(variables, x)[0, 0, 0])))(pixels)
    return np.abs(gradient).sum((0, 3))


def test_spatial_bottleneck_keeps_the_layout_and_the_dense_one_does_not():
    spatial, dense = influence("spatial", 32), influence("dense", 32)
    assert spatial[:4, :4].max() > 0
    assert not spatial[24:].any()
    assert not spatial[:, 24:].any()
    assert (dense[24:, 24:] > 0).any()


@pytest.mark.parametrize("units", [1, 3])
def test_no_more_than_the_bottleneck_passes_the_dense_one(units):
    apply, variables = purifier("dense", 8, bottleneck=units)
    pixels = random_pixels(1, 8, 8, 3)
    jacobian = jax.jit(jax.jacrev(lambda x: apply(variables, x).ravel()))(pixels)
    jacobian = np.asarray(jacobian).reshape(192, 192)
    strengths = np.linalg.svd(jacobian, compute_uv=False)
    assert np.sum(strengths > 1e-5 * strengths[0]) == units


def test_bottleneck_changes_the_parameters_of_what_has_one():
    flat = 8 * 8 * 128  # 64 pixels halved three times
    more = [count_parameters("dense", bottleneck=units) for units in (64, 128, 256)]
    assert np.diff(more).tolist() == [64 * (2 * flat + 1), 128 * (2 * flat + 1)]
    more = [count_parameters("spatial", bottleneck=units) for units in (64, 128, 256)]
    per_channel = 64 + 1 + 9 * 64  # into the code, and out of it
    assert np.diff(more).tolist() == [8 * per_channel, 16 * per_channel]
    assert count_parameters("unet", bottleneck=64) == count_parameters("unet", bottleneck=256)


@every_purifier
def test_every_image_is_purified_alone(name):
    apply, variables = purifier(name, 16)
    pixels = random_pixels(2, 16, 16, 3)
    alone = apply(variables, pixels[1:2])
    assert_allclose(apply(variables, pixels)[1:2], alone, rtol=1e-5, atol=1e-6)


@every_purifier
def test_forms_and_dtypes_are_one_function(name):
    pixels = random_pixels(2, 16, 16, 3)
    apply, variables = purifier(name, 16, conv_impl="plain")
    expected = apply(variables, pixels)
    for options, tolerance in (({"conv_impl": "cpu"}, 1e-5), ({"dtype": "bfloat16"}, 0.05)):
        other, _ = purifier(name, 16, **options)
        purified = other(variables, pixels)
        assert purified.dtype == jnp.float32
        assert_allclose(purified, expected, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vae"}, "'vae'.*dense, spatial, unet"),
        ({"name": "dense", "bottleneck": 0}, "bottleneck=0.*at least 1"),
        ({"name": "unet", "width": 0.0}, "width=0.0.*above 0"),
        ({"name": "unet", "dtype": "float16"}, "dtype=float16.*float32"),
        ({"name": "unet", "conv_impl": "tpu"}, "conv_impl='tpu'.*auto"),
    ],
)
def test_impossible_purifiers_are_told(options, message):
    with pytest.raises(UserError, match=message):
        create_purifier(**options)
