"""Exported programs: right, alone, for any batch size; wrong ones leave nothing."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from medadv_jax import cli
from medadv_jax.classifier import Classifier
from medadv_jax.deployment import export
from medadv_jax.deployment.check_images import Images, choose_images, random_images
from medadv_jax.deployment.description import Description
from medadv_jax.deployment.model import Model
from medadv_jax.errors import UserError
from medadv_jax.models.purifiers import create_purifier
from medadv_jax.models.resnet import resnet50
from medadv_jax.models.vgg import vgg16
from tests.helpers.tiny import make_model


@pytest.fixture(scope="module")
def model():
    return make_model(("a", "b", "c"), purified=True)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "out"
    lines = export.export_model(model, folder, ["stablehlo"], random_images(model))
    assert len(lines) == 1
    return folder


def test_the_reader_needs_jax_alone(model, exported, tmp_path):
    """In a process that cannot import flax or this package; any batch size."""
    images = random_images(model).pixels[:7]
    for count in (1, 7):
        np.save(tmp_path / "images.npy", images[:count])
        code = (
            "import sys, runpy; sys.modules.update(flax=None, medadv_jax=None, safetensors=None);"
            "import numpy; numpy.set_printoptions(precision=8);"
            f"sys.argv = ['x', {str(tmp_path / 'images.npy')!r}];"
            f"runpy.run_path({str(exported / 'read_stablehlo.py')!r}, run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        numbers = [float(x) for x in done.stdout.replace("[", " ").replace("]", " ").split()]
        expected = model.predict(images[:count]).probability
        np.testing.assert_allclose(np.reshape(numbers, (count, 3)), expected, atol=1e-5)


def test_the_reader_is_short():
    assert len(Path(export.read_stablehlo.__file__).read_text().splitlines()) <= 25


def test_the_card_has_the_result_of_the_check(exported):
    found = json.loads((exported / "export.json").read_text())["exports"]["stablehlo"]
    assert found["largest_difference_of_logits"] <= 1e-4
    assert found["images"] == 100
    assert found["same_class"] == 1.0
    assert {*found["files"]} == {"model.stablehlo", "weights.npz", "read_stablehlo.py"}
    text = (exported / "README.md").read_text()
    assert "100 images (random pixels)" in text
    assert "Not a medical device" in text


def test_it_is_for_all_platforms_and_any_batch(exported):
    program = jax.export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[-1].shape) == "(b, 32, 32, 3)"


@pytest.mark.parametrize("make", [resnet50, vgg16])
@pytest.mark.parametrize("purifier", ["dense", "unet"])
def test_every_network_and_purifier_has_a_symbolic_batch(make, purifier, tmp_path):
    """Also where the image size is no multiple of the purifier's; not compiled."""
    front = create_purifier(purifier, 8, 0.25, conv_impl="plain")
    classifier = Classifier(make(num_classes=2, width=0.125), "imagenet", front)
    described = Description({}, {}, "imagenet", ("a", "b"), 34, "crop")
    shapes = jax.eval_shape(lambda: classifier.init(jax.random.key(0), 34))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    export._export_stablehlo(Model(described, classifier, zeros), tmp_path)
    assert (tmp_path / "model.stablehlo").stat().st_size > 1000


def test_a_wrong_export_is_refused_and_leaves_nothing(model, tmp_path, monkeypatch):
    """As if the exported program had other weights."""
    make = export.FORMATS["stablehlo"]

    def wrong(plain, folder):
        other = jax.tree.map(lambda leaf: leaf * 1.01, plain.variables)
        return make(Model(plain.description, plain.classifier, other), folder)

    monkeypatch.setitem(export.FORMATS, "stablehlo", wrong)
    with pytest.raises(UserError, match="differ from the model's by"):
        export.export_model(model, tmp_path / "out", ["stablehlo"], random_images(model))
    assert not list(tmp_path.iterdir())


def _artefact(folder, change):
    """A program whose logits are `change`d by the number of images."""
    (folder / "program").write_bytes(b"content")

    def run(images):
        logits = LOGITS[: len(images)] + np.float32(change[len(images)])
        return np.asarray(jax.nn.softmax(logits)), logits

    return export.Artefact(["program"], run, "")


BLACK = Images(np.zeros((3, 8, 8, 3), np.uint8), "black images")
LOGITS = np.array([[0, 1], [1, 0], [0, 2e-5]], np.float32)


def test_the_check_measures_what_differs(tmp_path):
    artefact = _artefact(tmp_path, {3: [[0, 0], [0, 0], [1e-5, 0]], 1: [[9e-5, 0]]})
    found = export._check(artefact, tmp_path, LOGITS, BLACK, "")
    assert found["largest_difference_of_logits"] == pytest.approx(9e-5, rel=1e-3)  # of one image
    assert found["same_class"] == 1
    assert found["files"] == {"program": hashlib.sha256(b"content").hexdigest()}
    assert (found["images"], found["bytes"]) == (3, 7)


def test_logits_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(UserError, match="differ from the model's by nan"):
        export._check(_artefact(tmp_path, {3: np.nan}), tmp_path, LOGITS, BLACK, "")


def test_other_classes_are_refused_even_if_the_logits_are_close(tmp_path):
    artefact = _artefact(tmp_path, {3: [[0, 0], [0, 0], [4e-5, 0]], 1: 0})
    with pytest.raises(UserError, match="class to 67% of 3 images"):
        export._check(artefact, tmp_path, LOGITS, BLACK, "")


def test_convolutions_are_exported_in_the_form_for_any_platform(model, tmp_path, monkeypatch):
    seen = []

    def watch(given, folder):
        seen.append(given.classifier.network.conv_impl)
        return _artefact(folder, {})

    monkeypatch.setattr(export, "FORMATS", {"watch": watch})
    network = model.classifier.network.copy(conv_impl="cpu")
    other = Model(model.description, Classifier(network, "imagenet", None), model.variables)
    with pytest.raises(KeyError):  # the program is for one image and three
        export.export_model(other, tmp_path / "out", ["watch"], random_images(model))
    assert seen == ["plain"]


BAD = {
    "unknown format": (["tflite"], "out", "--format=tflite: known are"),
    "no format": ([], "out", "--format=: known are"),
    "into a file": (["stablehlo"], "file", "is a file"),
    "into another folder": (["stablehlo"], "", "holds other files"),
    "under a file": (["stablehlo"], "file/out", "is a file"),
    "where nobody may write": (["stablehlo"], "/sys/out", "/sys"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_outputs_are_one_line_and_exit_2(name, model, tmp_path, capsys):
    formats, output, message = BAD[name]
    (tmp_path / "file").write_text("mine")
    images = random_images(model)
    code = cli.guard(
        lambda: export.export_model(model, tmp_path / output, formats, images) and None
    )
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_export_replaces_an_export(model, exported, monkeypatch):
    monkeypatch.setattr(export, "FORMATS", {"nothing": lambda model, folder: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        export.export_model(model, exported, ["nothing"], random_images(model))
    assert (exported / "model.stablehlo").is_file()


def test_images_to_check_on(model, tmp_path):
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(UserError, match="none of its files is an image"):
        choose_images(model, tmp_path, tmp_path)
    found = choose_images(model, tmp_path, None)
    assert found.origin == "random pixels"
    assert found.pixels.shape == (100, 32, 32, 3)
