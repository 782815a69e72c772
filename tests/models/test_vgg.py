"""VGG: published sizes, equality of implementations, heads, dropout, errors of options."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from numpy.testing import assert_allclose, assert_array_equal

from medadv_jax.errors import UserError
from medadv_jax.models import HEAD, LAST_STAGE, MODELS, create_model, default_options
from medadv_jax.models.vgg import VGG, adaptive_avg_pool

small: Any = functools.partial(VGG, num_layers=(1, 2, 1, 1, 1), num_classes=3, width=0.125)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@functools.cache
def parameter_shapes(name, size=64, **options):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    net = create_model(name, num_classes=1000, **options)
    return jax.eval_shape(net.init, jax.random.key(0), images)["params"]


@pytest.fixture(scope="module")
def variables():
    """Of He's spread, with biases. (`init` would take seconds.)"""
    shapes = jax.eval_shape(small().init, jax.random.key(0), normal(1, 32, 32, 3))
    leaves, tree = jax.tree.flatten(shapes)

    def fill(seed, shape):
        return normal(*shape, seed=seed) * (2 / np.prod(shape[:-1])) ** 0.5

    return jax.tree.unflatten(tree, [fill(i, leaf.shape) for i, leaf in enumerate(leaves)])


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "published"), [("vgg16", 138_357_544), ("vgg19", 143_667_240)])
def test_published_number_of_parameters(name, published):
    params = parameter_shapes(name)
    assert count(params) == published
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_parameters_do_not_depend_on_the_image_size():
    assert parameter_shapes("vgg16", 224) == parameter_shapes("vgg16", 64)


def test_global_average_head_replaces_the_hidden_layers():
    params = parameter_shapes("vgg19", head="gap")
    assert set(params) == set(parameter_shapes("vgg19")) - {"fc1", "fc2"}
    assert params["fc"]["kernel"].shape == (512, 1000)


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "vgg19"])
def test_head_and_last_stage_name_layers_that_exist(name):
    layers = set(parameter_shapes(name))
    assert layers >= {*HEAD[name], *LAST_STAGE[name]}
    last = sorted(layers - set(HEAD[name]))[-1]
    assert last in LAST_STAGE[name]
    assert sum(layer.startswith(last.split("_")[0]) for layer in layers) == len(LAST_STAGE[name])


def test_implementations_agree_in_value_and_gradient(variables):
    """On maps that are neither square nor even, so that poolings drop a row."""
    images, weights = normal(2, 45, 32, 3), normal(2, 3, seed=1)

    def run(conv_impl):
        def loss(images):
            logits = small(conv_impl=conv_impl).apply(variables, images)
            return jnp.sum(weights * logits), logits

        return jax.jit(jax.grad(loss, has_aux=True))(images)

    for mine, reference in zip(run("cpu"), run("plain"), strict=True):
        assert_allclose(mine, reference, rtol=0, atol=1e-4 * float(jnp.abs(reference).max()))


def test_global_average_head_is_a_linear_function_of_the_mean(variables):
    net = small(head="gap")
    kept = {name: array for name, array in variables["params"].items() if name.startswith("conv")}
    head = {"kernel": normal(64, 3), "bias": normal(3, seed=1)}
    logits, state = net.apply(
        {"params": {**kept, "fc": head}}, normal(2, 64, 64, 3), capture_intermediates=True
    )
    last = np.maximum(state["intermediates"]["conv5_1"]["__call__"][0], 0)
    pooled = last.reshape(2, 2, 2, 2, 2, 64).max((2, 4))  # 4×4 places → 2×2
    expected = pooled.mean((1, 2)) @ head["kernel"] + np.asarray(head["bias"])[None]
    assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 7), (3, 14), (1, 9)])
def test_adaptive_pooling_is_the_mean_of_its_windows(size):
    maps = normal(2, *size, 3)
    expected = np.empty((2, 7, 7, 3), np.float32)
    for i, j in np.ndindex(7, 7):
        (top, bottom), (left, right) = (
            ((k * length) // 7, -(-(k + 1) * length // 7))
            for k, length in zip((i, j), size, strict=True)
        )
        expected[:, i, j] = np.asarray(maps)[:, top:bottom, left:right].mean((1, 2))
    assert_allclose(adaptive_avg_pool(maps, (7, 7)), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def train_logits(variables):
    @jax.jit
    def run(key):
        return small().apply(variables, normal(2, 32, 32, 3), train=True, rngs={"dropout": key})

    return run


def test_dropout_follows_its_key_in_train_mode_only(variables, train_logits):
    one, again, other = (train_logits(jax.random.key(seed)) for seed in (1, 1, 2))
    assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 1e-6
    with pytest.raises(InvalidRngError):
        small().apply(variables, normal(2, 32, 32, 3), train=True)


def test_without_dropout_train_mode_is_eval_mode(variables):
    images = normal(2, 32, 32, 3)
    net = small(dropout=0.0)
    assert_array_equal(net.apply(variables, images, train=True), net.apply(variables, images))


def test_initial_kernels_have_their_spread():
    net = VGG(num_layers=(1, 1), num_classes=64, width=0.25)
    params: Any = jax.jit(net.init)(jax.random.key(0), normal(1, 32, 32, 3))["params"]
    he = (2 / (9 * 32)) ** 0.5  # keeps the signal's size over the layers; the paper's 0.1 does not
    assert float(params["conv2_1"]["kernel"].std()) == pytest.approx(he, rel=0.05)
    for name in ("fc1", "fc2", "fc"):
        assert float(params[name]["kernel"].std()) == pytest.approx(0.01, rel=0.05)
        assert not params[name]["bias"].any()


def test_bfloat16_gives_float32_logits(variables):
    for head in ("fc", "gap"):
        net = small(dtype=jnp.bfloat16, head=head)
        shape = jax.eval_shape(net.init_with_output, jax.random.key(0), normal(1, 32, 32, 3))
        assert shape[0].dtype == jnp.float32
        assert {leaf.dtype.name for leaf in jax.tree.leaves(shape[1])} == {"float32"}


def test_smaller_images_are_told(variables):
    with pytest.raises(UserError, match=r"31×40.*at least 32×32"):
        small().apply(variables, normal(1, 31, 40, 3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg16", {"variant": "v1"}, "'variant' of vgg16.*dropout, head"),
        ("vgg16", {"num_layers": 3}, "'num_layers' of vgg16.*dropout, head"),
        ("vgg16", {"head": "mean"}, "head='mean'.*fc, gap"),
        ("vgg16", {"dropout": 1.0}, "dropout=1.0.*below 1"),
        ("vgg16", {"dropout": True}, "dropout=True.*must be a float"),
        ("resnet50", {"variant": "v2"}, "variant='v2'.*v1.5, v1"),
        ("resnet50", {"conv_bias": 1}, "conv_bias=1.*must be a bool"),
        ("resnet50", {"bn_epsilon": 0.0}, "bn_epsilon=0.0.*above 0"),
        ("resnet50", {"bn_momentum": 99}, "bn_momentum=99.*from 0 to 1"),
    ],
)
def test_impossible_options_are_told(name, options, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **options)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_options_are_json_scalars_and_their_defaults_possible(name):
    options: Any = default_options(name)
    assert options
    assert all(type(value) in (bool, int, float, str) for value in options.values())
    assert create_model(name, **options) == create_model(name)
