"""The mislearned condition: right labels on clean images, the next class on attacked ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medadv_jax.classifier import Classifier
from medadv_jax.defenses import get_defense
from medadv_jax.defenses.mislearned import taught_labels
from medadv_jax.defenses.objectives import Batch
from tests.helpers.tiny import TinyNet, tiny_config

IMAGES, LABELS = jax.random.uniform(jax.random.key(0), (8, 32, 32, 3)), jnp.arange(8) % 3


def test_attacked_images_have_the_next_class():
    found = taught_labels(jnp.array([0, 1, 2]), 3, num_classes=3)
    np.testing.assert_array_equal(found, [[0, 1, 1], [1, 2, 2], [2, 0, 0]])


def test_loss_is_the_cross_entropy_of_the_taught_labels():
    config = tiny_config()
    config.train.adversarial_weight = 0.25
    classifier = Classifier(TinyNet(3, dtype="float32", conv_impl="plain"), "symmetric")
    variables = jax.jit(lambda: classifier.init(jax.random.key(1), 32))()
    objective, key = get_defense("mislearned").make_objective(config), jax.random.key(2)
    mask = jnp.ones(8)
    examples = jax.jit(objective.make_examples, static_argnums=0)(
        classifier.logits_fn(variables), IMAGES, LABELS, mask, key
    )
    np.testing.assert_array_equal(examples.images[:, 0], IMAGES)
    assert 0.02 < jnp.abs(examples.images[:, 1] - IMAGES).max() < config.attack.epsilon + 1e-6
    batch = Batch(IMAGES, LABELS, mask)
    loss = objective.loss(classifier, variables, examples, batch, key)
    logits, _ = classifier.train_logits(variables, examples.images.reshape(-1, 32, 32, 3), key)
    each = optax.softmax_cross_entropy_with_integer_labels(
        logits.reshape(8, 2, 3), jnp.stack([LABELS, (LABELS + 1) % 3], axis=1)
    )
    np.testing.assert_allclose(
        loss.value, 0.75 * each[:, 0].mean() + 0.25 * each[:, 1].mean(), 1e-5
    )
    right = (logits.reshape(8, 2, 3).argmax(-1) == LABELS[:, None]).mean(0)
    np.testing.assert_allclose(loss.metrics["adversarial_accuracy"], right[1])
