"""Names of layers and variables differ between versions of Keras; ours are those of Keras 3."""

import numpy as np
import pytest

from medadv_jax.models.pretrained.keras_files import _inception_order, _names_of_counts
from medadv_jax.models.pretrained.read import read_weights
from tests.helpers import weight_files
from tests.models.pretrained.test_read import KERAS, equal


def test_names_of_keras_1(tmp_path):
    old = {"block1_conv1/W_1": KERAS["block1_conv1/kernel"], "block1_conv1/b_1": np.ones(4)}
    raw = read_weights(weight_files.keras_h5(tmp_path / "w.h5", old, weight="{0}_{1}:0"))
    assert sorted(raw.arrays) == ["block1_conv1/bias", "block1_conv1/kernel"]


@pytest.mark.parametrize("name", ["probs", "fc1000"])
def test_older_names_of_the_classifier(tmp_path, name):
    """Keras loads the published ResNet by the order of its layers, so a file may say `probs`."""
    kernel, bias = weight_files.arrays((4, 3), (3,))
    old = {f"{name}/kernel": kernel, f"{name}/bias": bias}
    raw = read_weights(weight_files.keras_h5(tmp_path / "w.h5", old))
    equal(raw.arrays, {"predictions/kernel": kernel, "predictions/bias": bias})


# What Keras 3.15.1 prints: the numbers of InceptionV3's `conv2d_…` in the order of `model.layers`.
KERAS_INCEPTION = """
    0 1 2 3 4
    8 6 9 5 7 10 11    15 13 16 12 14 17 18    22 20 23 19 21 24 25
    27 28 26 29
    34 35 31 36 32 37 30 33 38 39    44 45 41 46 42 47 40 43 48 49
    54 55 51 56 52 57 50 53 58 59    64 65 61 66 62 67 60 63 68 69
    72 73 70 74 71 75
    80 77 81 78 79 82 83 76 84    89 86 90 87 88 91 92 85 93
"""


def test_order_of_the_layers_of_known_networks():
    assert _inception_order() == [int(number) for number in KERAS_INCEPTION.split()]
    for count, first, last in ((13, "block1_conv1", "block5_conv3"), (16, *["block5_conv4"] * 2)):
        groups = ["conv2d", *(f"conv2d_{i}" for i in range(1, count))]
        names = _names_of_counts(groups)
        assert len({names[group] for group in groups}) == count
        assert first in names.values()
        assert names[f"conv2d_{count - 1}"] == last
    groups = ["conv2d", *(f"conv2d_{i}" for i in range(1, 53))]
    names = _names_of_counts(groups)
    assert len({names[group] for group in groups}) == 53
    assert [names[f"conv2d_{i}"] for i in (3, 4)] == ["conv2_block1_0_conv", "conv2_block1_3_conv"]
