"""Keras' weight files, read without Keras: `.h5`, `.weights.h5` and `.keras`.

Arrays get the names of keras.applications, `layer/variable`: `conv1_conv/kernel`,
`conv2d_17/kernel`, `predictions/bias`. A subprocess (`hdf5_listing.py`) asks the HDF5 library for
the arrays' offsets in the file; the arrays are then read from there.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from medadv_jax.models.pretrained.torch_files import WeightsFileError

_TIMEOUT = 120  # seconds for listing a file; it takes less than 1
_LISTING = Path(__file__).with_name("hdf5_listing.py")
_DTYPES = {"<f2", "<f4", "<f8"}
_BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
# The variables of a layer in Keras 3's order, by their number.
_VARIABLES: dict[str, dict[int, tuple[str, ...]]] = {
    "conv2d": {1: ("kernel",), 2: ("kernel", "bias")},
    "dense": {1: ("kernel",), 2: ("kernel", "bias")},
    # Without gamma in Inception (scale=False).
    "batch_normalization": {4: _BATCH_NORM, 3: _BATCH_NORM[1:], 2: _BATCH_NORM[2:]},
}
# `model.layers` is ordered by depth: for each block, the positions in the order of creation.
_INCEPTION_BLOCKS = (
    *[(0,)] * 5,
    *[(3, 1, 4, 0, 2, 5, 6)] * 3,
    (1, 2, 0, 3),
    *[(4, 5, 1, 6, 2, 7, 0, 3, 8, 9)] * 4,
    (2, 3, 0, 4, 1, 5),
    *[(4, 1, 5, 2, 3, 6, 7, 0, 8)] * 2,
)
_VGG_BLOCKS = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}
_RESNET_BLOCKS = {53: (3, 4, 6, 3)}
# Older names of ResNet50's classifier: `probs` in keras-applications, whose published file Keras
# still loads (by the order of the layers), and `fc1000` before.
_CLASSIFIERS = {"probs": "predictions", "fc1000": "predictions"}
_KERAS_1 = re.compile(r"_(W|b)(_\d+)?$")  # block1_conv1_W_1:0, in the published VGG files


def read_keras(path: Path, config: Any = None) -> tuple[dict[str, np.ndarray], str]:
    """Returns name → array, and the version of Keras that wrote the file, or "".

    Args:
        path: an HDF5 file.
        config: the parsed `config.json` of a `.keras` file, used only for the layers' names.

    Raises:
        WeightsFileError: the file is damaged or not a Keras weights file.
    """
    listing = _list(path)
    groups, stored = listing["groups"], listing["arrays"]
    version = ""
    for root in ("", "model_weights"):
        version = version or str(groups.get(root, {}).get("keras_version", ""))
        if isinstance(groups.get(root, {}).get("layer_names"), list):
            names = _names_by_group(groups, stored, root)
            order = groups[root]["layer_names"]
            return _read_arrays(path, stored, _renumber(names, order)), version
    for root in ("layers", "_layer_checkpoint_dependencies"):  # the second: TensorFlow 2.13
        if root in groups:
            names = _names_by_class(groups, stored, root, config)
            return _read_arrays(path, stored, _renumber(names)), version
    raise WeightsFileError(
        "an HDF5 file, but not one of Keras: it has neither layer_names nor layers/"
    )


def _list(path: Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-I", str(_LISTING), str(path.resolve())]
    # "::": no plugins, which HDF5 would load for a compression that the file names.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}
    try:
        result = subprocess.run(
            command, capture_output=True, timeout=_TIMEOUT, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise WeightsFileError(f"HDF5 did not come to an end with it in {_TIMEOUT} s") from error
    if result.returncode:
        reason = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise WeightsFileError(
            f"HDF5: {reason[-1] if reason else 'the library crashes or hangs with it'}"
        )
    return json.loads(result.stdout)


def _names_by_group(groups: dict, stored: dict, root: str) -> dict[str, str]:
    """Canonical name → HDF5 path, where a group is a layer and lists its arrays: files of
    keras.applications, of `model.save_weights` in Keras 1 and 2, and of `model.save("….h5")`."""
    names: dict[str, str] = {}
    for layer in groups[root]["layer_names"]:
        group = f"{root}/{layer}" if root else layer
        weights = groups.get(group, {}).get("weight_names", [])
        for weight in weights if isinstance(weights, list) else []:
            known = _CLASSIFIERS.get(layer, layer)
            place, canonical = f"{group}/{weight}", f"{known}/{_variable(weight)}"
            if place not in stored:
                raise WeightsFileError(f"{place[:120]} is listed, but not there")
            if canonical in names:
                raise WeightsFileError(f"{canonical[:120]} is there twice")
            names[canonical] = place
    return names


def _variable(weight: str) -> str:
    """`conv1_conv/kernel:0` → `kernel`, `block1_conv1_W_1:0` → `kernel`."""
    name = weight.partition(":")[0].rpartition("/")[2]
    old = _KERAS_1.search(name)
    return {"W": "kernel", "b": "bias"}[old[1]] if old else name


def _names_by_class(groups: dict, stored: dict, root: str, config: Any) -> dict[str, str]:
    """Canonical name → HDF5 path, where a group is named by the class of its layer and a number
    (Keras 3). The layer's name comes from its `name` attribute, else from config.json, else from
    the order of layers in the known networks."""
    variables: dict[str, dict[int, str]] = defaultdict(dict)
    for place in stored:
        match = re.fullmatch(rf"{root}/([^/]+)/vars/(\d{{1,4}})", place)
        if match:
            variables[match[1]][int(match[2])] = place
    layers = _layer_names(groups, root, sorted(variables), config)

    names: dict[str, str] = {}
    for group, places in variables.items():
        kinds = _VARIABLES.get(re.sub(r"_\d+$", "", group), {})
        if sorted(places) != list(range(len(places))) or len(places) not in kinds:
            raise WeightsFileError(
                f"{group[:80]} with {len(places)} arrays is no layer of these networks"
            )
        for number, variable in enumerate(kinds[len(places)]):
            names[f"{layers[group]}/{variable}"] = places[number]
    if len(names) != sum(map(len, variables.values())):
        raise WeightsFileError("two of its layers have one name")
    return names


def _layer_names(groups: dict, root: str, used: list[str], config: Any) -> dict[str, str]:
    """Group → name of the layer."""
    written = {group: groups.get(f"{root}/{group}/vars", {}).get("name") for group in used}
    if all(isinstance(name, str) and name for name in written.values()):
        return {group: str(name) for group, name in written.items()}
    names = _names_of_config(config) if config is not None else _names_of_counts(used)
    unknown = [group for group in used if group not in names]
    if unknown:
        raise WeightsFileError(
            f"the name of its layer {unknown[0][:80]} is not known; save it as .keras"
        )
    return names


def _names_of_config(config: Any) -> dict[str, str]:
    """Names from class and name of each layer in a config, in order; no object is built."""
    seen: Counter[str] = Counter()
    names: dict[str, str] = {}
    try:
        for layer in config["config"]["layers"]:
            kind = _snake_case(layer["class_name"])
            number, seen[kind] = seen[kind], seen[kind] + 1
            names[f"{kind}_{number}" if number else kind] = str(layer["config"]["name"])
    except (KeyError, TypeError) as error:
        raise WeightsFileError("its config.json lists no layers") from error
    return names


def _names_of_counts(used: list[str]) -> dict[str, str]:
    """Names from the known networks, recognised by their number of convolutions."""
    kinds = Counter(re.sub(r"_\d+$", "", group) for group in used)
    convs = kinds["conv2d"]
    if convs in _VGG_BLOCKS:
        blocks = enumerate(_VGG_BLOCKS[convs], 1)
        order = [f"block{i}_conv{j + 1}" for i, layers in blocks for j in range(layers)]
        return _numbered("conv2d", order) | _numbered("dense", ["fc1", "fc2", "predictions"])
    names = {"dense": "predictions"}
    if convs in _RESNET_BLOCKS:
        order = ["conv1"]
        for stage, blocks in enumerate(_RESNET_BLOCKS[convs], 2):
            # A shortcut's convolution is as deep as its block's last one, and created before it.
            for block in range(1, blocks + 1):
                parts = "1203" if block == 1 else "123"
                order += [f"conv{stage}_block{block}_{part}" for part in parts]
        names |= _numbered("conv2d", [f"{name}_conv" for name in order])
        return names | _numbered("batch_normalization", [f"{name}_bn" for name in order])
    if convs == len(_inception_order()):
        for kind in ("conv2d", "batch_normalization"):
            names |= _numbered(kind, [f"{kind}_{n}" if n else kind for n in _inception_order()])
        return names
    raise WeightsFileError(
        f"with {convs} convolutions it is none of the known networks; save it as .keras"
    )


def _inception_order() -> list[int]:
    """The numbers of Inception's convolutions, and of its norms, in the order of `model.layers`."""
    order: list[int] = []
    for block in _INCEPTION_BLOCKS:
        order += [len(order) + place for place in block]
    return order


def _numbered(kind: str, names: list[str]) -> dict[str, str]:
    return {f"{kind}_{i}" if i else kind: name for i, name in enumerate(names)}


def _snake_case(name: str) -> str:
    """Keras' own rule: BatchNormalization → batch_normalization, Conv2D → conv2d."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _renumber(names: dict[str, str], order: Sequence[str] = ()) -> dict[str, str]:
    """Renumbers `conv2d_95`, `conv2d_96` … from 0: Keras counts layers over a whole session.

    Keras 3 and TensorFlow begin with `conv2d`, Keras 2 with `conv2d_1`. If the file gives the
    `order` of layers, only that decides, as in Keras itself.
    """
    layers = {name.partition("/")[0] for name in names}
    renamed: dict[str, str] = {}
    for kind in ("conv2d", "batch_normalization"):
        numbers = {
            layer: int(match[1] or 0)
            for layer in [*(layer for layer in order if layer in layers), *sorted(layers)]
            if (match := re.fullmatch(rf"{kind}(?:_(\d{{1,6}}))?", layer))
        }
        first = min(numbers.values(), default=0)
        places = [number - first for number in numbers.values()]
        if order and len(places) == len(_inception_order()):
            places = _inception_order()
        for layer, place in zip(numbers, places, strict=True):
            renamed[layer] = f"{kind}_{place}" if place else kind
    split = {name: name.partition("/") for name in names}
    return {
        f"{renamed.get(layer, layer)}/{variable}": names[name]
        for name, (layer, _, variable) in split.items()
    }


def _read_arrays(path: Path, stored: dict, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Reads the arrays from their offsets; their total size is bounded by the file's."""
    size = path.stat().st_size
    arrays: dict[str, np.ndarray] = {}
    total = 0
    with path.open("rb") as file:
        for name, place in names.items():
            shape, dtype, offset = stored[place]
            if dtype not in _DTYPES and dtype != "bfloat16":
                raise WeightsFileError(
                    f"{name[:80]} is of type {str(dtype)[:20]}, not floating point"
                )
            if offset is None:
                raise WeightsFileError(
                    f"{name[:80]} is not stored in one piece; save it with Keras"
                )
            kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
            count = math.prod(shape)
            total += count * kind.itemsize
            if offset + count * kind.itemsize > size or total > size:
                raise WeightsFileError(f"{name[:80]} of shape {shape} reaches outside the file")
            file.seek(offset)
            arrays[name] = np.fromfile(file, kind, count).reshape(shape)
    return arrays
