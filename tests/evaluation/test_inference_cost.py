"""The cost of a prediction, of classifiers whose parameters and FLOPs are known."""

import json

import flax.linen as nn
import jax
import pytest

from medadv_jax.classifier import Classifier
from medadv_jax.evaluation.inference_cost import inference_cost, write_inference_cost
from medadv_jax.evaluation.threat_models import Target

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
    # A multiplication and an addition a weight; normalisation and biases take a few a pixel.
    assert 2 * network <= found["bare"]["flops"] <= 2 * network + 4 * PIXELS
    extra = found["full"]["flops"] - found["bare"]["flops"]
    assert 2 * purifier <= extra <= 2 * purifier + 4 * PIXELS
    assert all(0 < each["milliseconds"] < 1000 for each in found.values())


def test_the_record_names_the_device(deployed, tmp_path):
    classifier, targets = deployed
    write_inference_cost(tmp_path / "inference_cost.json", classifier, targets, SIZE)
    content = json.loads((tmp_path / "inference_cost.json").read_text())
    assert content["device"] == f"{jax.devices()[0].device_kind} (cpu)"
    assert list(content["classifiers"]) == ["bare", "full"]
