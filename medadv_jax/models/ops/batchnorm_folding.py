"""Prepares a network for an attack, which runs it many times with the same weights.

BatchNorm in eval mode is affine, so it is folded into the convolution before it: layer `…bn…` into
its neighbour `…conv…`. For conv_impl "cpu", some kernels are also transformed once (`spectrum` in
`convolution.py`). Parameters are cast to the compute dtype once, which each pass would do else. The
network computes the same function up to rounding.

Each layer is compiled, but not `fold`: a compiled function copies the arrays that it passes on, and
the head of VGG16 alone is half a GB.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from medadv_jax.models.ops import convolution

Tree = Mapping[str, Any]
HEAD_LAYER = "fc"  # of every network; see `Dense` in `layers.py`


def folded_network(network: nn.Module) -> nn.Module:
    """Returns the network for the variables of `fold`; the same network if it has no BatchNorm."""
    return network.clone(folded=True) if hasattr(network, "folded") else network


def fold(network: nn.Module, variables: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables of `folded_network(network)`.

    Args:
        network: from `create_model`.
        variables: its "params" and "batch_stats"; other collections are kept as they are.

    Returns:
        The variables with scaled kernels (KH, KW, C, F), a bias (F,) for each, and no BatchNorm;
        and the collection "spectra" if the network's conv_impl is "cpu" and a kernel has one.
        Parameters and spectra have the compute dtype; see `in_compute_dtype`.
    """
    if hasattr(network, "folded"):
        epsilon: float = network.bn_epsilon  # pyright: ignore[reportAttributeAccessIssue]
        params = _fold(variables["params"], variables["batch_stats"], epsilon)
        variables = {**variables, "params": params, "batch_stats": {}}
    spectra = _spectra(variables["params"]) if getattr(network, "conv_impl", "") == "cpu" else {}
    variables = {**variables, "spectra": spectra} if spectra else variables
    own = {name: variables[name] for name in ("params", "spectra") if name in variables}
    cast = in_compute_dtype(network, own)
    return variables if cast is own else {**variables, **cast}


def in_compute_dtype(module: nn.Module, params: Tree) -> Tree:
    """Returns the parameters of a network or purifier in its compute dtype, the same tree if that
    is float32; the head `fc` stays float32, as it computes."""
    dtype = getattr(module, "dtype", jnp.float32)
    if dtype == jnp.float32:
        return params

    def cast(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
        names = [getattr(entry, "key", None) for entry in path]
        return value if HEAD_LAYER in names else value.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def _spectra(params: Tree) -> dict[str, Any]:
    """The tree of the spectra of those kernels that have one."""
    kernel = params.get("kernel")
    if kernel is not None:
        return {"kernel": convolution.spectrum(kernel)} if convolution.has_spectrum(kernel) else {}
    found = {name: _spectra(value) for name, value in params.items() if isinstance(value, Mapping)}
    return {name: value for name, value in found.items() if value}


def _fold(params: Tree, statistics: Tree, epsilon: float) -> dict[str, Any]:
    folded: dict[str, Any] = {}
    for name, value in params.items():
        norm = name.replace("conv", "bn")
        if "conv" in name and norm in statistics:
            folded[name] = _fold_one(value, params[norm], statistics[norm], epsilon=epsilon)
        elif name not in statistics or "kernel" in value:
            folded[name] = value  # a layer without BatchNorm, such as the head
        elif "mean" not in statistics[name]:
            folded[name] = _fold(value, statistics[name], epsilon)
    return folded


@functools.partial(jax.jit, static_argnames="epsilon")
def _fold_one(conv: Tree, norm: Tree, statistics: Tree, epsilon: float) -> dict[str, jax.Array]:
    factor = lax.rsqrt(statistics["var"] + epsilon) * norm.get("scale", 1.0)
    kernel: jax.Array = conv["kernel"]
    shift = conv.get("bias", 0.0) - statistics["mean"]
    return {
        "kernel": kernel * factor.reshape(1, 1, 1, -1),
        "bias": shift * factor + norm["bias"],
    }
