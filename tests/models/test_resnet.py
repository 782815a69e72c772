"""ResNet: the published size, equality of implementations, purity in eval mode."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

from medadv_jax.errors import UserError
from medadv_jax.models import MODELS, create_model
from medadv_jax.models.resnet import ResNet

# Both kinds of block, maps from 17×17 to 5×5, an eighth of the width.
small: Any = functools.partial(ResNet, num_blocks=(2, 1), num_classes=2, width=0.125)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def parameter_shapes(net):
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), images)


@pytest.fixture(scope="module")
def variables():
    """As after training: no scale is 0, no statistic is trivial. (`init` would take seconds.)"""
    leaves, tree = jax.tree.flatten(parameter_shapes(small()))

    def fill(seed, shape):
        values = normal(*shape, seed=seed)
        return values * (2 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 1 + 0.1 * values

    return jax.tree.unflatten(tree, [fill(i, leaf.shape) for i, leaf in enumerate(leaves)])


def eval_gradient(net, variables):
    """images → (logits, gradient to the pixels)."""

    def loss(images):
        logits = net.apply(variables, images)
        return jnp.sum(jax.nn.log_softmax(logits)[:, 0]), logits

    def run(images):
        gradient, logits = jax.grad(loss, has_aux=True)(images)
        return logits, gradient

    return jax.jit(run)


def train_gradient(net, variables):
    """images → (parameter gradients, pixel gradients), (logits, updated batch statistics)."""

    def loss(params, images):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, updated = net.apply(state, images, train=True, mutable=["batch_stats"])
        return jnp.sum(jax.nn.log_softmax(logits)[:, 0]), (logits, updated)

    return jax.jit(lambda images: jax.grad(loss, (0, 1), has_aux=True)(variables["params"], images))


def assert_trees_close(actual, expected, tolerance=2e-4):
    """Close relative to the largest value of each leaf: gradients have cancelling sums."""

    def check(mine, reference):
        scale = float(jnp.abs(reference).max())
        assert_allclose(mine, reference, rtol=0, atol=tolerance * scale + 1e-5)

    jax.tree.map(check, actual, expected)


def test_published_number_of_parameters():
    net = create_model("resnet50", num_classes=1000)
    shape = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), shape)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 25_557_032
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_parameters_do_not_depend_on_conv_impl_or_dtype():
    expected = parameter_shapes(small())
    assert parameter_shapes(small(conv_impl="cpu")) == expected
    assert parameter_shapes(small(conv_impl="cpu", dtype=jnp.bfloat16)) == expected


def test_init_makes_float32_of_the_right_spread():
    net = ResNet(num_blocks=(), num_classes=2, width=0.125, conv_impl="cpu")
    variables: Any = net.init(jax.random.key(0), normal(1, 9, 9, 3))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    spread = float(variables["params"]["conv1"]["kernel"].std())
    assert spread == pytest.approx((2 / (7 * 7 * 8)) ** 0.5, rel=0.1)


@pytest.fixture(scope="module")
def evaluate(variables):
    return eval_gradient(small(conv_impl="cpu"), variables)


@pytest.fixture(scope="module")
def train(variables):
    return train_gradient(small(conv_impl="cpu"), variables)


def test_implementations_agree_in_eval_mode(variables, evaluate):
    images = normal(3, 33, 47, 3)
    assert_trees_close(evaluate(images), eval_gradient(small(), variables)(images))


def test_implementations_agree_in_train_mode(variables, train):
    images = normal(4, 33, 33, 3)
    assert_trees_close(train(images), train_gradient(small(), variables)(images), 2e-3)


def test_eval_mode_is_pure_and_per_example(variables):
    images = normal(4, 33, 33, 3)
    apply = jax.jit(functools.partial(small(conv_impl="cpu").apply, mutable=["batch_stats"]))
    logits, updated = apply(variables, images)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    order = jnp.array([2, 0, 3, 0])
    mixed, _ = apply(variables, images[order].at[3].set(0.0))
    assert_allclose(mixed[:3], logits[order[:3]], rtol=1e-4, atol=1e-5)


def test_train_mode_moves_the_statistics_and_uses_the_batch(variables):
    net, images = small(conv_impl="cpu"), normal(4, 33, 33, 3)
    apply = jax.jit(functools.partial(net.apply, train=True, mutable=["batch_stats"]))
    logits, updated = apply(variables, images)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), updated["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))
    others, _ = apply(variables, images.at[2:].multiply(2.0))
    assert float(jnp.abs(others - logits)[:2].max()) > 1e-3


def test_lanes_equal_a_loop(evaluate):
    lanes = normal(2, 3, 33, 47, 3)
    each = [evaluate(images) for images in lanes]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    assert_trees_close(jax.vmap(evaluate)(lanes), expected)


def test_two_devices_equal_one(train):
    assert jax.device_count() >= 2
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    images = normal(4, 33, 33, 3)
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    assert_trees_close(jax.device_get(train(sharded)), jax.device_get(train(images)), 2e-3)


def test_bfloat16_gives_float32_logits_near_the_float32_ones(variables, evaluate):
    images = normal(3, 33, 47, 3)
    exact, _ = evaluate(images)
    net = small(conv_impl="cpu", dtype=jnp.bfloat16)
    logits, gradient = eval_gradient(net, variables)(images)
    assert logits.dtype == gradient.dtype == jnp.float32
    assert_allclose(logits, exact, atol=0.05 * float(jnp.abs(exact).max()))
    assert float(jnp.abs(logits - exact).max()) > 0  # it did compute in bfloat16


def test_width_scales_the_channels():
    shape = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    net = create_model("resnet50", num_classes=3, width=0.5, dtype="bfloat16")
    params = jax.eval_shape(net.init, jax.random.key(0), shape)["params"]
    assert params["conv1"]["kernel"].shape == (7, 7, 3, 32)
    assert params["layer4_2"]["conv3"]["kernel"].shape == (1, 1, 256, 1024)
    assert params["fc"]["kernel"].shape == (1024, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet51"}, "resnet51.*" + ", ".join(sorted(MODELS))),
        ({"name": "resnet50", "num_classes": 0}, "num_classes=0.*at least 1"),
        ({"name": "resnet50", "width": 0.0}, r"width=0\.0.*above 0"),
        ({"name": "resnet50", "dtype": "float16"}, "float16.*float32, bfloat16"),
        ({"name": "resnet50", "conv_impl": "quick"}, "quick.*auto, cpu, gpu, plain"),
    ],
)
def test_impossible_arguments_are_told(arguments, message):
    with pytest.raises(UserError, match=message):
        create_model(**arguments)


def test_network_refuses_other_images(variables):
    with pytest.raises(UserError, match=r"\(2, 33, 33, 1\)"):
        small().apply(variables, normal(2, 33, 33, 1))
