"""Gradients of parameters, which several devices sum in float32 whatever the compute dtype.

A compiler sums what a product leaves: in bfloat16 that is the rounded part of each device, and with
more devices come more roundings. Here each device casts its part first. One device has nothing to
sum, and float32 nothing to cast: then nothing changes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

# (inputs (B, …) in the compute dtype, parameter) -> (B, …); treats every row alone
Layer = Callable[[jax.Array, jax.Array], jax.Array]


def summed_in_float32(layer: Layer, inputs: jax.Array, parameter: jax.Array) -> jax.Array:
    """Returns `layer(inputs, parameter)`, whose gradient to a float32 parameter is a float32 sum.

    Only where `inputs` are of a smaller dtype and split over the one axis of a mesh. Reverse-mode
    gradients only.
    """
    mesh = jax.typeof(inputs).sharding.mesh
    if len(mesh.axis_names) != 1 or mesh.size == 1 or len(inputs) % mesh.size:
        return layer(inputs, parameter)
    if parameter.dtype != jnp.float32 or inputs.dtype == jnp.float32:
        return layer(inputs, parameter)
    (axis,) = mesh.axis_names

    def part(inputs: jax.Array, cotangent: jax.Array, parameter: jax.Array) -> jax.Array:
        (gradient,) = jax.vjp(lambda p: layer(inputs, p), parameter)[1](cotangent)
        # Flat: else XLA keeps the layout of the product, and moves more bytes to change it later.
        return lax.psum(gradient.ravel(), axis).reshape(gradient.shape)

    over_devices = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(PartitionSpec(axis), PartitionSpec(axis), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,  # else the gradient is summed before it is cast
    )

    def backward(
        saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        inputs, parameter = saved
        (to_inputs,) = jax.vjp(lambda x: layer(x, parameter), inputs)[1](cotangent)
        return to_inputs, over_devices(inputs, cotangent, parameter)

    apply = jax.custom_vjp(layer)
    apply.defvjp(lambda x, p: (layer(x, p), (x, p)), backward)
    return apply(inputs, parameter)
