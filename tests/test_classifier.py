"""What a classifier computes in float32, by its lowered programs."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import default
from medadv_jax.attacks import make_attack
from medadv_jax.classifier import Classifier
from medadv_jax.defenses import get_defense
from medadv_jax.distributed import make_mesh
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.models import create_model
from medadv_jax.models.purifiers import create_purifier
from medadv_jax.training.optimizer import make_optimizer
from medadv_jax.training.state import abstract_state
from medadv_jax.training.step import make_train_step

BATCH, SIZE = 2, {"vgg16": 64, "resnet50": 32, "inception_v3": 75}
HIGHEST, DEFAULT = ("HIGHEST", "HIGHEST"), ("DEFAULT", "DEFAULT")


def precisions(program: Any) -> list[tuple[str, tuple[str, ...]]]:
    """The kind of each product of a lowered program, and the precisions of its operands."""
    lines = re.findall(r"stablehlo\.(convolution|dot_general)\b(.*)", program.as_text())
    word = r"\b(?:DEFAULT|HIGHEST|HIGH)\b"
    return [(kind, tuple(re.findall(word, line)) or DEFAULT) for kind, line in lines]


def make_classifier(name: str, dtype: str = "float32", purifier: str = "dense") -> Classifier:
    network = create_model(name, 2, 0.125, dtype, "plain")
    return Classifier(network, purifier=create_purifier(purifier, 8, 0.25, dtype, "plain"))


def evaluation_programs(classifier: Classifier, size: int) -> list[Any]:
    """The deployed classifier and an attack on it, lowered as the evaluation runs them."""
    variables = jax.eval_shape(lambda key: classifier.init(key, size), jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
    labels, predictor = jax.ShapeDtypeStruct((BATCH,), jnp.int32), Predictor(classifier)
    attack = predictor._compiled((make_attack("mifgsm", 0.03, num_steps=2),), "full", None)
    folded = jax.eval_shape(classifier.fold, variables)
    return [
        predictor._deployed.lower(variables, pixels, "full"),
        attack.lower(folded, None, pixels, labels, jax.random.key(0)),
    ]


@pytest.mark.parametrize("name", sorted(SIZE))
def test_float32_means_float32_in_every_product_of_the_evaluation(name):
    purifier = {"vgg16": "dense", "resnet50": "unet", "inception_v3": "spatial"}[name]
    for program in evaluation_programs(make_classifier(name, purifier=purifier), SIZE[name]):
        found = precisions(program)
        assert {kind for kind, _ in found} == {"convolution", "dot_general"}
        assert {precision for _, precision in found} == {HIGHEST}


def test_in_bfloat16_the_head_alone_is_float32():
    deployed, attack = evaluation_programs(make_classifier("vgg16", "bfloat16"), 64)
    assert precisions(deployed).count(("dot_general", HIGHEST)) == 1
    assert precisions(attack).count(("dot_general", HIGHEST)) == 2  # forward and backward
    for program in (deployed, attack):
        assert ("convolution", HIGHEST) not in precisions(program)


def step_precisions(precision: str) -> list[tuple[str, tuple[str, ...]]]:
    """The products of a step of adversarial training."""
    config, network = default.get_config(), create_model("vgg16", 2, 0.125, conv_impl="plain")
    config.train.update(attacks="pgd", num_steps=2)
    classifier = Classifier(network, precision=precision)
    optimizer = make_optimizer(1e-3, "constant", 1)
    step = make_train_step(
        classifier, optimizer, get_defense("adversarial").make_objective(config),
        config.data.augment,
    )  # fmt: skip
    rows = {"label": jnp.int32, "index": jnp.int32, "mask": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct((BATCH,), dtype) for name, dtype in rows.items()}
    batch["image"] = jax.ShapeDtypeStruct((BATCH, 64, 64, 3), jnp.uint8)
    state = abstract_state(classifier, optimizer, make_mesh(), 64)
    return precisions(step.lower(state, batch, jax.random.key(0)))


def test_training_has_the_precision_that_is_asked_for():
    assert {precision for _, precision in step_precisions("highest")} == {HIGHEST}
    found = step_precisions("default")
    assert {precision for kind, precision in found if kind == "convolution"} == {DEFAULT}
    # The head forwards and backwards in the attack and in the step, and the sum of the losses.
    assert found.count(("dot_general", HIGHEST)) >= 6
