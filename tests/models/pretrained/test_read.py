"""Every format gives back what was written; what is not weights ends in one line, unexecuted."""

import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from medadv_jax.errors import UserError
from medadv_jax.models.pretrained.read import read_weights
from tests.helpers import weight_files
from tests.helpers.weight_files import Call, Name, Persistent

STATE = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv.bias": np.array([1.5, -2.0]),
    "half": np.array([[0.25], [4.0]], np.float16),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}
KERAS = dict(
    zip(
        ["block1_conv1/kernel", "block1_conv1/bias", "predictions/kernel"],
        weight_files.arrays((3, 3, 2, 4), (4,), (4, 5)),
        strict=True,
    )
)
WRITERS = {"zip": weight_files.torch_zip, "legacy": weight_files.torch_legacy}


def equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, strict=True)


def refusal(path):
    """The error as one line that names the file."""
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    return message


# PyTorch


@pytest.mark.parametrize("kind", WRITERS)
def test_state_dict_of_every_dtype(tmp_path, kind):
    state = weight_files.state_dict(STATE, legacy=kind == "legacy")
    raw = read_weights(WRITERS[kind](tmp_path / "w.pth", state, list(STATE.values())))
    assert raw.layout == "torchvision"
    equal(raw.arrays, STATE)


@pytest.mark.parametrize("kind", WRITERS)
def test_strides_offsets_and_shared_storages(tmp_path, kind):
    numbers = np.arange(30, dtype=np.float32)
    data = weight_files.storage("0", numbers, legacy=kind == "legacy")
    state = {
        "transposed": weight_files.tensor(data, (6, 5), (1, 6)),
        "part": weight_files.tensor(data, (2, 3), (6, 2), offset=13),
        "scalar": weight_files.tensor(data, (), (), offset=29),
    }
    raw = read_weights(WRITERS[kind](tmp_path / "w.pth", state, [numbers]))
    part = np.array([[13, 15, 17], [19, 21, 23]], np.float32)
    expected = {"transposed": numbers.reshape(5, 6).T, "part": part}
    equal(raw.arrays, {**expected, "scalar": np.float32(29).reshape(())})


def test_wrapped_and_prefixed_state_dict(tmp_path):
    state = weight_files.state_dict({f"module.{name}": array for name, array in STATE.items()})
    for wrapper in ("state_dict", "model"):
        whole = {"epoch": 3, wrapper: state, "lr": None, "betas": (True, [1])}
        path = weight_files.torch_zip(tmp_path / "w.pt", whole, list(STATE.values()))
        equal(read_weights(path).arrays, STATE)


def test_bfloat16_and_parameters(tmp_path):
    numbers = np.array([0x3FC0, 0xC000], "<u2")  # 1.5, -2
    reference = Persistent(("storage", Name("torch.BFloat16Storage"), "0", "cuda:0", 2))
    value = Call(
        "torch._utils._rebuild_parameter", (weight_files.tensor(reference, (2,)), True, {})
    )
    raw = read_weights(weight_files.torch_zip(tmp_path / "w.pth", {"a": value}, [numbers]))
    np.testing.assert_array_equal(raw.arrays["a"].astype(np.float32), [1.5, -2.0])


NUMBERS = np.arange(6, dtype=np.float32)
OURS = weight_files.storage("0", NUMBERS)
FOREIGN = {
    "posix.system": Call("posix.system", ("touch {}",)),
    "builtins.eval": Call("builtins.eval", ("open('{}', 'w')",)),
    "torch.nn.modules.linear.Linear": Call("torch.nn.modules.linear.Linear", ()),
    "numpy.load": Name("numpy.load"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("kind", WRITERS)
def test_foreign_class_is_named_and_never_called(tmp_path, name, kind):
    foreign, canary = FOREIGN[name], tmp_path / "canary"
    if isinstance(foreign, Call):
        foreign = Call(name, tuple(text.format(canary) for text in foreign.arguments))
    path = WRITERS[kind](tmp_path / "w.pth", {"a": foreign}, [])
    assert f"holds {name}" in refusal(path)
    assert not canary.exists()


HOSTILE = {
    "too far": weight_files.tensor(OURS, (7,)),
    "offset": weight_files.tensor(OURS, (2,), offset=5),
    "stride": weight_files.tensor(OURS, (2, 2), (5, 1)),
    "expanded": weight_files.tensor(OURS, (10**6, 10**6), (0, 0)),
    "negative": weight_files.tensor(OURS, (2,), (-1,), offset=4),
    "negative offset": weight_files.tensor(OURS, (2,), offset=-1),
    "negative size": weight_files.tensor(OURS, (-2, -3)),
    "axes": weight_files.tensor(OURS, (2, 3), (1,)),
    "huge": weight_files.tensor(OURS, (2**62, 2**62)),
    "storage too small": weight_files.tensor(weight_files.storage("0", NUMBERS, count=7), (2,)),
    "storage huge": weight_files.tensor(weight_files.storage("0", NUMBERS, count=2**47), (2,)),
    "storage absent": weight_files.tensor(weight_files.storage("9", NUMBERS), (2,)),
    "class as number": weight_files.tensor(Name("torch.FloatStorage"), (2,)),
    "called storage": Call("torch.FloatStorage", (2,)),
    "arguments": Call("torch._utils._rebuild_tensor_v2", ()),
    "module": Persistent(("module", Name("torch.FloatStorage"), "a", "b")),
    "no tensor": 3,
    "unhashable key": {(): {}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_tensors_that_lie_are_refused(tmp_path, name):
    refusal(weight_files.torch_zip(tmp_path / "w.pth", {"a": HOSTILE[name]}, [NUMBERS]))


def test_overlapping_copies_are_refused(tmp_path):
    """Without the bound, a small file asks for any amount of memory."""
    state = {f"a{i}": weight_files.tensor(OURS, (3, 2), (1, 3)) for i in range(100)}
    assert "overlap" in refusal(weight_files.torch_zip(tmp_path / "w.pth", state, [NUMBERS]))


def test_no_state_dict_and_other_pickles(tmp_path):
    path = tmp_path / "w.pth"
    assert "no state_dict" in refusal(weight_files.torch_zip(path, [1, 2], []))
    assert "no state_dict" in refusal(weight_files.torch_zip(path, {}, []))
    path.write_bytes(weight_files.pickled({"a": 1}))
    assert "not one of torch.save" in refusal(path)
    big_endian = {"archive/data.pkl": weight_files.pickled({}), "archive/byteorder": b"big"}
    path.write_bytes(weight_files.zip_of(big_endian))
    assert "big-endian" in refusal(path)


def test_zip_bombs_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    bomb = {"archive/data.pkl": weight_files.pickled({}), "archive/data/0": bytes(10**7)}
    path.write_bytes(weight_files.zip_of(bomb, zipfile.ZIP_DEFLATED))
    assert "4 times" in refusal(path)
    path.write_bytes(weight_files.zip_of({"archive/data.pkl": bytes(99)}, zipfile.ZIP_DEFLATED))
    assert "compressed" in refusal(path) or "4 times" in refusal(path)
    path.write_bytes(weight_files.zip_of({"model.weights.h5": bytes(10**7)}, zipfile.ZIP_DEFLATED))
    assert "4 times" in refusal(path)


# safetensors


def test_safetensors_of_every_dtype(tmp_path):
    expected = {**STATE, "bfloat16": np.array([1.5, -2.0], ml_dtypes.bfloat16)}
    save_file(expected, tmp_path / "w.safetensors", {"format": "pt"})
    raw = read_weights(tmp_path / "w.safetensors")
    assert raw.layout == "torchvision"
    assert raw.metadata == {"format": "pt"}
    equal(raw.arrays, expected)


def test_safetensors_written_without_the_library(tmp_path):
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros(2, np.float32)}
    path = weight_files.safetensors(tmp_path / "w", arrays, {"format": "medadv_jax", "arch": "é"})
    raw = read_weights(path)
    assert raw.layout == "medadv_jax"
    assert raw.metadata == {"format": "medadv_jax", "arch": "é"}
    equal(raw.arrays, arrays)


def test_safetensors_without_arrays_or_with_hidden_bytes_are_refused(tmp_path):
    path = weight_files.safetensors(tmp_path / "w", {}, {"format": "pt"})
    assert "no array" in refusal(path)
    path = weight_files.safetensors(tmp_path / "w", {"a": NUMBERS})
    path.write_bytes(path.read_bytes() + b"hidden")
    refusal(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]},
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32"},
        [],
    ],
)
def test_safetensors_that_lie_are_refused(tmp_path, entry):
    text = str(entry).replace("'", '"').encode()
    text = b'{"a": ' + text + b"}"
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    refusal(path)
    path.write_bytes((2**63).to_bytes(8, "little") + text)
    assert "header" in refusal(path)


# Keras


@pytest.mark.parametrize("root", ["", "model_weights"])
@pytest.mark.parametrize("weight", ["{0}/{1}:0", "{0}/{0}/{1}:0", "{0}/{1}"])
def test_keras_layers_in_groups(tmp_path, root, weight):
    raw = read_weights(weight_files.keras_h5(tmp_path / "w.h5", KERAS, root, weight))
    assert raw.layout == "keras"
    assert raw.metadata == {"keras_version": "2.1.0"}
    equal(raw.arrays, KERAS)


GROUPS = {
    "conv2d": weight_files.arrays((3, 3, 3, 2)),
    "conv2d_1": weight_files.arrays((1, 1, 2, 2), (2,)),
    "batch_normalization": weight_files.arrays((2,), (2,), (2,), seed=1),
    "batch_normalization_1": weight_files.arrays((2,), (2,), (2,), (2,), seed=2),
    "dense": weight_files.arrays((2, 5), (5,)),
}
LAYERS = dict(
    zip(
        GROUPS,
        ["conv2d_95", "stem", "batch_normalization_96", "norm", "predictions"],
        strict=True,
    )
)
NAMED = {
    "conv2d/kernel": GROUPS["conv2d"][0],
    "stem/kernel": GROUPS["conv2d_1"][0],
    "stem/bias": GROUPS["conv2d_1"][1],
    **{
        f"batch_normalization/{name}": GROUPS["batch_normalization"][i]
        for i, name in enumerate(("beta", "moving_mean", "moving_variance"))
    },
    **{
        f"norm/{name}": GROUPS["batch_normalization_1"][i]
        for i, name in enumerate(("gamma", "beta", "moving_mean", "moving_variance"))
    },
    "predictions/kernel": GROUPS["dense"][0],
    "predictions/bias": GROUPS["dense"][1],
}


def test_keras_3_names_layers_in_attributes_or_config(tmp_path):
    equal(
        read_weights(weight_files.keras_weights_h5(tmp_path / "a.h5", GROUPS, LAYERS)).arrays, NAMED
    )
    classes = ["Conv2D", "Conv2D", "BatchNormalization", "BatchNormalization", "Dense"]
    layers = [
        {"class_name": kind, "config": {"name": name}}
        for kind, name in zip(classes, LAYERS.values(), strict=True)
    ]
    layers.insert(1, {"class_name": "ReLU", "config": {"name": "relu"}})
    inner = weight_files.keras_weights_h5(tmp_path / "b.h5", GROUPS)
    path = weight_files.keras_zip(tmp_path / "b.keras", inner, {"config": {"layers": layers}})
    equal(read_weights(path).arrays, NAMED)
    assert "none of the known networks" in refusal(inner)
    path = weight_files.keras_zip(tmp_path / "c.keras", inner, {"config": {"layers": [3]}})
    assert "lists no layers" in refusal(path)


def prefixed(prefix, arrays):
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def test_keras_models_within_models_keep_their_name_as_a_prefix(tmp_path):
    """The layers inside are renumbered on their own: outside there may be a `conv2d` too."""
    numbers = weight_files.arrays((3, 3, 3, 2), (3, 3, 2, 2), (2, 5), (3, 3, 5, 5))
    inner = {"conv2d_7/kernel": numbers[0], "conv2d_8/kernel": numbers[1]}
    outer = {"out/kernel": numbers[2], "conv2d_9/kernel": numbers[3]}
    path = weight_files.keras_nested_h5(tmp_path / "w.h5", "base", inner, outer)
    expected = {"base/conv2d/kernel": numbers[0], "base/conv2d_1/kernel": numbers[1]}
    equal(
        read_weights(path).arrays,
        {**expected, "out/kernel": numbers[2], "conv2d/kernel": numbers[3]},
    )


def test_keras_3_models_within_models(tmp_path):
    """With names in attributes, and with those of the config of the inner model."""
    groups = {f"functional/layers/{group}": arrays for group, arrays in GROUPS.items()}
    names = {f"functional/layers/{group}": name for group, name in LAYERS.items()}
    outer = {"dense": weight_files.arrays((5, 2), (2,), seed=4)}
    expected = {
        **prefixed("functional", NAMED),
        **{"out/kernel": outer["dense"][0], "out/bias": outer["dense"][1]},
    }
    given = {**groups, **outer}
    path = weight_files.keras_weights_h5(tmp_path / "a.h5", given, {**names, "dense": "out"})
    equal(read_weights(path).arrays, expected)
    classes = ["Conv2D", "Conv2D", "BatchNormalization", "BatchNormalization", "Dense"]
    layers = [
        {"class_name": kind, "config": {"name": name}}
        for kind, name in zip(classes, LAYERS.values(), strict=True)
    ]
    whole = [
        {"class_name": "Functional", "config": {"name": "base", "layers": layers}},
        {"class_name": "Dense", "config": {"name": "out"}},
    ]
    inner = weight_files.keras_weights_h5(tmp_path / "b.h5", given)
    path = weight_files.keras_zip(tmp_path / "b.keras", inner, {"config": {"layers": whole}})
    equal(read_weights(path).arrays, expected)


def hdf5(path, change):
    weight_files.keras_h5(path, KERAS)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replaced(create):
    def change(file):
        del file["predictions/predictions/kernel:0"]
        create(file["predictions/predictions"])

    return change


HDF5_TRICKS = {
    "external link": replaced(
        lambda group: group.__setitem__("kernel:0", h5py.ExternalLink("other.h5", "/a"))
    ),
    "soft link": replaced(lambda group: group.__setitem__("kernel:0", h5py.SoftLink("/a"))),
    "external storage": replaced(
        lambda group: group.create_dataset(
            "kernel:0", (4, 5), "f4", external=[("/etc/passwd", 0, 80)]
        )
    ),
    "never written": replaced(lambda group: group.create_dataset("kernel:0", (2**20, 2**20), "f4")),
    "compressed": replaced(
        lambda group: group.create_dataset("kernel:0", (2**12, 2**12), "f4", compression="gzip")
    ),
    "text": replaced(lambda group: group.create_dataset("kernel:0", data="weights")),
    "integers": replaced(lambda group: group.create_dataset("kernel:0", (2, 2), "i4")),
    "absent": replaced(lambda group: None),
    "a group": replaced(lambda group: group.create_group("kernel:0")),
    "cycle": lambda file: file["predictions"].__setitem__("loop", file["/"]),
    "no names": lambda file: file.attrs.__delitem__("layer_names"),
}


@pytest.mark.parametrize("name", HDF5_TRICKS)
def test_hdf5_tricks_are_refused(tmp_path, name):
    refusal(hdf5(tmp_path / "w.h5", HDF5_TRICKS[name]))


# Anything else


def written(tmp_path):
    """One small file of each format."""
    state = {name: STATE[name] for name in ("conv.weight", "conv.bias")}
    values = list(state.values())
    inner = weight_files.keras_weights_h5(tmp_path / "inner.h5", GROUPS, LAYERS)
    return {
        "zip": weight_files.torch_zip(tmp_path / "zip", weight_files.state_dict(state), values),
        "legacy": weight_files.torch_legacy(
            tmp_path / "leg", weight_files.state_dict(state, True), values
        ),
        "safetensors": weight_files.safetensors(tmp_path / "safe", {"a": NUMBERS}, {"b": "c"}),
        "h5": weight_files.keras_h5(tmp_path / "h5", KERAS),
        "keras": weight_files.keras_zip(tmp_path / "keras", inner, {}),
    }


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "h5", "keras"])
def test_truncated_files_are_refused(tmp_path, kind):
    path = written(tmp_path)[kind]
    whole = path.read_bytes()
    read_weights(path)
    for length in (0, 1, 9, 40, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal(path)


def test_no_file_a_folder_and_a_picture(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.pth")
    assert "directory" in refusal(tmp_path).lower()
    (tmp_path / "a.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    assert "not a file of weights" in refusal(tmp_path / "a.pth")
