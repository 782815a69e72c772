"""A file's head is kept if it is for the classes of the data, else replaced; the user is told."""

import dataclasses
import json

import numpy as np
import pytest

from medadv_jax.errors import UserError
from medadv_jax.models.pretrained import load_network, match_arrays, read_weights, save_matched
from medadv_jax.models.pretrained.head import head_order
from tests.helpers import weight_files
from tests.models.pretrained.test_load import CLASSES, LAYOUTS, raw_weights

NAMES = ("e", "b", "c", "a", "d")
assert len(NAMES) == CLASSES


@pytest.fixture(scope="module", params=["torchvision", "keras"])
def raw(request):
    return raw_weights(request.param)


def named(raw, *names):
    return dataclasses.replace(raw, metadata={"classes": json.dumps(names)})


def head_of(matched):
    return {path[-1]: array for path, array in matched.arrays.items() if path[-2] == "fc"}


@pytest.mark.parametrize(
    ("count", "names", "order"),
    [
        (5, None, [0, 1, 2, 3, 4]),
        (5, NAMES, [0, 1, 2, 3, 4]),
        (5, tuple("abcde"), [4, 1, 2, 0, 3]),
        (5, tuple("abcdf"), None),
        (1000, None, None),
        (None, None, None),
    ],
)
def test_a_head_is_for_the_classes_by_number_and_by_names(count, names, order):
    assert head_order(count, names, NAMES) == order


def test_a_head_for_as_many_classes_is_kept(raw):
    whole = match_arrays("resnet50", raw)
    matched = match_arrays("resnet50", raw, class_names=NAMES)
    assert (matched.num_classes, matched.head) == (
        CLASSES, "its head of 5 classes is kept, whose names are unknown",
    )  # fmt: skip
    for part, array in head_of(matched).items():
        np.testing.assert_array_equal(array, head_of(whole)[part])


def test_a_head_for_other_classes_is_replaced(raw):
    for given, names, told in (
        (raw, ("a", "b"), "its head of 5 classes is replaced"),
        (named(raw, *"fghij"), NAMES, "its head for f, g, h, i, j is replaced"),
    ):
        matched = match_arrays("resnet50", given, class_names=names)
        assert (matched.num_classes, matched.head) == (None, told)
        assert not head_of(matched)


def test_logits_in_another_order_are_put_into_that_of_the_data(raw):
    whole = head_of(match_arrays("resnet50", raw))
    matched = match_arrays("resnet50", named(raw, *"abcde"), class_names=NAMES)
    assert matched.head == "its head for a, b, c, d, e is kept, in the order of the data"
    assert matched.classes == NAMES
    for part, array in head_of(matched).items():
        np.testing.assert_array_equal(array, whole[part][..., [4, 1, 2, 0, 3]])
    same = match_arrays("resnet50", named(raw, *NAMES), class_names=NAMES)
    assert same.head == "its head for e, b, c, a, d is kept"


@pytest.mark.parametrize(
    "classes", ["[1, 2, 3, 4, 5]", "a,b", '["a"]', '["a", "a", "b", "c", "d"]', "{"]
)
def test_what_is_no_list_of_names_is_as_none(raw, classes):
    odd = dataclasses.replace(raw, metadata={"classes": classes})
    assert "names are unknown" in match_arrays("resnet50", odd, class_names=NAMES).head


def test_half_a_head_is_replaced(raw):
    bias = LAYOUTS[raw.layout].sources("resnet50")["params", "fc", "bias"].name
    arrays = {name: array for name, array in raw.arrays.items() if name != bias}
    matched = match_arrays("resnet50", dataclasses.replace(raw, arrays=arrays), class_names=NAMES)
    assert matched.num_classes is None


def test_a_converted_file_keeps_the_names(tmp_path):
    """And a network without them, such as one of a `.pth`, is given them when it is converted."""
    raw = raw_weights("torchvision")
    source, target = tmp_path / "w.safetensors", tmp_path / "c.safetensors"
    weight_files.safetensors(source, dict(raw.arrays))
    matched = match_arrays("resnet50", read_weights(source))
    save_matched(target, matched.named(tuple("abcde")), source)
    loaded = load_network("resnet50", target, class_names=NAMES)
    assert (loaded.fresh, loaded.head) == (
        (), "its head for a, b, c, d, e is kept, in the order of the data",
    )  # fmt: skip
    kernel = np.asarray(raw.arrays["fc.weight"]).T
    np.testing.assert_array_equal(
        loaded.variables["params"]["fc"]["kernel"], kernel[:, [4, 1, 2, 0, 3]]
    )
    other = load_network("resnet50", target, class_names=("a", "b"))
    assert other.fresh == ("params/fc/bias", "params/fc/kernel")
    assert other.variables["params"]["fc"]["bias"].shape == (2,)
    with pytest.raises(UserError, match="2 names for 5 logits"):
        matched.named(("a", "b"))
