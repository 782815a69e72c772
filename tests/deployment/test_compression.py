"""Smaller programs: what they store, how near they are, and their gradient for attackers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medadv_jax import cli, evaluate
from medadv_jax.deployment import compression, read_stablehlo
from medadv_jax.deployment.check_images import Images, random_images, split_images
from medadv_jax.deployment.export import choose_compression, export_model
from medadv_jax.deployment.model import Model
from tests.helpers.tiny import make_model

WEIGHTS = np.array([[2.0, -2.0], [-1.0, 1.0], [0.0, 0.0]])  # of a linear classifier of mean colour


@pytest.fixture(scope="module")
def model():
    return make_model(("a", "b", "c"), purified=True)


def images_of(model, count):
    """Squares of one colour, which differ in class as noise does not."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3))
    size = model.image_size
    pixels = np.broadcast_to(colours, (count, size, size, 3)).astype(np.uint8)
    return Images(pixels, "squares")


def test_bfloat16_programs_are_half_as_large_and_the_model_with_rounded_kernels(model, tmp_path):
    images = images_of(model, 20)
    (line,) = export_model(model, tmp_path / "out", ["stablehlo"], images, "bfloat16")
    assert line.startswith("stablehlo, bfloat16: ")
    stored = np.load(tmp_path / "out/weights.npz")
    kernels = [name for name in stored if name.endswith("kernel")]
    assert kernels
    assert {stored[name].dtype.name for name in kernels} == {"uint16"}
    found = read_stablehlo.load(tmp_path / "out")(images.pixels)[1]
    short = compression.to_bfloat16(model)
    assert short.description.network["dtype"] == "bfloat16"
    assert (short.description.purifier or {})["dtype"] == "bfloat16"
    np.testing.assert_allclose(found, short.logits_of(images.pixels), atol=0.02)
    kernel = np.asarray(short.variables["params"]["Conv_0"]["kernel"])
    np.testing.assert_array_equal(kernel, kernel.astype(jnp.bfloat16).astype(np.float32))
    before = np.asarray(model.variables["params"]["Conv_0"]["kernel"])
    assert 0 < np.abs(kernel - before).max() < 2**-8 * np.abs(before).max()
    entry = json.loads((tmp_path / "out/export.json").read_text())["exports"]["stablehlo"]
    assert entry["compression"] == "bfloat16"
    assert entry["largest_difference_of_probabilities"] < 0.05
    assert "stablehlo, bfloat16" in (tmp_path / "out/README.md").read_text()


def test_int8_programs_hold_8_bit_weights_and_activations(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("jax2onnx")
    model = make_model(("a", "b"))
    images = images_of(model, 60)
    export_model(model, tmp_path / "out", ["onnx"], images, "int8")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.onnx", "export.json", "README.md",
    }  # fmt: skip
    graph = onnx.load(tmp_path / "out/model.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        image, kernel = (producers[name] for name in node.input[:2])
        assert image.op_type == kernel.op_type == "DequantizeLinear"
        assert kinds[kernel.input[0]] == onnx.TensorProto.INT8
        assert producers[image.input[0]].op_type == "QuantizeLinear"
    entry = json.loads((tmp_path / "out/export.json").read_text())["exports"]["onnx"]
    assert entry["images"] == 30  # the others calibrated
    assert entry["same_class"] >= 0.9
    assert 0 < entry["largest_difference_of_probabilities"] < 0.1


def test_half_of_the_images_calibrate_and_the_others_check(model):
    calibrating, checking = split_images(images_of(model, 5))
    np.testing.assert_array_equal(calibrating, images_of(model, 5).pixels[[0, 2, 4]])
    np.testing.assert_array_equal(checking.pixels, images_of(model, 5).pixels[[1, 3]])


def coarse(images):
    """A program whose logits are rounded to quarters, (B, S, S, 3) uint8: without a gradient."""
    logits = np.rint(4 * (images.mean((1, 2)) / 255 @ WEIGHTS)) / 4
    return logits, logits


def smooth(pixels):
    return pixels.mean((1, 2)) @ WEIGHTS.astype(np.float32)


def test_a_program_as_a_function_has_its_values_and_the_models_gradient():
    function = compression.as_function(coarse, smooth, 2)
    pixels = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    value, pull = jax.vjp(jax.jit(function), pixels)
    rounded = np.rint(255 * np.asarray(pixels)).astype(np.uint8)
    np.testing.assert_array_equal(value, coarse(rounded)[1].astype(np.float32))
    ones = jnp.ones((4, 2)).at[:, 0].set(-1.0)
    np.testing.assert_allclose(pull(ones)[0], jax.vjp(smooth, pixels)[1](ones)[0], rtol=1e-6)


def test_a_program_falls_where_its_rounded_logits_say_so():
    """The first logit is 2r - g and the second its negative: ε moves each by 3ε, and the class
    changes where the rounded logits do."""
    red = np.array([0.1, 0.3, 0.6])
    images = np.zeros((3, 8, 8, 3), np.float32)
    images[..., 0] = np.rint(255 * red).astype(np.float32)[:, None, None] / 255
    function = compression.as_function(coarse, smooth, 2)
    found = evaluate(
        function, images, np.zeros(3, int), 51 / 255, "linf", "pgd", check_images=0, progress=False
    )
    assert found.predicted.tolist() == [0, 0, 0]
    # 2r - 3ε ≈ -0.4, 0, 0.6: equal logits are the first class.
    assert found.correct[:, 0].tolist() == [False, True, True]


BAD = {
    "int4": (lambda model: choose_compression("float32", "int4"), "--quantize=int4: must be none"),
    "float16": (lambda model: choose_compression("float16", "none"), "--dtype=float16: must be"),
    "both": (lambda model: choose_compression("bfloat16", "int8"), "give one of them"),
    "int8 of jax": (["stablehlo"], "int8", 60, "--format=stablehlo: int8 exists for onnx alone"),
    "int8 of both": (["onnx", "stablehlo"], "int8", 60, "int8 exists for onnx alone"),
    "bfloat16 of onnx": (["onnx"], "bfloat16", 60, "bfloat16 exists for stablehlo alone"),
    "no images": (["onnx"], "int8", 0, "--quantize=int8: calibrates on images"),
    "too few images": (["onnx"], "int8", 38, "19 images to calibrate on, and at least 20"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_one_line_exit_2_and_leave_nothing(name, model, tmp_path, capsys):
    *call, message = BAD[name]
    if name.startswith("too few"):
        pytest.importorskip("jax2onnx")

    def action():
        if len(call) == 1:
            call[0](model)
            return
        formats, kind, count = call
        images = images_of(model, count) if count else random_images(model)
        export_model(make_model(("a", "b")), tmp_path / "out", formats, images, kind)

    assert cli.guard(action) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_compression_that_changes_the_class_is_refused(model, tmp_path, monkeypatch):
    def broken(model):
        plain = model.with_conv_impl("plain")
        turned = jax.tree.map(lambda leaf: -leaf, plain.variables["params"])
        return Model(plain.description, plain.classifier, {**plain.variables, "params": turned})

    monkeypatch.setattr("medadv_jax.deployment.export.to_bfloat16", broken)
    code = cli.guard(
        lambda: (
            export_model(model, tmp_path / "out", ["stablehlo"], images_of(model, 20), "bfloat16")
            and None
        )
    )
    assert code == 2
    assert not list(tmp_path.iterdir())
