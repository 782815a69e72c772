from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.attacks import make_attack
from medadv_jax.classifier import NORMALIZATIONS, Classifier
from medadv_jax.data.loader import make_loader
from medadv_jax.distributed import make_mesh
from medadv_jax.evaluation.predictor import Predictions, Predictor, accuracy_and_loss, predict_all
from medadv_jax.evaluation.threat_models import (
    Source,
    Target,
    Threat,
    evaluation_attacks,
    record_keys,
    searching_attacks,
    validation_attack,
)
from tests.helpers.tiny import SIZE, TinyNet, tiny_config, tiny_dataset


class Darken(nn.Module):
    """A purifier whose purified image shows that it was there."""

    @nn.compact
    def __call__(self, pixels):
        return pixels * self.param("factor", lambda key: jnp.float32(0.5))


@pytest.fixture(scope="module")
def classifier():
    return Classifier(TinyNet())


@pytest.fixture(scope="module")
def variables(classifier):
    return classifier.init(jax.random.key(3), SIZE)


@pytest.fixture(scope="module")
def predictor(classifier):
    return Predictor(classifier)


def predictions(
    predictor, variables, batch_size, config=None, order: Sequence[int] = range(20), seed=0
):
    attacks = evaluation_attacks(config or tiny_config())
    batches = make_loader(tiny_dataset(20), list(order), batch_size, shuffle_seed=None)
    threats = [Threat(("adaptive",), (Source("bare", variables),))]
    target = Target("bare", variables)
    return predict_all(predictor, attacks, threats, target, batches, make_mesh(), seed)


def test_neither_batch_size_nor_order_changes_a_result(predictor, variables):
    expected = predictions(predictor, variables, 10)
    assert expected.logits.shape == (20, 5, 2)
    np.testing.assert_array_equal(expected.index, range(20))
    for batch_size in (6, 32):  # 20 is no multiple of 6: the last batch is filled up
        result = predictions(predictor, variables, batch_size)
        np.testing.assert_array_equal(result.index, expected.index)
        np.testing.assert_array_equal(result.predicted, expected.predicted)
        np.testing.assert_allclose(result.logits, expected.logits, atol=2e-5)
    order = np.random.default_rng(0).permutation(20)
    result = predictions(predictor, variables, 6, order=order.tolist())
    np.testing.assert_allclose(result.logits, expected.logits[order], atol=2e-5)


def test_seed_moves_random_starts_and_nothing_else(predictor, variables):
    first, again, other = (predictions(predictor, variables, 10, seed=s).logits for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    moved = (first != other).any(axis=(0, 2))
    assert moved.tolist() == [False, False, True, False, False]  # clean, FGSM, PGD, BIM, MI-FGSM


def test_attacks_raise_the_loss_of_every_example(predictor, variables):
    result = predictions(predictor, variables, 10)
    margin = (result.logits[..., 1] - result.logits[..., 0]) * (2 * result.label[:, None] - 1)
    assert (margin[:, 1:] < margin[:, :1]).all()


def test_epsilon_zero_gives_the_clean_predictions_bit_for_bit(predictor, variables):
    config = tiny_config()
    config.attack.epsilon = 0.0
    result = predictions(predictor, variables, 10, config)
    np.testing.assert_array_equal(result.logits, result.logits[:, :1].repeat(5, axis=1))


def test_evaluation_leaves_the_variables_alone(predictor, variables):
    before = jax.tree.map(np.array, variables)
    predictions(predictor, variables, 10)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_variables_are_folded_once_for_all_batches(monkeypatch, predictor, variables):
    fold, folded = Classifier.fold, []
    monkeypatch.setattr(Classifier, "fold", lambda *a: folded.append(a[1]) or fold(*a))
    expected = predictions(predictor, variables, 8)
    assert [each is variables for each in folded] == [True]  # by three batches
    monkeypatch.setattr(Predictor, "fold", lambda self, own: self.classifier.fold(own))
    found = predictions(predictor, variables, 8)
    assert len(folded) == 4
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_attacks_are_those_of_the_config():
    config = tiny_config()
    config.eval.attacks, config.eval.num_steps, config.eval.restarts = "pgd,fgsm,bim", 7, 3
    config.train.num_steps, config.eval.validation_attack = 4, "bim"
    found = [(a.name, a.num_steps, a.num_restarts, a.keep_best) for a in evaluation_attacks(config)]
    # FGSM ends where its step does; restarts are for what starts at random.
    assert found == [("pgd", 7, 3, True), ("fgsm", 1, 1, False), ("bim", 7, 1, True)]
    config.eval.keep_best = False
    assert not any(attack.keep_best for attack in evaluation_attacks(config))
    config.eval.attacks, config.eval.apgd_steps, config.eval.queries = "square,pgd,apgd", 9, 11
    searching = [(attack.name, attack.num_steps) for attack in searching_attacks(config)]
    assert searching == [("square", 11), ("apgd", 9)]
    assert [attack.name for attack in evaluation_attacks(config)] == ["pgd"]
    attack = validation_attack(config, through_purifier=False)
    assert (attack.name, attack.num_steps) == ("bim", 4)
    config.eval.validation_attack, config.eval.validation_steps = "auto", 6
    chosen = [validation_attack(config, through_purifier=through) for through in (False, True)]
    assert [(attack.name, attack.num_steps) for attack in chosen] == [("pgd", 4), ("apgd", 6)]


def test_columns_of_predictions_by_name():
    threats = [Threat(("transfer", "oblivious"), ()), Threat(("adaptive",), ())]
    attacks = [make_attack(name, 0.1) for name in ("fgsm", "pgd")]
    assert [*record_keys(threats, attacks, 0.1)] == [
        (0, ("none", "clean", 0.0)),
        (1, ("transfer", "fgsm", 0.1)), (2, ("transfer", "pgd", 0.1)),
        (1, ("oblivious", "fgsm", 0.1)), (2, ("oblivious", "pgd", 0.1)),
        (3, ("adaptive", "fgsm", 0.1)), (4, ("adaptive", "pgd", 0.1)),
    ]  # fmt: skip


def test_worst_column_counts_in_selection():
    logits = np.array([[[2, 0], [0, 1]], [[0, 1], [0, 1]], [[3, 0], [1, 0]]], np.float32)
    result = Predictions(np.arange(3), np.array([0, 1, 1]), logits)
    summary = accuracy_and_loss(result)
    assert summary["accuracy"] == pytest.approx(1 / 3)
    losses = [np.log1p(np.exp(1)), np.log1p(np.exp(-1)), np.log1p(np.exp(3))]
    assert summary["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_score_is_the_probability_of_class_1():
    logits = np.array([[[0.0, 0.0]], [[1.0, 3.0]]], np.float32)
    result = Predictions(np.arange(2), np.zeros(2), logits)
    np.testing.assert_allclose(result.score[:, 0], [0.5, 1 / (1 + np.exp(-2))], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_classifier_normalises_inside(name, variables):
    pixels = jax.random.uniform(jax.random.key(0), (3, SIZE, SIZE, 3))
    # What the originals' own preprocessing does, on the same values.
    expected_inputs = {
        "imagenet": (pixels - jnp.array([[[[0.485, 0.456, 0.406]]]]))
        / jnp.array([[[[0.229, 0.224, 0.225]]]]),
        "symmetric": 2 * pixels - 1,
        "caffe": (255 * pixels)[..., [2, 1, 0]] - jnp.array([[[[103.939, 116.779, 123.68]]]]),
    }
    expected = TinyNet().apply(variables, expected_inputs[name])
    logits = Classifier(TinyNet(), name).logits(variables, pixels)
    np.testing.assert_allclose(logits, np.asarray(expected), rtol=1e-5, atol=1e-5)


def test_purifier_stands_before_the_normalisation(variables):
    pixels = jax.random.uniform(jax.random.key(0), (3, SIZE, SIZE, 3))
    purified, plain = Classifier(TinyNet(), purifier=Darken()), Classifier(TinyNet())
    with_purifier = variables | {"purifier": {"factor": jnp.float32(0.5)}}
    np.testing.assert_allclose(
        purified.logits(with_purifier, pixels), plain.logits(variables, pixels * 0.5), atol=1e-6
    )
