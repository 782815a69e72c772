"""The weights of keras.applications: names `layer/variable`, transforms, options, normalisation.

`keras_files.py` gives names in this form for every format of Keras files. Inception's layers are
numbered in the order of their creation, from 0: `conv2d`, `conv2d_1`, …
"""

import functools

from medadv_jax.models.pretrained.layers import (
    Layer,
    Leaves,
    Path,
    SourceArray,
    Transform,
    layers_of,
    sources_of,
    unchanged,
)

# Options of `create_model` that reproduce Keras' network. All are given: stored files must keep
# their meaning if a default changes.
_KERAS_NORM = {"bn_momentum": 0.99, "bn_unbiased": False}
OPTIONS: dict[str, dict[str, bool | int | float | str]] = {
    "vgg16": {"head": "fc", "dropout": 0.0},
    "vgg19": {"head": "fc", "dropout": 0.0},
    "resnet50": {"variant": "v1", "conv_bias": True, "bn_epsilon": 1.001e-5, **_KERAS_NORM},
    "inception_v3": {
        "aux": False,
        "count_padding": False,
        "bn_scale": False,
        "bn_epsilon": 1e-3,
        "dropout": 0.0,
        **_KERAS_NORM,
    },
}

# "caffe": pixels times 255, channels in the order blue, green, red, minus the channels' mean.
NORMALIZATION: dict[str, str] = {
    "vgg16": "caffe",
    "vgg19": "caffe",
    "resnet50": "caffe",
    "inception_v3": "symmetric",
}

# Patterns (re.fullmatch) of arrays that a file may hold without our using them: none.
IGNORED: tuple[str, ...] = ()


def sources(arch: str) -> dict[Path, SourceArray]:
    """Returns path of each of our arrays → Keras' array and its transform.

    `arch`: a key of `OPTIONS`. Files without a head ("notop") lack the arrays of the layers in
    `HEAD`.
    """
    layers = layers_of(arch)
    if arch == "inception_v3":
        numbered = functools.partial(_numbered, numbers=_numbers(layers))
        return sources_of(layers, numbered, _leaves(conv_bias=False, bn_scale=False))
    prefix = _resnet if arch == "resnet50" else _vgg
    return sources_of(layers, prefix, _leaves(conv_bias=True, bn_scale=True))


def _leaves(conv_bias: bool, bn_scale: bool) -> Leaves:
    kernel: dict[tuple[str, str], tuple[str, Transform]] = {
        ("params", "kernel"): ("/kernel", unchanged)
    }
    bias: dict[tuple[str, str], tuple[str, Transform]] = {("params", "bias"): ("/bias", unchanged)}
    scale: dict[tuple[str, str], tuple[str, Transform]] = {
        ("params", "scale"): ("/gamma", unchanged)
    }
    return {
        "conv": kernel | (bias if conv_bias else {}),
        "dense": kernel | bias,
        "norm": {
            ("params", "bias"): ("/beta", unchanged),
            ("batch_stats", "mean"): ("/moving_mean", unchanged),
            ("batch_stats", "var"): ("/moving_variance", unchanged),
        }
        | (scale if bn_scale else {}),
    }


def _vgg(layer: Layer) -> str:
    name = layer.path[0]
    if layer.kind == "dense":
        return {"fc": "predictions"}.get(name, name)
    stage, place = name.removeprefix("conv").split("_")
    return f"block{stage}_conv{place}"


def _resnet(layer: Layer) -> str:
    if layer.kind == "dense":
        return "predictions"
    kind = "conv" if layer.kind == "conv" else "bn"
    if len(layer.path) == 1:
        return f"conv1_{kind}"
    block, name = layer.path
    stage, place = block.removeprefix("layer").split("_")
    part = "0" if name.startswith("downsample") else name[-1]
    return f"conv{int(stage) + 1}_block{int(place) + 1}_{part}_{kind}"


def _numbers(layers: list[Layer]) -> dict[Path, int]:
    """Path of each layer → its number among the layers of its kind, from 0."""
    kinds = {
        kind: [layer.path for layer in layers if layer.kind == kind] for kind in ("conv", "norm")
    }
    return {path: i for paths in kinds.values() for i, path in enumerate(paths)}


def _numbered(layer: Layer, numbers: dict[Path, int]) -> str:
    if layer.kind == "dense":
        return "predictions"
    name = "conv2d" if layer.kind == "conv" else "batch_normalization"
    number = numbers[layer.path]
    return f"{name}_{number}" if number else name
