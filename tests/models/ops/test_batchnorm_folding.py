"""A network with its BatchNorm folded into the kernels is the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.classifier import Classifier
from medadv_jax.models import create_model
from medadv_jax.models.ops.batchnorm_folding import fold, folded_network

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
