"""Distillation: its loss against numpy, and what it leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from medadv_jax.classifier import Classifier
from medadv_jax.defenses import get_defense
from medadv_jax.defenses.distilled import Student, distillation_loss
from medadv_jax.defenses.objectives import Batch, Examples
from medadv_jax.models.purifiers import create_purifier
from tests.helpers.tiny import SIZE, TinyNet, tiny_config

TEMPERATURE, ALPHA = 3.0, 0.7


@pytest.fixture(scope="module")
def case():
    """A student, variables of it and of a teacher behind a purifier, four images with padding."""
    purifier = create_purifier("unet", width=0.25, conv_impl="plain")
    taught_by = Classifier(TinyNet(), purifier=purifier)
    student = Student(TinyNet(), teacher=taught_by)
    teacher = jax.jit(taught_by.init, static_argnums=1)(jax.random.key(1), SIZE)
    own = jax.jit(student.init, static_argnums=1)(jax.random.key(0), SIZE)
    variables = {**own, "teacher": jax.tree.map(lambda leaf: 3 * leaf, teacher)}
    images = jax.random.uniform(jax.random.key(2), (4, 2, SIZE, SIZE, 3))
    mask = jnp.array([1.0, 1.0, 1.0, 0.0])
    weights = mask[:, None] / 3 * jnp.array([[1 - ALPHA, ALPHA]])
    batch = Batch(images[:, 0], jnp.array([0, 1, 1, 0]), mask)
    return student, variables, Examples(images, weights), batch


def loss_of(student, variables, examples, batch):
    key = jax.random.key(0)
    return distillation_loss(student, variables, examples, batch, key, temperature=TEMPERATURE)


def test_the_loss_is_the_papers(case):
    """In float64: α t² KL(teacher, clean ‖ student, attacked) + (1 - α) · cross-entropy."""
    student, variables, examples, batch = case
    found = jax.jit(functools.partial(loss_of, student))(variables, examples, batch)
    flat = examples.images.reshape(-1, SIZE, SIZE, 3)
    logits = student.train_logits(variables, flat, jax.random.key(0))[0]
    own = np.asarray(logits, np.float64).reshape(4, 2, 2)
    taught = student.teacher.logits(variables["teacher"], batch.images, "full")
    taught = np.asarray(taught, np.float64) / TEMPERATURE
    other = own[:, 1] / TEMPERATURE
    divergence = (softmax(taught, 1) * (log_softmax(taught, 1) - log_softmax(other, 1))).sum(1)
    entropy = -log_softmax(own[:, 0], 1)[np.arange(4), np.asarray(batch.labels)]
    each = ALPHA * TEMPERATURE**2 * divergence + (1 - ALPHA) * entropy
    np.testing.assert_allclose(found.value, each[:3].mean(), rtol=1e-5)
    assert divergence[:3].max() > 1e-3
    agree = (own[:3, 1].argmax(1) == taught[:3].argmax(1)).mean()
    np.testing.assert_allclose(found.metrics["agreement"], agree, rtol=1e-6)


def test_the_teacher_has_no_gradient_and_the_student_has(case):
    student, variables, examples, batch = case
    gradients = jax.jit(jax.grad(lambda v: loss_of(student, v, examples, batch).value))(variables)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients["teacher"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradients["params"]["Dense_0"]))


def test_alpha_is_the_share_of_attacked_images():
    config = tiny_config()
    config.distill.weight, config.train.attacks = ALPHA, "fgsm"
    images, mask = jnp.full((2, 4, 4, 3), 0.5), jnp.ones(2)
    examples = get_defense("distilled").make_objective(config).make_examples(
        lambda pixels: pixels.mean((1, 2))[:, :2], images, jnp.array([0, 1]), mask,
        jax.random.key(0),
    )  # fmt: skip
    np.testing.assert_allclose(examples.weights.sum(axis=0), [1 - ALPHA, ALPHA], rtol=1e-6)
    np.testing.assert_array_equal(examples.images[:, 0], images)
    assert float(jnp.abs(examples.images[:, 1] - images).max()) == pytest.approx(0.03)
