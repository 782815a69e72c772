"""A network with its BatchNorm folded into the kernels is the same function."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks import make_attack
from medadv_jax.classifier import Classifier
from medadv_jax.models import create_model
from medadv_jax.models.ops.batchnorm_folding import fold, folded_network
from medadv_jax.models.purifiers import create_purifier
from medadv_jax.models.vgg import VGG

NETWORKS = [
    ("resnet50", 40, {"conv_bias": True, "bn_epsilon": 0.1}),
    ("inception_v3", 75, {"bn_scale": False}),
]


def _variables(network, size: int):
    """Variables whose statistics, scales and biases all matter, and keep the maps at size 1."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))

    def draw(path, leaf) -> np.ndarray:
        if leaf.ndim > 1:
            fan_in = np.prod(leaf.shape[:-1])
            return rng.normal(0, np.sqrt(2 / fan_in), leaf.shape).astype(np.float32)
        positive = path[-1].key in ("var", "scale")
        low, high = (0.5, 1.5) if positive else (-0.3, 0.3)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize(("name", "size", "options"), NETWORKS)
def test_folding_changes_neither_logits_nor_gradients(name: str, size: int, options: dict):
    classifier = Classifier(create_model(name, 2, width=0.125, **options))
    variables = _variables(classifier.network, size)
    pixels = jnp.asarray(np.random.default_rng(1).random((2, size, size, 3)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def logits_and_gradient(of: Classifier, own) -> tuple[jax.Array, jax.Array]:
        answer, pull = jax.vjp(lambda x: of.logits(own, x), pixels)
        return answer, pull(jnp.ones_like(answer).at[:, 0].set(-1.0))[0]

    plain = logits_and_gradient(classifier, variables)
    folded = logits_and_gradient(classifier.folded(), classifier.fold(variables))
    for expected, found in zip(plain, folded, strict=True):
        scale = float(jnp.abs(expected).max())
        assert scale > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize(("name", "size", "options"), NETWORKS)
def test_nothing_of_the_norms_is_left(name: str, size: int, options: dict):
    network = create_model(name, 2, width=0.125, **options)
    images = jnp.zeros((1, size, size, 3))
    own = jax.eval_shape(lambda v: fold(network, v), _variables(network, size))
    # What the folded network itself asks for: no more, no less.
    wanted = jax.eval_shape(folded_network(network).init, jax.random.key(0), images)
    assert own["batch_stats"] == {}
    assert jax.tree.map(lambda x: x.shape, own["params"]) == jax.tree.map(
        lambda x: x.shape, wanted["params"]
    )


def test_a_network_without_norms_is_left_alone():
    network = create_model("vgg16", 2, width=0.125)
    variables = {"params": {"conv1_1": {"kernel": np.ones(1)}}, "batch_stats": {}, "purifier": {}}
    assert folded_network(network) is network
    assert fold(network, variables) is variables


BFLOAT16 = [("vgg16", 32, "plain"), ("resnet50", 32, "cpu"), ("inception_v3", 75, "plain")]


def _bfloat16(name: str, size: int, conv_impl: str):
    purifier = create_purifier("dense", 8, 0.25, "bfloat16", conv_impl)
    network = create_model(name, 2, 0.125, "bfloat16", conv_impl)
    classifier = Classifier(network, purifier=purifier)
    return classifier, jax.eval_shape(lambda key: classifier.init(key, size), jax.random.key(0))


@pytest.mark.parametrize(("name", "size", "conv_impl"), BFLOAT16)
def test_the_head_alone_stays_float32_in_bfloat16(name: str, size: int, conv_impl: str):
    classifier, variables = _bfloat16(name, size, conv_impl)
    prepared = jax.eval_shape(classifier.fold, variables)
    paths, _ = jax.tree_util.tree_flatten_with_path(prepared)
    wide = {path[1].key for path, leaf in paths if leaf.dtype == jnp.float32}
    assert wide == {"fc"}


def _loop_inputs(jaxpr) -> list:
    """Shapes and dtypes of what the loops of a program take, wherever they are."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("while", "scan"):
            found += [variable.aval for variable in equation.invars]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += _loop_inputs(inner)
    return found


def test_an_attack_in_bfloat16_takes_no_float32_weights_into_its_loop():
    classifier, variables = _bfloat16("vgg16", 32, "plain")
    attack = make_attack("pgd", 0.03, num_steps=3, step_size=0.01)

    def run(variables, images, labels, key):  # as a step of training does
        logits_fn = classifier.folded().logits_fn(classifier.fold(variables))
        return attack(logits_fn, images, labels, key)

    images, labels = jnp.zeros((2, 32, 32, 3)), jnp.zeros(2, jnp.int32)
    program = jax.make_jaxpr(run)(variables, images, labels, jax.random.key(0))
    weights = {kernel.shape for kernel in jax.tree.leaves(variables) if kernel.ndim > 1}
    weights -= {variables["params"]["fc"]["kernel"].shape}
    taken = [x for x in _loop_inputs(program.jaxpr) if x.shape in weights]
    assert len(taken) >= len(weights)
    assert {x.dtype.name for x in taken} == {"bfloat16"}


def test_parameters_cast_beforehand_give_the_same_gradients():
    network = VGG(num_layers=(1,), num_classes=2, width=0.125, dtype=jnp.bfloat16)
    classifier = Classifier(network)
    variables = jax.jit(classifier.init, static_argnums=1)(jax.random.key(0), 32)
    pixels = jnp.asarray(np.random.default_rng(1).random((2, 32, 32, 3)), jnp.float32)

    def gradient(variables):
        return jax.grad(lambda x: classifier.logits(variables, x)[:, 0].sum())(pixels)

    # Operation by operation: a compiled program may keep float32 between two casts.
    expected, found = gradient(variables), gradient(classifier.fold(variables))
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(found, expected)
