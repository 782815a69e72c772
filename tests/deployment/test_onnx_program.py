"""ONNX programs: those of every network and purifier say what the model says, for any batch."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax import models
from medadv_jax.classifier import Classifier, to_pixels
from medadv_jax.deployment import export, onnx_program
from medadv_jax.deployment.check_images import random_images
from medadv_jax.deployment.description import Description
from medadv_jax.deployment.model import Model
from medadv_jax.errors import UserError
from medadv_jax.models.purifiers import create_purifier
from tests.helpers.tiny import make_model

NEEDS = "the extra `onnx` is not installed"
NETWORKS = {name: models.MODELS[name] for name in models.MODELS}  # conftest replaces them


def test_the_folder_has_the_program_and_the_result_of_its_check(tmp_path):
    pytest.importorskip("jax2onnx", reason=NEEDS)
    model = make_model(("a", "b", "c"), purified=True)
    before = model.predict(random_images(model).pixels[:3]).probability
    (line,) = export.export_model(model, tmp_path / "out", ["onnx"], random_images(model))
    found = json.loads((tmp_path / "out/export.json").read_text())["exports"]["onnx"]
    assert found["largest_difference_of_logits"] <= 1e-5
    assert {*found["files"]} == {"model.onnx"}
    assert line in (tmp_path / "out/README.md").read_text()
    (entry,) = onnx_program.open_onnx(tmp_path / "out/model.onnx").get_inputs()
    assert (entry.name, entry.shape, entry.type) == ("images", ["B", 32, 32, 3], "tensor(uint8)")
    # jax2onnx replaces functions of JAX while it works.
    after = model.predict(random_images(model).pixels[:3]).probability
    np.testing.assert_array_equal(after, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "purifier"),
    [
        ("vgg16", 32, "unet"),
        ("vgg19", 34, "spatial"),
        ("resnet50", 34, "dense"),
        ("inception_v3", 75, ""),
    ],
)
def test_every_network_and_purifier(name, size, purifier, tmp_path):
    """Also where the image size is no multiple of the purifier's."""
    pytest.importorskip("jax2onnx", reason=NEEDS)
    front = create_purifier(purifier, 8, 0.25, conv_impl="plain") if purifier else None
    network = NETWORKS[name](num_classes=2, width=0.125)
    classifier = Classifier(network, "imagenet", front)
    described = Description(
        {"name": name, "dtype": "float32"}, None, "imagenet", ("a", "b"), size, "crop"
    )
    model = Model(described, classifier, _variables(classifier, size))
    onnx_program.write_onnx(model, tmp_path / "model.onnx")
    images = random_images(model).pixels[:3] // np.array([1, 3, 40], np.uint8)[:, None, None, None]
    expected = jax.jit(model.logits)(to_pixels(jnp.asarray(images)))
    probability, logits = onnx_program.run_onnx(tmp_path / "model.onnx", images)
    spread = np.ptp(expected, axis=0)
    assert spread.min() > 0.01
    assert (abs(logits - expected).max(axis=0) < 1e-4 * spread).all()
    np.testing.assert_allclose(probability, jax.nn.softmax(logits), atol=1e-6)


def _variables(classifier: Classifier, size: int):
    """Random variables, also where fresh ones are 0 or 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return rng.uniform(1, 1.2, leaf.shape).astype("f")
        fan_in = int(np.prod(leaf.shape[:-1]))
        spread = (2 / fan_in) ** 0.5 if len(leaf.shape) > 1 else 0.05
        return rng.normal(0, spread, leaf.shape).astype("f")

    shapes = jax.eval_shape(lambda: classifier.init(jax.random.key(0), size))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def test_bfloat16_is_refused(tmp_path):
    model = make_model(("a", "b"))
    network = {**model.description.network, "dtype": "bfloat16"}
    described = Description(network, None, "imagenet", ("a", "b"), 32, "crop")
    other = Model(described, model.classifier, model.variables)
    with pytest.raises(UserError, match="--format=onnx: the model computes in bfloat16"):
        onnx_program.write_onnx(other, tmp_path / "model.onnx")


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"jax2onnx is missing; pip install 'medadv_jax\[onnx\]'"):
        onnx_program.write_onnx(make_model(("a", "b")), tmp_path / "model.onnx")
