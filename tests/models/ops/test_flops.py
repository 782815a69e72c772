"""The count of a convolution against the products that it is made of."""

import jax
import jax.numpy as jnp

from medadv_jax.models.ops.flops import layer_flops


def test_counts_of_a_convolution_leave_padding_out() -> None:
    def function(kernel: jax.Array, images: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 1), ((1, 0), (2, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # With ones everywhere each output is the number of products that it is made of.
    kernel, images = jnp.ones((3, 4, 5, 7)), jnp.ones((2, 6, 5, 5))
    assert layer_flops(function, kernel, images) == [2 * int(function(kernel, images).sum())]
