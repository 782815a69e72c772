"""Both implementations equal XLA's own operation, in value and in both gradients."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from numpy.testing import assert_allclose

from medadv_jax.errors import UserError
from medadv_jax.models.ops import convolution as ops
from medadv_jax.models.ops import pooling


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def reference_conv(images, kernel, strides, padding):
    return lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


PLAIN, MIXED, STEM = "plain", "plain patches plain", "plain blocks plain"
TINY = "patches patches plain"

# images, kernel, strides, padding for lax, padding for us, the algorithms that must be chosen
CONVS = {
    "pointwise": ((2, 5, 4, 3), (1, 1, 3, 4), (1, 1), "VALID", 0, "pointwise"),
    "pointwise_strided": ((2, 5, 4, 3), (1, 1, 3, 4), (2, 2), "VALID", "VALID", "pointwise"),
    "pointwise_padded": ((2, 2, 2, 3), (1, 1, 3, 4), (1, 1), [(1, 1)] * 2, 1, PLAIN),
    "one_pixel": ((2, 1, 1, 3), (3, 3, 3, 4), (1, 1), [(1, 1)] * 2, 1, TINY),
    "tiny": ((2, 2, 3, 3), (3, 3, 3, 4), (1, 1), "SAME", "SAME", TINY),
    "tiny_strided": ((2, 5, 4, 3), (3, 3, 3, 4), (2, 2), [(1, 1)] * 2, (1, 1), TINY),
    "small": ((2, 6, 5, 5), (3, 3, 5, 4), (1, 1), "SAME", 1, MIXED),
    "row": ((2, 6, 7, 5), (1, 7, 5, 4), (1, 1), "SAME", (0, 3), MIXED),
    "strided": ((2, 9, 11, 5), (3, 3, 5, 4), (2, 2), "SAME", "SAME", MIXED),
    "stem_even": ((2, 12, 10, 3), (7, 7, 3, 4), (2, 2), [(3, 3)] * 2, 3, STEM),
    "stem_odd": ((2, 11, 13, 3), (7, 7, 3, 4), (2, 2), [(3, 3)] * 2, 3, STEM),
    "stem_inception": ((2, 10, 11, 3), (3, 3, 3, 4), (2, 2), "VALID", 0, STEM),
    "stem_uneven": (
        (2, 11, 13, 3), (5, 4, 3, 4), (3, 2), [(0, 2), (3, 1)], ((0, 2), (3, 1)), STEM
    ),
    "middle": ((1, 17, 16, 5), (3, 3, 5, 3), (1, 1), "SAME", 1, "plain"),
    "tiles": ((1, 8, 9, 64), (3, 3, 64, 2), (1, 1), "SAME", 1, "winograd winograd plain"),
    "few_tiles": ((2, 4, 4, 64), (3, 3, 64, 3), (1, 1), "SAME", 1, "winograd winograd plain"),
    "tiles_uneven": (
        (2, 9, 11, 64), (3, 3, 64, 2), (1, 1), [(0, 1), (2, 0)], ((0, 1), (2, 0)),
        "winograd winograd plain",
    ),
    "first": ((5, 72, 72, 3), (3, 3, 3, 56), (1, 1), "SAME", 1, "plain chunks chunks"),
    # 2, 2 and 1 images
    "large": ((5, 72, 72, 56), (3, 3, 56, 2), (1, 1), "SAME", 1, "plain plain chunks"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("conv_impl", ["cpu", "plain"])
def test_conv_equals_lax_in_value_and_gradients(case, conv_impl):
    shape, window, strides, padding, ours, taken = CONVS[case]
    images, kernel = normal(*shape), normal(*window, seed=1)
    expected, pull = jax.vjp(lambda x, k: reference_conv(x, k, strides, padding), images, kernel)
    actual, our_pull = jax.vjp(
        lambda x, k: ops.conv(x, k, strides, ours, conv_impl), images, kernel
    )
    cotangent = normal(*expected.shape, seed=2)

    pads = ops.resolve_padding(ours, shape[1:3], window[:2], strides)
    algorithms = ops._algorithms(images, kernel, strides, pads)
    assert algorithms == tuple((taken.split() * 3)[:3])
    assert_allclose(actual, expected, rtol=1e-5, atol=2e-6 * float(jnp.abs(expected).max()))
    for mine, reference in zip(our_pull(cotangent), pull(cotangent), strict=True):
        # Gradients to kernels sum over all pixels: the tolerance follows their size.
        assert_allclose(mine, reference, rtol=1e-4, atol=1e-5 * float(jnp.abs(reference).max()))


def test_every_algorithm_is_tested():
    assert {name for case in CONVS.values() for name in case[-1].split()} == {
        "winograd",
        "blocks",
        *ops._CONVS,
    }


@pytest.mark.parametrize("case", ["pointwise", "tiny", "small", "stem_odd", "few_tiles"])
def test_conv_over_lanes_equals_a_loop(case):
    shape, window, strides, _, ours, _ = CONVS[case]
    lanes, kernel = normal(3, *shape), normal(*window, seed=1)

    def gradient(images):
        return jax.grad(lambda x: jnp.sum(jnp.sin(ops.conv(x, kernel, strides, ours, "cpu"))))(
            images
        )

    expected = jnp.stack([gradient(images) for images in lanes])
    assert_allclose(jax.vmap(gradient)(lanes), expected, rtol=1e-4, atol=1e-4)


def test_pixel_gradient_computes_no_kernel_gradient():
    images, kernel = normal(2, 6, 6, 8), normal(3, 3, 8, 8, seed=1)
    gradient = jax.jit(jax.grad(lambda x: ops.conv(x, kernel, (1, 1), 1, "cpu").sum()))
    text = gradient.lower(images).compile().as_text()
    assert text is not None
    assert "convolution(" not in text  # neither the forward one nor the one to the kernel


@pytest.mark.parametrize("case", ["stem_even", "first", "middle"])
def test_pixel_gradient_in_a_loop_leaves_the_kernel_in_its_order(case):
    """With input and output features exchanged XLA's CPU backend has no quick routine for it."""
    shape, window, strides, _, ours, _ = CONVS[case]
    kernel = normal(*window, seed=1)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(ops.conv(x, kernel, strides, ours, "cpu"))))
    loop = jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, x: x + gradient(x), x))
    text = loop.lower(normal(*shape)).compile().as_text()
    assert text is not None
    orders = re.findall(r"dim_labels=b01f_(\w+)->", text)
    assert len(orders) >= 2
    assert set(orders) == {"01io"}


# shape, window, strides, padding
POOLS = [
    ((2, 6, 6, 3), (2, 2), (2, 2), "VALID"),
    ((2, 7, 5, 3), (3, 3), (2, 2), 1),
    ((2, 9, 12, 3), (3, 3), (2, 2), 1),
    ((2, 7, 8, 3), (3, 3), (2, 2), "VALID"),
    ((2, 5, 5, 3), (3, 3), (1, 1), 1),
    ((2, 8, 7, 3), (2, 3), (3, 2), ((0, 1), (1, 0))),
    ((2, 1, 1, 3), (3, 3), (2, 2), 1),
    ((2, 9, 9, 3), (2, 2), (4, 4), "VALID"),
]


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), POOLS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("conv_impl", ["cpu", "gpu"])
def test_max_pool_equals_flax_in_value_and_gradient(
    shape, window, strides, padding, ties, conv_impl
):
    images = normal(*shape)
    if ties:  # after a ReLU most windows of a dead channel are all zero
        images = jnp.round(nn.relu(images))
    pads: Any = ops.resolve_padding(padding, shape[1:3], window, strides)
    expected, pull = jax.vjp(lambda x: nn.max_pool(x, window, strides, pads), images)
    actual, our_pull = jax.vjp(
        lambda x: pooling.max_pool(x, window, strides, padding, conv_impl), images
    )
    cotangent = normal(*expected.shape, seed=2)
    assert_allclose(actual, expected)
    assert_allclose(our_pull(cotangent)[0], pull(cotangent)[0], rtol=1e-5, atol=1e-5)


def test_the_gpu_pool_remembers_its_winners_in_a_byte_each_instead_of_searching_again():
    def lowered(conv_impl: str) -> str:
        def loss(images: jax.Array) -> jax.Array:
            return pooling.max_pool(images, (2, 2), (2, 2), "VALID", conv_impl).sum()

        return jax.jit(jax.grad(loss)).lower(normal(2, 6, 6, 8)).as_text()

    assert "select_and_scatter" in lowered("plain")
    assert "select_and_scatter" not in lowered("gpu")
    assert "tensor<2x3x3x8xi8>" in lowered("gpu")


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), POOLS)
def test_plain_pools_are_those_of_flax_to_the_bit(shape, window, strides, padding):
    """Their padding is written in another way, for exporters."""
    images = jnp.round(nn.relu(normal(*shape)), 1)
    pads: Any = ops.resolve_padding(padding, shape[1:3], window, strides)
    for ours, flax in ((pooling.max_pool, nn.max_pool), (pooling.avg_pool, nn.avg_pool)):
        expected, pull = jax.vjp(lambda x, f=flax: f(x, window, strides, pads), images)
        actual, our_pull = jax.vjp(
            lambda x, f=ours: f(x, window, strides, padding, "plain"), images
        )
        cotangent = normal(*expected.shape, seed=2)
        np.testing.assert_array_equal(actual, expected)
        np.testing.assert_array_equal(our_pull(cotangent)[0], pull(cotangent)[0])


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize(("shape", "window", "strides", "padding"), POOLS[:5])
def test_avg_pools_agree(shape, window, strides, padding, count_padding):
    def pool(conv_impl):
        return lambda x: pooling.avg_pool(x, window, strides, padding, conv_impl, count_padding)

    images = normal(*shape)
    expected, pull = jax.vjp(pool("plain"), images)
    actual, our_pull = jax.vjp(pool("cpu"), images)
    cotangent = normal(*expected.shape, seed=2)
    assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert_allclose(our_pull(cotangent)[0], pull(cotangent)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("backend", "expected"), [("cpu", "cpu"), ("gpu", "gpu"), ("tpu", "plain")]
)
def test_auto_follows_the_backend(monkeypatch, backend, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert ops.resolve_conv_impl("auto") == expected
    assert ops.resolve_conv_impl("plain") == "plain"


def test_unknown_conv_impl_is_told():
    with pytest.raises(UserError, match=r"conv_impl='fast'.*auto, cpu, gpu, plain"):
        ops.resolve_conv_impl("fast")


def test_a_prepared_spectrum_changes_nothing_and_gets_no_gradient():
    images, kernel = normal(2, 6, 5, 64), normal(3, 3, 64, 4, seed=1)

    def total(x, prepared):
        return jnp.sum(jnp.sin(ops.conv(x, kernel, (1, 1), 1, "cpu", prepared)))

    to_images, to_prepared = jax.grad(total, (0, 1))(images, ops.spectrum(kernel))
    assert_allclose(to_images, jax.grad(total)(images, None), rtol=1e-4, atol=1e-4)
    assert all(not leaf.any() for leaf in jax.tree.leaves(to_prepared))
