"""Inception v3: published sizes, equality of implementations, the auxiliary head, options."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from numpy.testing import assert_allclose, assert_array_equal

from medadv_jax.errors import UserError
from medadv_jax.models import HEAD, LAST_STAGE, create_model
from medadv_jax.models.inception_v3 import AuxLogits, ConvNorm, InceptionV3
from medadv_jax.models.layers import BatchNorm

small: Any = functools.partial(InceptionV3, num_classes=3, width=0.0625)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@functools.cache
def parameter_shapes(size=299, width=1.0, **options):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    net = create_model("inception_v3", num_classes=1000, width=width, **options)
    return jax.eval_shape(net.init, jax.random.key(0), images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("options", "published"),
    [({}, 23_834_568), ({"aux": True}, 27_161_264), ({"bn_scale": False}, 23_817_352)],
)
def test_published_number_of_parameters(options, published):
    assert count(parameter_shapes(**options)["params"]) == published


def test_head_and_last_stage_name_layers_that_exist():
    assert set(parameter_shapes(aux=True)["params"]) >= {
        *HEAD["inception_v3"],
        *LAST_STAGE["inception_v3"],
    }


def test_map_sizes_are_the_papers():
    net = InceptionV3(num_classes=2)
    run = functools.partial(net.init_with_output, capture_intermediates=True)
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    _, state = jax.eval_shape(run, jax.random.key(0), images)
    shape = {
        name: state["intermediates"][name]["__call__"][0].shape[1:]
        for name in ("Conv2d_1a_3x3", "Mixed_5b", "Mixed_5d", "Mixed_6e", "Mixed_7a", "Mixed_7c")
    }
    assert shape == {
        "Conv2d_1a_3x3": (149, 149, 32),
        "Mixed_5b": (35, 35, 256),
        "Mixed_5d": (35, 35, 288),
        "Mixed_6e": (17, 17, 768),
        "Mixed_7a": (8, 8, 1280),
        "Mixed_7c": (8, 8, 2048),
    }


def filled(net, images) -> Any:
    """Variables as after training: no statistic is trivial."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0), images))

    def fill(seed, shape):
        values = normal(*shape, seed=seed)
        return values * (2 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 1 + 0.1 * values

    return jax.tree.unflatten(tree, [fill(i, leaf.shape) for i, leaf in enumerate(leaves)])


@pytest.fixture(scope="module")
def variables():
    return filled(small(), normal(1, 75, 75, 3))


def test_implementations_agree(variables):
    """Each operation: ops/test_convolution.py; the whole network: pretrained/test_golden.py."""
    images = normal(2, 81, 75, 3)

    def run(conv_impl):
        return jax.jit(small(conv_impl=conv_impl, count_padding=False).apply)(variables, images)

    expected = run("plain")
    assert_allclose(run("cpu"), expected, rtol=0, atol=1e-4 * float(abs(expected).max()))


def test_dropout_needs_its_key_in_train_mode_only(variables):
    def train(dropout, rngs):
        apply = functools.partial(
            small(dropout=dropout).apply, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return jax.eval_shape(apply, variables, normal(2, 75, 75, 3))

    train(0.5, {"dropout": jax.random.key(0)})
    train(0.0, {})
    with pytest.raises(InvalidRngError):
        train(0.5, {})


def test_auxiliary_logits_are_returned_in_train_mode_only():
    net = small(aux=True)
    images = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)
    assert set(shapes) == {"params", "batch_stats"}
    rngs = {"dropout": jax.random.key(0)}

    def run(train):
        apply = functools.partial(net.apply, train=train, mutable=["aux", "batch_stats"], rngs=rngs)
        return jax.eval_shape(apply, shapes, images)

    logits, updated = run(train=True)
    assert logits.shape == updated["aux"]["logits"].shape == (2, 3)
    assert "aux" not in run(train=False)[1]


def test_auxiliary_head_sees_the_whole_map():
    """17 places → 5 averages → 1 place."""
    net: Any = AuxLogits(2, functools.partial(ConvNorm, width=0.0625), "plain")
    maps = normal(2, 17, 17, 8)
    variables = filled(net, maps)
    assert variables["params"]["conv1"]["conv"]["kernel"].shape == (5, 5, 8, 48)
    run = functools.partial(net.apply, capture_intermediates=True)
    state = jax.eval_shape(run, variables, maps)[1]["intermediates"]
    shapes = [state[name]["__call__"][0].shape[1:3] for name in ("conv0", "conv1")]
    assert shapes == [(5, 5), (1, 1)]
    gradient = jax.jit(jax.grad(lambda maps: jnp.sum(net.apply(variables, maps))))(maps)
    assert bool((jnp.abs(gradient).sum((0, 3)) > 0).all())


def test_smallest_image():
    parameter_shapes(75)
    with pytest.raises(UserError, match=r"74×74.*at least 75×75"):
        parameter_shapes(74)
    with pytest.raises(UserError, match=r"298×298.*aux=True.*at least 299×299"):
        parameter_shapes(298, aux=True)


def test_auxiliary_head_is_no_matter_in_eval_mode(variables):
    images = jax.ShapeDtypeStruct((2, 75, 75, 3), jnp.float32)
    assert jax.eval_shape(small(aux=True).apply, variables, images).shape == (2, 3)


def test_kernels_start_cut_at_two_deviations():
    net = AuxLogits(16, functools.partial(ConvNorm, width=0.25), "plain")
    params: Any = jax.jit(net.init)(jax.random.key(0), normal(1, 17, 17, 96))["params"]
    for kernel, deviation in (
        (params["conv0"]["conv"]["kernel"], 0.1),
        (params["conv1"]["conv"]["kernel"], 0.01),
        (params["fc"]["kernel"], 0.001),
    ):
        assert float(jnp.abs(kernel).max()) <= 2 * deviation
        assert float(kernel.std()) == pytest.approx(0.88 * deviation, rel=0.05)


@pytest.mark.parametrize("unbiased", [True, False])
def test_batch_norm_keeps_the_variance_that_it_is_told_to(unbiased):
    inputs = 3.0 * normal(2, 2, 1, 5)
    layer = BatchNorm(train=True, momentum=0.75, unbiased=unbiased)
    variables = layer.init(jax.random.key(0), inputs)
    updated: Any
    result, updated = layer.apply(variables, inputs, mutable=["batch_stats"])
    exact = np.asarray(inputs, np.float64).reshape(4, 5)
    assert_allclose(
        updated["batch_stats"]["var"], 0.75 + 0.25 * exact.var(0, ddof=unbiased), rtol=1e-5
    )
    other, _ = BatchNorm(train=True).apply(variables, inputs, mutable=["batch_stats"])
    assert_array_equal(result, other)  # what normalises is the biased one, either way
