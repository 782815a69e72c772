"""Names the arrays of Keras' weight files, `.h5`, `.weights.h5` and `.keras`, without Keras.

Arrays get the names of keras.applications, `layer/variable`: `conv1_conv/kernel`,
`conv2d_17/kernel`, `predictions/bias`. The layers of a model within a model have the name of the
inner model before them: `vgg16/block1_conv1/kernel`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

_DTYPES = {"<f2", "<f4", "<f8", "bfloat16"}
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


class FileFault(Exception):
    """Why a file cannot be read; `read_weights` adds the path and raises a UserError."""


def name_arrays(listing: dict[str, Any]) -> tuple[dict[str, list], str]:
    """Returns name → entry of the listing, and the version of Keras that wrote the file, or "".

    Args:
        listing: of an HDF5 file; see `listing/`. The "config" of a `.keras` file is used only for
            the layers' names.

    Raises:
        FileFault: the file is damaged or not a Keras weights file.
    """
    groups, stored = listing["groups"], listing["arrays"]
    version = ""
    for root in ("", "model_weights"):
        version = version or str(groups.get(root, {}).get("keras_version", ""))
        if isinstance(groups.get(root, {}).get("layer_names"), list):
            return _entries(stored, _names_by_group(groups, stored, root)), version
    for root in ("layers", "_layer_checkpoint_dependencies"):  # the second: TensorFlow 2.13
        if root in groups:
            return _entries(
                stored, _names_by_class(groups, stored, root, listing.get("config"))
            ), version
    raise FileFault("an HDF5 file, but not one of Keras: it has neither layer_names nor layers/")


def _entries(stored: dict[str, list], names: dict[str, str]) -> dict[str, list]:
    for name, place in names.items():
        if stored[place][0] not in _DTYPES:
            raise FileFault(
                f"{name[:80]} is of type {str(stored[place][0])[:20]}, not floating point"
            )
    return {name: stored[place] for name, place in names.items()}


def _names_by_group(groups: dict, stored: dict, root: str) -> dict[str, str]:
    """Canonical name → HDF5 path, where a group is a layer and lists its arrays: files of
    keras.applications, of `model.save_weights` in Keras 1 and 2, and of `model.save("….h5")`.

    A model within the model is one group, which lists the arrays of all its layers.
    """
    flat: dict[str, str] = {}
    nested: dict[str, str] = {}
    for layer in groups[root]["layer_names"]:
        group = f"{root}/{layer}" if root else layer
        weights = groups.get(group, {}).get("weight_names", [])
        weights = weights if isinstance(weights, list) else []
        inner: dict[str, str] = {}
        layers = [weight.rpartition("/")[0].rpartition("/")[2] for weight in weights]
        within = len(set(layers)) > 1
        for weight, own in zip(weights, layers, strict=True):
            name = str(own if within else layer)
            _add(inner, f"{_CLASSIFIERS.get(name, name)}/{_variable(weight)}", f"{group}/{weight}")
        if within:
            inner = {f"{layer}/{name}": at for name, at in _renumber(inner, layers).items()}
        for name, place in inner.items():
            _add(nested if within else flat, name, place)
    for place in (flat | nested).values():
        if place not in stored:
            raise FileFault(f"{place[:120]} is listed, but not there")
    return _renumber(flat, groups[root]["layer_names"]) | nested


def _add(names: dict[str, str], name: str, place: str) -> None:
    if name in names:
        raise FileFault(f"{name[:120]} is there twice")
    names[name] = place


def _variable(weight: str) -> str:
    """`conv1_conv/kernel:0` → `kernel`, `block1_conv1_W_1:0` → `kernel`."""
    name = weight.partition(":")[0].rpartition("/")[2]
    old = _KERAS_1.search(name)
    return {"W": "kernel", "b": "bias"}[old[1]] if old else name


def _names_by_class(groups: dict, stored: dict, root: str, config: Any) -> dict[str, str]:
    """Canonical name → HDF5 path, where a group is named by the class of its layer and a number
    (Keras 3). The layer's name comes from its `name` attribute, else from config.json, else from
    the order of layers in the known networks. A model within the model has layers of its own."""
    variables: dict[str, dict[int, str]] = defaultdict(dict)
    models: dict[str, None] = {}
    for place in stored:
        if match := re.fullmatch(rf"{re.escape(root)}/([^/]+)/vars/(\d{{1,4}})", place):
            variables[match[1]][int(match[2])] = place
        elif match := re.match(rf"{re.escape(root)}/([^/]+)/layers/", place):
            models[match[1]] = None
    layers = _layer_names(groups, root, sorted(variables), config)

    names: dict[str, str] = {}
    for group, places in variables.items():
        for number, variable in enumerate(_variables(group, places)):
            _add(names, f"{layers[group]}/{variable}", places[number])
    names = _renumber(names)
    for group in models:
        within = _names_by_class(groups, stored, f"{root}/{group}/layers", _within(config, group))
        names |= {f"{group}/{name}": place for name, place in within.items()}
    return names


def _variables(group: str, places: dict[int, str]) -> Sequence[str]:
    """The names of a layer's variables in order; numbers, where its class is none of ours."""
    kinds = _VARIABLES.get(re.sub(r"_\d+$", "", group))
    known = kinds is None or len(places) in kinds
    if sorted(places) != list(range(len(places))) or not known:
        raise FileFault(f"{group[:80]} with {len(places)} arrays is no layer of these networks")
    return kinds[len(places)] if kinds else [str(number) for number in sorted(places)]


def _layer_names(groups: dict, root: str, used: list[str], config: Any) -> dict[str, str]:
    """Group → name of the layer."""
    written = {group: groups.get(f"{root}/{group}/vars", {}).get("name") for group in used}
    if all(isinstance(name, str) and name for name in written.values()):
        return {group: str(name) for group, name in written.items()}
    if config is not None:
        names = {group: str(layer["config"]["name"]) for group, layer in _layers(config).items()}
    else:
        names = _names_of_counts(used)
    unknown = [group for group in used if group not in names]
    if unknown:
        raise FileFault(f"the name of its layer {unknown[0][:80]} is not known; save it as .keras")
    return names


def _layers(config: Any) -> dict[str, Any]:
    """Group → layer of a config, named by class and number in order; no object is built."""
    seen: Counter[str] = Counter()
    layers: dict[str, Any] = {}
    try:
        for layer in config["config"]["layers"]:
            kind = _snake_case(layer["class_name"])
            number, seen[kind] = seen[kind], seen[kind] + 1
            str(layer["config"]["name"])
            layers[f"{kind}_{number}" if number else kind] = layer
    except (KeyError, TypeError) as error:
        raise FileFault("its config.json lists no layers") from error
    return layers


def _within(config: Any, group: str) -> Any:
    """The config of a model within the model; None if it is not known."""
    return None if config is None else _layers(config).get(group)


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
    raise FileFault(
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
