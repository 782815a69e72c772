"""The layers of each network in order, and the transforms from published arrays to ours.

A path locates an array in our variables: `("params", "conv1", "kernel")`,
`("batch_stats", "bn1", "mean")`. `torchvision_names.py` and `keras_names.py` map each path to a
`SourceArray`.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

Path = tuple[str, ...]
Transform = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SourceArray:
    """The array of an original file that becomes one of ours.

    Attributes:
      name: of the array in the original file.
      transform: original array → our layout, C-contiguous, same dtype.
    """

    name: str
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with parameters.

    Attributes:
      path: its names in our variables, without the collection ("params" or "batch_stats").
      kind: "conv", "norm" or "dense".
    """

    path: Path
    kind: str


# kind of layer → (collection, name of our array) → (name of the original array, transform)
Leaves = dict[str, dict[tuple[str, str], tuple[str, Transform]]]


def unchanged(array: np.ndarray) -> np.ndarray:
    """Returns the array, C-contiguous."""
    return np.ascontiguousarray(array)


def hwio_from_oihw(kernel: np.ndarray) -> np.ndarray:
    """(features, channels, height, width) → (height, width, channels, features)."""
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))


def transposed(kernel: np.ndarray) -> np.ndarray:
    """(outputs, inputs) → (inputs, outputs)."""
    return np.ascontiguousarray(kernel.T)


def dense_from_chw(kernel: np.ndarray, side: int = 7) -> np.ndarray:
    """(outputs, channels·side·side) → (side·side·channels, outputs).

    The inputs are a flattened map of side × side pixels: channels first there, last here.
    """
    kernel = kernel.reshape(kernel.shape[0], -1, side, side).transpose(2, 3, 1, 0)
    return np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]))


def sources_of(
    layers: Iterable[Layer], prefix: Callable[[Layer], str], leaves: Leaves
) -> dict[Path, SourceArray]:
    """Returns path → source of each array of `layers`; `prefix` gives a layer's original name."""
    return {
        (collection, *layer.path, leaf): SourceArray(prefix(layer) + name, transform)
        for layer in layers
        for (collection, leaf), (name, transform) in leaves[layer.kind].items()
    }


def layers_of(arch: str, aux: bool = False) -> list[Layer]:
    """Returns the layers of a network in the order in which Keras creates them.

    `aux`: with the auxiliary head of Inception.
    """
    if arch == "resnet50":
        return _resnet()
    return _inception(aux) if arch == "inception_v3" else _vgg(arch)


_VGG = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_RESNET = (3, 4, 6, 3)

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_DOUBLE = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
_A = ("branch1x1", "branch5x5_1", "branch5x5_2", *_DOUBLE, "branch_pool")
_B = ("branch3x3", *_DOUBLE)
_C = (
    "branch1x1",
    *(f"branch7x7_{i}" for i in (1, 2, 3)),
    *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)),
    "branch_pool",
)
_D = ("branch3x3_1", "branch3x3_2", *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)))
_E = (
    *("branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b"),
    *("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool"),
)
_MIXED = {
    **{"Mixed_5b": _A, "Mixed_5c": _A, "Mixed_5d": _A, "Mixed_6a": _B},
    **{"Mixed_6b": _C, "Mixed_6c": _C, "Mixed_6d": _C, "Mixed_6e": _C},
    **{"Mixed_7a": _D, "Mixed_7b": _E, "Mixed_7c": _E},
}


def _vgg(arch: str) -> list[Layer]:
    convs = [
        Layer((f"conv{stage + 1}_{layer + 1}",), "conv")
        for stage, layers in enumerate(_VGG[arch])
        for layer in range(layers)
    ]
    return convs + [Layer((name,), "dense") for name in ("fc1", "fc2", "fc")]


def _resnet() -> list[Layer]:
    layers = [Layer(("conv1",), "conv"), Layer(("bn1",), "norm")]
    for stage, blocks in enumerate(_RESNET):
        for block in range(blocks):
            name = f"layer{stage + 1}_{block}"
            pairs = [("downsample_conv", "downsample_bn")] if block == 0 else []
            pairs += [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
            for conv, norm in pairs:
                layers += [Layer((name, conv), "conv"), Layer((name, norm), "norm")]
    return [*layers, Layer(("fc",), "dense")]


def _inception(aux: bool) -> list[Layer]:
    pairs = [(name,) for name in _STEM]
    pairs += [(block, branch) for block, branches in _MIXED.items() for branch in branches]
    pairs += [("AuxLogits", name) for name in ("conv0", "conv1") if aux]
    layers = [
        Layer((*path, part), kind)
        for path in pairs
        for part, kind in (("conv", "conv"), ("bn", "norm"))
    ]
    layers += [Layer(("AuxLogits", "fc"), "dense")] if aux else []
    return [*layers, Layer(("fc",), "dense")]
