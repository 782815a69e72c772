"""The network is found within another model; where that is not certain, one line says what is."""

from typing import Any

import numpy as np
import pytest

from medadv_jax.errors import UserError
from medadv_jax.models.pretrained.read import RawWeights
from medadv_jax.models.pretrained.wrappers import unwrapped

BODY = {"conv1.weight": (4, 3, 3, 3), "bn1.bias": (4,), "layer1.0.conv1.weight": (4, 4, 3, 3)}


def network(prefix="", shapes=BODY):
    return {f"{prefix}{name}": np.full(shape, len(name)) for name, shape in shapes.items()}


def names(arrays, layout: Any = "torchvision", body=BODY):
    raw, beside = unwrapped("net", RawWeights(layout, arrays, {}, "FILE"), set(body))
    return set(raw.arrays), set(beside)


def refusal(arrays):
    with pytest.raises(UserError) as caught:
        names(arrays)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("FILE: ")
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "model.", "net.backbone.", "0."])
def test_the_prefix_of_an_attribute_is_taken_off(prefix):
    arrays = network(prefix) | {f"{prefix}fc.weight": np.ones((2, 4))}
    assert names(arrays) == ({*BODY, "fc.weight"}, set())


def test_each_array_keeps_its_numbers():
    raw, _ = unwrapped("net", RawWeights("torchvision", network("model.")), set(BODY))
    for name, array in network().items():
        np.testing.assert_array_equal(raw.arrays[name], array)


def test_arrays_beside_the_network_that_are_no_convolutions_are_left_out_and_named():
    beside = {"head.weight": np.ones((2, 4)), "loss.scale": np.ones(())}
    assert names(network("backbone.") | beside) == (set(BODY), set(beside))


def test_two_networks_are_not_chosen_from():
    message = refusal(network("student.") | network("teacher."))
    assert "there 2 times (student.bn1.bias, teacher.bn1.bias); keep one" in message
    message = refusal(network("encoder.") | {"decoder.up.weight": np.ones((4, 4, 3, 3))})
    assert "beside net (encoder.bn1.bias …) it holds another network (decoder.up.weight" in message


def test_another_network_stays_as_it_is():
    """Matching says then what is missing; with one prefix, without it."""
    other = {"features.0.weight": np.ones((4, 3, 3, 3)), "stem.bn1.bias": np.ones(4)}
    assert names(other) == (set(other), set())
    partial = network("model.")
    del partial["model.bn1.bias"]
    assert names(partial) == (set(BODY) - {"bn1.bias"}, set())


def test_a_keras_model_within_a_model():
    body = {"block1_conv1/kernel": (3, 3, 3, 4), "block1_conv1/bias": (4,)}
    arrays = network("vgg16/", body) | {"dense/kernel": np.ones((4, 2))}
    assert names(arrays, "keras", body) == (set(body), {"dense/kernel"})


def test_converted_files_are_not_touched():
    arrays = network("model.")
    assert names(arrays, "medadv_jax") == (set(arrays), set())
