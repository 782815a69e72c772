"""Weights of classes and balanced draws, by hand; what a step makes of the weights."""

import jax
import numpy as np
import optax
import pytest

from medadv_jax.distributed import put_batch
from medadv_jax.training.imbalance import balanced_weights, draw_balanced
from medadv_jax.training.step import make_train_step
from tests.training.test_trainer import Parts, assert_trees_close


def test_weights_are_inverse_to_the_sizes():
    labels = np.array([0] * 6 + [1] * 3 + [2] * 3)
    np.testing.assert_allclose(balanced_weights(labels, 3), [12 / 18, 12 / 9, 12 / 9])
    assert balanced_weights(labels, 3)[labels].mean() == pytest.approx(1)
    np.testing.assert_array_equal(balanced_weights(np.array([0, 1]), 2), [1, 1])


def test_balanced_draw_has_as_many_of_each_class():
    labels = np.array([0] * 20 + [1] * 3 + [2] * 7)
    indices = np.random.default_rng(1).permutation(np.arange(100, 130))
    of = dict(zip(indices.tolist(), labels.tolist(), strict=True))
    drawn = draw_balanced(indices, labels, seed=3, epoch=0)
    assert len(drawn) == 30
    found, times = np.unique(drawn, return_counts=True)
    assert np.bincount([of[i] for i in drawn]).tolist() == [10, 10, 10]
    assert sorted(times[[of[i] == 1 for i in found]]) == [3, 3, 4]  # 10 draws of 3 images
    assert sorted(times[[of[i] == 2 for i in found]]) == [1, 1, 1, 1, 2, 2, 2]
    assert set(times[[of[i] == 0 for i in found]]) == {1}  # 10 of 20 images, none twice


def test_balanced_draw_depends_on_seed_and_epoch_alone():
    labels = np.array([0] * 20 + [1] * 5)
    draws = [draw_balanced(np.arange(25), labels, *pair) for pair in [(0, 1), (0, 1), (1, 0)]]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert set(draws[0]) != set(draws[2])
    # 25 = 2 · 12 + 1: over many epochs, every image of the larger class has its turn, and the odd
    # one is now of this class, now of that.
    many = [draw_balanced(np.arange(25), labels, 0, epoch) for epoch in range(20)]
    assert {i for draw in many for i in draw} == set(range(25))
    assert {int((draw >= 20).sum()) for draw in many} == {12, 13}


def test_weights_of_classes_multiply_the_loss_of_clean_and_attacked_images():
    """With the weights 2 and 0, a step is one on the images of class 0 alone."""
    parts = Parts("adversarial", optimizer=optax.sgd(0.1))
    batch, key = next(iter(parts.batches(16))), jax.random.key(1)
    assert np.bincount(batch["label"]).tolist() == [8, 8]
    weighted_step = make_train_step(
        parts.classifier, parts.optimizer, parts.defense.make_objective(parts.config),
        parts.config.data.augment, np.array([2, 0], "f"),
    )  # fmt: skip

    def run(step, mask):
        given = batch | {"mask": mask}
        state, metrics = step(parts.state(), put_batch(parts.mesh, given), key)
        return jax.device_get(state.params), float(metrics["loss"])

    every, first = np.ones(16, "f"), (batch["label"] == 0).astype("f")
    _, loss = run(parts.step, every)
    alone, alone_loss = run(parts.step, first)
    weighted, weighted_loss = run(weighted_step, every)
    assert weighted_loss == pytest.approx(alone_loss, rel=1e-5)
    assert weighted_loss != pytest.approx(loss, rel=1e-3)
    assert_trees_close(weighted, alone, atol=1e-6)
