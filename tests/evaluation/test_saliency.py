"""Saliency maps against closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.classifier import Classifier
from medadv_jax.evaluation.overlay import overlay
from medadv_jax.evaluation.saliency import (
    _last_map,
    explained,
    grad_cam,
    integrated_gradients,
)
from medadv_jax.models.inception_v3 import inception_v3
from medadv_jax.models.purifiers import create_purifier
from medadv_jax.models.resnet import resnet50
from medadv_jax.models.vgg import vgg16
from tests.helpers.tiny import TinyNet


def build(purified=False):
    """Returns an untrained classifier of three classes for 32 pixels, and its variables."""
    network = TinyNet(3, dtype="float32", conv_impl="plain")
    purifier = create_purifier("spatial", 8, 0.25) if purified else None
    classifier = Classifier(network, "imagenet", purifier)
    return classifier, jax.jit(lambda: classifier.init(jax.random.key(1), 32))()


def test_shares_of_a_square_are_the_square():
    """The gradient of x² is linear, so that the midpoint rule is exact."""
    pixels = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))

    def logits(x):
        return jnp.stack([jnp.square(x).sum((1, 2, 3)), x.sum((1, 2, 3))], axis=1)

    for label, expected in ((0, jnp.square(pixels)), (1, pixels)):
        found = integrated_gradients(logits, pixels, jnp.full(2, label), num_steps=3)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_shares_of_a_network_sum_up_to_its_logit():
    """Completeness (Sundararajan et al. 2017, section 3), less that of a black image."""
    logits_fn = Classifier.logits_fn(*build())
    pixels, labels = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3)), jnp.arange(4) % 3
    found = jax.jit(lambda x: integrated_gradients(logits_fn, x, labels, 256))(pixels)
    gap = logits_fn(pixels) - logits_fn(jnp.zeros_like(pixels))
    expected = np.asarray(gap)[np.arange(4), labels]
    np.testing.assert_allclose(found.sum((1, 2, 3)), expected, atol=0.01 * abs(expected).max())


class Linear(nn.Module):
    """A map of features, its mean, and a dense layer."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(3)(nn.Conv(5, (3, 3), (2, 2))(images).mean((1, 2)))


def test_grad_cam_of_a_mean_is_the_class_activation_map():
    """Zhou et al. 2016: the features, weighted by the dense layer's kernel."""
    classifier = Classifier(Linear(), "symmetric")
    variables = classifier.init(jax.random.key(0), 8)
    pixels, labels = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3)), jnp.arange(3)
    found = grad_cam(classifier, variables, pixels, labels)
    features = nn.Conv(5, (3, 3), (2, 2)).apply(
        {"params": variables["params"]["Conv_0"]}, 2 * pixels - 1
    )
    kernel = variables["params"]["Dense_0"]["kernel"]  # (5, 3)
    expected = nn.relu(jnp.einsum("bhwc,cb->bhw", features, kernel)) / 16
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_grad_cam_behind_a_purifier_is_that_of_the_purified_image():
    classifier, variables = build(purified=True)
    pixels, labels = jax.random.uniform(jax.random.key(0), (3, 32, 32, 3)), jnp.arange(3)
    seen = classifier.purify(variables, pixels)
    assert jnp.abs(seen - pixels).max() > 0.1
    bare = Classifier(classifier.network, classifier.normalization)
    own = {name: variables[name] for name in ("params", "batch_stats")}
    expected = grad_cam(bare, own, seen, labels)
    assert expected.max() > 0
    found = grad_cam(classifier, variables, pixels, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "size", "last"),
    [
        (resnet50, 64, ("layer4_2",)),
        (vgg16, 64, ("conv5_3",)),
        (inception_v3, 96, ("Mixed_7c",)),
    ],
)
def test_the_last_map_of_each_network(make, size, last):
    classifier = Classifier(make(num_classes=2, width=0.125))
    variables = jax.eval_shape(lambda: classifier.init(jax.random.key(0), size))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    assert _last_map(classifier, zeros, jnp.zeros((1, size, size, 3)))[0] == last


def test_the_explained_classifier_is_the_deployed_one_alone():
    classifier, variables = build(purified=True)
    pixels = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    for deployed in ("full", "bare"):
        alone = explained(classifier, deployed)
        assert (alone.purifier is None) == (deployed == "bare")
        found = alone.logits(variables, pixels, "full")
        expected = classifier.logits(variables, pixels, deployed)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_overlay_is_red_where_the_heat_is():
    image = np.full((32, 32, 3), 100, np.uint8)
    heat = np.zeros((32, 32))
    heat[:, 16:] = 1.0
    heat[0, 31] = 1000.0  # one place does not hide the others
    found = np.asarray(overlay(image, heat))
    assert found.shape == (224, 224, 3)
    assert (found[:, :100] == 100).all()
    assert (found[:, 124:, 0] > 200).all()
    np.testing.assert_array_equal(np.asarray(overlay(image, 0 * heat)), 100)
