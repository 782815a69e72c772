"""The published networks with seeded random weights, and their outputs; for parity and golden.

numpy makes the weights from a seed and each array's original name, so both sides get the same
ones without a file. torch, torchvision and keras are imported only where they are used.

The originals and our gradient run in float64. In float32 two inputs of a max pooling can be equal
up to rounding; then either may get the gradient. PyTorch's own float32 and float64 gradients of
VGG16 at 224 px differ by 3.4e-2 of the largest value, ours from PyTorch's by as much in float32
and by 7e-7 in float64. Our logits and statistics run in float32, as deployed.
"""

# pyright: reportMissingImports=false
# torch, torchvision and keras are no dependencies of this project; `make parity` installs them.

import dataclasses
import functools
import os
import zlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.models import create_model
from medadv_jax.models.pretrained import keras_names as keras_layout
from medadv_jax.models.pretrained import torchvision_names as torchvision_layout
from medadv_jax.models.pretrained.verify import without_fake_registration

LAYOUTS: dict[str, ModuleType] = {"torchvision": torchvision_layout, "keras": keras_layout}
IMAGE_SIZE = {"vgg16": 224, "vgg19": 224, "resnet50": 224, "inception_v3": 299}  # as published
NUM_CLASSES = 1000
BATCH = 3
# Golden files keep every 5th row and column of the gradient and every 16th running statistic.
GRADIENT_STEP, STATISTICS_STEP = 5, 16
# Maximum relative errors. One call changes the running statistics by a tenth or (Keras) a hundredth
# of their values, so their rounding weighs more.
BOUNDS = {"logits": 1e-4, "gradient": 1e-3, "statistics": 1e-3}
_HEADS = ("fc.", "classifier.6.", "predictions/")
# He's 2, or more where pooling reduces the variance: VGG, Inception.
_GAINS = {"features.": 2.6, "block": 2.6, "Conv2d_": 2.15, "Mixed_": 2.15, "conv2d": 2.15}
_LAST_OF_BLOCK = ("bn3.weight", "_3_bn/gamma")
_STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")

Shapes = dict[str, tuple[int, ...]]  # name in the original → shape


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The outputs of a network for `seeded_images`; of an original in float64.

    Attributes:
      logits: (B, classes) in eval mode.
      gradient: (B, H, W, 3) float64, of sum(logits * `seeded_cotangent`) in eval mode.
      statistics: original name → running statistic after one call in train mode.
      shapes: original name → shape of each array of the network.
    """

    logits: np.ndarray
    gradient: np.ndarray
    statistics: dict[str, np.ndarray]
    shapes: Shapes


def seeded_weight(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Returns random values, float32, for the array `name` of the original.

    The gradient jumps where an input of a ReLU crosses 0, and among 10 million inputs some always
    lie within rounding of it. Therefore biases move every even channel far above 0 and every odd
    one far below, and kernels sum to 0 over the even channels, so that this does not accumulate.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    uniform = rng.random(shape, np.float32)
    if name.endswith(("running_var", "moving_variance")):
        return uniform + np.float32(0.5)
    uniform -= np.float32(0.5)
    if len(shape) > 1:
        return _seeded_kernel(name, uniform)
    if name.endswith(("weight", "gamma")):  # a 1-d `weight` of torchvision is BatchNorm's scale
        scale = np.float32(0.4) * uniform + np.float32(1.0)
        # 16 residual blocks that double their input would make the biases negligible.
        return np.float32(0.3) * scale if name.endswith(_LAST_OF_BLOCK) else scale
    if name.endswith(("bias", "beta")) and not name.startswith(_HEADS):
        uniform[0::2] += np.float32(6.0)
        uniform[1::2] -= np.float32(6.0)
    return uniform


def _seeded_kernel(name: str, uniform: np.ndarray) -> np.ndarray:
    """Scales a uniform kernel to He's deviation and centres it over the even input channels."""
    channels_first = name.endswith("weight")  # torchvision's: (features, channels, …)
    fan_in = uniform[0].size if channels_first else uniform[..., 0].size
    gain = next((gain for start, gain in _GAINS.items() if name.startswith(start)), 2.0)
    uniform *= np.float32((12 * gain / fan_in) ** 0.5)  # deviation sqrt(gain / fan_in)
    view = np.moveaxis(uniform, 1 if channels_first else -2, 0)
    if name == "classifier.0.weight":  # its inputs are 512 channels × 49 places
        view = np.moveaxis(uniform.reshape(len(uniform), -1, 49), 1, 0)
    if len(view) > 3:  # not the images' channels
        view[0::2] -= view[0::2].mean(0, keepdims=True)
    return uniform


def seeded_images(batch: int, size: int, seed: int = 0) -> np.ndarray:
    """Returns normalised images (batch, size, size, 3) float32."""
    return np.random.default_rng([seed, size]).standard_normal((batch, size, size, 3), np.float32)


def seeded_cotangent(batch: int, classes: int = NUM_CLASSES, seed: int = 0) -> np.ndarray:
    """Returns (batch, classes) float32: weights of the logits in the sum for the gradient."""
    return np.random.default_rng([seed, 1]).standard_normal((batch, classes), np.float32)


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the maximum difference relative to the largest expected value; NaN stays NaN."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def gradient_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest `difference` over the images of gradients (B, H, W, 3)."""
    return float(np.max([difference(*each) for each in zip(actual, expected, strict=True)]))


# Ours


def our_variables(source: str, arch: str, shapes: Shapes, **arguments: Any) -> dict[str, Any]:
    """Returns our variables, converted from the original's seeded weights.

    `arguments` are passed to the layout's `sources`, such as `aux`.

    Raises:
        KeyError: the layout needs an array that is not in `shapes`.
    """
    variables: dict[str, Any] = {}
    for path, origin in LAYOUTS[source].sources(arch, **arguments).items():
        node = variables
        for part in path[:-1]:
            node = node.setdefault(part, {})
        weight = seeded_weight(origin.name, shapes[origin.name])
        node[path[-1]] = jnp.asarray(origin.transform(weight))
    return variables


def our_network(source: str, arch: str, shapes: Shapes) -> tuple[Any, dict[str, Any]]:
    """Returns our network with the original's options, and the original's seeded weights."""
    net = create_model(arch, num_classes=NUM_CLASSES, **LAYOUTS[source].OPTIONS[arch])
    return net, our_variables(source, arch, shapes)


def our_outputs(
    source: str,
    arch: str,
    images: np.ndarray,
    shapes: Shapes,
    compiler_options: dict[str, Any] | None = None,
) -> Outputs:
    """Runs our network with the original's seeded weights and options; the gradient in float64."""
    jit = functools.partial(jax.jit, compiler_options=compiler_options)
    net, variables = our_network(source, arch, shapes)
    inputs = jnp.asarray(images)

    def statistics(images: jax.Array, variables: dict[str, Any]) -> Any:
        key = {"dropout": jax.random.key(0)}
        return net.apply(variables, images, train=True, mutable=["batch_stats"], rngs=key)[1]

    logits = jit(net.apply)(variables, inputs)
    updated: Any = jit(statistics)(inputs, variables) if "batch_stats" in variables else {}
    named = {
        origin.name: np.asarray(_at(updated, path))
        for path, origin in LAYOUTS[source].sources(arch).items()
        if path[0] == "batch_stats"
    }
    gradient = our_gradient(net, variables, images, compiler_options=compiler_options)
    return Outputs(np.asarray(logits), gradient, named, shapes)


def our_gradient(
    net: Any,
    variables: dict[str, Any],
    images: np.ndarray,
    dtype: str = "float64",
    compiler_options: dict[str, Any] | None = None,
) -> np.ndarray:
    """Returns the gradient of `Outputs` of a network of ours, computed in `dtype`."""
    cotangent = seeded_cotangent(len(images))

    def loss(images: jax.Array, variables: dict[str, Any]) -> jax.Array:
        return jnp.sum(net.apply(variables, images) * cotangent)

    with jax.enable_x64(dtype == "float64"):
        net = net.clone(dtype=jnp.dtype(dtype))  # `create_model` does not offer float64
        # Layers cast kernels themselves; BatchNorm would round intermediate vectors to float32.
        variables = jax.tree.map(
            lambda array: jnp.asarray(array, dtype) if array.ndim == 1 else array, variables
        )
        gradient = jax.jit(jax.grad(loss), compiler_options=compiler_options)
        return np.asarray(gradient(jnp.asarray(images, dtype), variables))


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


# torchvision


def torchvision_network(arch: str, **arguments: Any) -> Any:
    """Returns torchvision's network with seeded weights, in eval mode, in float64."""
    import torch

    with without_fake_registration(torch):
        from torchvision import models
    # aux_logits as in the published files; init_weights=False: the slow initialiser is not needed.
    special = {"aux_logits": True, "init_weights": False} if arch == "inception_v3" else {}
    if arch.startswith("vgg"):
        special = {"init_weights": False}
    network = getattr(models, arch)(weights=None, **special, **arguments)
    state = {
        name: torch.from_numpy(seeded_weight(name, tuple(tensor.shape)))
        for name, tensor in network.state_dict().items()
        if tensor.ndim > 0
    }
    network.load_state_dict(state, strict=False)  # leaves num_batches_tracked alone
    return network.eval().double()


def torchvision_outputs(arch: str, images: np.ndarray, **arguments: Any) -> Outputs:
    """Runs torchvision's network; `arguments` go to its constructor."""
    import torch

    network = torchvision_network(arch, **arguments)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).double().requires_grad_()
    logits = network(inputs)
    (logits * torch.from_numpy(seeded_cotangent(len(images)))).sum().backward()
    gradient = inputs.grad.numpy().transpose(0, 2, 3, 1)
    if arch == "inception_v3" and images.shape[1] < IMAGE_SIZE[arch]:
        network.AuxLogits = None  # it does not take smaller images
    with torch.no_grad():
        network.train()(inputs.detach())
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    statistics = {name: array for name, array in state.items() if name.endswith(_STATISTICS)}
    shapes = {name: array.shape for name, array in state.items()}
    return Outputs(logits.detach().numpy(), gradient, statistics, shapes)


# Keras


def keras_network(arch: str, size: int) -> Any:
    """Returns Keras' network for images of `size` × `size`, with seeded weights, in float64.

    Call it under `jax.enable_x64`.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras
    from keras.src.backend.common import dtypes

    keras.utils.clear_session()  # restarts the numbering of layers
    keras.config.set_floatx("float64")
    # Keras 3.15 on JAX demotes float64 to float32 when dtypes mix, as in BatchNormalization.
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    names = {"vgg16": "VGG16", "vgg19": "VGG19", "resnet50": "ResNet50"}
    network = getattr(keras.applications, names.get(arch, "InceptionV3"))(
        weights=None, input_shape=(size, size, 3), classifier_activation=None
    )
    for name, variable in _keras_variables(network).items():
        variable.assign(seeded_weight(name, tuple(variable.shape)))
    return network


def keras_outputs(arch: str, images: np.ndarray) -> Outputs:
    """Runs Keras' network, on the JAX backend."""
    with jax.enable_x64(True):
        network = keras_network(arch, images.shape[1])
        trainable = [variable.value for variable in network.trainable_variables]
        fixed = [variable.value for variable in network.non_trainable_variables]
        cotangent = seeded_cotangent(len(images))

        def loss(images: jax.Array, trainable: Any, fixed: Any) -> tuple[jax.Array, jax.Array]:
            logits, _ = network.stateless_call(trainable, fixed, images, training=False)
            return jnp.sum(logits * cotangent), logits

        def statistics(images: jax.Array, trainable: Any, fixed: Any) -> Any:
            return network.stateless_call(trainable, fixed, images, training=True)[1]

        inputs = jnp.asarray(images, jnp.float64)
        gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(inputs, trainable, fixed)
        updated = jax.jit(statistics)(inputs, trainable, fixed) if fixed else []
    variables = _keras_variables(network)
    values = {id(v): new for v, new in zip(network.non_trainable_variables, updated, strict=True)}
    named = {
        name: np.asarray(values[id(variable)])
        for name, variable in variables.items()
        if name.endswith(_STATISTICS)
    }
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    return Outputs(np.asarray(logits), np.asarray(gradient), named, shapes)


def _keras_variables(network: Any) -> dict[str, Any]:
    return {f"{layer.name}/{v.name}": v for layer in network.layers for v in layer.weights}


def original_outputs(source: str, arch: str, images: np.ndarray) -> Outputs:
    """Runs the original network, "torchvision" or "keras", with seeded weights on `images`."""
    run = torchvision_outputs if source == "torchvision" else keras_outputs
    return run(arch, images)
