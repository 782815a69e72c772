"""torchvision's weights (0.28 and older): `state_dict` keys, their arrays, and the options.

`transform_input` of torchvision's Inception, which its published weights switch on, turns images
normalised with ImageNet's mean and deviation into ones in [-1, 1]; so for these weights the
normalisation of pixels is "symmetric", applied directly.
"""

from collections.abc import Callable

from medadv_jax.models.pretrained.layers import (
    Layer,
    Leaves,
    Path,
    Source,
    Transform,
    dense_from_chw,
    hwio_from_oihw,
    layers_of,
    same,
    sources_of,
    transposed,
)

# Options of `create_model` that make our network torchvision's: said in full, since defaults may
# change, and stored files must not.
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

# Patterns (re.fullmatch) of names in a file that may be left alone when nothing asks for them:
# a counter that nothing computes with, and the auxiliary head, which no logits come through.
IGNORED: tuple[str, ...] = (r".*\.num_batches_tracked", r"AuxLogits\..*")

_BIASED = {"vgg16", "vgg19"}  # architectures whose convolutions have a bias


def sources(arch: str, top: bool = True, aux: bool = False) -> dict[Path, Source]:
    """Returns, for each of our arrays, the name and transform of torchvision's.

    Args:
        arch: a key of `OPTIONS`.
        top: with the dense layers of the classifier.
        aux: with the auxiliary head of Inception (for `create_model(…, aux=True)`).
    """
    layers = layers_of(arch, top, aux)
    prefix = {"resnet50": _resnet, "inception_v3": _dotted}.get(arch) or _vgg(layers)
    return sources_of(layers, prefix, _leaves(arch in _BIASED)) | _flattened(arch, top)


def _leaves(conv_bias: bool) -> Leaves:
    bias: dict[tuple[str, str], tuple[str, Transform]] = {("params", "bias"): (".bias", same)}
    return {
        "conv": {("params", "kernel"): (".weight", hwio_from_oihw)} | (bias if conv_bias else {}),
        "dense": {("params", "kernel"): (".weight", transposed)} | bias,
        "norm": {
            ("params", "scale"): (".weight", same),
            ("params", "bias"): (".bias", same),
            ("batch_stats", "mean"): (".running_mean", same),
            ("batch_stats", "var"): (".running_var", same),
        },
    }


def _flattened(arch: str, top: bool) -> dict[Path, Source]:
    """VGG's first dense layer: torchvision flattens channels first."""
    if not top or arch not in ("vgg16", "vgg19"):
        return {}
    return {("params", "fc1", "kernel"): Source("classifier.0.weight", dense_from_chw)}


def _dotted(layer: Layer) -> str:
    return ".".join(layer.path)


def _resnet(layer: Layer) -> str:
    if len(layer.path) == 1:
        return layer.path[0]
    block, name = layer.path
    name = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(name, name)
    return f"{block.replace('_', '.')}.{name}"


def _vgg(layers: list[Layer]) -> Callable[[Layer], str]:
    """In `features` every ReLU (one a layer) and pooling (one a stage) has a number too."""
    names = {"fc1": "classifier.0", "fc2": "classifier.3", "fc": "classifier.6"}
    for i, layer in enumerate(layer for layer in layers if layer.kind == "conv"):
        stage = int(layer.path[0].removeprefix("conv").split("_")[0])
        names[layer.path[0]] = f"features.{2 * i + stage - 1}"
    return lambda layer: names[layer.path[0]]
