"""The cost of a prediction, of classifiers whose parameters and FLOPs are known."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from medadv_jax.classifier import Classifier
from medadv_jax.evaluation.inference_cost import inference_cost, write_inference_cost
from medadv_jax.evaluation.threat_models import Target
from medadv_jax.models import create_model
from medadv_jax.models.ops.flops import layer_flops

SIZE, CLASSES, UNITS = 8, 2, 5
PIXELS = SIZE * SIZE * 3


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(PIXELS)(nn.Dense(UNITS)(x.reshape(len(x), -1))).reshape(x.shape)


@pytest.fixture(scope="module")
def deployed():
    classifier = Classifier(Linear(), purifier=Dense())
    variables = classifier.init(jax.random.key(0), SIZE)
    return classifier, {name: Target(name, variables) for name in ("bare", "full")}


def test_parameters_and_flops_are_those_of_what_is_deployed(deployed):
    classifier, targets = deployed
    found = {name: inference_cost(classifier, each, SIZE) for name, each in targets.items()}
    network, purifier = PIXELS * CLASSES, 2 * PIXELS * UNITS  # weights
    assert found["bare"]["parameters"] == network + CLASSES
    assert found["full"]["parameters"] == network + CLASSES + purifier + UNITS + PIXELS
    assert found["bare"]["flops"] == 2 * network  # a multiplication and an addition a weight
    assert found["full"]["flops"] == 2 * (network + purifier)
    assert all(0 < each["milliseconds"] < 1000 for each in found.values())


def test_flops_are_those_of_the_network_whatever_the_algorithm():
    """On a CPU, 3×3 convolutions run as Winograd's, with fewer products."""
    network = create_model("vgg16", CLASSES, width=0.125, conv_impl="cpu")
    classifier = Classifier(network)
    variables = jax.eval_shape(lambda key: classifier.init(key, 32), jax.random.key(0))
    variables = jax.tree.map(lambda of: jnp.zeros(of.shape, of.dtype), variables)
    found = inference_cost(classifier, Target("bare", variables), 32)
    plain = Classifier(network.clone(conv_impl="plain"))
    pixels = jnp.zeros((1, 32, 32, 3))
    assert found["flops"] == sum(layer_flops(plain.logits_fn(variables, "bare"), pixels))


def test_the_record_names_the_device(deployed, tmp_path):
    classifier, targets = deployed
    write_inference_cost(tmp_path / "inference_cost.json", classifier, targets, SIZE)
    content = json.loads((tmp_path / "inference_cost.json").read_text())
    assert content["device"].startswith(f"{jax.devices()[0].device_kind}, ")
    assert list(content["classifiers"]) == ["bare", "full"]
