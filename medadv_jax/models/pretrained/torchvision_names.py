"""torchvision's weights (0.28 and older): `state_dict` keys, transforms, options, normalisation.

torchvision's published Inception weights set `transform_input`, which maps images normalised with
ImageNet's mean and deviation to [-1, 1]. Here the normalisation is "symmetric" in one step.
"""

from collections.abc import Callable

from medadv_jax.models.pretrained.layers import (
    Layer,
    Leaves,
    Path,
    SourceArray,
    Transform,
    dense_from_chw,
    hwio_from_oihw,
    layers_of,
    sources_of,
    transposed,
    unchanged,
)

# Options of `create_model` that reproduce torchvision's network. All are given: stored files must
# keep their meaning if a default changes.
_TORCH_NORM = {"bn_momentum": 0.9, "bn_unbiased": True}
OPTIONS: dict[str, dict[str, bool | int | float | str]] = {
    "vgg16": {"head": "fc", "dropout": 0.5},
    "vgg19": {"head": "fc", "dropout": 0.5},
    "resnet50": {"variant": "v1.5", "conv_bias": False, "bn_epsilon": 1e-5, **_TORCH_NORM},
    "inception_v3": {
        "aux": False,
        "count_padding": True,
        "bn_scale": True,
        "bn_epsilon": 1e-3,
        "dropout": 0.5,
        **_TORCH_NORM,
    },
}

NORMALIZATION: dict[str, str] = {
    "vgg16": "imagenet",
    "vgg19": "imagenet",
    "resnet50": "imagenet",
    "inception_v3": "symmetric",
}

# Patterns (re.fullmatch) of arrays that a file may hold without our using them: counters of batches
# and of averaged models, and the auxiliary head, which does not affect the logits.
IGNORED: tuple[str, ...] = (r".*\.num_batches_tracked", r"n_averaged", r"AuxLogits\..*")

_BIASED = {"vgg16", "vgg19"}  # architectures whose convolutions have a bias


def sources(arch: str, aux: bool = False) -> dict[Path, SourceArray]:
    """Returns path of each of our arrays → torchvision's array and its transform.

    Args:
        arch: a key of `OPTIONS`.
        aux: with the auxiliary head of Inception (for `create_model(…, aux=True)`).
    """
    layers = layers_of(arch, aux)
    prefix = {"resnet50": _resnet, "inception_v3": _dotted}.get(arch) or _vgg(layers)
    return sources_of(layers, prefix, _leaves(arch in _BIASED)) | _flattened(arch)


def _leaves(conv_bias: bool) -> Leaves:
    bias: dict[tuple[str, str], tuple[str, Transform]] = {("params", "bias"): (".bias", unchanged)}
    return {
        "conv": {("params", "kernel"): (".weight", hwio_from_oihw)} | (bias if conv_bias else {}),
        "dense": {("params", "kernel"): (".weight", transposed)} | bias,
        "norm": {
            ("params", "scale"): (".weight", unchanged),
            ("params", "bias"): (".bias", unchanged),
            ("batch_stats", "mean"): (".running_mean", unchanged),
            ("batch_stats", "var"): (".running_var", unchanged),
        },
    }


def _flattened(arch: str) -> dict[Path, SourceArray]:
    """VGG's first dense layer: torchvision flattens maps channels first."""
    if arch not in ("vgg16", "vgg19"):
        return {}
    return {("params", "fc1", "kernel"): SourceArray("classifier.0.weight", dense_from_chw)}


def _dotted(layer: Layer) -> str:
    return ".".join(layer.path)


def _resnet(layer: Layer) -> str:
    if len(layer.path) == 1:
        return layer.path[0]
    block, name = layer.path
    name = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(name, name)
    return f"{block.replace('_', '.')}.{name}"


def _vgg(layers: list[Layer]) -> Callable[[Layer], str]:
    """In `features`, every ReLU (one per layer) and pooling (one per stage) takes a number too."""
    names = {"fc1": "classifier.0", "fc2": "classifier.3", "fc": "classifier.6"}
    for i, layer in enumerate(layer for layer in layers if layer.kind == "conv"):
        stage = int(layer.path[0].removeprefix("conv").split("_")[0])
        names[layer.path[0]] = f"features.{2 * i + stage - 1}"
    return lambda layer: names[layer.path[0]]
