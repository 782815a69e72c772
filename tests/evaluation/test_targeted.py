"""Targeted attacks of an evaluation: towards the next class, or one class for all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax.classifier import to_pixels
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import (
    Source,
    choose_targets,
    evaluation_attack,
    evaluation_attacks,
    searching_attacks,
)
from tests.helpers.tiny import tiny_config

NAMES = ("a", "b", "2", "d")
SHAPE = (4, 4, 3)
SIGNS = np.where(np.random.default_rng(0).random(SHAPE) < 0.5, -1, 1).astype(np.float32)
OWNER = np.arange(48).reshape(SHAPE) % 4  # the class of each pixel: logits move one by one


@dataclasses.dataclass(frozen=True)
class Linear:
    """Logit k is the signed sum of the pixels of class k."""

    def folded(self):
        return self

    def fold(self, variables):
        return variables

    def logits(self, variables, pixels, output):
        weights = jnp.stack([jnp.asarray(SIGNS * (k == OWNER)) for k in range(4)])
        return variables * jnp.einsum("nhwc,khwc->nk", pixels - 0.5, weights)


def targeted(value):
    config = tiny_config()
    config.attack.targeted = value
    return config


@pytest.mark.parametrize(
    ("value", "expected"),
    [("next", [1, 2, 3, 0]), ("a", [0] * 4), ("1", [1] * 4), ("2", [2] * 4), ("3", [3] * 4)],
)
def test_targets(value, expected):
    choose = choose_targets(targeted(value), NAMES)
    assert choose is not None
    np.testing.assert_array_equal(choose(jnp.arange(4)), expected)


def test_without_targets_nothing_changes():
    assert choose_targets(targeted("none"), NAMES) is None
    assert evaluation_attack(targeted("none"), "pgd").name == "pgd"


def test_first_order_attacks_are_targeted_and_others_are_not():
    config = targeted("next")
    config.eval.attacks = "fgsm,pgd,apgd"
    assert [a.name for a in evaluation_attacks(config)] == ["fgsm_targeted", "pgd_targeted"]
    assert all(attack.targeted for attack in evaluation_attacks(config))
    assert [attack.name for attack in searching_attacks(config)] == ["apgd"]


def test_attack_moves_to_the_target_and_leaves_its_own_images_alone():
    config = targeted("d")
    predictor = Predictor(Linear(), choose_targets=choose_targets(config, NAMES))
    images = np.random.default_rng(1).integers(80, 170, (8, *SHAPE), np.uint8)
    labels = np.arange(8, dtype=np.int32) % 4
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    attack = evaluation_attack(config, "fgsm")
    found = predictor.attack([attack], Source("", jnp.float32(1)), batch, jax.random.key(0))
    clean = np.asarray(to_pixels(jnp.asarray(images)))
    # log p₃ rises with logit 3 and falls with each other one.
    optimum = clean + attack.epsilon * np.where(OWNER == 3, SIGNS, -SIGNS)
    expected = np.where((labels == 3)[:, None, None, None], clean, optimum)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
