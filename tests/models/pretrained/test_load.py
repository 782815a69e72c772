"""A file becomes the network's variables only if every name, shape and number is right."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from medadv_jax.errors import UserError
from medadv_jax.models import HEAD, create_model
from medadv_jax.models.pretrained import (
    download,
    keras_names,
    load_network,
    load_pretrained,
    match_arrays,
    save_converted,
    save_matched,
    torchvision_names,
)
from medadv_jax.models.pretrained.load import array_shapes, build_variables
from medadv_jax.models.pretrained.read import RawWeights, read_weights
from tests.helpers import weight_files

CLASSES = 5
LAYOUTS = {"torchvision": torchvision_names, "keras": keras_names}
# Ours → the shape of the original array, for torchvision; Keras' are ours.
ORIGINAL = {4: lambda s: (s[3], s[2], s[0], s[1]), 2: lambda s: s[::-1], 1: lambda s: s}


def raw_weights(layout, name="resnet50", top=True, classes=CLASSES):
    """A file's content with random numbers, of which none are equal and variances are positive."""
    module, rng = LAYOUTS[layout], np.random.default_rng(0)
    expected = array_shapes(name, classes, tuple(sorted(module.OPTIONS[name].items())))
    arrays = {}
    for path, source in module.sources(name).items():
        if path[1] in HEAD[name] and not top:
            continue
        shape = expected[path]
        shape = ORIGINAL[len(shape)](shape) if layout == "torchvision" else shape
        arrays[source.name] = 0.05 * rng.random(shape, np.float32) + 0.01
    return RawWeights(layout, arrays, {}, f"{layout}.file")


@pytest.fixture(scope="module", params=["torchvision", "keras"])
def raw(request):
    return raw_weights(request.param)


def changed(raw, arrays=(), removed=()):
    kept = {name: array for name, array in raw.arrays.items() if name not in removed}
    return dataclasses.replace(raw, arrays=kept | dict(arrays))


def refusal(function, *arguments, **named):
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def convert(name, raw, num_classes=None, seed=0):
    """The options of `create_model`, and the variables with their head."""
    matched = match_arrays(name, raw)
    variables, _ = build_variables(matched, num_classes, seed)
    return {**matched.options, "num_classes": num_classes or matched.num_classes}, variables


def conv_name(raw):
    return "conv1.weight" if raw.layout == "torchvision" else "conv1_conv/kernel"


def test_every_array_finds_its_place_and_the_network_takes_them(raw):
    options, variables = convert("resnet50", raw)
    assert options == {**LAYOUTS[raw.layout].OPTIONS["resnet50"], "num_classes": CLASSES}
    flat: Any = flatten_dict(variables)
    arguments = tuple(sorted((key, options[key]) for key in options if key != "num_classes"))
    shapes = array_shapes("resnet50", CLASSES, arguments)
    assert {path: array.shape for path, array in flat.items()} == shapes
    assert {array.dtype.name for array in flat.values()} == {"float32"}
    for path, source in LAYOUTS[raw.layout].sources("resnet50").items():
        np.testing.assert_array_equal(flat[path], source.transform(raw.arrays[source.name]))


def test_normalizations_are_the_publishers():
    """torchvision's `transforms()`, `transform_input` of its Inception, and `preprocess_input`."""
    vgg, inception = ("vgg16", "vgg19", "resnet50"), {"inception_v3": "symmetric"}
    assert dict.fromkeys(vgg, "imagenet") | inception == torchvision_names.NORMALIZATION
    assert dict.fromkeys(vgg, "caffe") | inception == keras_names.NORMALIZATION


def test_missing_extra_and_misshapen_arrays_are_listed_together(raw):
    name = conv_name(raw)
    other = sorted(raw.arrays)[7:12]
    broken = changed(raw, {"foreign/one": np.ones(2), name: raw.arrays[name][:1]}, other)
    message = refusal(convert, "resnet50", broken)
    assert message.startswith(f"{raw.layout}.file: not resnet50")
    assert f"5 missing ({', '.join(sorted(other, key=list(raw.arrays).index)[:1])}" in message
    assert "and 2 more" in message
    assert "1 extra (foreign/one)" in message
    assert f"1 misshapen ({name} (" in message


def test_an_array_of_another_rank_is_misshapen(raw):
    broken = changed(raw, {conv_name(raw): np.ones(9408, np.float32)})
    assert "misshapen" in refusal(convert, "resnet50", broken)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_none_are_refused_by_name(raw, value):
    name = conv_name(raw)
    array = raw.arrays[name].astype(np.float64)
    array.flat[77] = value
    assert f"{name} holds NaN" in refusal(convert, "resnet50", changed(raw, {name: array}))


def test_negative_variance_and_integers_are_refused(raw):
    variance = "bn1.running_var" if raw.layout == "torchvision" else "conv1_bn/moving_variance"
    broken = changed(raw, {variance: -raw.arrays[variance]})
    assert f"{variance} holds a negative variance" in refusal(convert, "resnet50", broken)
    broken = changed(raw, {variance: np.ones(64, np.int64)})
    assert f"{variance} is int64" in refusal(convert, "resnet50", broken)


def test_other_floating_types_become_float32(raw):
    name = conv_name(raw)
    for dtype in (np.float16, np.float64):
        _, variables = convert("resnet50", changed(raw, {name: raw.arrays[name].astype(dtype)}))
        kernel = variables["params"]["conv1"]["kernel"]
        assert kernel.dtype == np.float32
        expected = convert("resnet50", raw)[1]["params"]["conv1"]["kernel"]
        np.testing.assert_allclose(kernel, expected, rtol=1e-3)


def test_another_network_is_refused(raw):
    deeper = {f"layer3.{i}.conv1.weight": np.ones((256, 1024, 1, 1)) for i in range(6, 23)}
    if raw.layout == "torchvision":
        message = refusal(convert, "resnet50", changed(raw, deeper))
        assert "17 extra (layer3.6.conv1.weight" in message
    assert "missing" in refusal(convert, "vgg16", raw)
    assert "has no weights" in refusal(convert, "resnet51", raw)


def test_counters_of_torch_are_left_out():
    raw = raw_weights("torchvision")
    counters = {"bn1.num_batches_tracked": np.array(3), "layer1.0.bn1.num_batches_tracked": 4}
    assert convert("resnet50", changed(raw, counters))[0]["num_classes"] == CLASSES


# Heads


def test_new_head_is_drawn_from_the_seed_and_all_else_is_kept(raw):
    _, whole = convert("resnet50", raw)
    options, first = convert("resnet50", raw, 3, seed=1)
    assert options["num_classes"] == 3
    assert first["params"]["fc"]["kernel"].shape == (2048, 3)
    np.testing.assert_array_equal(
        first["params"]["conv1"]["kernel"], whole["params"]["conv1"]["kernel"]
    )
    _, again = convert("resnet50", raw, 3, seed=1)
    _, other = convert("resnet50", raw, 3, seed=2)
    kernels = [each["params"]["fc"]["kernel"] for each in (first, again, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0
    assert kernels[0].std() > 0
    # As many classes as the file has: an int is a new head all the same.
    same = convert("resnet50", raw, CLASSES)[1]["params"]["fc"]["kernel"]
    assert np.abs(same - whole["params"]["fc"]["kernel"]).max() > 0


FOREIGN_HEAD = {
    "torchvision": {"fc.1.weight": np.ones((7, 9)), "fc.1.bias": np.ones(7)},
    "keras": {"dense_3/kernel": np.ones((9, 7)), "dense_3/bias": np.ones(7)},
}


def test_a_head_of_another_form_is_left_out_and_named(raw):
    names = LAYOUTS[raw.layout].sources("resnet50")
    own = [names["params", "fc", part].name for part in ("kernel", "bias")]
    other = changed(raw, FOREIGN_HEAD[raw.layout], own)
    matched = match_arrays("resnet50", other)
    assert matched.num_classes is None
    assert matched.left_out == tuple(FOREIGN_HEAD[raw.layout])
    _, variables = convert("resnet50", other, 2)
    first = variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(first, convert("resnet50", raw)[1]["params"]["conv1"]["kernel"])
    # A layer of another name within the network is another network.
    inside = "layer1.0.se.weight" if raw.layout == "torchvision" else "extra/kernel"
    wrong = {inside: np.ones((3, 3, 4, 4))}
    assert f"1 extra ({inside})" in refusal(match_arrays, "resnet50", changed(other, wrong))


def test_a_head_that_will_be_replaced_may_have_any_form(raw):
    names = LAYOUTS[raw.layout].sources("resnet50")
    kernel, bias = (names["params", "fc", part].name for part in ("kernel", "bias"))
    for other in changed(raw, removed=[bias]), changed(raw, {kernel: np.full((3, 4, 5), np.nan)}):
        assert {path[1] for path in match_arrays("resnet50", other, new_head=True).arrays} >= {
            "bn1"
        }
        assert refusal(match_arrays, "resnet50", other)


def test_a_wrapped_network_is_the_network(raw):
    prefix = "net." if raw.layout == "torchvision" else "base/"
    arrays = {f"{prefix}{name}": array for name, array in raw.arrays.items()}
    inside = match_arrays("resnet50", dataclasses.replace(raw, arrays=arrays)).arrays
    expected = match_arrays("resnet50", raw).arrays
    assert inside.keys() == expected.keys()
    assert all(np.array_equal(inside[path], expected[path]) for path in expected)


def test_a_file_without_head_needs_num_classes():
    raw = raw_weights("keras", top=False)
    assert match_arrays("resnet50", raw).num_classes is None
    assert "have no head; give num_classes" in refusal(convert, "resnet50", raw)
    assert "num_classes=0" in refusal(convert, "resnet50", raw, 0)
    _, variables = convert("resnet50", raw, 2)
    assert variables["params"]["fc"]["bias"].shape == (2,)


def test_half_a_head_is_refused(raw):
    names = LAYOUTS[raw.layout].sources("resnet50")
    head = [names["params", "fc", part].name for part in ("kernel", "bias")]
    for name in head:
        assert name in refusal(convert, "resnet50", changed(raw, removed=[name]))


def test_vgg_with_global_average_pooling(tmp_path):
    """The convolutions of the file, a new head; and the same again from a converted file."""
    raw = raw_weights("keras", "vgg16", top=False)
    matched = match_arrays("vgg16", raw, {"head": "gap"})
    assert matched.num_classes is None
    weight_files.keras_h5(tmp_path / "w.h5", dict(raw.arrays))
    loaded = load_network("vgg16", tmp_path / "w.h5", 2, options={"head": "gap"}, seed=3)
    assert sorted(loaded.fresh) == ["params/fc/bias", "params/fc/kernel"]
    assert loaded.variables["params"]["fc"]["kernel"].shape == (512, 2)
    save_matched(tmp_path / "c.safetensors", match_arrays("vgg16", raw), tmp_path / "w.h5")
    again = load_network("vgg16", tmp_path / "c.safetensors", 2, options={"head": "gap"}, seed=3)
    for mine, other in zip(
        *(flatten_dict(x.variables).items() for x in (loaded, again)), strict=True
    ):
        assert mine[0] == other[0]
        np.testing.assert_array_equal(mine[1], other[1])


def test_options_that_make_another_network_are_refused(raw):
    option = {"conv_bias": raw.layout == "torchvision"}
    assert "conv1/bias" in refusal(match_arrays, "resnet50", raw, option)


# Our own files


@pytest.fixture(scope="module")
def files(tmp_path_factory, raw):
    """The original file and the converted one."""
    folder = tmp_path_factory.mktemp("weights")
    if raw.layout == "keras":
        original = weight_files.keras_h5(folder / "w.h5", dict(raw.arrays))
    else:
        original = weight_files.safetensors(folder / "w.safetensors", dict(raw.arrays))
    save_matched(
        folder / "converted.safetensors", match_arrays("resnet50", read_weights(original)), original
    )
    return original, folder / "converted.safetensors"


def test_converted_file_is_the_original_bit_for_bit(files):
    first, second = (load_network("resnet50", path) for path in files)
    assert first.fresh == second.fresh == ()
    assert first.normalization == second.normalization
    assert first.options == second.options
    assert first.net == second.net == create_model("resnet50", CLASSES, **first.options)
    ours, theirs = (flatten_dict(each.variables) for each in (first, second))
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path])
    net, variables = load_pretrained("resnet50", files[1], 2)
    assert net.num_classes == 2  # pyright: ignore[reportAttributeAccessIssue]
    assert variables["params"]["fc"]["bias"].shape == (2,)


def test_metadata_says_where_it_comes_from(files, raw):
    told = read_weights(files[1]).metadata
    assert told["arch"] == "resnet50"
    assert told["source"] == raw.layout
    assert told["source_file"] == files[0].name
    assert len(told["source_sha256"]) == 64
    assert told["num_classes"] == str(CLASSES)
    assert json.loads(told["options"]) == LAYOUTS[raw.layout].OPTIONS["resnet50"]
    assert [path.name for path in files[1].parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"options": "{"},
        {"options": "[1]"},
        {"options": '{"stride": 3}'},
        {"version": "2"},
        {"normalization": "none"},
        {"source": "caffe"},
        {"arch": "vgg16"},
    ],
)
def test_damaged_metadata_is_refused(files, metadata):
    converted = read_weights(files[1])
    raw = dataclasses.replace(converted, metadata={**converted.metadata, **metadata})
    assert str(files[1]) in refusal(match_arrays, "resnet50", raw)


def test_own_file_with_missing_and_foreign_arrays_is_refused(files):
    raw = read_weights(files[1])
    broken = changed(raw, {"params/x/y": np.ones(3, np.float32)}, ["params/conv1/kernel"])
    message = refusal(match_arrays, "resnet50", broken)
    assert "1 missing (params/conv1/kernel); 1 extra (params/x/y)" in message


def test_nothing_is_left_where_writing_fails(tmp_path):
    (tmp_path / "folder").mkdir()
    variables = {"params": {"a": np.ones(3, np.float32)}}
    assert "cannot be written" in refusal(save_converted, tmp_path / "folder", variables, {})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_arrays_are_stored_as_they_read(tmp_path):
    """Also those that are not laid out as in C, whose memory is in another order, and scalars."""
    array, scalar = np.arange(6, dtype=np.float32).reshape(2, 3).T, np.array(7.0)
    save_converted(tmp_path / "w.safetensors", {"params": {"a": array, "b": scalar}}, {})
    read = read_weights(tmp_path / "w.safetensors").arrays
    np.testing.assert_array_equal(read["params/a"], array)
    np.testing.assert_array_equal(read["params/b"], np.float32(7), strict=True)


def test_equal_weights_are_stored_as_equal_bytes(tmp_path):
    """As earlier versions wrote them: arrays and metadata in order of their names."""
    arrays = {"params/a": np.ones((2, 3), np.float32), "params/b": np.arange(2, dtype=np.float32)}
    names = ("arch", "options", "source", "format", "version")
    metadata = {**dict.fromkeys(names, "x"), "format": "medadv_jax", "version": "1"}
    expected = weight_files.safetensors(tmp_path / "a", arrays, dict(sorted(metadata.items())))
    variables = {"params": {name[-1]: arrays[name] for name in sorted(arrays, reverse=True)}}
    for _ in range(4):  # the library writes 5 pieces of metadata in one of 120 orders
        save_converted(tmp_path / "b", variables, metadata)
        assert (tmp_path / "b").read_bytes() == expected.read_bytes()


def test_load_says_what_it_cannot_do(tmp_path, monkeypatch):
    assert "width=0.5" in refusal(load_network, "resnet50", tmp_path / "w.pth", width=0.5)
    assert "not weights of vgg16" in refusal(load_network, "vgg16", "torchvision/resnet50")
    assert "No such file" in refusal(load_network, "resnet50", "torchvision/resnet51")
    asked = []
    monkeypatch.setattr(download, "fetch", lambda name: asked.append(name) or tmp_path / "absent")
    assert "No such file" in refusal(load_network, "resnet50", "keras/resnet50_notop", 2)
    assert asked == ["keras/resnet50_notop"]


@pytest.mark.parametrize("raw", ["torchvision"], indirect=True)
def test_the_script_converts_and_fails_in_one_line(files, tmp_path):
    script = Path(__file__).parents[3] / "scripts" / "convert_weights.py"

    def run(*flags):
        command = [sys.executable, str(script), "--arch=resnet50", *flags]
        environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    target = tmp_path / "out.safetensors"
    done = run(f"--input={files[0]}", f"--output={target}")
    assert done.returncode == 0, done.stderr
    assert f"{CLASSES} classes" in done.stdout
    same = target.read_bytes() == files[1].read_bytes()  # pytest would compare 100 MB in words
    assert same
    target.unlink()
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(files[0].read_bytes()[:-9])
    failed = run(f"--input={damaged}", f"--output={target}")
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: {damaged}: ")
    assert failed.stderr.count("\n") == 1
    assert not target.exists()
