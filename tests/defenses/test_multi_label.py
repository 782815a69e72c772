"""The masked loss of several labels an image, against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import log_loss

from medadv_jax.classifier import Classifier
from medadv_jax.defenses.multi_label import masked_binary_cross_entropy, multi_label_loss
from medadv_jax.defenses.objectives import Batch, clean_examples
from tests.helpers.tiny import TinyNet

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (9, 5))
LABELS = RNG.integers(-1, 2, (9, 5))
WEIGHTS = np.array([1.0] * 7 + [0.0] * 2)  # the last two are padding
COUNTS = (LABELS >= 0) * WEIGHTS[:, None] > 0


def _value_and_gradient(logits, labels, weights):
    with jax.enable_x64(True):
        arrays = (jnp.asarray(logits, jnp.float64), jnp.asarray(labels), jnp.asarray(weights))
        value, gradient = jax.value_and_grad(masked_binary_cross_entropy)(*arrays)
        return float(value), np.asarray(gradient)


def test_loss_is_sklearn_s_log_loss_of_the_known_labels():
    value, _ = _value_and_gradient(LOGITS, LABELS, WEIGHTS)
    probability = 1 / (1 + np.exp(-LOGITS[COUNTS]))
    np.testing.assert_allclose(value, log_loss(LABELS[COUNTS], probability), rtol=1e-12)


def test_gradient_is_probability_minus_label_over_the_known_labels():
    _, gradient = _value_and_gradient(LOGITS, LABELS, WEIGHTS)
    expected = np.where(COUNTS, 1 / (1 + np.exp(-LOGITS)) - LABELS, 0) / COUNTS.sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)
    assert (gradient[COUNTS] != 0).all()


def test_no_known_label_gives_no_loss_and_no_gradient():
    value, gradient = _value_and_gradient(LOGITS, np.full_like(LABELS, -1), WEIGHTS)
    assert value == 0
    assert not gradient.any()


def test_large_logits_stay_finite():
    value, gradient = _value_and_gradient(np.array([[1e4, -1e4]]), np.array([[0, 1]]), np.ones(1))
    assert value == 1e4
    np.testing.assert_allclose(gradient, [[0.5, -0.5]])


def test_loss_of_a_batch_is_that_of_its_logits():
    classifier = Classifier(TinyNet(5))
    variables = jax.jit(classifier.init, static_argnums=1)(jax.random.key(1), 32)
    images = jnp.asarray(RNG.random((9, 32, 32, 3)), jnp.float32)
    batch = Batch(images, jnp.asarray(LABELS), jnp.asarray(WEIGHTS))
    examples = clean_examples(images, batch.mask)
    key = jax.random.key(0)
    loss = multi_label_loss(classifier, variables, examples, batch, key)
    logits, statistics = classifier.train_logits(variables, images, key)
    expected, _ = _value_and_gradient(np.asarray(logits, np.float64), LABELS, WEIGHTS)
    np.testing.assert_allclose(float(loss.value), expected, rtol=1e-5)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, loss.batch_stats, statistics))
