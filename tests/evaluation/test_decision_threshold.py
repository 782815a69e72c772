"""Thresholds chosen on validation, against scikit-learn, and deployed as a part of the logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_curve

from medadv_jax.attacks import make_attack
from medadv_jax.classifier import Classifier, to_pixels
from medadv_jax.data.splits import Splits
from medadv_jax.distributed import make_local_mesh
from medadv_jax.evaluation.decision_threshold import (
    Threshold,
    as_deployed,
    choose_threshold,
    read_thresholds,
    write_thresholds,
)
from medadv_jax.evaluation.model_under_test import read_images
from medadv_jax.evaluation.optional_stages import with_thresholds
from medadv_jax.evaluation.predictor import Predictor, scores
from medadv_jax.evaluation.stages import Evaluation
from medadv_jax.evaluation.threat_models import Source, Target
from tests.helpers.tiny import SIZE, TinyNet, tiny_config, tiny_dataset


@pytest.mark.parametrize("seed", range(10))
def test_threshold_has_the_largest_youden_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 30)
    logits = rng.normal(size=(30, 2)) + 2 + 0.8 * np.eye(2)[label]
    logits = (np.round(8 * logits) / 8).astype(np.float32)  # with ties, and exact
    found = choose_threshold(logits, label)
    false, true, _ = roc_curve(label, logits[:, 1].astype(float) - logits[:, 0])
    assert found.youden == pytest.approx((true - false).max())
    biased = logits + np.array([0, found.bias], np.float32)
    predicted = biased.argmax(axis=1)
    youden = predicted[label == 1].mean() - predicted[label == 0].mean()
    assert youden == pytest.approx(found.youden)
    assert found.youden >= found.youden_argmax
    np.testing.assert_array_equal(predicted == 1, scores(logits) > found.probability)


def test_the_larger_logit_decides_where_nothing_is_better_or_a_class_is_absent():
    logits = np.array([[2, 0], [1, 0], [0, 1], [0, 2]], np.float32)
    assert choose_threshold(logits, np.array([0, 0, 1, 1])) == Threshold(0.0, 0.5, 1.0, 1.0, 4)
    assert choose_threshold(logits, np.ones(4, int)).bias == 0


def test_thresholds_are_read_back(tmp_path):
    assert read_thresholds(tmp_path) == {}
    found = {"base": Threshold(0.25, 0.4, 0.5, 0.25, 30)}
    write_thresholds(tmp_path, found)
    assert read_thresholds(tmp_path) == found


def test_a_run_chooses_on_validation_images_once_in_the_order_of_its_defenses(tmp_path):
    config, dataset, validation = tiny_config(), tiny_dataset(24), list(range(5, 24))
    config.eval.threshold = "youden"
    classifier = Classifier(TinyNet())
    init, mesh = jax.jit(classifier.init, static_argnums=1), make_local_mesh()
    names = ("hybrid", "base", "autoencoder", "adversarial")
    targets = {name: Target("bare", init(jax.random.key(i), SIZE)) for i, name in enumerate(names)}
    evaluation = Evaluation(
        config, tmp_path, Console(quiet=True), dataset, Splits([], validation, [], {}, []),
        Predictor(classifier), mesh, 8, targets,
    )  # fmt: skip
    deployed = with_thresholds(evaluation).targets
    found = read_thresholds(tmp_path)
    assert list(found) == list(names)  # the same bytes each time
    pixels, labels = read_images(dataset, validation), dataset.labels[validation]
    for name, target in targets.items():
        logits = evaluation.predictor.logits(target, jnp.asarray(pixels))
        expected = choose_threshold(np.asarray(logits), labels)
        assert dataclasses.asdict(found[name]) == pytest.approx(dataclasses.asdict(expected))
        np.testing.assert_array_equal(
            deployed[name].variables["logit_bias"], np.array([0, found[name].bias], np.float32)
        )
    chosen = {name: Threshold(0.5, 0.4, 0.0, 0.0, 1) for name in names}
    write_thresholds(tmp_path, chosen)
    with_thresholds(evaluation)
    assert read_thresholds(tmp_path) == chosen


def test_predictions_and_attacks_follow_the_deployed_decision():
    """A classifier that says class 1 from p > 0.2 on is attacked as what it says."""
    classifier = Classifier(TinyNet())
    variables = jax.jit(classifier.init, static_argnums=1)(jax.random.key(0), SIZE)
    images = np.random.default_rng(0).integers(0, 255, (16, SIZE, SIZE, 3), np.uint8)
    pixels, predictor = to_pixels(jnp.asarray(images)), Predictor(classifier)
    plain = Target("bare", variables)
    before = np.asarray(predictor.logits(plain, pixels))
    gap = before[:, 1] - before[:, 0]
    cut = float(np.sort(gap)[7:9].mean())  # half of the images on each side
    target = as_deployed(plain, Threshold(-cut, 0.0, 0.0, 0.0, 16))
    assert as_deployed(plain, None) is plain
    after = np.asarray(predictor.logits(target, pixels))
    np.testing.assert_array_equal(after.argmax(axis=1), gap > cut)
    np.testing.assert_array_equal(before.argmax(axis=1), gap > 0)
    folded = predictor.attacked.logits(predictor.fold(target.variables), pixels, "bare")
    np.testing.assert_allclose(folded, after, atol=1e-5)
    # An attack that keeps its strongest point keeps one that the deployed decision gets wrong.
    attack = make_attack("bim", 0.1, num_steps=5, keep_best=True)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(gap > cut, jnp.int32)}
    (found,) = predictor.attack(
        [attack], Source("bare", target.variables), batch, jax.random.key(0)
    )
    wrong = np.asarray(predictor.logits(target, found)).argmax(axis=1) != (gap > cut)
    assert wrong.mean() > 0.5
