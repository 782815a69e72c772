"""The network of a run as the start of another: all arrays but the head's are copied."""

from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from medadv_jax.classifier import Classifier
from medadv_jax.deployment.description import Description, describe_network, describe_purifier
from medadv_jax.deployment.model_folder import write_model_folder
from medadv_jax.errors import UserError
from medadv_jax.models import create_model
from medadv_jax.models.pretrained import load_network
from medadv_jax.models.purifiers import create_purifier

FINDINGS = tuple(f"finding {k}" for k in range(14))
OPTIONS = {"width": 0.125, "head": "gap"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with the model folder of 14 labels, behind a purifier, and its variables."""
    network, purifier = create_model("vgg16", 14, **OPTIONS), create_purifier("spatial", 8, 0.25)
    classifier = Classifier(network, "symmetric", purifier)
    variables = jax.jit(lambda: classifier.init(jax.random.key(3), 32))()
    described = Description(
        describe_network(network, "vgg16"), describe_purifier(purifier, "spatial"), "symmetric",
        FINDINGS, 32, "crop",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("run")
    write_model_folder(folder / "models/base", described, jax.tree.map(np.asarray, variables))
    return folder, _arrays(variables)


def _arrays(variables) -> dict[tuple[str, ...], np.ndarray]:
    flat: Any = flatten_dict({"params": variables["params"]})
    return flat


@pytest.mark.parametrize("part", ["", "models/base"])
def test_all_but_the_head_are_copied(run, part):
    folder, before = run
    loaded = load_network("vgg16", folder / part, class_names=("normal", "pneumonia"), width=0.125)
    after = _arrays(loaded.variables)
    head = {("params", "fc", "kernel"), ("params", "fc", "bias")}
    assert after.keys() == before.keys()
    for path in before.keys() - head:
        np.testing.assert_array_equal(after[path], before[path])
    assert {tuple(name.split("/")) for name in loaded.fresh} == head
    assert after["params", "fc", "kernel"].shape == (*before["params", "fc", "kernel"].shape[:1], 2)
    assert loaded.normalization == "symmetric"
    assert "its head for finding 0, " in loaded.head
    assert "is replaced" in loaded.head


def test_a_head_for_the_same_classes_is_kept_in_the_order_of_the_data(run):
    folder, before = run
    loaded = load_network("vgg16", folder, class_names=FINDINGS[::-1], width=0.125)
    kernel = loaded.variables["params"]["fc"]["kernel"]
    assert not loaded.fresh
    np.testing.assert_array_equal(kernel, before["params", "fc", "kernel"][:, ::-1])


def test_another_network_or_width_is_refused(run, tmp_path):
    folder, _ = run
    for name, path, width, text in (
        ("vgg19", folder, 0.125, "weights of vgg16, not of vgg19"),
        ("vgg16", folder, 1.0, "model.width=1: .*models/base has width 0.125"),
        ("vgg16", tmp_path, 1.0, "neither a model folder nor a run with models/base"),
    ):
        with pytest.raises(UserError, match=text):
            load_network(name, path, class_names=("a", "b"), width=width)
