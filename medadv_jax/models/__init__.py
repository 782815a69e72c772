"""The networks, by name. They know no data and no attack.

    net = create_model("resnet50", num_classes=2)
    variables = net.init(jax.random.key(0), images)            # images: (B, H, W, 3), normalised
    logits = net.apply(variables, images, train=False)         # (B, 2) float32; mutates nothing
    logits, updated = net.apply(variables, images, train=True, mutable=["batch_stats"])

A new network is one new file here and one line in `MODELS`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from medadv_jax.errors import UserError
from medadv_jax.models.forms import resolve_forms
from medadv_jax.models.resnet import resnet50

DTYPES = ("float32", "bfloat16")


def create_model(
    name: str,
    num_classes: int = 2,
    width: float = 1.0,
    dtype: Dtype = jnp.float32,
    forms: str = "auto",
) -> nn.Module:
    """Returns the network `name`, without parameters.

    Args:
        name: a key of `MODELS`.
        num_classes: the number of logits, at least 1.
        width: multiplies every layer's channels, which are then rounded to a multiple of 8.
        dtype: of the computation, float32 or bfloat16 (or the name). Parameters, the statistics of
            batch normalisation and the logits are float32 all the same.
        forms: "plain", "cpu", or "auto": what the backend is quick at. Values, gradients and
            parameters are the same (see `forms.py`).

    Raises:
        UserError: for an unknown name or form, or an impossible number; it says what is possible.
    """
    if name not in MODELS:
        raise UserError(f"model {name!r} is unknown; choose one of {', '.join(sorted(MODELS))}")
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes} is impossible; give at least 1")
    if not width > 0:
        raise UserError(f"width={width} is impossible; give a number above 0")
    if jnp.dtype(dtype).name not in DTYPES:
        raise UserError(f"dtype={dtype} is not supported; choose one of {', '.join(DTYPES)}")
    return MODELS[name](
        num_classes=num_classes, width=width, dtype=jnp.dtype(dtype), forms=resolve_forms(forms)
    )


MODELS: dict[str, Callable[..., nn.Module]] = {"resnet50": resnet50}
