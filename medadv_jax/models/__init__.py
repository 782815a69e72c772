"""The networks, by name.

    net = create_model("resnet50", num_classes=2)
    variables = net.init(jax.random.key(0), images)            # images: (B, H, W, 3), normalised
    logits = net.apply(variables, images, train=False)         # (B, 2) float32; mutates nothing
    logits, updated = net.apply(
        variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )

VGG has no `batch_stats`; ResNet needs no `dropout` key. A new network is one new file here and one
line in each of `MODELS` and `LAST_STAGE`, and, if its head is more than `fc`, in `HEAD`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from medadv_jax.errors import UserError
from medadv_jax.models.inception_v3 import inception_v3
from medadv_jax.models.ops.convolution import resolve_conv_impl
from medadv_jax.models.resnet import resnet50
from medadv_jax.models.vgg import vgg16, vgg19

DTYPES = ("float32", "bfloat16")
Option = bool | int | float | str  # JSON scalars: options are stored beside converted weights

# Fields of the networks' classes that are no options: common arguments, flax's own, and `folded`.
_COMMON = {"num_classes", "width", "dtype", "conv_impl", "folded", "parent", "name"}

# option -> (whether a value is possible, the possible values in words)
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dropout": (lambda rate: 0 <= rate < 1, "a rate from 0 to below 1"),
    "bn_epsilon": (lambda epsilon: epsilon > 0, "a number above 0"),
    "bn_momentum": (lambda momentum: 0 <= momentum <= 1, "a share from 0 to 1"),
}


def create_model(
    name: str,
    num_classes: int = 2,
    width: float = 1.0,
    dtype: Dtype = jnp.float32,
    conv_impl: str = "auto",
    **options: Option,
) -> nn.Module:
    """Returns the network `name`, without parameters.

    Args:
        name: a key of `MODELS`.
        num_classes: the number of logits, at least 1.
        width: multiplies every layer's channels, which are then rounded to a multiple of 8.
        dtype: of the computation, float32 or bfloat16 (or the name). Parameters, the statistics of
            batch normalisation and the logits are always float32.
        conv_impl: implementation of convolutions and pooling, "plain", "cpu", "gpu", or "auto":
            by the backend. Values, gradients and parameters are the same; see `ops/convolution.py`.
        options: differences between the published versions of a network, and its head; see
            `default_options` and the network's class. The defaults are torchvision's network.

    Raises:
        UserError: for an unknown name or option, or an impossible value; it lists the possible.
    """
    if name not in MODELS:
        raise UserError(f"model {name!r} is unknown; choose one of {', '.join(sorted(MODELS))}")
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes} is impossible; give at least 1")
    check_width_and_dtype(width, dtype)
    for option, value in options.items():
        _check_option(name, option, value)
    return MODELS[name](
        num_classes=num_classes,
        width=width,
        dtype=jnp.dtype(dtype),
        conv_impl=resolve_conv_impl(conv_impl),
        **options,
    )


def check_width_and_dtype(width: float, dtype: Dtype) -> None:
    """Raises UserError for a width or compute dtype that no network can have."""
    if not width > 0:
        raise UserError(f"width={width} is impossible; give a number above 0")
    if jnp.dtype(dtype).name not in DTYPES:
        raise UserError(f"dtype={dtype} is not supported; choose one of {', '.join(DTYPES)}")


def default_options(name: str) -> dict[str, Option]:
    """Returns every option of the network `name`, a key of `MODELS`, with its default."""
    module, given = _module(name)
    fields: Any = dataclasses.fields(module)
    return {field.name: field.default for field in fields if field.name not in _COMMON | given}


def _module(name: str) -> tuple[type[nn.Module], set[str]]:
    """The class of the network, and the fields that its line in `MODELS` sets."""
    model: Any = MODELS[name]
    if isinstance(model, functools.partial):
        return model.func, set(model.keywords)  # pyright: ignore[reportReturnType]
    return model, set()


def _check_option(name: str, option: str, value: Option) -> None:
    known = default_options(name)
    if option not in known:
        listed = ", ".join(sorted(known)) or "no options"
        raise UserError(f"option {option!r} of {name} is unknown; it knows {listed}")
    kinds = (int, float) if isinstance(known[option], float) else (type(known[option]),)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(known[option], bool):
        raise UserError(f"option {option}={value!r} of {name} must be a {kinds[-1].__name__}")
    choices = getattr(_module(name)[0], "CHOICES", {}).get(option, (value,))
    if value not in choices:
        raise UserError(
            f"option {option}={value!r} of {name} is unknown; choose one of {', '.join(choices)}"
        )
    possible, what = _RANGES.get(option, (lambda _: True, ""))
    if not possible(value):
        raise UserError(f"option {option}={value} of {name} is impossible; give {what}")


MODELS: dict[str, Callable[..., nn.Module]] = {
    "inception_v3": inception_v3,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "vgg19": vgg19,
}

# The layers of the head and of the last stage, the names at the top of "params" and "batch_stats".
# `AuxLogits` is a head too, where it is.
HEAD: dict[str, tuple[str, ...]] = {
    "inception_v3": ("AuxLogits", "fc"),
    "resnet50": ("fc",),
    "vgg16": ("fc1", "fc2", "fc"),
    "vgg19": ("fc1", "fc2", "fc"),
}
LAST_STAGE: dict[str, tuple[str, ...]] = {
    "inception_v3": ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    "resnet50": ("layer4_0", "layer4_1", "layer4_2"),
    "vgg16": ("conv5_1", "conv5_2", "conv5_3"),
    "vgg19": ("conv5_1", "conv5_2", "conv5_3", "conv5_4"),
}
