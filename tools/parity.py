"""Compares our networks with torchvision's and Keras', all with the same random weights.

    python -m tools.parity            # needs torch, torchvision, keras, h5py
    python -m tools.parity --arch=resnet50 --source=keras

For each network and source, at the full input size and at an odd one, it compares the logits and
the gradient to the images in eval mode, and the change of the running statistics in train mode.
Errors are maximum differences relative to the largest value; of gradients the worst image counts.
The originals run in float64. Ours run in float32, but for the gradient (`originals.py` says why;
--float32 also shows it in float32, without a bound). Exits 1 if an error is above its bound.
"""

# pyright: reportMissingImports=false
# torch is no dependency of this project; `make parity` installs it.

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.extend.core import jaxprs_in_params

from medadv_jax.classifier import NORMALIZATIONS
from medadv_jax.models import create_model
from medadv_jax.models.pretrained import torchvision_names as torchvision_layout
from tools import originals
from tools.originals import BATCH, BOUNDS, difference, gradient_difference

_ARCH = flags.DEFINE_multi_enum(
    "arch", sorted(originals.IMAGE_SIZE), sorted(originals.IMAGE_SIZE), "networks to compare"
)
_SOURCE = flags.DEFINE_multi_enum(
    "source", sorted(originals.LAYOUTS), sorted(originals.LAYOUTS), "originals to compare with"
)
_FLOAT32 = flags.DEFINE_boolean("float32", False, "show the gradient in float32 too")

# Keras' VGG has no adaptive pooling: its head takes 7×7 maps only, from images of 224 to 255.
ODD_SIZE = {"vgg16": 101, "vgg19": 101, "resnet50": 101, "inception_v3": 139}
ODD_SIZE_KERAS = {"vgg16": 239, "vgg19": 239}


def odd_size(source: str, arch: str) -> int:
    """Returns the odd image size at which `arch` is compared with `source`."""
    return (ODD_SIZE | (ODD_SIZE_KERAS if source == "keras" else {}))[arch]


def statistics_difference(ours: originals.Outputs, theirs: originals.Outputs) -> float | None:
    """Returns the largest relative error of the change that one call makes to the statistics.

    Statistics that only torchvision has, those of AuxLogits, are not compared.
    """
    names = ours.statistics.keys()
    if not names:
        return None
    starts = {name: originals.seeded_weight(name, theirs.shapes[name]) for name in names}
    moves = [
        difference(ours.statistics[name] - starts[name], theirs.statistics[name] - starts[name])
        for name in names
    ]
    return float(np.max(moves))  # unlike `max`, keeps a NaN


def differences(ours: originals.Outputs, theirs: originals.Outputs) -> dict[str, float | None]:
    """Returns the columns of the table that have a bound."""
    return {
        "logits": difference(ours.logits, theirs.logits),
        "gradient": gradient_difference(ours.gradient, theirs.gradient),
        "statistics": statistics_difference(ours, theirs),
    }


def compare(source: str, arch: str, size: int) -> dict[str, float | None]:
    """Returns the differences between our network and the original at one image size."""
    images = originals.seeded_images(BATCH, size)
    theirs = originals.original_outputs(source, arch, images)
    ours = originals.our_outputs(source, arch, images, theirs.shapes)
    found = differences(ours, theirs)
    if _FLOAT32.value:
        network = originals.our_network(source, arch, theirs.shapes)
        float32 = originals.our_gradient(*network, images, "float32")
        found["(float32)"] = gradient_difference(float32, theirs.gradient)
    return found


def compare_transform_input() -> dict[str, float | None]:
    """Compares torchvision's Inception as published, on pixels, with ours on "symmetric" ones."""
    arch, size = "inception_v3", ODD_SIZE["inception_v3"]
    pixels = np.random.default_rng(0).random((BATCH, size, size, 3), np.float32)
    (mean, std), (our_mean, our_std) = (
        np.asarray(NORMALIZATIONS[name][:2], np.float32)
        for name in ("imagenet", torchvision_layout.NORMALIZATION[arch])
    )
    theirs = originals.torchvision_outputs(arch, (pixels - mean) / std, transform_input=True)
    inputs = (pixels - our_mean) / our_std
    ours = originals.our_outputs("torchvision", arch, inputs, theirs.shapes)
    return differences(
        # With respect to pixels: each side's gradient is with respect to its own input.
        dataclasses.replace(ours, gradient=ours.gradient / our_std),
        dataclasses.replace(theirs, gradient=theirs.gradient / std),
    )


def compare_aux() -> dict[str, float | None]:
    """Compares the auxiliary head's logits in train mode, with batch statistics."""
    import torch

    arch, size = "inception_v3", originals.IMAGE_SIZE["inception_v3"]
    images = originals.seeded_images(BATCH, size)
    network = originals.torchvision_network(arch)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).double()
        expected = network.train()(inputs).aux_logits.numpy()
    options: Any = torchvision_layout.OPTIONS[arch] | {"aux": True}
    net = create_model(arch, num_classes=originals.NUM_CLASSES, **options)
    variables = originals.our_variables("torchvision", arch, shapes, aux=True)
    _, updated = jax.jit(
        lambda variables, images: net.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats", "aux"],
            rngs={"dropout": jax.random.key(0)},
        )
    )(variables, jnp.asarray(images))
    return {"logits": difference(np.asarray(updated["aux"]["logits"]), expected)}


# Size and cost


def macs(jaxpr: Any) -> int:
    """Returns the multiply-adds of the convolutions and matrix products in a jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        shape = equation.outvars[0].aval.shape
        if equation.primitive.name == "conv_general_dilated":
            total += math.prod(shape) * math.prod(equation.invars[1].aval.shape[:-1])
        elif equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += math.prod(shape) * math.prod(left[axis] for axis in contracted)
        for inner in jaxprs_in_params(equation.params):
            total += macs(inner)
    return total


def size_and_cost(arch: str) -> tuple[int, float]:
    """Returns the parameters with 1000 classes, and GFLOPs of one image (multiply-add: 2)."""
    net = create_model(arch, num_classes=originals.NUM_CLASSES, conv_impl="plain")
    images = jax.ShapeDtypeStruct((1, *[originals.IMAGE_SIZE[arch]] * 2, 3), jnp.float32)
    variables: Any = jax.eval_shape(net.init, jax.random.key(0), images)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return count, 2e-9 * macs(jax.make_jaxpr(net.apply)(variables, images).jaxpr)


# Report


COLUMNS = ("logits", "gradient", "statistics", "(float32)")


def report(title: str, differences: dict[str, float | None]) -> bool:
    """Prints one line; returns whether all differences are within their bounds."""
    within = True
    cells = []
    for name in COLUMNS:
        value = differences.get(name)
        cells.append("–" if value is None else f"{value:.1e}")
        within &= value is None or value <= BOUNDS.get(name, math.inf)  # NaN never is
    print(f"{title:44}" + "".join(f"{cell:>12}" for cell in cells), "" if within else "  MISS")
    return within


def comparisons(archs: Iterable[str], sources: Iterable[str]) -> Iterable[tuple[str, Any]]:
    """Yields the title and the result of each comparison."""
    for arch in archs:
        for source in sources:
            for size in (originals.IMAGE_SIZE[arch], odd_size(source, arch)):
                yield f"{arch} {source} {size} px", compare(source, arch, size)
        if arch == "inception_v3" and "torchvision" in sources:
            yield f"{arch} torchvision, transform_input", compare_transform_input()
            yield f"{arch} torchvision, auxiliary head", compare_aux()


def check_installed(sources: Iterable[str]) -> None:
    """Exits with one line if an original cannot be imported."""
    wanted = {"torchvision": ("torch", "torchvision"), "keras": ("keras",)}
    packages = [name for source in sources for name in wanted[source]]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is not installed; see `make parity`")


def main(argv: list[str]) -> None:
    """Prints the tables; exits 1 on a miss."""
    del argv
    check_installed(_SOURCE.value)
    for arch in _ARCH.value:
        count, gflops = size_and_cost(arch)
        size = originals.IMAGE_SIZE[arch]
        print(f"{arch:14}{size} px{count:14,} parameters{gflops:8.2f} GFLOPs (multiply-add: 2)")
    print("\nlargest difference / largest value".ljust(45) + "".join(f"{n:>12}" for n in COLUMNS))
    bounds = [f"{BOUNDS[name]:.0e}" if name in BOUNDS else "" for name in COLUMNS]
    print("bound".ljust(44) + "".join(f"{bound:>12}" for bound in bounds))
    results = [report(*each) for each in comparisons(_ARCH.value, _SOURCE.value)]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    app.run(main)
